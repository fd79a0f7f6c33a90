//! The backward pass, by hand: `close_backward` and `body_backward` undo `close` and `body`, from the last block to the
//! first. A frozen network passes no gradient arena: then only the gradient of its input is computed. As in the forward,
//! image and text go side by side between the attentions.

use crate::device::{Backend, BranchGrad, Linear, NormGrad, PatchOrder, Storage, View};
use crate::model::Mmdit;

use super::activations::{Activations, AttentionActivations, Gradients, Keep};
use super::forward::{Image, ImageMut, Inputs};
use super::layout::BlockLayout;

/// What a backward pass starts from and where it ends.
#[derive(Debug)]
pub struct Backward<'a, B: Backend> {
    /// How many of the forward's samples take part: the first ones.
    pub batch: usize,
    /// Gradient of the velocity; a network in training needs it where the velocity was planned.
    pub d_velocity: Option<Image<'a, B>>,
    /// Gradients of features, `(block, [B * N, h])`.
    pub d_features: &'a [(usize, View<'a, B::Data>)],
    /// Gradient arena to add to; `None` for a frozen network.
    pub grads: Option<&'a mut B::Stat>,
    /// Where the gradient of the latents goes.
    pub d_image: Option<ImageMut<'a, B>>,
}

/// What the gradients of both streams are added to, or written into columns of: each has its own part.
struct Sums<'a, B: Backend> {
    /// Gradient arena; none for a frozen network.
    grads: Option<&'a mut B::Stat>,
    /// Gradient of the modulation table; none for a frozen network.
    table: Option<&'a mut B::Data>,
}

impl<B: Backend> Mmdit<B> {
    /// Backward of the last [`forward`](Self::forward) with these activations. Inputs must be those of the forward.
    ///
    /// # Panics
    /// When more samples take part than in the forward, the plan does not keep enough, or a network in training lacks the
    /// velocity's gradient.
    pub fn backward(
        &self,
        b: &B,
        params: &B::Data,
        inputs: &Inputs<'_, B>,
        acts: &mut Activations<B>,
        room: &mut Gradients<B>,
        mut pass: Backward<'_, B>,
    ) {
        assert!(pass.batch <= acts.batch, "the forward had {} samples, the backward asks for {}", acts.batch, pass.batch);
        // Without it the final layer's columns of the modulation table would keep the gradients of an earlier pass.
        assert!(pass.grads.is_none() || pass.d_velocity.is_some() == acts.plan.velocity, "the velocity was planned: give its gradient");
        let needed = if pass.grads.is_some() { Keep::Everything } else { Keep::Frozen };
        assert!(
            [needed, Keep::Everything].contains(&acts.plan.keep),
            "the forward kept {:?}, the backward needs {needed:?}",
            acts.plan.keep
        );
        let last = acts.plan.blocks - 1;
        for i in (0..=last).rev() {
            if acts.plan.recomputed(i) {
                self.norms_of_inputs(b, acts, i);
                self.body(b, params, acts, i);
            }
            if i == last {
                self.exit_backward(b, params, acts, room, &mut pass);
            } else {
                self.close_backward(b, acts, room, &mut pass, i);
            }
            self.body_backward(b, params, acts, room, &mut pass, i);
        }
        self.enter_backward(b, acts, room, &pass);
        self.embed_backward(b, params, inputs, acts, room, pass);
    }

    /// From the velocity and the last feature to the last block's MLP branch.
    fn exit_backward(&self, b: &B, params: &B::Data, acts: &Activations<B>, room: &mut Gradients<B>, pass: &mut Backward<'_, B>) {
        let (d, batch, last) = (&acts.dims, pass.batch, acts.plan.blocks - 1);
        let rows = batch * d.image;
        let final_linear = &self.layout.final_linear;
        let mut norms = Vec::with_capacity(1);
        let mut stats = None;
        if let Some(d_velocity) = pass.d_velocity {
            assert!(acts.plan.velocity, "this plan stops at the features");
            let d_tokens = match d_velocity {
                Image::Tokens(tokens) => tokens,
                Image::Latent(latent) => {
                    b.patchify(&d.patches(&self.config, batch, PatchOrder::ChannelLast), latent, room.tokens.all_mut());
                    room.tokens.all()
                }
            };
            if let Some(grads) = &mut pass.grads {
                b.linear_backward_weight(grads, final_linear, rows, acts.final_norm.all(), d_tokens);
            }
            b.linear_backward_input(params, final_linear, rows, d_tokens, room.norm_image.all_mut(), false);
            norms.push(NormGrad { d_out: room.norm_image.all(), modulation: Some(self.layout.final_modulation) });
            stats = Some(&acts.final_stats);
        }
        let gate = self.layout.blocks[last].image.mlp_gate();
        let y = acts.operands[acts.slots.operands.of(last)].image.y.all();
        let mut branches = [BranchGrad { y, gate, d_y: room.branch_image.all_mut() }];
        let extra = feature_gradient(pass, last);
        let d_table = pass.grads.is_some().then_some(&mut room.table);
        let (shape, table, dx) = (d.adaln(batch, d.image), Some(acts.table.all()), room.image.all_mut());
        b.adaln_backward(&shape, acts.feature(last).all(), stats, table, dx, false, extra, &norms, &mut branches, d_table);
    }

    /// From the norms of block `i + 1` and the residual streams to the MLP branches of block `i`.
    fn close_backward(&self, b: &B, acts: &Activations<B>, room: &mut Gradients<B>, pass: &mut Backward<'_, B>, i: usize) {
        let (d, batch, slots) = (&acts.dims, pass.batch, &acts.slots);
        let (layout, next, operands) = (&self.layout.blocks[i], &self.layout.blocks[i + 1], &acts.operands[slots.operands.of(i)]);
        let next_stream = slots.streams.of(i + 1);
        let table = Some(acts.table.all());
        let mut sums = Sums::<B> { table: pass.grads.is_some().then_some(&mut room.table), grads: None };

        let of_image = |sums: &mut Sums<'_, B>| {
            let norms = image_norm_gradients::<B>(next, &room.norm_image, &room.norm_image2);
            let mut branches = [BranchGrad { y: operands.image.y.all(), gate: layout.image.mlp_gate(), d_y: room.branch_image.all_mut() }];
            let (stats, extra) = (Some(&acts.image_stats[next_stream]), feature_gradient(pass, i));
            let (shape, x_out, dx) = (d.adaln(batch, d.image), acts.image[next_stream].all(), room.image.all_mut());
            b.adaln_backward(&shape, x_out, stats, table, dx, true, extra, &norms, &mut branches, sums.table.as_deref_mut());
        };
        let of_text = |sums: &mut Sums<'_, B>| {
            let Some(stream) = &operands.text else { return };
            let norms = [NormGrad { d_out: room.norm_text.all(), modulation: Some(next.text.before_attention()) }];
            let mut branches = [BranchGrad { y: stream.y.all(), gate: layout.text.mlp_gate(), d_y: room.branch_text.all_mut() }];
            let stats = Some(&acts.text_stats[next_stream]);
            let residual = i + 2 < acts.plan.blocks; // the last block hands no context on
            let (shape, x_out, dx) = (d.adaln(batch, d.text), acts.text[next_stream].all(), room.text.all_mut());
            b.adaln_backward(&shape, x_out, stats, table, dx, residual, None, &norms, &mut branches, sums.table.as_deref_mut());
        };
        b.parallel(&mut sums, of_image, of_text);
    }

    /// From the MLP branches of block `i` to the gradients of its norms and of the residual streams that entered it.
    fn body_backward(&self, b: &B, params: &B::Data, acts: &Activations<B>, room: &mut Gradients<B>, pass: &mut Backward<'_, B>, i: usize) {
        let (d, batch, slots, layout) = (&acts.dims, pass.batch, &acts.slots, &self.layout.blocks[i]);
        let (block, operands) = (&acts.blocks[slots.kept.of(i)], &acts.operands[slots.operands.of(i)]);
        let (norms, qkv) = (&acts.norms[slots.operands.of(i)], &acts.qkv[slots.qkv.of(i)]);
        let text_out = i + 1 < acts.plan.blocks;
        let rows = [batch * d.image, batch * d.text];
        let table = Some(acts.table.all());
        let mut sums = Sums::<B> { table: pass.grads.is_some().then_some(&mut room.table), grads: pass.grads.as_deref_mut() };

        let of_image = |Sums { grads, table: d_table }: &mut Sums<'_, B>| {
            if let Some((fc1, fc2)) = &layout.image.mlp {
                let (d_y, hidden) = (&room.branch_image, &mut room.hidden_image);
                weight_gradient(b, grads, fc2, rows[0], &operands.image.act, d_y);
                b.linear_backward_input_gelu(params, fc2, rows[0], d_y.all(), block.image.pre.all(), hidden.all_mut());
                weight_gradient(b, grads, fc1, rows[0], &operands.image.norm, hidden);
                b.linear_backward_input(params, fc1, rows[0], hidden.all(), room.norm_image.all_mut(), false);
            }
            let mut branches =
                vec![BranchGrad { y: operands.image.proj.all(), gate: layout.image.attention_gate(), d_y: room.branch_image.all_mut() }];
            if let (Some(_), Some(proj2)) = (&layout.image.attn2, &operands.proj2) {
                branches.push(BranchGrad { y: proj2.all(), gate: layout.image.attention2_gate(), d_y: room.branch_image2.all_mut() });
            }
            let norm_grads = [NormGrad { d_out: room.norm_image.all(), modulation: Some(layout.image.before_mlp()) }];
            let (shape, x_out, dx) = (d.adaln(batch, d.image), block.image.mid.all(), room.image.all_mut());
            let (stats, d_table) = (Some(&block.image.stats), d_table.as_deref_mut());
            b.adaln_backward(&shape, x_out, stats, table, dx, true, None, &norm_grads, &mut branches, d_table);
            if let Some(proj) = &layout.image.attn.proj {
                weight_gradient(b, grads, proj, rows[0], &block.attn.out_image, &room.branch_image);
                b.linear_backward_input(params, proj, rows[0], room.branch_image.all(), room.out_image.all_mut(), false);
            }
        };
        let of_text = |Sums { grads, table: d_table }: &mut Sums<'_, B>| {
            let (true, Some(kept), Some(stream), Some((fc1, fc2)), Some(proj)) =
                (text_out, &block.text, &operands.text, &layout.text.mlp, &layout.text.attn.proj)
            else {
                return;
            };
            let (d_y, hidden) = (&room.branch_text, &mut room.hidden_text);
            weight_gradient(b, grads, fc2, rows[1], &stream.act, d_y);
            b.linear_backward_input_gelu(params, fc2, rows[1], d_y.all(), kept.pre.all(), hidden.all_mut());
            weight_gradient(b, grads, fc1, rows[1], &stream.norm, hidden);
            b.linear_backward_input(params, fc1, rows[1], hidden.all(), room.norm_text.all_mut(), false);
            let mut branches = [BranchGrad { y: stream.proj.all(), gate: layout.text.attention_gate(), d_y: room.branch_text.all_mut() }];
            let norm_grads = [NormGrad { d_out: room.norm_text.all(), modulation: Some(layout.text.before_mlp()) }];
            let (shape, x_out, dx) = (d.adaln(batch, d.text), kept.mid.all(), room.text.all_mut());
            let (stats, d_table) = (Some(&kept.stats), d_table.as_deref_mut());
            b.adaln_backward(&shape, x_out, stats, table, dx, true, None, &norm_grads, &mut branches, d_table);
            weight_gradient(b, grads, proj, rows[1], &block.attn.out_text, &room.branch_text);
            b.linear_backward_input(params, proj, rows[1], room.branch_text.all(), room.out_text.all_mut(), false);
        };
        b.parallel(&mut sums, of_image, of_text);
        let grads = &mut pass.grads;
        self.attention_backward(b, params, acts, room, grads, i, batch);

        if let (Some(attn2), Some(kept), Some(norm2), Some(qkv2)) = (&layout.image.attn2, &block.attn2, &norms.image2, &qkv.image2) {
            if let Some(proj) = &attn2.proj {
                weight_gradient(b, grads, proj, rows[0], &kept.out_image, &room.branch_image2);
                b.linear_backward_input(params, proj, rows[0], room.branch_image2.all(), room.out_image.all_mut(), false);
            }
            let joint = [&mut room.q, &mut room.k, &mut room.v];
            let (out, d_out) = ([Some(&kept.out_image), None], [Some(&room.out_image), None]);
            b.attention_backward(&d.attention2(batch), [&kept.q, &kept.k, &kept.v], out, &kept.lse, d_out, joint);
            let (shape, d_joint) = (d.image_qk(batch, attn2, false), [&room.q, &room.k, &room.v]);
            let (qkv, d_qkv) = (qkv2.all(), room.qkv_image.all_mut());
            b.qk_norm_backward(params, grads.as_deref_mut(), &shape, true, qkv, &kept.rstd_image, d_joint, d_qkv);
            weight_gradient(b, grads, &attn2.qkv, rows[0], norm2, &room.qkv_image);
            b.linear_backward_input(params, &attn2.qkv, rows[0], room.qkv_image.all(), room.norm_image2.all_mut(), false);
        }
    }

    /// Joint attention of block `i`: from the gradients of its outputs to those of the norms it reads.
    fn attention_backward(
        &self,
        b: &B,
        params: &B::Data,
        acts: &Activations<B>,
        room: &mut Gradients<B>,
        grads: &mut Option<&mut B::Stat>,
        i: usize,
        batch: usize,
    ) {
        let (d, slots) = (&acts.dims, &acts.slots);
        let (layout, kept) = (&self.layout.blocks[i], &acts.blocks[slots.kept.of(i)].attn);
        let (norms, qkv) = (&acts.norms[slots.operands.of(i)], &acts.qkv[slots.qkv.of(i)]);
        let AttentionActivations { rstd_image, rstd_text, q, k, v, lse, out_image, out_text } = kept;
        let text_out = i + 1 < acts.plan.blocks;
        let rows = [batch * d.image, batch * d.text];

        let (out, d_out) = ([Some(out_image), text_out.then_some(out_text)], [Some(&room.out_image), text_out.then_some(&room.out_text)]);
        b.attention_backward(&d.attention(batch, text_out), [q, k, v], out, lse, d_out, [&mut room.q, &mut room.k, &mut room.v]);

        let (image, text, d_joint) = (&layout.image.attn, &layout.text.attn, [&room.q, &room.k, &room.v]);
        let of_image = |grads: &mut Option<&mut B::Stat>| {
            let (shape, d_qkv) = (d.image_qk(batch, image, true), room.qkv_image.all_mut());
            b.qk_norm_backward(params, grads.as_deref_mut(), &shape, true, qkv.image.all(), rstd_image, d_joint, d_qkv);
            weight_gradient(b, grads, &image.qkv, rows[0], &norms.image, &room.qkv_image);
            b.linear_backward_input(params, &image.qkv, rows[0], room.qkv_image.all(), room.norm_image.all_mut(), false);
        };
        let of_text = |grads: &mut Option<&mut B::Stat>| {
            if i == 0 && grads.is_none() {
                return; // the context is an input nobody asks a gradient of
            }
            let (shape, d_qkv) = (d.text_qk(batch, text), room.qkv_text.all_mut());
            b.qk_norm_backward(params, grads.as_deref_mut(), &shape, text_out, qkv.text.all(), rstd_text, d_joint, d_qkv);
            weight_gradient(b, grads, &text.qkv, rows[1], &norms.text, &room.qkv_text);
            b.linear_backward_input(params, &text.qkv, rows[1], room.qkv_text.all(), room.norm_text.all_mut(), false);
        };
        b.parallel(grads, of_image, of_text);
    }

    /// Norms of the first block's inputs.
    fn enter_backward(&self, b: &B, acts: &Activations<B>, room: &mut Gradients<B>, pass: &Backward<'_, B>) {
        let (d, batch, layout) = (&acts.dims, pass.batch, &self.layout.blocks[0]);
        let trained = pass.grads.is_some();
        let table = Some(acts.table.all());
        let mut sums = Sums::<B> { table: trained.then_some(&mut room.table), grads: None };
        let of_image = |sums: &mut Sums<'_, B>| {
            let norms = image_norm_gradients::<B>(layout, &room.norm_image, &room.norm_image2);
            let (shape, stats, dx) = (d.adaln(batch, d.image), Some(&acts.image_stats[0]), room.image.all_mut());
            let d_table = sums.table.as_deref_mut();
            b.adaln_backward(&shape, acts.image[0].all(), stats, table, dx, true, None, &norms, &mut [], d_table);
        };
        let of_text = |sums: &mut Sums<'_, B>| {
            if !trained {
                return; // the context is an input nobody asks a gradient of
            }
            let norms = [NormGrad { d_out: room.norm_text.all(), modulation: Some(layout.text.before_attention()) }];
            let (shape, stats, dx) = (d.adaln(batch, d.text), Some(&acts.text_stats[0]), room.text.all_mut());
            let (residual, d_table) = (acts.plan.blocks > 1, sums.table.as_deref_mut());
            b.adaln_backward(&shape, acts.text[0].all(), stats, table, dx, residual, None, &norms, &mut [], d_table);
        };
        b.parallel(&mut sums, of_image, of_text);
    }

    /// Embeddings and conditioning.
    fn embed_backward(
        &self,
        b: &B,
        params: &B::Data,
        inputs: &Inputs<'_, B>,
        acts: &Activations<B>,
        room: &mut Gradients<B>,
        pass: Backward<'_, B>,
    ) {
        let (layout, d, batch) = (&*self.layout, &acts.dims, pass.batch);
        let (embedder, rows) = (&layout.x_embedder, batch * d.image);
        match pass.d_image {
            Some(ImageMut::Tokens(tokens)) => b.linear_backward_input(params, embedder, rows, room.image.all(), tokens, false),
            Some(ImageMut::Latent(latent)) => {
                b.linear_backward_input(params, embedder, rows, room.image.all(), room.tokens.all_mut(), false);
                b.unpatchify(&d.patches(&self.config, batch, PatchOrder::ChannelFirst), room.tokens.all(), latent);
            }
            None => {}
        }
        let Some(grads) = pass.grads else { return };
        b.linear_backward_weight(grads, embedder, rows, inputs.tokens(&acts.tokens), room.image.all());
        if let (Some(embedder), Some(conditioning)) = (&layout.conditioning_embedder, inputs.conditioning) {
            b.linear_backward_weight(grads, embedder, rows, conditioning, room.image.all());
        }
        b.linear_backward_weight(grads, &layout.context_embedder, batch * d.text, inputs.context, room.text.all());

        let adaln = layout.adaln_for(acts.plan.blocks, acts.plan.velocity);
        let [d_condition, d_hidden] = &mut room.embedding;
        let len = batch * d.hidden;
        b.linear_backward_weight(grads, &adaln, batch, acts.embedding.all(), room.table.all());
        b.linear_backward_input(params, &adaln, batch, room.table.all(), d_hidden.all_mut(), false);
        b.silu_backward(acts.condition.part(0..len), d_hidden.part(0..len), d_condition.part_mut(0..len));
        let branches =
            [(&layout.t_mlp, acts.frequencies.all(), &acts.t_pre, &acts.t_act), (&layout.y_mlp, inputs.pooled, &acts.y_pre, &acts.y_act)];
        let [d_act, d_pre] = [d_hidden, &mut room.norm_image]; // the norm's gradient is used up by now
        for ([first, second], input, pre, act) in branches {
            b.linear_backward_weight(grads, second, batch, act.all(), d_condition.all());
            b.linear_backward_input(params, second, batch, d_condition.all(), d_act.all_mut(), false);
            b.silu_backward(pre.part(0..len), d_act.part(0..len), d_pre.part_mut(0..len));
            b.linear_backward_weight(grads, first, batch, input, d_pre.all());
        }
    }
}

fn weight_gradient<B: Backend>(b: &B, grads: &mut Option<&mut B::Stat>, layer: &Linear, rows: usize, x: &B::Data, dy: &B::Data) {
    if let Some(grads) = grads {
        b.linear_backward_weight(grads, layer, rows, x.all(), dy.all());
    }
}

fn feature_gradient<'a, B: Backend>(pass: &Backward<'a, B>, block: usize) -> Option<View<'a, B::Data>> {
    pass.d_features.iter().find(|(tap, _)| *tap == block).map(|(_, d)| *d)
}

fn image_norm_gradients<'a, B: Backend>(layout: &BlockLayout, image: &'a B::Data, image2: &'a B::Data) -> Vec<NormGrad<'a, B>> {
    let mut norms = vec![NormGrad { d_out: image.all(), modulation: Some(layout.image.before_attention()) }];
    if layout.image.attn2.is_some() {
        norms.push(NormGrad { d_out: image2.all(), modulation: Some(layout.image.before_attention2()) });
    }
    norms
}
