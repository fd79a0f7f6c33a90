//! Every operation of the backend with operands of a given size: what the determinism tests and the benchmarks run.

use ladd_fast::device::{
    ADAMW_COUNTERS, AdalnShape, AdamwShape, AdamwState, AttentionShape, Backend, Branch, BranchGrad, ConvShape, Groups, HINGE_STATS,
    HeadLogitsShape, HingeShape, Linear, Modulation, NormGrad, NormOut, PatchOrder, PatchShape, QkNormShape, StepValues, Storage,
};
use ladd_fast::flow::TimestepDistribution;
use ladd_fast::flow::philox::fill_normals;
use ladd_fast::ladd::AdversarialLoss;
use ladd_fast::model::{FREQUENCIES, MLP_RATIO};

/// Sizes of a network's passes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub name: &'static str,
    pub batch: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Token grid.
    pub grid: (usize, usize),
    pub text: usize,
    /// Channels inside a discriminator head.
    pub width: usize,
}

/// The demo's teacher.
pub const DEMO: Sizes = Sizes { name: "demo", batch: 64, heads: 2, head_dim: 64, grid: (4, 4), text: 4, width: 64 };
/// A larger network on larger pictures.
pub const LARGE: Sizes = Sizes { name: "large", batch: 4, heads: 8, head_dim: 64, grid: (8, 8), text: 77, width: 256 };

const CHANNELS: usize = 16;
const PATCH: usize = 2;
const POOLED: usize = 64;

impl Sizes {
    pub fn hidden(&self) -> usize {
        self.heads * self.head_dim
    }

    pub fn image(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    /// Image tokens of the batch.
    fn rows(&self) -> usize {
        self.batch * self.image()
    }

    /// Values of the batch's latents.
    fn latents(&self) -> usize {
        self.rows() * CHANNELS * PATCH * PATCH
    }
}

/// How much one run does.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Floating-point operations.
    Flops(usize),
    /// Values written.
    Elements(usize),
}

impl Work {
    /// The number.
    pub fn amount(self) -> u64 {
        let (Self::Flops(n) | Self::Elements(n)) = self;
        n as u64
    }
}

/// One operation with its operands.
pub struct Operation<'a> {
    pub name: &'static str,
    pub work: Work,
    /// Runs it; with `true`, returns all that it wrote.
    pub run: Box<dyn FnMut(bool) -> Vec<f32> + 'a>,
}

/// Makes operands on a backend.
struct Maker<'a, B: Backend> {
    b: &'a B,
    s: Sizes,
    stream: u32,
}

impl<'a, B: Backend> Maker<'a, B> {
    fn values(&mut self, len: usize) -> Vec<f32> {
        self.stream += 1;
        let mut values = vec![0.0; len];
        fill_normals(1, 0, self.stream, 0, &mut values);
        values
    }

    fn data(&mut self, len: usize) -> B::Data {
        let mut buffer = self.b.alloc_data(len).unwrap();
        self.b.upload_data(&self.values(len), buffer.all_mut());
        buffer
    }

    fn stat(&mut self, len: usize) -> B::Stat {
        let mut buffer = self.b.alloc_stat(len).unwrap();
        self.b.upload_stat(&self.values(len), buffer.all_mut());
        buffer
    }

    /// Times between 0 and 1.
    fn times(&mut self, len: usize) -> B::Stat {
        let mut buffer = self.b.alloc_stat(len).unwrap();
        let times: Vec<f32> = self.values(len).iter().map(|n| 1.0 / (1.0 + n.exp())).collect();
        self.b.upload_stat(&times, buffer.all_mut());
        buffer
    }

    fn step(&self) -> B::Step {
        let mut step = self.b.alloc_step().unwrap();
        self.b.upload_step(&StepValues { seed: 7, step: 3, first_sample: 5, lr: [1e-5; 2] }, &mut step);
        step
    }
}

fn read<B: Backend>(b: &B, wanted: bool, buffers: &[&B::Data]) -> Vec<f32> {
    if !wanted {
        return Vec::new();
    }
    buffers.iter().flat_map(|buffer| b.download_data(buffer.all()).unwrap()).collect()
}

fn read_stat<B: Backend>(b: &B, wanted: bool, buffers: &[&B::Stat]) -> Vec<f32> {
    if !wanted {
        return Vec::new();
    }
    buffers.iter().flat_map(|buffer| b.download_stat(buffer.all()).unwrap()).collect()
}

/// Every operation, forward and backward.
pub fn catalogue<B: Backend>(b: &B, sizes: Sizes) -> Vec<Operation<'_>> {
    let m = &mut Maker { b, s: sizes, stream: 0 };
    let mut all = Vec::new();
    linear(m, &mut all);
    activations(m, &mut all);
    attention(m, &mut all);
    qk_norm(m, &mut all);
    adaln(m, &mut all);
    embed(m, &mut all);
    flow(m, &mut all);
    losses(m, &mut all);
    heads(m, &mut all);
    optimiser(m, &mut all);
    all
}

fn add<'a>(all: &mut Vec<Operation<'a>>, name: &'static str, work: Work, run: impl FnMut(bool) -> Vec<f32> + 'a) {
    all.push(Operation { name, work, run: Box::new(run) });
}

/// A layer at the beginning of an arena.
fn layer(inputs: usize, outputs: usize) -> (Linear, usize) {
    (Linear { weight: 0, bias: inputs * outputs, inputs, outputs }, (inputs + 1) * outputs)
}

fn linear<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, rows, h) = (m.b, m.s.rows(), m.s.hidden());
    let wide = MLP_RATIO * h;
    let flops = Work::Flops(2 * rows * h * wide);
    let (up, len) = layer(h, wide);
    let (down, down_len) = layer(wide, h);

    let (params, x, mut y) = (m.data(len), m.data(rows * h), m.data(rows * wide));
    add(all, "linear", flops, move |read_| {
        b.linear(&params, &up, rows, x.all(), y.all_mut(), false);
        read(b, read_, &[&y])
    });
    let (params, x, mut pre, mut y) = (m.data(len), m.data(rows * h), m.data(rows * wide), m.data(rows * wide));
    add(all, "linear_gelu", flops, move |read_| {
        b.linear_gelu(&params, &up, rows, x.all(), pre.all_mut(), y.all_mut());
        read(b, read_, &[&pre, &y])
    });
    let (params, dy, mut dx) = (m.data(len), m.data(rows * wide), m.data(rows * h));
    add(all, "linear_backward_input", flops, move |read_| {
        b.linear_backward_input(&params, &up, rows, dy.all(), dx.all_mut(), false);
        read(b, read_, &[&dx])
    });
    let (params, dy, pre, mut d_pre) = (m.data(down_len), m.data(rows * h), m.data(rows * wide), m.data(rows * wide));
    add(all, "linear_backward_input_gelu", flops, move |read_| {
        b.linear_backward_input_gelu(&params, &down, rows, dy.all(), pre.all(), d_pre.all_mut());
        read(b, read_, &[&d_pre])
    });
    let (mut grads, x, dy) = (m.stat(len), m.data(rows * h), m.data(rows * wide));
    add(all, "linear_backward_weight", flops, move |read_| {
        b.linear_backward_weight(&mut grads, &up, rows, x.all(), dy.all());
        read_stat(b, read_, &[&grads])
    });
}

fn activations<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, n) = (m.b, m.s.rows() * m.s.width);
    let work = Work::Elements(n);
    let (x, mut y) = (m.data(n), m.data(n));
    add(all, "silu", work, move |read_| {
        b.silu(x.all(), y.all_mut());
        read(b, read_, &[&y])
    });
    let (x, dy, mut dx) = (m.data(n), m.data(n), m.data(n));
    add(all, "silu_backward", work, move |read_| {
        b.silu_backward(x.all(), dy.all(), dx.all_mut());
        read(b, read_, &[&dx])
    });
    let (x, residual, mut y) = (m.data(n), m.data(n), m.data(n));
    add(all, "leaky_relu", work, move |read_| {
        b.leaky_relu(x.all(), Some(residual.all()), y.all_mut());
        read(b, read_, &[&y])
    });
    let (x, dy, mut dx) = (m.data(n), m.data(n), m.data(n));
    add(all, "leaky_relu_backward", work, move |read_| {
        b.leaky_relu_backward(x.all(), dy.all(), dx.all_mut());
        read(b, read_, &[&dx])
    });
}

fn attention<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, Sizes { batch, heads, head_dim, text, .. }) = (m.b, m.s);
    let shape = AttentionShape { batch, heads, head_dim, image: m.s.image(), text, text_queries: true };
    let s = shape.keys();
    let (joint, image, texts) = (batch * s * m.s.hidden(), m.s.rows() * m.s.hidden(), batch * text * m.s.hidden());
    let forward = 4 * batch * heads * s * s * head_dim;
    let [q, k, v] = [(); 3].map(|()| m.data(joint));
    let (mut out_image, mut out_text, mut lse) = (m.data(image), m.data(texts), m.stat(batch * heads * s));
    add(all, "attention", Work::Flops(forward), move |read_| {
        b.attention(&shape, [&q, &k, &v], &mut out_image, Some(&mut out_text), &mut lse);
        [read(b, read_, &[&out_image, &out_text]), read_stat(b, read_, &[&lse])].concat()
    });
    let [q, k, v, mut dq, mut dk, mut dv] = [(); 6].map(|()| m.data(joint));
    let (mut out_image, mut out_text, mut lse) = (m.data(image), m.data(texts), m.stat(batch * heads * s));
    let (d_image, d_text) = (m.data(image), m.data(texts));
    b.attention(&shape, [&q, &k, &v], &mut out_image, Some(&mut out_text), &mut lse);
    add(all, "attention_backward", Work::Flops(forward * 5 / 2), move |read_| {
        let (out, d_out) = ([Some(&out_image), Some(&out_text)], [Some(&d_image), Some(&d_text)]);
        b.attention_backward(&shape, [&q, &k, &v], out, &lse, d_out, [&mut dq, &mut dk, &mut dv]);
        read(b, read_, &[&dq, &dk, &dv])
    });
}

fn qk_norm<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, Sizes { batch, heads, head_dim, text, .. }) = (m.b, m.s);
    let sequence = m.s.image() + text;
    let shape = QkNormShape { batch, tokens: m.s.image(), heads, head_dim, sequence, start: 0, norm: Some((0, head_dim)) };
    let (rows, joint) = (m.s.rows(), batch * sequence * m.s.hidden());
    let fused = rows * 3 * m.s.hidden();
    let work = Work::Elements(fused);
    let (params, qkv, mut rstd) = (m.data(2 * head_dim), m.data(fused), m.stat(rows * 2 * heads));
    let [mut q, mut k, mut v] = [(); 3].map(|()| m.data(joint));
    add(all, "qk_norm", work, move |read_| {
        b.qk_norm(&params, &shape, qkv.all(), &mut q, &mut k, &mut v, &mut rstd);
        [read(b, read_, &[&q, &k, &v]), read_stat(b, read_, &[&rstd])].concat()
    });
    let (params, mut grads) = (m.data(2 * head_dim), m.stat(2 * head_dim));
    let (qkv, mut rstd, mut d_qkv) = (m.data(fused), m.stat(rows * 2 * heads), m.data(fused));
    let [mut q, mut k, mut v] = [(); 3].map(|()| m.data(joint));
    b.qk_norm(&params, &shape, qkv.all(), &mut q, &mut k, &mut v, &mut rstd);
    add(all, "qk_norm_backward", work, move |read_| {
        let d_joint = [&q, &k, &v];
        b.qk_norm_backward(&params, Some(&mut grads), &shape, true, qkv.all(), &rstd, d_joint, d_qkv.all_mut());
        [read(b, read_, &[&d_qkv]), read_stat(b, read_, &[&grads])].concat()
    });
}

fn adaln<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, h, rows, batch) = (m.b, m.s.hidden(), m.s.rows(), m.s.batch);
    let shape = AdalnShape { batch, tokens: m.s.image(), hidden: h, stride: 3 * h };
    let (gate, modulation) = (0, Some(Modulation { shift: h, scale: 2 * h }));
    let work = Work::Elements(2 * rows * h);
    let (x, y, table) = (m.data(rows * h), m.data(rows * h), m.data(batch * 3 * h));
    let (mut x_out, mut out, mut stats) = (m.data(rows * h), m.data(rows * h), m.stat(rows * 2));
    add(all, "adaln", work, move |read_| {
        let mut norms = [NormOut { out: out.all_mut(), modulation }];
        let branches = [Branch { y: y.all(), gate }];
        b.adaln(&shape, x.all(), &branches, Some(table.all()), Some(x_out.all_mut()), &mut norms, Some(&mut stats));
        [read(b, read_, &[&x_out, &out]), read_stat(b, read_, &[&stats])].concat()
    });
    let (x_out, y, d_out, table) = (m.data(rows * h), m.data(rows * h), m.data(rows * h), m.data(batch * 3 * h));
    let (mut out, mut stats) = (m.data(rows * h), m.stat(rows * 2));
    let mut norms = [NormOut { out: out.all_mut(), modulation }];
    b.adaln(&shape, x_out.all(), &[], Some(table.all()), None, &mut norms, Some(&mut stats));
    let (mut dx, mut d_y, mut d_table) = (m.data(rows * h), m.data(rows * h), m.data(batch * 3 * h));
    add(all, "adaln_backward", work, move |read_| {
        let norms = [NormGrad { d_out: d_out.all(), modulation }];
        let mut branches = [BranchGrad { y: y.all(), gate, d_y: d_y.all_mut() }];
        let (kept, columns, d_columns) = (Some(&stats), Some(table.all()), Some(&mut d_table));
        b.adaln_backward(&shape, x_out.all(), kept, columns, dx.all_mut(), true, None, &norms, &mut branches, d_columns);
        read(b, read_, &[&dx, &d_y, &d_table])
    });
}

fn embed<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, batch, grid, h, n) = (m.b, m.s.batch, m.s.grid, m.s.hidden(), m.s.latents());
    let order = PatchOrder::ChannelLast;
    let shape = PatchShape { batch, channels: CHANNELS, height: grid.0 * PATCH, width: grid.1 * PATCH, patch: PATCH, order };
    let (latent, mut tokens) = (m.stat(n), m.data(n));
    add(all, "patchify", Work::Elements(n), move |read_| {
        b.patchify(&shape, latent.all(), tokens.all_mut());
        read(b, read_, &[&tokens])
    });
    let (mut latent, tokens) = (m.stat(n), m.data(n));
    add(all, "unpatchify", Work::Elements(n), move |read_| {
        b.unpatchify(&shape, tokens.all(), latent.all_mut());
        read_stat(b, read_, &[&latent])
    });
    let max = grid.0.max(grid.1) + 2;
    let (pos, mut x) = (m.data(max * max * h), m.data(m.s.rows() * h));
    add(all, "pos_embed", Work::Elements(m.s.rows() * h), move |read_| {
        b.pos_embed(batch, grid, max, &pos, x.all_mut());
        read(b, read_, &[&x])
    });
    let width = FREQUENCIES + POOLED;
    let (t, pooled, mut out) = (m.times(batch), m.data(batch * POOLED), m.data(batch * width));
    add(all, "timestep_embedding", Work::Elements(batch * width), move |read_| {
        b.timestep_embedding(t.all(), Some(pooled.all()), out.all_mut());
        read(b, read_, &[&out])
    });
}

fn flow<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, batch, n) = (m.b, m.s.batch, m.s.latents());
    let work = Work::Elements(n);
    let (step, mut t) = (m.step(), m.times(batch));
    add(all, "timesteps", Work::Elements(batch), move |read_| {
        b.timesteps(&step, 1, &TimestepDistribution::LogitNormal { mean: 1.0, std: 1.0 }, t.all_mut());
        read_stat(b, read_, &[&t])
    });
    let (step, mut out) = (m.step(), m.stat(n));
    add(all, "normal", work, move |read_| {
        b.normal(&step, 2, n / batch, out.all_mut());
        read_stat(b, read_, &[&out])
    });
    let (step, x0, t, mut x_t, mut velocity) = (m.step(), m.stat(n), m.times(batch), m.stat(n), m.stat(n));
    add(all, "flow_noise", work, move |read_| {
        b.flow_noise(&step, 2, Some((6, 0.1)), x0.all(), t.all(), x_t.all_mut(), Some(velocity.all_mut()));
        read_stat(b, read_, &[&x_t, &velocity])
    });
    let (step, x_t, velocity, t, t_hat) = (m.step(), m.stat(n), m.stat(n), m.times(batch), m.times(batch));
    let (mut x0_hat, mut renoised) = (m.stat(n), m.stat(n));
    add(all, "predict_x0_renoise", work, move |read_| {
        b.predict_x0_renoise(&step, 4, x_t.all(), velocity.all(), t.all(), t_hat.all(), x0_hat.all_mut(), renoised.all_mut());
        read_stat(b, read_, &[&x0_hat, &renoised])
    });
    let (t, t_hat, d_renoised, d_x0_hat, mut d_velocity) = (m.times(batch), m.times(batch), m.stat(n), m.stat(n), m.stat(n));
    add(all, "predict_x0_renoise_backward", work, move |read_| {
        let upstream = (Some(d_renoised.all()), Some(d_x0_hat.all()));
        b.predict_x0_renoise_backward(t.all(), t_hat.all(), upstream.0, upstream.1, d_velocity.all_mut());
        read_stat(b, read_, &[&d_velocity])
    });
    let (mut x, velocity, unconditional) = (m.stat(n), m.stat(n), m.stat(n));
    add(all, "euler_cfg", work, move |read_| {
        b.euler_cfg(x.all_mut(), velocity.all(), Some(unconditional.all()), 3.0, -0.25);
        read_stat(b, read_, &[&x])
    });
}

fn losses<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, n) = (m.b, m.s.latents());
    let (x, target, mut d, mut loss) = (m.stat(n), m.stat(n), m.stat(n), m.stat(1));
    add(all, "mse", Work::Elements(n), move |read_| {
        b.mse(x.all(), target.all(), 1.0, 1.0, Some(d.all_mut()), loss.all_mut());
        read_stat(b, read_, &[&d, &loss])
    });
    let groups = Groups { real: true, mismatch: true, perturbed: true };
    let shape = HingeShape {
        loss: AdversarialLoss::NonSaturating,
        heads: 4,
        groups,
        batch: m.s.batch,
        positions: m.s.image(),
        mismatch_weight: 0.5,
        r1_weight: 0.1,
        generator_weight: 1.0,
        share: 1.0,
    };
    let n = shape.heads * m.s.rows();
    let (logits, mut d_d, mut d_g) = (m.stat(n * groups.count()), m.stat(n * groups.count()), m.stat(n));
    let mut stats = m.stat(shape.heads * HINGE_STATS);
    add(all, "hinge", Work::Elements(n * groups.count()), move |read_| {
        b.hinge(&shape, logits.all(), Some(d_d.all_mut()), Some(d_g.all_mut()), stats.all_mut());
        read_stat(b, read_, &[&d_d, &d_g, &stats])
    });
}

fn heads<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let (b, batch, rows, w) = (m.b, m.s.batch, m.s.rows(), m.s.width);
    let (linear, len) = layer(9 * w, w);
    let shape = ConvShape { linear, batch, rows: m.s.grid.0, columns: m.s.grid.1 };
    let flops = Work::Flops(2 * rows * 9 * w * w);
    let (params, x, mut y) = (m.data(len), m.data(rows * w), m.data(rows * w));
    add(all, "conv3x3", flops, move |read_| {
        b.conv3x3(&params, &shape, x.all(), y.all_mut());
        read(b, read_, &[&y])
    });
    let (params, dy, mut dx) = (m.data(len), m.data(rows * w), m.data(rows * w));
    add(all, "conv3x3_backward_input", flops, move |read_| {
        b.conv3x3_backward_input(&params, &shape, dy.all(), dx.all_mut(), false);
        read(b, read_, &[&dx])
    });
    let (mut grads, x, dy) = (m.stat(len), m.data(rows * w), m.data(rows * w));
    add(all, "conv3x3_backward_weight", flops, move |read_| {
        b.conv3x3_backward_weight(&mut grads, &shape, x.all(), dy.all());
        read_stat(b, read_, &[&grads])
    });
    let (linear, len) = layer(w, 1);
    let shape = HeadLogitsShape { linear, batch, positions: m.s.image() };
    let work = Work::Elements(rows * w);
    let (params, h, cm, mut logits) = (m.data(len), m.data(rows * w), m.data(batch * w), m.stat(rows));
    add(all, "head_logits", work, move |read_| {
        b.head_logits(&params, &shape, h.all(), cm.all(), logits.all_mut());
        read_stat(b, read_, &[&logits])
    });
    let (params, h, cm, d_logits) = (m.data(len), m.data(rows * w), m.data(batch * w), m.stat(rows));
    let (mut grads, mut dh, mut d_cm) = (m.stat(len), m.data(rows * w), m.data(batch * w));
    add(all, "head_logits_backward", work, move |read_| {
        let trained = Some((&mut grads, d_cm.all_mut()));
        b.head_logits_backward(&params, &shape, h.all(), cm.all(), d_logits.all(), dh.all_mut(), trained);
        [read(b, read_, &[&dh, &d_cm]), read_stat(b, read_, &[&grads])].concat()
    });
}

fn optimiser<'a, B: Backend>(m: &mut Maker<'a, B>, all: &mut Vec<Operation<'a>>) {
    let b = m.b;
    let n = 12 * m.s.hidden() * m.s.hidden(); // a block's weights, about
    let (grads, mut norm) = (m.stat(n), m.stat(1));
    add(all, "global_norm", Work::Elements(n), move |read_| {
        b.global_norm(&grads, &mut norm);
        read_stat(b, read_, &[&norm])
    });
    let shape = AdamwShape { lr_index: 0, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01, clip: 1.0, ema_decay: 0.99 };
    let (step, grads, mut norm) = (m.step(), m.stat(n), m.stat(1));
    b.fill(norm.all_mut(), 2.0);
    let (mut params, mut master, mut ema) = (m.data(n), m.stat(n), m.stat(n));
    let [mut moment1, mut moment2] = [(); 2].map(|()| b.alloc_stat(n).unwrap());
    let mut counters = b.alloc_stat(ADAMW_COUNTERS).unwrap();
    add(all, "adamw", Work::Elements(n), move |read_| {
        let (params_, master, moment1, moment2) = (&mut params, &mut master, &mut moment1, &mut moment2);
        let state = AdamwState { params: params_, master, moment1, moment2, ema: Some(&mut ema), counters: &mut counters };
        b.adamw(&step, &shape, &grads, &norm, state);
        [read(b, read_, &[&params]), read_stat(b, read_, &[&*master, &*moment1, &*moment2, &ema])].concat()
    });
}
