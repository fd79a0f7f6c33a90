//! What a forward pass keeps and what a backward pass needs for room, planned once per shape.

use crate::device::{AdalnShape, AttentionShape, Backend, DeviceError, PatchOrder, PatchShape, QkNormShape};
use crate::model::{FREQUENCIES, MLP_RATIO, ModelConfig};

use super::layout::{AttentionLayout, MmditLayout};

/// Sizes of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Batch size.
    pub batch: usize,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
    /// Text tokens.
    pub text: usize,
}

/// What a pass computes and keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Sizes.
    pub shape: Shape,
    /// How many blocks run; fewer than the model has where only early features are tapped.
    pub blocks: usize,
    /// Whether the final layer runs. It needs all blocks.
    pub velocity: bool,
    /// Keep only each block's input, and run the block again in the backward. Also the plan for inference.
    pub checkpointing: bool,
}

/// Everything that depends on the sizes alone.
#[derive(Clone, Debug)]
pub(super) struct Dims {
    pub grid: (usize, usize),
    pub image: usize,
    pub text: usize,
    pub hidden: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub stride: usize,
}

impl Dims {
    pub fn new(config: &ModelConfig, layout: &MmditLayout, plan: &Plan) -> Self {
        let grid = (plan.shape.height / config.patch, plan.shape.width / config.patch);
        Self {
            grid,
            image: grid.0 * grid.1,
            text: plan.shape.text,
            hidden: config.hidden(),
            heads: config.heads,
            head_dim: config.head_dim,
            stride: layout.adaln_for(plan.blocks, plan.velocity).outputs,
        }
    }

    pub fn adaln(&self, batch: usize, tokens: usize) -> AdalnShape {
        AdalnShape { batch, tokens, hidden: self.hidden, stride: self.stride }
    }

    pub fn attention(&self, batch: usize, text_queries: bool) -> AttentionShape {
        AttentionShape { batch, heads: self.heads, head_dim: self.head_dim, image: self.image, text: self.text, text_queries }
    }

    pub fn attention2(&self, batch: usize) -> AttentionShape {
        AttentionShape { text: 0, ..self.attention(batch, false) }
    }

    pub fn image_qk(&self, batch: usize, layout: &AttentionLayout, joint: bool) -> QkNormShape {
        let sequence = if joint { self.image + self.text } else { self.image };
        QkNormShape { batch, tokens: self.image, heads: self.heads, head_dim: self.head_dim, sequence, start: 0, norm: layout.norm }
    }

    pub fn text_qk(&self, batch: usize, layout: &AttentionLayout) -> QkNormShape {
        QkNormShape { tokens: self.text, start: self.image, ..self.image_qk(batch, layout, true) }
    }

    pub fn patches(&self, config: &ModelConfig, batch: usize, order: PatchOrder) -> PatchShape {
        let patch = config.patch;
        PatchShape { batch, channels: config.in_channels, height: self.grid.0 * patch, width: self.grid.1 * patch, patch, order }
    }
}

/// Kept by one attention.
#[derive(Debug)]
pub(super) struct AttentionActivations<B: Backend> {
    pub qkv_image: B::Data,
    pub qkv_text: B::Data,
    pub rstd_image: B::Stat,
    pub rstd_text: B::Stat,
    pub q: B::Data,
    pub k: B::Data,
    pub v: B::Data,
    pub lse: B::Stat,
    pub out_image: B::Data,
    pub out_text: B::Data,
}

impl<B: Backend> AttentionActivations<B> {
    fn new(b: &B, batch: usize, d: &Dims, text: usize, text_out: bool) -> Result<Self, DeviceError> {
        let (h, joint) = (d.hidden, batch * (d.image + text) * d.hidden);
        let rows = [batch * d.image, batch * text];
        Ok(Self {
            qkv_image: b.alloc_data(rows[0] * 3 * h)?,
            qkv_text: b.alloc_data(rows[1] * 3 * h)?,
            rstd_image: b.alloc_stat(rows[0] * 2 * d.heads)?,
            rstd_text: b.alloc_stat(rows[1] * 2 * d.heads)?,
            q: b.alloc_data(joint)?,
            k: b.alloc_data(joint)?,
            v: b.alloc_data(joint)?,
            lse: b.alloc_stat(batch * d.heads * (d.image + text))?,
            out_image: b.alloc_data(rows[0] * h)?,
            out_text: b.alloc_data(if text_out { rows[1] * h } else { 0 })?,
        })
    }
}

/// Kept by one stream behind the attention.
#[derive(Debug)]
pub(super) struct StreamActivations<B: Backend> {
    pub proj: B::Data,
    pub mid: B::Data,
    pub norm: B::Data,
    pub stats: B::Stat,
    pub pre: B::Data,
    pub act: B::Data,
    pub y: B::Data,
}

impl<B: Backend> StreamActivations<B> {
    fn new(b: &B, rows: usize, h: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            proj: b.alloc_data(rows * h)?,
            mid: b.alloc_data(rows * h)?,
            norm: b.alloc_data(rows * h)?,
            stats: b.alloc_stat(rows * 2)?,
            pre: b.alloc_data(rows * MLP_RATIO * h)?,
            act: b.alloc_data(rows * MLP_RATIO * h)?,
            y: b.alloc_data(rows * h)?,
        })
    }
}

/// Kept by one block, its inputs and their norms apart.
#[derive(Debug)]
pub(super) struct BlockActivations<B: Backend> {
    pub attn: AttentionActivations<B>,
    /// The image-only attention, and its projection.
    pub attn2: Option<(AttentionActivations<B>, B::Data)>,
    pub image: StreamActivations<B>,
    pub text: Option<StreamActivations<B>>,
}

/// Modulated norms that a block's projections read.
#[derive(Debug)]
pub(super) struct NormActivations<B: Backend> {
    pub image: B::Data,
    pub image2: Option<B::Data>,
    pub text: B::Data,
}

/// Everything a forward pass keeps.
#[derive(Debug)]
pub struct Activations<B: Backend> {
    pub(super) plan: Plan,
    /// Batch of the last forward.
    pub(super) batch: usize,
    pub(super) dims: Dims,
    pub(super) tokens: B::Data,
    pub(super) frequencies: B::Data,
    pub(super) t_pre: B::Data,
    pub(super) t_act: B::Data,
    pub(super) y_pre: B::Data,
    pub(super) y_act: B::Data,
    pub(super) condition: B::Data,
    pub(super) embedding: B::Data,
    pub(super) table: B::Data,
    /// The residual streams between the blocks: `image[i]` enters block i, `image[blocks]` leaves the last.
    pub(super) image: Vec<B::Data>,
    pub(super) text: Vec<B::Data>,
    pub(super) image_stats: Vec<B::Stat>,
    pub(super) text_stats: Vec<B::Stat>,
    /// One per block, or a single one with checkpointing.
    pub(super) norms: Vec<NormActivations<B>>,
    pub(super) blocks: Vec<BlockActivations<B>>,
    pub(super) final_norm: B::Data,
    pub(super) final_stats: B::Stat,
    pub(super) final_tokens: B::Data,
}

impl<B: Backend> Activations<B> {
    pub(super) fn new(b: &B, config: &ModelConfig, layout: &MmditLayout, plan: Plan) -> Result<Self, DeviceError> {
        let d = Dims::new(config, layout, &plan);
        let (batch, h) = (plan.shape.batch, d.hidden);
        let rows = [batch * d.image, batch * d.text];
        let patch_width = layout.final_linear.outputs;
        let many = |count: usize, len: usize| (0..count).map(|_| b.alloc_data(len)).collect::<Result<Vec<_>, _>>();
        let stats = |len: usize| (0..plan.blocks).map(|_| b.alloc_stat(len)).collect::<Result<Vec<_>, _>>();
        let kept = if plan.checkpointing { 1 } else { plan.blocks };
        // With checkpointing one set of buffers serves every block, so it needs whatever any of them needs.
        let dual = |i: usize| if plan.checkpointing { config.dual_attention_blocks > 0 } else { layout.blocks[i].image.attn2.is_some() };
        let text_out = |i: usize| if plan.checkpointing { plan.blocks > 1 } else { i + 1 < plan.blocks };
        let mut norms = Vec::new();
        let mut blocks = Vec::new();
        for i in 0..kept {
            norms.push(NormActivations {
                image: b.alloc_data(rows[0] * h)?,
                image2: dual(i).then(|| b.alloc_data(rows[0] * h)).transpose()?,
                text: b.alloc_data(rows[1] * h)?,
            });
            let attn2 = || Ok((AttentionActivations::new(b, batch, &d, 0, false)?, b.alloc_data(rows[0] * h)?));
            blocks.push(BlockActivations {
                attn: AttentionActivations::new(b, batch, &d, d.text, text_out(i))?,
                attn2: dual(i).then(attn2).transpose()?,
                image: StreamActivations::new(b, rows[0], h)?,
                text: text_out(i).then(|| StreamActivations::new(b, rows[1], h)).transpose()?,
            });
        }
        let final_rows = if plan.velocity { rows[0] } else { 0 };
        Ok(Self {
            tokens: b.alloc_data(rows[0] * patch_width)?,
            frequencies: b.alloc_data(batch * FREQUENCIES)?,
            t_pre: b.alloc_data(batch * h)?,
            t_act: b.alloc_data(batch * h)?,
            y_pre: b.alloc_data(batch * h)?,
            y_act: b.alloc_data(batch * h)?,
            condition: b.alloc_data(batch * h)?,
            embedding: b.alloc_data(batch * h)?,
            table: b.alloc_data(batch * d.stride)?,
            image: many(plan.blocks + 1, rows[0] * h)?,
            text: many(plan.blocks, rows[1] * h)?,
            image_stats: stats(rows[0] * 2)?,
            text_stats: stats(rows[1] * 2)?,
            norms,
            blocks,
            final_norm: b.alloc_data(final_rows * h)?,
            final_stats: b.alloc_stat(final_rows * 2)?,
            final_tokens: b.alloc_data(final_rows * patch_width)?,
            plan,
            batch: 0,
            dims: d,
        })
    }

    /// What this was planned for.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Token grid of the image stream.
    pub fn grid(&self) -> (usize, usize) {
        self.dims.grid
    }

    /// The image stream after block `index`, `[B * N, h]`.
    pub fn feature(&self, index: usize) -> &B::Data {
        &self.image[index + 1]
    }
}

/// Room for a backward pass; one set serves all blocks.
#[derive(Debug)]
pub struct Gradients<B: Backend> {
    pub(super) image: B::Data,
    pub(super) text: B::Data,
    pub(super) norm_image: B::Data,
    pub(super) norm_image2: B::Data,
    pub(super) norm_text: B::Data,
    pub(super) branch_image: B::Data,
    pub(super) branch_image2: B::Data,
    pub(super) branch_text: B::Data,
    pub(super) hidden: B::Data,
    pub(super) qkv_image: B::Data,
    pub(super) qkv_text: B::Data,
    pub(super) q: B::Data,
    pub(super) k: B::Data,
    pub(super) v: B::Data,
    pub(super) out_image: B::Data,
    pub(super) out_text: B::Data,
    pub(super) tokens: B::Data,
    /// Gradient of the modulation table; empty for a frozen network, whose weights get none.
    pub(super) table: B::Data,
    pub(super) embedding: [B::Data; 2],
}

impl<B: Backend> Gradients<B> {
    pub(super) fn new(b: &B, config: &ModelConfig, layout: &MmditLayout, plan: &Plan, frozen: bool) -> Result<Self, DeviceError> {
        let d = Dims::new(config, layout, plan);
        let (batch, h) = (plan.shape.batch, d.hidden);
        let rows = [batch * d.image, batch * d.text];
        let dual = if config.dual_attention_blocks > 0 { rows[0] * h } else { 0 };
        let trained = if frozen { 0 } else { batch };
        let joint = (rows[0] + rows[1]) * h;
        Ok(Self {
            image: b.alloc_data(rows[0] * h)?,
            text: b.alloc_data(rows[1] * h)?,
            norm_image: b.alloc_data(rows[0] * h)?,
            norm_image2: b.alloc_data(dual)?,
            norm_text: b.alloc_data(rows[1] * h)?,
            branch_image: b.alloc_data(rows[0] * h)?,
            branch_image2: b.alloc_data(dual)?,
            branch_text: b.alloc_data(rows[1] * h)?,
            hidden: b.alloc_data(rows[0].max(rows[1]) * MLP_RATIO * h)?,
            qkv_image: b.alloc_data(rows[0] * 3 * h)?,
            qkv_text: b.alloc_data(rows[1] * 3 * h)?,
            q: b.alloc_data(joint)?,
            k: b.alloc_data(joint)?,
            v: b.alloc_data(joint)?,
            out_image: b.alloc_data(rows[0] * h)?,
            out_text: b.alloc_data(rows[1] * h)?,
            tokens: b.alloc_data(rows[0] * layout.final_linear.outputs)?,
            table: b.alloc_data(trained * d.stride)?,
            embedding: [b.alloc_data(trained * h)?, b.alloc_data(trained * h)?],
        })
    }
}
