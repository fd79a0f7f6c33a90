//! Discriminator heads (LADD, section 3): one per tapped block, a small 2-D network on the token grid of that block's
//! image features, conditioned on `t̂` and the pooled text. Logits are per position and never averaged over heads.
//!
//! `h1 = lrelu(conv_in LN(f))`, `h2 = h1 + lrelu(conv3x3 h1)`, `h3 = conv_out h2`,
//! `logit = lrelu(h3) . w + b + mean_c(h3 cm)` with `cm = MLP([sinusoid(1000 t̂) | pooled])`, a projection discriminator.

use crate::device::{AdalnShape, Backend, ConvShape, DeviceError, HeadLogitsShape, Linear, NormGrad, NormOut, Storage, View};
use crate::model::{FREQUENCIES, Layout};

/// Sizes that all heads share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadsShape {
    /// Number of heads: of tapped blocks.
    pub count: usize,
    /// Width of the features.
    pub hidden: usize,
    /// Channels inside a head.
    pub width: usize,
    /// Width of the pooled text.
    pub pooled: usize,
}

/// Where one head's tensors lie.
#[derive(Clone, Debug)]
struct HeadLayout {
    conv_in: Linear,
    conv_mid: Linear,
    conv_out: Linear,
    condition: [Linear; 2],
    logit: Linear,
}

/// The heads without their weights.
#[derive(Debug)]
pub struct Heads {
    shape: HeadsShape,
    arena: Layout,
    heads: Vec<HeadLayout>,
}

/// What one head keeps of its forward pass.
#[derive(Debug)]
struct HeadActivations<B: Backend> {
    norm: B::Data,
    stats: B::Stat,
    a1: B::Data,
    h1: B::Data,
    a2: B::Data,
    h2: B::Data,
    h3: B::Data,
    c_pre: B::Data,
    c_act: B::Data,
    cm: B::Data,
}

/// What all heads keep of a forward pass, and room for the backward.
#[derive(Debug)]
pub struct HeadsActivations<B: Backend> {
    grid: (usize, usize),
    condition: B::Data,
    heads: Vec<HeadActivations<B>>,
    d_wide: [B::Data; 2],
    d_norm: B::Data,
    d_cm: B::Data,
    d_condition: [B::Data; 2],
}

impl Heads {
    /// Lays the heads out.
    pub fn new(shape: HeadsShape) -> Self {
        let HeadsShape { count, hidden, width: w, pooled } = shape;
        let mut arena = Layout::default();
        let heads = (0..count)
            .map(|i| HeadLayout {
                conv_in: arena.linear(&format!("heads.{i}.conv_in"), w, hidden),
                conv_mid: arena.shaped_linear(&format!("heads.{i}.conv_mid"), &[w, 3, 3, w]),
                conv_out: arena.linear(&format!("heads.{i}.conv_out"), w, w),
                condition: [
                    arena.linear(&format!("heads.{i}.cond.0"), w, FREQUENCIES + pooled),
                    arena.linear(&format!("heads.{i}.cond.2"), w, w),
                ],
                logit: arena.linear(&format!("heads.{i}.logit"), 1, w),
            })
            .collect();
        Self { shape, arena, heads }
    }

    /// The sizes.
    pub fn shape(&self) -> HeadsShape {
        self.shape
    }

    /// Names, shapes and offsets of the weights.
    pub fn arena(&self) -> &Layout {
        &self.arena
    }

    /// Plans passes of up to `samples` samples on a token grid.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    pub fn activations<B: Backend>(&self, b: &B, samples: usize, grid: (usize, usize)) -> Result<HeadsActivations<B>, DeviceError> {
        let HeadsShape { hidden, width: w, pooled, .. } = self.shape;
        let rows = samples * grid.0 * grid.1;
        let head = |_| {
            Ok(HeadActivations {
                norm: b.alloc_data(rows * hidden)?,
                stats: b.alloc_stat(rows * 2)?,
                a1: b.alloc_data(rows * w)?,
                h1: b.alloc_data(rows * w)?,
                a2: b.alloc_data(rows * w)?,
                h2: b.alloc_data(rows * w)?,
                h3: b.alloc_data(rows * w)?,
                c_pre: b.alloc_data(samples * w)?,
                c_act: b.alloc_data(samples * w)?,
                cm: b.alloc_data(samples * w)?,
            })
        };
        Ok(HeadsActivations {
            grid,
            condition: b.alloc_data(samples * (FREQUENCIES + pooled))?,
            heads: self.heads.iter().map(head).collect::<Result<_, DeviceError>>()?,
            d_wide: [b.alloc_data(rows * w)?, b.alloc_data(rows * w)?],
            d_norm: b.alloc_data(rows * hidden)?,
            d_cm: b.alloc_data(samples * w)?,
            d_condition: [b.alloc_data(samples * w)?, b.alloc_data(samples * w)?],
        })
    }

    fn norm_shape<B: Backend>(&self, acts: &HeadsActivations<B>, samples: usize) -> AdalnShape {
        AdalnShape { batch: samples, tokens: acts.grid.0 * acts.grid.1, hidden: self.shape.hidden, stride: 0 }
    }

    /// Logits `[heads, samples, positions]` of the features `[samples * positions, hidden]` of each tapped block.
    pub fn forward<B: Backend>(
        &self,
        b: &B,
        params: &B::Data,
        samples: usize,
        features: &[&B::Data],
        t_hat: View<'_, B::Stat>,
        pooled: View<'_, B::Data>,
        acts: &mut HeadsActivations<B>,
        logits: &mut B::Stat,
    ) {
        let (grid, norm_shape) = (acts.grid, self.norm_shape(acts, samples));
        let positions = grid.0 * grid.1;
        let rows = samples * positions;
        let wide = 0..rows * self.shape.width;
        let narrow = 0..samples * self.shape.width;
        b.timestep_embedding(t_hat, Some(pooled), acts.condition.all_mut());
        for (i, (layout, kept)) in self.heads.iter().zip(&mut acts.heads).enumerate() {
            let mut norms = [NormOut { out: kept.norm.all_mut(), modulation: None }];
            b.adaln(&norm_shape, features[i].all(), &[], None, None, &mut norms, Some(&mut kept.stats));
            b.linear(params, &layout.conv_in, rows, kept.norm.all(), kept.a1.all_mut(), false);
            b.leaky_relu(kept.a1.part(wide.clone()), None, kept.h1.part_mut(wide.clone()));
            b.conv3x3(params, &conv(layout, samples, grid), kept.h1.all(), kept.a2.all_mut());
            b.leaky_relu(kept.a2.part(wide.clone()), Some(kept.h1.part(wide.clone())), kept.h2.part_mut(wide.clone()));
            b.linear(params, &layout.conv_out, rows, kept.h2.all(), kept.h3.all_mut(), false);

            b.linear(params, &layout.condition[0], samples, acts.condition.all(), kept.c_pre.all_mut(), false);
            b.silu(kept.c_pre.part(narrow.clone()), kept.c_act.part_mut(narrow.clone()));
            b.linear(params, &layout.condition[1], samples, kept.c_act.all(), kept.cm.all_mut(), false);

            let shape = HeadLogitsShape { linear: layout.logit, batch: samples, positions };
            b.head_logits(params, &shape, kept.h3.all(), kept.cm.all(), logits.part_mut(i * rows..(i + 1) * rows));
        }
    }

    /// Gradients of the heads' weights, added to `grads`, from `d_logits` `[heads, samples, positions]`.
    pub fn backward_weights<B: Backend>(
        &self,
        b: &B,
        params: &B::Data,
        samples: usize,
        d_logits: &B::Stat,
        acts: &mut HeadsActivations<B>,
        grads: &mut B::Stat,
    ) {
        let grid = acts.grid;
        let positions = grid.0 * grid.1;
        let rows = samples * positions;
        let wide = 0..rows * self.shape.width;
        let narrow = 0..samples * self.shape.width;
        let HeadsActivations { condition, heads, d_wide: [d_a, d_h], d_cm, d_condition: [d_act, d_pre], .. } = acts;
        for (i, (layout, kept)) in self.heads.iter().zip(heads).enumerate() {
            let shape = HeadLogitsShape { linear: layout.logit, batch: samples, positions };
            let (d_logits, room) = (d_logits.part(i * rows..(i + 1) * rows), Some((&mut *grads, d_cm.all_mut())));
            b.head_logits_backward(params, &shape, kept.h3.all(), kept.cm.all(), d_logits, d_a.all_mut(), room);
            b.linear_backward_weight(grads, &layout.conv_out, rows, kept.h2.all(), d_a.all());
            b.linear_backward_input(params, &layout.conv_out, rows, d_a.all(), d_h.all_mut(), false);
            b.leaky_relu_backward(kept.a2.part(wide.clone()), d_h.part(wide.clone()), d_a.part_mut(wide.clone()));
            let conv = conv(layout, samples, grid);
            b.conv3x3_backward_weight(grads, &conv, kept.h1.all(), d_a.all());
            b.conv3x3_backward_input(params, &conv, d_a.all(), d_h.all_mut(), true);
            b.leaky_relu_backward(kept.a1.part(wide.clone()), d_h.part(wide.clone()), d_a.part_mut(wide.clone()));
            b.linear_backward_weight(grads, &layout.conv_in, rows, kept.norm.all(), d_a.all());

            b.linear_backward_weight(grads, &layout.condition[1], samples, kept.c_act.all(), d_cm.all());
            b.linear_backward_input(params, &layout.condition[1], samples, d_cm.all(), d_act.all_mut(), false);
            b.silu_backward(kept.c_pre.part(narrow.clone()), d_act.part(narrow.clone()), d_pre.part_mut(narrow.clone()));
            b.linear_backward_weight(grads, &layout.condition[0], samples, condition.all(), d_pre.all());
        }
    }

    /// Gradients of the features of the first `samples` samples, from `d_logits` `[heads, samples, positions]`.
    pub fn backward_features<B: Backend>(
        &self,
        b: &B,
        params: &B::Data,
        samples: usize,
        features: &[&B::Data],
        d_logits: &B::Stat,
        acts: &mut HeadsActivations<B>,
        d_features: &mut [B::Data],
    ) {
        let (grid, norm_shape) = (acts.grid, self.norm_shape(acts, samples));
        let positions = grid.0 * grid.1;
        let rows = samples * positions;
        let wide = 0..rows * self.shape.width;
        let HeadsActivations { heads, d_wide: [d_a, d_h], d_norm, .. } = acts;
        for (i, (layout, kept)) in self.heads.iter().zip(heads).enumerate() {
            let shape = HeadLogitsShape { linear: layout.logit, batch: samples, positions };
            let d_logits = d_logits.part(i * rows..(i + 1) * rows);
            b.head_logits_backward(params, &shape, kept.h3.all(), kept.cm.all(), d_logits, d_a.all_mut(), None);
            b.linear_backward_input(params, &layout.conv_out, rows, d_a.all(), d_h.all_mut(), false);
            b.leaky_relu_backward(kept.a2.part(wide.clone()), d_h.part(wide.clone()), d_a.part_mut(wide.clone()));
            b.conv3x3_backward_input(params, &conv(layout, samples, grid), d_a.all(), d_h.all_mut(), true);
            b.leaky_relu_backward(kept.a1.part(wide.clone()), d_h.part(wide.clone()), d_a.part_mut(wide.clone()));
            b.linear_backward_input(params, &layout.conv_in, rows, d_a.all(), d_norm.all_mut(), false);
            let norms = [NormGrad { d_out: d_norm.all(), modulation: None }];
            let (stats, d_feature) = (Some(&kept.stats), d_features[i].all_mut());
            b.adaln_backward(&norm_shape, features[i].all(), stats, None, d_feature, false, None, &norms, &mut [], None);
        }
    }
}

fn conv(layout: &HeadLayout, samples: usize, grid: (usize, usize)) -> ConvShape {
    ConvShape { linear: layout.conv_mid, batch: samples, rows: grid.0, columns: grid.1 }
}
