//! Floating-point operations of the passes, counted from the shapes: `2 m n k` for a matrix product, for attention
//! `4 B H Sq Sk D` forward and 2.5 times that backward, nothing else. Only what the result needs is counted: a block that
//! is run again because its activations were not kept counts once.

use std::iter::Sum;
use std::ops::{Add, Mul};

use crate::model::{FREQUENCIES, HeadsShape, MLP_RATIO, ModelConfig, Shape};

/// Floating-point operations, by what does them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flops {
    /// Matrix products.
    pub linear: u64,
    /// Attention.
    pub attention: u64,
    /// Convolutions of the heads.
    pub convolution: u64,
}

impl Flops {
    /// All of them.
    pub fn total(self) -> u64 {
        self.linear + self.attention + self.convolution
    }
}

impl Add for Flops {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            linear: self.linear + other.linear,
            attention: self.attention + other.attention,
            convolution: self.convolution + other.convolution,
        }
    }
}

impl Mul<u64> for Flops {
    type Output = Self;

    fn mul(self, times: u64) -> Self {
        Self { linear: self.linear * times, attention: self.attention * times, convolution: self.convolution * times }
    }
}

impl Sum for Flops {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

/// What is computed of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Its outputs.
    Forward,
    /// Gradients of its weights; the latent gets none.
    Backward,
    /// The gradient of the latent through a frozen network.
    FrozenBackward,
}

/// A dense layer in a pass.
struct Layer {
    rows: usize,
    inputs: usize,
    outputs: usize,
    /// Whether the gradient of its input is needed: for gradients of weights, for that of the latent.
    input_gradient: [bool; 2],
}

impl Layer {
    fn flops(&self, pass: Pass) -> Flops {
        let once = 2 * (self.rows * self.inputs * self.outputs) as u64;
        let products = match pass {
            Pass::Forward => 1,
            Pass::Backward => 1 + u64::from(self.input_gradient[0]),
            Pass::FrozenBackward => u64::from(self.input_gradient[1]),
        };
        Flops { linear: once * products, ..Flops::default() }
    }
}

impl ModelConfig {
    /// Operations of a pass through the first `blocks` blocks, and through the final layer where `velocity` is asked for.
    pub fn flops(&self, shape: Shape, blocks: usize, velocity: bool, pass: Pass) -> Flops {
        let h = self.hidden();
        let (batch, patch_width) = (shape.batch, self.in_channels * self.patch * self.patch);
        let image = shape.height / self.patch * (shape.width / self.patch);
        let rows = [batch * image, batch * shape.text];
        let (inner, weights_only, latent_only) = ([true; 2], [true, false], [false, true]);
        let layer = |rows, inputs, outputs, input_gradient| Layer { rows, inputs, outputs, input_gradient }.flops(pass);
        let attention = |queries: usize, keys: usize| {
            let forward = 4 * (batch * self.heads * queries * keys * self.head_dim) as u64;
            Flops { attention: if pass == Pass::Forward { forward } else { forward * 5 / 2 }, ..Flops::default() }
        };

        let mut parts = vec![
            layer(rows[0], patch_width, h, latent_only),
            layer(rows[0], self.conditioning_channels * self.patch * self.patch, h, [false; 2]),
            layer(rows[1], self.context_dim, h, [false; 2]),
            layer(batch, FREQUENCIES, h, [false; 2]),
            layer(batch, h, h, weights_only),
            layer(batch, self.pooled_dim, h, [false; 2]),
            layer(batch, h, h, weights_only),
        ];
        let mut modulation = if velocity || blocks == self.depth { 2 * h } else { 0 };
        for block in 0..blocks {
            let dual = block < self.dual_attention_blocks;
            modulation += (if dual { 9 } else { 6 } + if block + 1 == self.depth { 2 } else { 6 }) * h;
            let stream = |rows: usize| {
                let mlp = [(h, MLP_RATIO * h), (MLP_RATIO * h, h)];
                let layers = [(h, h)].into_iter().chain(mlp);
                layers.map(|(inputs, outputs)| layer(rows, inputs, outputs, inner)).sum::<Flops>()
            };
            // The context that enters the first block does not depend on the latent.
            let text_input = if block == 0 { weights_only } else { inner };
            parts.extend([layer(rows[0], h, 3 * h, inner), layer(rows[1], h, 3 * h, text_input), stream(rows[0])]);
            if block + 1 < blocks {
                parts.extend([stream(rows[1]), attention(image + shape.text, image + shape.text)]);
            } else {
                parts.push(attention(image, image + shape.text));
            }
            if dual {
                parts.extend([layer(rows[0], h, 3 * h, inner), layer(rows[0], h, h, inner), attention(image, image)]);
            }
        }
        parts.push(layer(batch, h, modulation, weights_only));
        if velocity {
            parts.push(layer(rows[0], h, patch_width, inner));
        }
        parts.into_iter().sum()
    }
}

/// What is computed of the discriminator heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadsPass {
    /// Logits.
    Forward,
    /// Gradients of their weights.
    BackwardWeights,
    /// Gradients of the features.
    BackwardFeatures,
}

impl HeadsShape {
    /// Operations of a pass over `samples` samples of `positions` token positions. The two dot products that make a logit
    /// are not counted.
    pub fn flops(&self, samples: usize, positions: usize, pass: HeadsPass) -> Flops {
        let (rows, w) = (samples * positions, self.width);
        let product = |rows: usize, inputs: usize, outputs: usize| 2 * (rows * inputs * outputs) as u64;
        let conv_in = product(rows, self.hidden, w);
        let conv_mid = product(rows, 9 * w, w);
        let conv_out = product(rows, w, w);
        let condition = [product(samples, FREQUENCIES + self.pooled, w), product(samples, w, w)];
        let (linear, convolution) = match pass {
            HeadsPass::Forward => (conv_in + conv_out + condition[0] + condition[1], conv_mid),
            HeadsPass::BackwardWeights => (conv_in + 2 * conv_out + condition[0] + 2 * condition[1], 2 * conv_mid),
            HeadsPass::BackwardFeatures => (conv_in + conv_out, conv_mid),
        };
        Flops { linear, convolution, attention: 0 } * self.count as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hidden 4, 4 image tokens of 4 values, 3 text tokens.
    fn small(dual: usize) -> (ModelConfig, Shape) {
        let config = ModelConfig {
            depth: 2,
            heads: 2,
            head_dim: 2,
            in_channels: 1,
            patch: 2,
            context_dim: 5,
            pooled_dim: 6,
            pos_embed_max: 2,
            qk_norm: false,
            dual_attention_blocks: dual,
            conditioning_channels: 0,
        };
        (config, Shape { batch: 1, height: 4, width: 4, text: 3 })
    }

    #[test]
    fn a_forward_is_what_a_hand_counts() {
        let (config, shape) = small(0);
        let embed = 4 * 4 * 4 + 3 * 5 * 4 + (256 * 4 + 4 * 4) + (6 * 4 + 4 * 4);
        // Image: qkv 4x12, proj 4x4, mlp 4x16 and 16x4, of 4 rows in 2 blocks. Text, 3 rows: the same, then only qkv.
        let blocks = 2 * 4 * (48 + 16 + 64 + 64) + 3 * (48 + 16 + 64 + 64) + 3 * 48;
        let modulation = 4 * (12 + 8 + 2) * 4;
        let last = 4 * 4 * 4;
        let count = config.flops(shape, 2, true, Pass::Forward);
        assert_eq!(count.linear, 2 * (embed + blocks + modulation + last));
        // 2 heads of width 2: 7 tokens ask 7, then only the 4 image tokens ask.
        assert_eq!(count.attention, 4 * 2 * 2 * (7 * 7 + 4 * 7));
        let dual = small(1).0.flops(shape, 2, true, Pass::Forward);
        assert_eq!(dual.linear - count.linear, 2 * (4 * (48 + 16) + 4 * 12));
        assert_eq!(dual.attention - count.attention, 4 * 2 * 2 * 4 * 4);
    }

    #[test]
    fn backward_passes_are_what_a_hand_counts() {
        let (config, shape) = small(0);
        let forward = config.flops(shape, 2, true, Pass::Forward);
        let trained = config.flops(shape, 2, true, Pass::Backward);
        // Twice the forward, without the inputs' gradients of the five layers that read what is given.
        assert_eq!(trained.linear, 2 * forward.linear - 2 * (4 * 4 * 4 + 3 * 5 * 4 + 256 * 4 + 6 * 4));
        assert_eq!(trained.attention, 10 * 2 * 2 * (7 * 7 + 4 * 7));
        let frozen = config.flops(shape, 2, false, Pass::FrozenBackward);
        // Every layer of the blocks but the first block's text qkv, and the patch embedding.
        let blocks = 2 * 4 * (48 + 16 + 64 + 64) + 3 * (16 + 64 + 64) + 3 * 48;
        assert_eq!(frozen.linear, 2 * (blocks + 4 * 4 * 4));
        assert_eq!(frozen.attention, trained.attention);
    }

    #[test]
    fn features_of_an_early_block_cost_no_later_one() {
        let (config, shape) = small(0);
        let early = config.flops(shape, 1, false, Pass::Forward);
        let embed = 4 * 4 * 4 + 3 * 5 * 4 + (256 * 4 + 4 * 4) + (6 * 4 + 4 * 4);
        assert_eq!(early.linear, 2 * (embed + 4 * (48 + 16 + 64 + 64) + 3 * 48 + 4 * 12 * 4));
        assert_eq!(early.attention, 4 * 2 * 2 * 4 * 7);
    }

    #[test]
    fn heads_are_what_a_hand_counts() {
        let shape = HeadsShape { count: 3, hidden: 5, width: 4, pooled: 6 };
        let forward = shape.flops(2, 7, HeadsPass::Forward);
        assert_eq!(forward.linear, 3 * 2 * (14 * (5 * 4 + 4 * 4) + 2 * (262 * 4 + 4 * 4)));
        assert_eq!(forward.convolution, 3 * 2 * 14 * 36 * 4);
        let weights = shape.flops(2, 7, HeadsPass::BackwardWeights);
        assert_eq!(weights.linear, 3 * 2 * (14 * (5 * 4 + 2 * 4 * 4) + 2 * (262 * 4 + 2 * 4 * 4)));
        let features = shape.flops(2, 7, HeadsPass::BackwardFeatures);
        assert_eq!((features.linear, features.convolution), (3 * 2 * 14 * (5 * 4 + 4 * 4), forward.convolution));
    }

    #[test]
    fn a_forward_of_sd3_medium_costs_twice_its_weights_a_token_and_its_attention() {
        let (depth, heads) = (24, 24);
        let config = ModelConfig {
            depth,
            heads,
            head_dim: 64,
            context_dim: 4096,
            pooled_dim: 2048,
            pos_embed_max: 192,
            in_channels: 16,
            ..small(0).0
        };
        let count = config.flops(Shape { batch: 1, height: 128, width: 128, text: 154 }, depth, true, Pass::Forward);
        // 12 h^2 weights in each stream of each block.
        let dense = 2.0 * 24.0 * 12.0 * 1536.0 * 1536.0 * 4250.0;
        assert!((count.linear as f64 / dense - 1.0).abs() < 0.01, "{count:?}, {dense}");
        assert!((count.attention as f64 / (24.0 * 4.0 * 24.0 * 64.0 * 4250.0 * 4250.0) - 1.0).abs() < 0.01, "{count:?}");
    }
}
