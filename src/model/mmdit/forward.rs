//! The forward pass. A block is `body` (attention and MLP) and `close` (the MLP's gated residual, fused with the norms
//! that the next block, or the final layer, reads).

use crate::device::{Backend, Branch, NormOut, PatchOrder, Storage, View, ViewMut};
use crate::model::Mmdit;

use super::activations::{Activations, AttentionActivations, Dims, NormActivations, StreamActivations};
use super::layout::{AttentionLayout, BlockLayout, StreamLayout};

/// What a network is given.
#[derive(Debug)]
pub struct Inputs<'a, B: Backend> {
    /// Batch size, at most the planned one.
    pub batch: usize,
    /// Noisy latents `[B, C, H, W]`.
    pub latent: View<'a, B::Stat>,
    /// Times `[B]`, in [0, 1].
    pub t: View<'a, B::Stat>,
    /// Text context `[B, L, context_dim]`.
    pub context: View<'a, B::Data>,
    /// Pooled text `[B, pooled_dim]`.
    pub pooled: View<'a, B::Data>,
}

impl<B: Backend> Clone for Inputs<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Inputs<'_, B> {}

impl<B: Backend> Mmdit<B> {
    /// Runs the blocks of the plan. Features are then in [`Activations::feature`]; the velocity `[B, C, H, W]` is
    /// written where the plan has one.
    ///
    /// # Panics
    /// When `velocity` is given without having been planned, or the inputs are smaller than planned.
    pub fn forward(
        &self,
        b: &B,
        params: &B::Data,
        inputs: &Inputs<'_, B>,
        acts: &mut Activations<B>,
        velocity: Option<ViewMut<'_, B::Stat>>,
    ) {
        assert!(inputs.batch <= acts.plan.shape.batch, "planned for {} samples, given {}", acts.plan.shape.batch, inputs.batch);
        acts.batch = inputs.batch;
        self.embed(b, params, inputs, acts);
        self.enter(b, acts);
        for i in 0..acts.plan.blocks {
            self.body(b, params, acts, i);
            self.close(b, acts, i);
        }
        if let Some(velocity) = velocity {
            assert!(acts.plan.velocity, "this plan stops at the features");
            let (rows, batch) = (acts.batch * acts.dims.image, acts.batch);
            b.linear(params, &self.layout.final_linear, rows, acts.final_norm.all(), acts.final_tokens.all_mut(), false);
            b.unpatchify(&acts.dims.patches(&self.config, batch, PatchOrder::ChannelLast), acts.final_tokens.all(), velocity);
        }
    }

    /// Tokens, context and the modulation table.
    fn embed(&self, b: &B, params: &B::Data, inputs: &Inputs<'_, B>, acts: &mut Activations<B>) {
        let (layout, batch) = (&*self.layout, acts.batch);
        let d = &acts.dims;
        b.patchify(&d.patches(&self.config, batch, PatchOrder::ChannelFirst), inputs.latent, acts.tokens.all_mut());
        b.linear(params, &layout.x_embedder, batch * d.image, acts.tokens.all(), acts.image[0].all_mut(), false);
        b.pos_embed(batch, d.grid, self.config.pos_embed_max, &self.pos_embed, acts.image[0].all_mut());
        b.linear(params, &layout.context_embedder, batch * d.text, inputs.context, acts.text[0].all_mut(), false);

        b.timestep_embedding(inputs.t, None, acts.frequencies.all_mut());
        b.linear(params, &layout.t_mlp[0], batch, acts.frequencies.all(), acts.t_pre.all_mut(), false);
        b.silu(acts.t_pre.all(), acts.t_act.all_mut());
        b.linear(params, &layout.t_mlp[1], batch, acts.t_act.all(), acts.condition.all_mut(), false);
        b.linear(params, &layout.y_mlp[0], batch, inputs.pooled, acts.y_pre.all_mut(), false);
        b.silu(acts.y_pre.all(), acts.y_act.all_mut());
        b.linear(params, &layout.y_mlp[1], batch, acts.y_act.all(), acts.condition.all_mut(), true);
        b.silu(acts.condition.all(), acts.embedding.all_mut());
        let adaln = layout.adaln_for(acts.plan.blocks, acts.plan.velocity);
        b.linear(params, &adaln, batch, acts.embedding.all(), acts.table.all_mut(), false);
    }

    /// Norms of the first block's inputs.
    fn enter(&self, b: &B, acts: &mut Activations<B>) {
        self.norms_of_inputs(b, acts, 0);
    }

    /// Norms of block `i` from its kept inputs: at the entry, and again where a block is recomputed.
    pub(super) fn norms_of_inputs(&self, b: &B, acts: &mut Activations<B>, i: usize) {
        let slot = i.min(acts.norms.len() - 1);
        let (layout, batch, d) = (&self.layout.blocks[i], acts.batch, &acts.dims);
        let NormActivations { image, image2, text } = &mut acts.norms[slot];
        let mut norms = image_norms::<B>(layout, image, image2);
        let table = Some(acts.table.all());
        b.adaln(&d.adaln(batch, d.image), acts.image[i].all(), &[], table, None, &mut norms, Some(&mut acts.image_stats[i]));
        let mut norms = [NormOut { out: text.all_mut(), modulation: Some(layout.text.before_attention()) }];
        b.adaln(&d.adaln(batch, d.text), acts.text[i].all(), &[], table, None, &mut norms, Some(&mut acts.text_stats[i]));
    }

    /// Attention and MLP of block `i`, up to the outputs of both branches.
    pub(super) fn body(&self, b: &B, params: &B::Data, acts: &mut Activations<B>, i: usize) {
        let slot = i.min(acts.blocks.len() - 1);
        let text_out = i + 1 < acts.plan.blocks;
        let (layout, batch, d) = (&self.layout.blocks[i], acts.batch, &acts.dims);
        let (norms, block) = (&acts.norms[slot], &mut acts.blocks[slot]);

        attend(b, params, d, batch, &layout.image.attn, Some(&layout.text.attn), norms, text_out, &mut block.attn);
        let mut branches = Vec::with_capacity(2);
        let StreamActivations { proj, mid, norm, stats, .. } = &mut block.image;
        if let Some(layer) = &layout.image.attn.proj {
            b.linear(params, layer, batch * d.image, block.attn.out_image.all(), proj.all_mut(), false);
        }
        branches.push(Branch { y: proj.all(), gate: layout.image.attention_gate() });
        if let (Some(attn2), Some((kept, proj2)), Some(norm2)) = (&layout.image.attn2, &mut block.attn2, &norms.image2) {
            attend2(b, params, d, batch, attn2, norm2, kept);
            if let Some(proj) = &attn2.proj {
                b.linear(params, proj, batch * d.image, kept.out_image.all(), proj2.all_mut(), false);
            }
            branches.push(Branch { y: proj2.all(), gate: layout.image.attention2_gate() });
        }
        let mut outputs = [NormOut { out: norm.all_mut(), modulation: Some(layout.image.before_mlp()) }];
        let (shape, table) = (d.adaln(batch, d.image), Some(acts.table.all()));
        b.adaln(&shape, acts.image[i].all(), &branches, table, Some(mid.all_mut()), &mut outputs, Some(stats));
        mlp(b, params, &layout.image, batch * d.image, &mut block.image);

        if let (true, Some(text), Some(proj)) = (text_out, &mut block.text, &layout.text.attn.proj) {
            b.linear(params, proj, batch * d.text, block.attn.out_text.all(), text.proj.all_mut(), false);
            let StreamActivations { proj, mid, norm, stats, .. } = text;
            let branches = [Branch { y: proj.all(), gate: layout.text.attention_gate() }];
            let mut outputs = [NormOut { out: norm.all_mut(), modulation: Some(layout.text.before_mlp()) }];
            let (shape, table) = (d.adaln(batch, d.text), Some(acts.table.all()));
            b.adaln(&shape, acts.text[i].all(), &branches, table, Some(mid.all_mut()), &mut outputs, Some(stats));
            mlp(b, params, &layout.text, batch * d.text, text);
        }
    }

    /// Adds the MLP's branch of block `i` to the residual streams, and takes the norms that follow.
    fn close(&self, b: &B, acts: &mut Activations<B>, i: usize) {
        let slot = i.min(acts.blocks.len() - 1);
        let (layout, batch, d) = (&self.layout.blocks[i], acts.batch, &acts.dims);
        let (block, table) = (&acts.blocks[slot], Some(acts.table.all()));
        let image_branch = [Branch { y: block.image.y.all(), gate: layout.image.mlp_gate() }];
        let image_shape = d.adaln(batch, d.image);
        let x_out = Some(acts.image[i + 1].all_mut());
        if i + 1 == acts.plan.blocks {
            let mut norms = Vec::with_capacity(1);
            let mut stats = None;
            if acts.plan.velocity {
                norms.push(NormOut { out: acts.final_norm.all_mut(), modulation: Some(self.layout.final_modulation) });
                stats = Some(&mut acts.final_stats);
            }
            b.adaln(&image_shape, block.image.mid.all(), &image_branch, table, x_out, &mut norms, stats);
            return;
        }
        let next = &self.layout.blocks[i + 1];
        let next_slot = (i + 1).min(acts.norms.len() - 1);
        let NormActivations { image, image2, text } = &mut acts.norms[next_slot];
        let mut norms = image_norms::<B>(next, image, image2);
        let stats = Some(&mut acts.image_stats[i + 1]);
        b.adaln(&image_shape, block.image.mid.all(), &image_branch, table, x_out, &mut norms, stats);
        if let Some(stream) = &block.text {
            let branch = [Branch { y: stream.y.all(), gate: layout.text.mlp_gate() }];
            let mut norms = [NormOut { out: text.all_mut(), modulation: Some(next.text.before_attention()) }];
            let (shape, stats) = (d.adaln(batch, d.text), Some(&mut acts.text_stats[i + 1]));
            b.adaln(&shape, stream.mid.all(), &branch, table, Some(acts.text[i + 1].all_mut()), &mut norms, stats);
        }
    }
}

/// The one or two modulated norms that the image stream of a block reads.
fn image_norms<'a, B: Backend>(layout: &BlockLayout, image: &'a mut B::Data, image2: &'a mut Option<B::Data>) -> Vec<NormOut<'a, B>> {
    let mut norms = vec![NormOut { out: image.all_mut(), modulation: Some(layout.image.before_attention()) }];
    if let (Some(_), Some(out)) = (&layout.image.attn2, image2) {
        norms.push(NormOut { out: out.all_mut(), modulation: Some(layout.image.before_attention2()) });
    }
    norms
}

/// Joint attention of both streams.
fn attend<B: Backend>(
    b: &B,
    params: &B::Data,
    d: &Dims,
    batch: usize,
    image: &AttentionLayout,
    text: Option<&AttentionLayout>,
    norms: &NormActivations<B>,
    text_out: bool,
    kept: &mut AttentionActivations<B>,
) {
    let AttentionActivations { qkv_image, qkv_text, rstd_image, rstd_text, q, k, v, lse, out_image, out_text } = kept;
    b.linear(params, &image.qkv, batch * d.image, norms.image.all(), qkv_image.all_mut(), false);
    b.qk_norm(params, &d.image_qk(batch, image, true), qkv_image.all(), q, k, v, rstd_image);
    if let Some(text) = text {
        b.linear(params, &text.qkv, batch * d.text, norms.text.all(), qkv_text.all_mut(), false);
        b.qk_norm(params, &d.text_qk(batch, text), qkv_text.all(), q, k, v, rstd_text);
    }
    b.attention(&d.attention(batch, text_out), [&*q, &*k, &*v], out_image, text_out.then_some(out_text), lse);
}

/// The image-only attention of SD3.5-medium.
fn attend2<B: Backend>(
    b: &B,
    params: &B::Data,
    d: &Dims,
    batch: usize,
    layout: &AttentionLayout,
    norm: &B::Data,
    kept: &mut AttentionActivations<B>,
) {
    let AttentionActivations { qkv_image, rstd_image, q, k, v, lse, out_image, .. } = kept;
    b.linear(params, &layout.qkv, batch * d.image, norm.all(), qkv_image.all_mut(), false);
    b.qk_norm(params, &d.image_qk(batch, layout, false), qkv_image.all(), q, k, v, rstd_image);
    b.attention(&d.attention2(batch), [&*q, &*k, &*v], out_image, None, lse);
}

fn mlp<B: Backend>(b: &B, params: &B::Data, layout: &StreamLayout, rows: usize, stream: &mut StreamActivations<B>) {
    if let Some((fc1, fc2)) = &layout.mlp {
        let StreamActivations { norm, pre, act, y, .. } = stream;
        b.linear_gelu(params, fc1, rows, norm.all(), pre.all_mut(), act.all_mut());
        b.linear(params, fc2, rows, act.all(), y.all_mut(), false);
    }
}
