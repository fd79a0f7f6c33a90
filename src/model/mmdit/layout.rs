//! Where the MMDiT's tensors lie in the arena, under the names of SD3's original checkpoint.
//!
//! The adaLN projections of all blocks come first and without gaps, so that one product computes the modulations of the
//! whole network: a table `[B, stride]` in which each stream of each block owns a run of columns.

use crate::device::{Linear, Modulation};
use crate::model::{FREQUENCIES, Layout, MLP_RATIO, ModelConfig};

use super::conditioning::CONDITIONING;

/// One attention of one stream.
#[derive(Clone, Debug)]
pub struct AttentionLayout {
    /// Fused projection to queries, keys and values.
    pub qkv: Linear,
    /// RMSNorm weights of queries and keys.
    pub norm: Option<(usize, usize)>,
    /// Output projection; the last block's context has none.
    pub proj: Option<Linear>,
}

/// One stream (image or text) of one block.
#[derive(Clone, Debug)]
pub struct StreamLayout {
    /// First column in the modulation table.
    pub columns: usize,
    hidden: usize,
    /// Joint attention.
    pub attn: AttentionLayout,
    /// The image-only attention of SD3.5-medium.
    pub attn2: Option<AttentionLayout>,
    /// The two layers of the MLP; the last block's context has none.
    pub mlp: Option<(Linear, Linear)>,
}

impl StreamLayout {
    fn chunk(&self, index: usize) -> usize {
        self.columns + index * self.hidden
    }

    /// Shift and scale before the joint attention.
    pub fn before_attention(&self) -> Modulation {
        Modulation { shift: self.chunk(0), scale: self.chunk(1) }
    }

    /// Gate of the joint attention.
    pub fn attention_gate(&self) -> usize {
        self.chunk(2)
    }

    /// Shift and scale before the MLP.
    pub fn before_mlp(&self) -> Modulation {
        Modulation { shift: self.chunk(3), scale: self.chunk(4) }
    }

    /// Gate of the MLP.
    pub fn mlp_gate(&self) -> usize {
        self.chunk(5)
    }

    /// Shift and scale before the image-only attention.
    pub fn before_attention2(&self) -> Modulation {
        Modulation { shift: self.chunk(6), scale: self.chunk(7) }
    }

    /// Gate of the image-only attention.
    pub fn attention2_gate(&self) -> usize {
        self.chunk(8)
    }
}

/// One joint block.
#[derive(Clone, Debug)]
pub struct BlockLayout {
    /// The image stream.
    pub image: StreamLayout,
    /// The text stream.
    pub text: StreamLayout,
}

/// The whole network.
#[derive(Clone, Debug)]
pub struct MmditLayout {
    /// Names, shapes and offsets.
    pub arena: Layout,
    /// All adaLN projections as one layer; its outputs are the table's columns.
    pub adaln: Linear,
    /// Patch embedding of the noisy latent.
    pub x_embedder: Linear,
    /// Patch embedding of the conditioning, added to the former: `W [x; c] = W_x x + W_c c`.
    pub conditioning_embedder: Option<Linear>,
    /// Context embedding.
    pub context_embedder: Linear,
    /// The timestep MLP.
    pub t_mlp: [Linear; 2],
    /// The pooled-text MLP.
    pub y_mlp: [Linear; 2],
    /// The blocks.
    pub blocks: Vec<BlockLayout>,
    /// Shift and scale before the final layer.
    pub final_modulation: Modulation,
    /// The final layer.
    pub final_linear: Linear,
}

fn chunks(config: &ModelConfig, block: usize) -> [usize; 2] {
    let image = if block < config.dual_attention_blocks { 9 } else { 6 };
    let text = if block + 1 == config.depth { 2 } else { 6 };
    [image, text]
}

impl MmditLayout {
    /// Lays out the network of `config`.
    pub fn new(config: &ModelConfig) -> Self {
        let h = config.hidden();
        let mut arena = Layout::default();

        let mut projections: Vec<(String, usize)> = Vec::new();
        for block in 0..config.depth {
            for (stream, chunks) in ["x_block", "context_block"].into_iter().zip(chunks(config, block)) {
                projections.push((format!("joint_blocks.{block}.{stream}.adaLN_modulation.1"), chunks * h));
            }
        }
        projections.push(("final_layer.adaLN_modulation.1".into(), 2 * h));
        let stride = projections.iter().map(|(_, outputs)| outputs).sum();
        let weights: Vec<usize> =
            projections.iter().map(|(name, outputs)| arena.push_packed(format!("{name}.weight"), &[*outputs, h])).collect();
        let biases: Vec<usize> = projections.iter().map(|(name, outputs)| arena.push_packed(format!("{name}.bias"), &[*outputs])).collect();
        let adaln = Linear { weight: weights[0], bias: biases[0], inputs: h, outputs: stride };
        let columns: Vec<usize> = biases.iter().map(|bias| bias - biases[0]).collect();

        let (p, c) = (config.patch, config.in_channels);
        let x_embedder = arena.shaped_linear("x_embedder.proj", &[h, c, p, p]);
        let conditioning_embedder = (config.conditioning_channels > 0).then(|| {
            let shape = [h, config.conditioning_channels, p, p];
            Linear { weight: arena.push(CONDITIONING, &shape), bias: Linear::NO_BIAS, inputs: shape[1] * p * p, outputs: h }
        });
        let context_embedder = arena.linear("context_embedder", h, config.context_dim);
        let mut mlp =
            |name: &str, inputs| [arena.linear(&format!("{name}.mlp.0"), h, inputs), arena.linear(&format!("{name}.mlp.2"), h, h)];
        let t_mlp = mlp("t_embedder", FREQUENCIES);
        let y_mlp = mlp("y_embedder", config.pooled_dim);
        let blocks = (0..config.depth)
            .map(|block| {
                let last = block + 1 == config.depth;
                let name = format!("joint_blocks.{block}");
                BlockLayout {
                    image: stream(
                        &mut arena,
                        config,
                        &format!("{name}.x_block"),
                        columns[2 * block],
                        false,
                        block < config.dual_attention_blocks,
                    ),
                    text: stream(&mut arena, config, &format!("{name}.context_block"), columns[2 * block + 1], last, false),
                }
            })
            .collect();
        let last_column = columns[columns.len() - 1];
        Self {
            adaln,
            x_embedder,
            conditioning_embedder,
            context_embedder,
            t_mlp,
            y_mlp,
            blocks,
            final_modulation: Modulation { shift: last_column, scale: last_column + h },
            final_linear: arena.linear("final_layer.linear", p * p * c, h),
            arena,
        }
    }

    /// The adaLN layer cut to the columns that the first `blocks` blocks need, and the final layer's where `velocity`.
    pub fn adaln_for(&self, blocks: usize, velocity: bool) -> Linear {
        if velocity || blocks == self.blocks.len() {
            return self.adaln;
        }
        Linear { outputs: self.blocks[blocks].image.columns, ..self.adaln }
    }
}

fn attention(arena: &mut Layout, config: &ModelConfig, name: &str, pre_only: bool) -> AttentionLayout {
    let h = config.hidden();
    let qkv = arena.linear(&format!("{name}.qkv"), 3 * h, h);
    let norm = config.qk_norm.then(|| {
        let mut norm = |which| arena.push(format!("{name}.{which}.weight"), &[config.head_dim]);
        (norm("ln_q"), norm("ln_k"))
    });
    let proj = (!pre_only).then(|| arena.linear(&format!("{name}.proj"), h, h));
    AttentionLayout { qkv, norm, proj }
}

fn stream(arena: &mut Layout, config: &ModelConfig, name: &str, columns: usize, pre_only: bool, dual: bool) -> StreamLayout {
    let h = config.hidden();
    StreamLayout {
        columns,
        hidden: h,
        attn: attention(arena, config, &format!("{name}.attn"), pre_only),
        attn2: dual.then(|| attention(arena, config, &format!("{name}.attn2"), false)),
        mlp: (!pre_only).then(|| {
            let fc1 = arena.linear(&format!("{name}.mlp.fc1"), MLP_RATIO * h, h);
            (fc1, arena.linear(&format!("{name}.mlp.fc2"), h, MLP_RATIO * h))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(depth: usize, heads: usize, qk_norm: bool, dual: usize, grid: usize) -> usize {
        let config = ModelConfig {
            depth,
            heads,
            head_dim: 64,
            in_channels: 16,
            patch: 2,
            context_dim: 4096,
            pooled_dim: 2048,
            pos_embed_max: grid,
            qk_norm,
            dual_attention_blocks: dual,
            conditioning_channels: 0,
        };
        MmditLayout::new(&config).arena.parameters()
    }

    #[test]
    fn parameter_counts_are_those_of_the_published_models() {
        // Without the stored positional grid; the published counts are 2.03 B, 2.24 B (2.5 B with the grid) and 8.06 B.
        assert_eq!((count(24, 24, false, 0, 192) as f64 / 1e7).round(), 203.0);
        assert_eq!((count(24, 24, true, 13, 384) as f64 / 1e7).round(), 224.0);
        assert_eq!((count(38, 38, true, 0, 192) as f64 / 1e7).round(), 806.0);
    }
}
