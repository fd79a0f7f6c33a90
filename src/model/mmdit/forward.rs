//! The forward pass. A block is `body` (attention and MLP) and `close` (the MLP's gated residual, fused with the norms
//! that the next block, or the final layer, reads). Between the attentions image and text go their own ways, side by side
//! where the device can ([`Backend::parallel`]).

use crate::device::{Backend, Branch, Linear, NormOut, PatchOrder, Storage, View, ViewMut};
use crate::model::Mmdit;

use super::activations::{Activations, AttentionActivations, Dims, StreamActivations, StreamOperands, Streams};
use super::fp8::{Fp8, StreamFp8};
use super::layout::{AttentionLayout, BlockLayout, StreamLayout};

/// Latents, or the tokens that a network makes of them: channel first where it reads them, channel last where it writes its
/// velocity. Tokens spare a pass where what stands between two networks can work on them.
#[derive(Debug)]
pub enum Image<'a, B: Backend> {
    /// `[B, C, H, W]`.
    Latent(View<'a, B::Stat>),
    /// `[B * N, C p p]`.
    Tokens(View<'a, B::Data>),
}

impl<B: Backend> Clone for Image<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Image<'_, B> {}

/// The same, to be written.
#[derive(Debug)]
pub enum ImageMut<'a, B: Backend> {
    /// `[B, C, H, W]`.
    Latent(ViewMut<'a, B::Stat>),
    /// `[B * N, C p p]`.
    Tokens(ViewMut<'a, B::Data>),
}

/// What a network is given.
#[derive(Debug)]
pub struct Inputs<'a, B: Backend> {
    /// Batch size, at most the planned one.
    pub batch: usize,
    /// Noisy latents.
    pub image: Image<'a, B>,
    /// Tokens of the conditioning `[B * N, K p p]`, channel first, where the network reads one.
    pub conditioning: Option<View<'a, B::Data>>,
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

impl<'a, B: Backend> Inputs<'a, B> {
    /// The tokens that are embedded: those given, or `made` of the latents.
    pub(super) fn tokens(&self, made: &'a B::Data) -> View<'a, B::Data> {
        match self.image {
            Image::Tokens(tokens) => tokens,
            Image::Latent(_) => made.all(),
        }
    }
}

impl<B: Backend> Mmdit<B> {
    /// Runs the blocks of the plan. Features are then in [`Activations::feature`]; the velocity is written where the plan has
    /// one.
    ///
    /// # Panics
    /// When `velocity` is given without having been planned, the inputs are smaller than planned, or a conditioning is given
    /// to a network that reads none or missing where one is read.
    pub fn forward(&self, b: &B, params: &B::Data, inputs: &Inputs<'_, B>, acts: &mut Activations<B>, velocity: Option<ImageMut<'_, B>>) {
        assert!(inputs.batch <= acts.plan.shape.batch, "planned for {} samples, given {}", acts.plan.shape.batch, inputs.batch);
        assert_eq!(inputs.conditioning.is_some(), self.layout.conditioning_embedder.is_some(), "what the network reads must be given");
        acts.batch = inputs.batch;
        self.embed(b, params, inputs, acts);
        self.enter(b, acts);
        for i in 0..acts.plan.blocks {
            self.body(b, params, acts, i);
            self.close(b, acts, i);
        }
        if let Some(velocity) = velocity {
            assert!(acts.plan.velocity, "this plan stops at the features");
            let (rows, batch, layer) = (acts.batch * acts.dims.image, acts.batch, &self.layout.final_linear);
            match velocity {
                ImageMut::Tokens(tokens) => b.linear(params, layer, rows, acts.final_norm.all(), tokens, false),
                ImageMut::Latent(latent) => {
                    b.linear(params, layer, rows, acts.final_norm.all(), acts.final_tokens.all_mut(), false);
                    b.unpatchify(&acts.dims.patches(&self.config, batch, PatchOrder::ChannelLast), acts.final_tokens.all(), latent);
                }
            }
        }
    }

    /// Tokens, context and the modulation table.
    fn embed(&self, b: &B, params: &B::Data, inputs: &Inputs<'_, B>, acts: &mut Activations<B>) {
        let (layout, batch) = (&*self.layout, acts.batch);
        let d = &acts.dims;
        let adaln = layout.adaln_for(acts.plan.blocks, acts.plan.velocity);
        let tokens = |_: &mut ()| {
            if let Image::Latent(latent) = inputs.image {
                b.patchify(&d.patches(&self.config, batch, PatchOrder::ChannelFirst), latent, acts.tokens.all_mut());
            }
            b.linear(params, &layout.x_embedder, batch * d.image, inputs.tokens(&acts.tokens), acts.image[0].all_mut(), false);
            if let (Some(embedder), Some(conditioning)) = (&layout.conditioning_embedder, inputs.conditioning) {
                b.linear(params, embedder, batch * d.image, conditioning, acts.image[0].all_mut(), true);
            }
            b.pos_embed(batch, d.grid, self.config.pos_embed_max, &self.pos_embed, acts.image[0].all_mut());
            b.linear(params, &layout.context_embedder, batch * d.text, inputs.context, acts.text[0].all_mut(), false);
        };
        let conditioning = |_: &mut ()| {
            b.timestep_embedding(inputs.t, None, acts.frequencies.all_mut());
            b.linear(params, &layout.t_mlp[0], batch, acts.frequencies.all(), acts.t_pre.all_mut(), false);
            b.silu(acts.t_pre.all(), acts.t_act.all_mut());
            b.linear(params, &layout.t_mlp[1], batch, acts.t_act.all(), acts.condition.all_mut(), false);
            b.linear(params, &layout.y_mlp[0], batch, inputs.pooled, acts.y_pre.all_mut(), false);
            b.silu(acts.y_pre.all(), acts.y_act.all_mut());
            b.linear(params, &layout.y_mlp[1], batch, acts.y_act.all(), acts.condition.all_mut(), true);
            b.silu(acts.condition.all(), acts.embedding.all_mut());
            b.linear(params, &adaln, batch, acts.embedding.all(), acts.table.all_mut(), false);
        };
        b.parallel(&mut (), conditioning, tokens);
    }

    /// Norms of the first block's inputs.
    fn enter(&self, b: &B, acts: &mut Activations<B>) {
        self.norms_of_inputs(b, acts, 0);
    }

    /// Norms of block `i` from its kept inputs: at the entry, and again where a block is recomputed.
    pub(super) fn norms_of_inputs(&self, b: &B, acts: &mut Activations<B>, i: usize) {
        let (layout, batch, d) = (&self.layout.blocks[i], acts.batch, &acts.dims);
        let Streams { image, image2, text } = &mut acts.norms[acts.slots.operands.of(i)];
        let stream = acts.slots.streams.of(i);
        let table = Some(acts.table.all());
        let of_image = |_: &mut ()| {
            let mut norms = image_norms::<B>(layout, image, image2);
            let stats = Some(&mut acts.image_stats[stream]);
            b.adaln(&d.adaln(batch, d.image), acts.image[stream].all(), &[], table, None, &mut norms, stats);
        };
        let of_text = |_: &mut ()| {
            let mut norms = [NormOut { out: text.all_mut(), modulation: Some(layout.text.before_attention()) }];
            let stats = Some(&mut acts.text_stats[stream]);
            b.adaln(&d.adaln(batch, d.text), acts.text[stream].all(), &[], table, None, &mut norms, stats);
        };
        b.parallel(&mut (), of_image, of_text);
    }

    /// Attention and MLP of block `i`, up to the outputs of both branches.
    pub(super) fn body(&self, b: &B, params: &B::Data, acts: &mut Activations<B>, i: usize) {
        let text_out = i + 1 < acts.plan.blocks;
        let (layout, batch, d, slots) = (&self.layout.blocks[i], acts.batch, &acts.dims, &acts.slots);
        let (norms, qkv) = (&acts.norms[slots.operands.of(i)], &mut acts.qkv[slots.qkv.of(i)]);
        let (block, operands) = (&mut acts.blocks[slots.kept.of(i)], &mut acts.operands[slots.operands.of(i)]);
        let stream = slots.streams.of(i);
        let [mut image_products, mut text_products] = Products::of_streams(b, params, acts.fp8.as_mut());

        attend(
            &mut image_products,
            &mut text_products,
            d,
            batch,
            [&layout.image.attn, &layout.text.attn],
            norms,
            text_out,
            qkv,
            &mut block.attn,
        );
        let table = Some(acts.table.all());
        let mut of_image = |_: &mut ()| {
            let mut branches = Vec::with_capacity(2);
            let StreamOperands { proj, norm, .. } = &mut operands.image;
            if let Some(layer) = &layout.image.attn.proj {
                image_products.linear(layer, batch * d.image, &block.attn.out_image, proj);
            }
            branches.push(Branch { y: proj.all(), gate: layout.image.attention_gate() });
            if let (Some(attn2), Some(kept), Some(norm2), Some(qkv2), Some(proj2)) =
                (&layout.image.attn2, &mut block.attn2, &norms.image2, &mut qkv.image2, &mut operands.proj2)
            {
                attend2(&mut image_products, d, batch, attn2, norm2, qkv2, kept);
                if let Some(proj) = &attn2.proj {
                    image_products.linear(proj, batch * d.image, &kept.out_image, proj2);
                }
                branches.push(Branch { y: proj2.all(), gate: layout.image.attention2_gate() });
            }
            let StreamActivations { mid, stats, .. } = &mut block.image;
            let mut outputs = [NormOut { out: norm.all_mut(), modulation: Some(layout.image.before_mlp()) }];
            let shape = d.adaln(batch, d.image);
            b.adaln(&shape, acts.image[stream].all(), &branches, table, Some(mid.all_mut()), &mut outputs, Some(stats));
            image_products.mlp(&layout.image, batch * d.image, &mut operands.image, &mut block.image.pre);
        };
        let (true, Some(kept), Some(text), Some(proj)) = (text_out, &mut block.text, &mut operands.text, &layout.text.attn.proj) else {
            return of_image(&mut ());
        };
        let of_text = |_: &mut ()| {
            text_products.linear(proj, batch * d.text, &block.attn.out_text, &mut text.proj);
            let branches = [Branch { y: text.proj.all(), gate: layout.text.attention_gate() }];
            let mut outputs = [NormOut { out: text.norm.all_mut(), modulation: Some(layout.text.before_mlp()) }];
            let (shape, StreamActivations { mid, stats, pre }) = (d.adaln(batch, d.text), kept);
            b.adaln(&shape, acts.text[stream].all(), &branches, table, Some(mid.all_mut()), &mut outputs, Some(stats));
            text_products.mlp(&layout.text, batch * d.text, text, pre);
        };
        b.parallel(&mut (), of_image, of_text);
    }

    /// Adds the MLP's branch of block `i` to the residual streams, and takes the norms that follow.
    fn close(&self, b: &B, acts: &mut Activations<B>, i: usize) {
        let (layout, batch, d, slots) = (&self.layout.blocks[i], acts.batch, &acts.dims, &acts.slots);
        let (block, operands) = (&acts.blocks[slots.kept.of(i)], &acts.operands[slots.operands.of(i)]);
        let (table, next_stream) = (Some(acts.table.all()), slots.streams.of(i + 1));
        let image_branch = [Branch { y: operands.image.y.all(), gate: layout.image.mlp_gate() }];
        let image_shape = d.adaln(batch, d.image);
        let x_out = Some(acts.image[next_stream].all_mut());
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
        let Streams { image, image2, text } = &mut acts.norms[slots.operands.of(i + 1)];
        let mut norms = image_norms::<B>(next, image, image2);
        let stats = Some(&mut acts.image_stats[next_stream]);
        let of_image = |_: &mut ()| b.adaln(&image_shape, block.image.mid.all(), &image_branch, table, x_out, &mut norms, stats);
        let of_text = |_: &mut ()| {
            let (Some(kept), Some(stream)) = (&block.text, &operands.text) else { return };
            let branch = [Branch { y: stream.y.all(), gate: layout.text.mlp_gate() }];
            let mut norms = [NormOut { out: text.all_mut(), modulation: Some(next.text.before_attention()) }];
            let (shape, stats) = (d.adaln(batch, d.text), Some(&mut acts.text_stats[next_stream]));
            b.adaln(&shape, kept.mid.all(), &branch, table, Some(acts.text[next_stream].all_mut()), &mut norms, stats);
        };
        b.parallel(&mut (), of_image, of_text);
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

/// Joint attention of both streams, image and text.
fn attend<B: Backend>(
    image_products: &mut Products<'_, B>,
    text_products: &mut Products<'_, B>,
    d: &Dims,
    batch: usize,
    [image, text]: [&AttentionLayout; 2],
    norms: &Streams<B>,
    text_out: bool,
    qkv: &mut Streams<B>,
    kept: &mut AttentionActivations<B>,
) {
    let AttentionActivations { rstd_image, rstd_text, q, k, v, lse, out_image, out_text } = kept;
    let (b, params) = (image_products.b, image_products.params);
    let of_image = |[q, k, v]: &mut [&mut B::Data; 3]| {
        image_products.linear(&image.qkv, batch * d.image, &norms.image, &mut qkv.image);
        b.qk_norm(params, &d.image_qk(batch, image, true), qkv.image.all(), q, k, v, rstd_image);
    };
    let of_text = |[q, k, v]: &mut [&mut B::Data; 3]| {
        text_products.linear(&text.qkv, batch * d.text, &norms.text, &mut qkv.text);
        b.qk_norm(params, &d.text_qk(batch, text), qkv.text.all(), q, k, v, rstd_text);
    };
    // Each writes the rows of its own tokens.
    b.parallel(&mut [&mut *q, &mut *k, &mut *v], of_image, of_text);
    b.attention(&d.attention(batch, text_out), [&*q, &*k, &*v], out_image, text_out.then_some(out_text), lse);
}

/// The image-only attention of SD3.5-medium.
fn attend2<B: Backend>(
    products: &mut Products<'_, B>,
    d: &Dims,
    batch: usize,
    layout: &AttentionLayout,
    norm: &B::Data,
    qkv: &mut B::Data,
    kept: &mut AttentionActivations<B>,
) {
    let AttentionActivations { rstd_image, q, k, v, lse, out_image, .. } = kept;
    let (b, params) = (products.b, products.params);
    products.linear(&layout.qkv, batch * d.image, norm, qkv);
    b.qk_norm(params, &d.image_qk(batch, layout, false), qkv.all(), q, k, v, rstd_image);
    b.attention(&d.attention2(batch), [&*q, &*k, &*v], out_image, None, lse);
}

/// The products of one stream of a block, in the compute type or in FP8.
struct Products<'a, B: Backend> {
    b: &'a B,
    params: &'a B::Data,
    fp8: Option<StreamFp8<'a, B>>,
}

impl<'a, B: Backend> Products<'a, B> {
    /// The image's and the text's.
    fn of_streams(b: &'a B, params: &'a B::Data, fp8: Option<&'a mut Fp8<B>>) -> [Self; 2] {
        let streams = fp8.map_or([None, None], |fp8| fp8.streams().map(Some));
        streams.map(|fp8| Self { b, params, fp8 })
    }

    /// `y = x W^T + b`.
    fn linear(&mut self, layer: &Linear, rows: usize, x: &B::Data, y: &mut B::Data) {
        match &mut self.fp8 {
            None => self.b.linear(self.params, layer, rows, x.all(), y.all_mut(), false),
            Some(fp8) => fp8.linear(self.b, self.params, layer, rows, x.all(), false, y),
        }
    }

    /// `y = gelu(x W1^T + b1) W2^T + b2`, keeping what GELU is applied to.
    fn mlp(&mut self, layout: &StreamLayout, rows: usize, stream: &mut StreamOperands<B>, pre: &mut B::Data) {
        let (Some((fc1, fc2)), StreamOperands { norm, act, y, .. }) = (&layout.mlp, stream) else { return };
        match &mut self.fp8 {
            None => {
                self.b.linear_gelu(self.params, fc1, rows, norm.all(), pre.all_mut(), act.all_mut());
                self.b.linear(self.params, fc2, rows, act.all(), y.all_mut(), false);
            }
            Some(fp8) => {
                fp8.linear(self.b, self.params, fc1, rows, norm.all(), false, pre);
                fp8.linear(self.b, self.params, fc2, rows, pre.all(), true, y);
            }
        }
    }
}
