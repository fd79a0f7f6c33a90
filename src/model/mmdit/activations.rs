//! What a forward pass keeps and what a backward pass needs for room, planned once per shape.

use crate::device::{AdalnShape, AttentionShape, Backend, DeviceError, PatchOrder, PatchShape, QkNormShape};
use crate::model::{FREQUENCIES, MLP_RATIO, ModelConfig};

use super::fp8::Fp8;
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

/// Which gradients a forward keeps its results for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None, inference: one set of buffers serves all blocks, and only the last block's feature remains.
    Nothing,
    /// That of the latent, through a frozen network: no inputs of dense layers, no branches behind their gates.
    Frozen,
    /// All, those of the weights as well.
    Everything,
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
    /// What the backward will ask for.
    pub keep: Keep,
    /// Of how many blocks, the first ones, only the inputs are kept: the backward runs them again.
    pub checkpointed: usize,
}

impl Plan {
    /// Whether the backward runs block `i` again: the last of the checkpointed ones still lies in the buffers they share.
    pub(super) fn recomputed(&self, i: usize) -> bool {
        i + 1 < self.checkpointed.min(self.blocks)
    }
}

/// Which of several equal sets of buffers a block uses: the first `shared` blocks the same one, each other its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slots {
    shared: usize,
}

impl Slots {
    fn new(shared: usize) -> Self {
        Self { shared: shared.max(1) }
    }

    /// The set of block `i`.
    pub fn of(self, i: usize) -> usize {
        (i + 1).saturating_sub(self.shared)
    }

    /// How many sets `blocks` blocks need.
    fn count(self, blocks: usize) -> usize {
        self.of(blocks - 1) + 1
    }

    /// Whether any of the blocks that use a set has something.
    fn any(self, set: usize, blocks: usize, has: impl Fn(usize) -> bool) -> bool {
        (0..blocks).any(|i| self.of(i) == set && has(i))
    }
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
    pub mid: B::Data,
    pub stats: B::Stat,
    pub pre: B::Data,
}

impl<B: Backend> StreamActivations<B> {
    fn new(b: &B, rows: usize, h: usize) -> Result<Self, DeviceError> {
        Ok(Self { mid: b.alloc_data(rows * h)?, stats: b.alloc_stat(rows * 2)?, pre: b.alloc_data(rows * MLP_RATIO * h)? })
    }
}

/// Kept by one block for any gradient, its inputs apart.
#[derive(Debug)]
pub(super) struct BlockActivations<B: Backend> {
    pub attn: AttentionActivations<B>,
    /// The image-only attention.
    pub attn2: Option<AttentionActivations<B>>,
    pub image: StreamActivations<B>,
    pub text: Option<StreamActivations<B>>,
}

/// What only the gradients of weights and gates need of one stream.
#[derive(Debug)]
pub(super) struct StreamOperands<B: Backend> {
    pub proj: B::Data,
    pub norm: B::Data,
    pub act: B::Data,
    pub y: B::Data,
}

impl<B: Backend> StreamOperands<B> {
    fn new(b: &B, rows: usize, h: usize, act: bool) -> Result<Self, DeviceError> {
        Ok(Self {
            proj: b.alloc_data(rows * h)?,
            norm: b.alloc_data(rows * h)?,
            act: b.alloc_data(if act { rows * MLP_RATIO * h } else { 0 })?,
            y: b.alloc_data(rows * h)?,
        })
    }
}

/// The same of one block.
#[derive(Debug)]
pub(super) struct BlockOperands<B: Backend> {
    /// Projection of the image-only attention.
    pub proj2: Option<B::Data>,
    pub image: StreamOperands<B>,
    pub text: Option<StreamOperands<B>>,
}

/// One value for each of what the attentions of a block read: modulated norms, or projections of them.
#[derive(Debug)]
pub(super) struct Streams<B: Backend> {
    pub image: B::Data,
    pub image2: Option<B::Data>,
    pub text: B::Data,
}

impl<B: Backend> Streams<B> {
    fn new(b: &B, rows: [usize; 2], width: usize, dual: bool) -> Result<Self, DeviceError> {
        Ok(Self {
            image: b.alloc_data(rows[0] * width)?,
            image2: dual.then(|| b.alloc_data(rows[0] * width)).transpose()?,
            text: b.alloc_data(rows[1] * width)?,
        })
    }
}

/// Which set of buffers each block uses, by what needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSlots {
    /// What enters a block: needed to run it again and by its norms' gradients.
    pub streams: Slots,
    /// What any gradient needs.
    pub kept: Slots,
    /// What gradients of weights and gates need.
    pub operands: Slots,
    /// Fused projections, which only the gradient of RMSNorm needs.
    pub qkv: Slots,
}

impl BlockSlots {
    fn new(config: &ModelConfig, plan: &Plan) -> Self {
        let none = plan.blocks + 1;
        let (streams, kept) = if plan.keep == Keep::Nothing { (none, none) } else { (1, plan.checkpointed) };
        let operands = if plan.keep == Keep::Everything { kept } else { none };
        let qkv = if config.qk_norm { kept } else { none };
        Self { streams: Slots::new(streams), kept: Slots::new(kept), operands: Slots::new(operands), qkv: Slots::new(qkv) }
    }
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
    /// Which of the residual streams, their statistics, the blocks, their operands, and the fused projections is whose.
    pub(super) slots: BlockSlots,
    /// The residual streams between the blocks: what enters block i, and behind the last what leaves it.
    pub(super) image: Vec<B::Data>,
    pub(super) text: Vec<B::Data>,
    pub(super) image_stats: Vec<B::Stat>,
    pub(super) text_stats: Vec<B::Stat>,
    pub(super) blocks: Vec<BlockActivations<B>>,
    pub(super) norms: Vec<Streams<B>>,
    pub(super) operands: Vec<BlockOperands<B>>,
    pub(super) qkv: Vec<Streams<B>>,
    pub(super) final_norm: B::Data,
    pub(super) final_stats: B::Stat,
    pub(super) final_tokens: B::Data,
    /// For products of the blocks in FP8.
    pub(super) fp8: Option<Fp8<B>>,
}

impl<B: Backend> Activations<B> {
    pub(super) fn new(b: &B, config: &ModelConfig, layout: &MmditLayout, plan: Plan, fp8: Option<Fp8<B>>) -> Result<Self, DeviceError> {
        let d = Dims::new(config, layout, &plan);
        let (batch, h) = (plan.shape.batch, d.hidden);
        let rows = [batch * d.image, batch * d.text];
        let patch_width = layout.final_linear.outputs;
        let many = |count: usize, len: usize| (0..count).map(|_| b.alloc_data(len)).collect::<Result<Vec<_>, _>>();
        let stats = |count: usize, len: usize| (0..count).map(|_| b.alloc_stat(len)).collect::<Result<Vec<_>, _>>();
        let slots = BlockSlots::new(config, &plan);
        let n = plan.blocks;
        let dual = |slots: Slots, set: usize| slots.any(set, n, |i| layout.blocks[i].image.attn2.is_some());
        let text_out = |slots: Slots, set: usize| slots.any(set, n, |i| i + 1 < n);
        let mut blocks = Vec::new();
        for set in 0..slots.kept.count(n) {
            let (dual, text_out) = (dual(slots.kept, set), text_out(slots.kept, set));
            blocks.push(BlockActivations {
                attn: AttentionActivations::new(b, batch, &d, d.text, text_out)?,
                attn2: dual.then(|| AttentionActivations::new(b, batch, &d, 0, false)).transpose()?,
                image: StreamActivations::new(b, rows[0], h)?,
                text: text_out.then(|| StreamActivations::new(b, rows[1], h)).transpose()?,
            });
        }
        let mut norms = Vec::new();
        let mut operands = Vec::new();
        // In FP8, GELU is applied where its input is quantised.
        let act = fp8.is_none();
        for set in 0..slots.operands.count(n) {
            let dual = dual(slots.operands, set);
            norms.push(Streams::new(b, rows, h, dual)?);
            operands.push(BlockOperands {
                proj2: dual.then(|| b.alloc_data(rows[0] * h)).transpose()?,
                image: StreamOperands::new(b, rows[0], h, act)?,
                text: text_out(slots.operands, set).then(|| StreamOperands::new(b, rows[1], h, act)).transpose()?,
            });
        }
        let qkv = (0..slots.qkv.count(n)).map(|set| Streams::new(b, rows, 3 * h, dual(slots.qkv, set))).collect::<Result<_, _>>()?;
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
            image: many(slots.streams.count(n + 1), rows[0] * h)?,
            text: many(slots.streams.count(n), rows[1] * h)?,
            image_stats: stats(slots.streams.count(n), rows[0] * 2)?,
            text_stats: stats(slots.streams.count(n), rows[1] * 2)?,
            slots,
            blocks,
            norms,
            operands,
            qkv,
            final_norm: b.alloc_data(final_rows * h)?,
            final_stats: b.alloc_stat(final_rows * 2)?,
            final_tokens: b.alloc_data(final_rows * patch_width)?,
            fp8,
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
    ///
    /// # Panics
    /// When the plan kept nothing and the block is not the last.
    pub fn feature(&self, index: usize) -> &B::Data {
        assert!(self.plan.keep != Keep::Nothing || index + 1 == self.plan.blocks, "this plan keeps no feature of block {index}");
        &self.image[self.slots.streams.of(index + 1)]
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
    pub(super) hidden_image: B::Data,
    pub(super) hidden_text: B::Data,
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
    pub(super) fn new(b: &B, config: &ModelConfig, layout: &MmditLayout, plan: &Plan) -> Result<Self, DeviceError> {
        let d = Dims::new(config, layout, plan);
        let (batch, h) = (plan.shape.batch, d.hidden);
        let rows = [batch * d.image, batch * d.text];
        let dual = if config.dual_attention_blocks > 0 { rows[0] * h } else { 0 };
        let trained = if plan.keep == Keep::Everything { batch } else { 0 };
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
            hidden_image: b.alloc_data(rows[0] * MLP_RATIO * h)?,
            hidden_text: b.alloc_data(rows[1] * MLP_RATIO * h)?,
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
