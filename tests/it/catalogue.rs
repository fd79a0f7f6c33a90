//! Every operation of the backend with operands of a given size: what the determinism tests and the benchmarks run.

use ladd_fast::device::{
    ADAMW_COUNTERS, AdalnShape, AdamwShape, AdamwState, AttentionShape, Backend, Branch, BranchGrad, ConvShape, FP8_GRANULE, Groups,
    HINGE_STATS, HeadLogitsShape, HingeShape, Linear, Modulation, Moment, NormGrad, NormOut, PatchOrder, PatchShape, QkNormShape,
    QuantizeShape, Quantized, StepValues, Storage,
};
use ladd_fast::flow::TimestepDistribution;
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

    fn patches(&self, order: PatchOrder) -> PatchShape {
        let (height, width) = (self.grid.0 * PATCH, self.grid.1 * PATCH);
        PatchShape { batch: self.batch, channels: CHANNELS, height, width, patch: PATCH, order }
    }
}

/// How much one run does at least.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Floating-point operations.
    Flops(usize),
    /// Values read and written, each once: those in the compute type, and those in fp32.
    Traffic { data: usize, stat: usize },
}

impl Work {
    /// The number of operations or values.
    pub fn amount(self) -> u64 {
        match self {
            Self::Flops(n) => n as u64,
            Self::Traffic { data, stat } => (data + stat) as u64,
        }
    }
}

/// Runs an operation; with `true`, returns all that it wrote.
pub type Run<'a> = Box<dyn FnMut(bool) -> Vec<f32> + 'a>;

/// One operation with its operands.
pub struct Operation<'a> {
    pub name: &'static str,
    pub work: Work,
    pub run: Run<'a>,
}

/// One operation before its operands are made, which may be done several times.
pub struct Entry<'a, B: Backend> {
    pub name: &'static str,
    pub work: Work,
    pub make: Make<'a, B>,
}

/// Makes the operands of an operation.
pub type Make<'a, B> = Box<dyn Fn(&mut Maker<'a, B>) -> Run<'a> + 'a>;

/// Makes operands on a backend: normals, a stream of its own for each.
pub struct Maker<'a, B: Backend> {
    b: &'a B,
    stream: u32,
    step: B::Step,
    /// Values made so far: in the compute type, and in fp32.
    pub made: [usize; 2],
}

impl<'a, B: Backend> Maker<'a, B> {
    pub fn new(b: &'a B) -> Self {
        Self { b, stream: 0, step: step(b), made: [0; 2] }
    }

    fn data(&mut self, len: usize) -> B::Data {
        let values = self.normals(len);
        let mut buffer = self.b.alloc_data(len).unwrap();
        self.b.cast(values.all(), buffer.all_mut());
        self.made[0] += len;
        buffer
    }

    fn stat(&mut self, len: usize) -> B::Stat {
        self.made[1] += len;
        self.normals(len)
    }

    fn normals(&mut self, len: usize) -> B::Stat {
        self.stream += 1;
        let mut buffer = self.b.alloc_stat(len).unwrap();
        self.b.normal(&self.step, self.stream, len, buffer.all_mut());
        buffer
    }

    /// Times between 0 and 1.
    fn times(&mut self, len: usize) -> B::Stat {
        let normals = self.stat(len);
        let times: Vec<f32> = self.b.download_stat(normals.all()).unwrap().iter().map(|n| 1.0 / (1.0 + n.exp())).collect();
        let mut buffer = normals;
        self.b.upload_stat(&times, buffer.all_mut());
        buffer
    }
}

fn step<B: Backend>(b: &B) -> B::Step {
    let mut step = b.alloc_step().unwrap();
    b.upload_step(&StepValues { seed: 7, step: 3, first_sample: 5, lr: [1e-5; 2] }, &mut step);
    step
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

/// Every operation, forward and backward, with its operands.
pub fn catalogue<B: Backend>(b: &B, sizes: Sizes) -> Vec<Operation<'_>> {
    let mut maker = Maker::new(b);
    entries(b, sizes).into_iter().map(|Entry { name, work, make }| Operation { name, work, run: make(&mut maker) }).collect()
}

/// Every operation, forward and backward.
pub fn entries<B: Backend>(b: &B, sizes: Sizes) -> Vec<Entry<'_, B>> {
    let mut all = Vec::new();
    let of = &mut List { b, s: sizes, all: &mut all };
    linear(of);
    quantize(of);
    activations(of);
    attention(of);
    qk_norm(of);
    adaln(of);
    embed(of);
    flow(of);
    losses(of);
    heads(of);
    optimiser(of);
    all
}

/// What the functions below add to.
struct List<'a, 'l, B: Backend> {
    b: &'a B,
    s: Sizes,
    all: &'l mut Vec<Entry<'a, B>>,
}

impl<'a, B: Backend> List<'a, '_, B> {
    /// `make` gives the function that runs the operation.
    fn add<R>(&mut self, name: &'static str, work: Work, make: impl Fn(&mut Maker<'a, B>) -> R + 'a)
    where
        R: FnMut(bool) -> Vec<f32> + 'a,
    {
        self.all.push(Entry { name, work, make: Box::new(move |m| Box::new(make(m))) });
    }
}

fn traffic(data: usize, stat: usize) -> Work {
    Work::Traffic { data, stat }
}

/// A layer at the beginning of an arena.
fn layer(inputs: usize, outputs: usize) -> (Linear, usize) {
    (Linear { weight: 0, bias: inputs * outputs, inputs, outputs }, (inputs + 1) * outputs)
}

fn linear<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, rows, h) = (of.b, of.s.rows(), of.s.hidden());
    let wide = MLP_RATIO * h;
    let flops = Work::Flops(2 * rows * h * wide);
    let (up, len) = layer(h, wide);
    let (down, down_len) = layer(wide, h);

    of.add("linear", flops, move |m| {
        let (params, x, mut y) = (m.data(len), m.data(rows * h), m.data(rows * wide));
        move |read_| {
            b.linear(&params, &up, rows, x.all(), y.all_mut(), false);
            read(b, read_, &[&y])
        }
    });
    of.add("linear_gelu", flops, move |m| {
        let (params, x, mut pre, mut y) = (m.data(len), m.data(rows * h), m.data(rows * wide), m.data(rows * wide));
        move |read_| {
            b.linear_gelu(&params, &up, rows, x.all(), pre.all_mut(), y.all_mut());
            read(b, read_, &[&pre, &y])
        }
    });
    of.add("linear_backward_input", flops, move |m| {
        let (params, dy, mut dx) = (m.data(len), m.data(rows * wide), m.data(rows * h));
        move |read_| {
            b.linear_backward_input(&params, &up, rows, dy.all(), dx.all_mut(), false);
            read(b, read_, &[&dx])
        }
    });
    of.add("linear_backward_input_gelu", flops, move |m| {
        let (params, dy, pre, mut d_pre) = (m.data(down_len), m.data(rows * h), m.data(rows * wide), m.data(rows * wide));
        move |read_| {
            b.linear_backward_input_gelu(&params, &down, rows, dy.all(), pre.all(), d_pre.all_mut());
            read(b, read_, &[&d_pre])
        }
    });
    of.add("linear_backward_weight", flops, move |m| {
        let (mut grads, x, dy) = (m.stat(len), m.data(rows * h), m.data(rows * wide));
        move |read_| {
            b.linear_backward_weight(&mut grads, &up, rows, x.all(), dy.all());
            read_stat(b, read_, &[&grads])
        }
    });
}

/// Products in FP8, where the device has them. Codes are a quarter of an fp32 value.
fn quantize<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, rows) = (of.b, of.s.rows());
    let h = of.s.hidden().next_multiple_of(FP8_GRANULE);
    let wide = MLP_RATIO * h;
    let read_bytes = move |wanted: bool, codes: &B::Bytes| -> Vec<f32> {
        let codes = if wanted { b.download_bytes(codes.all()).unwrap() } else { Vec::new() };
        codes.into_iter().map(f32::from).collect()
    };
    for (name, width, gelu) in [("quantize_rows", h, false), ("quantize_rows_gelu", wide, true)] {
        let n = rows * width;
        of.add(name, traffic(n, n / 4 + rows), move |m| {
            let (x, mut codes, mut scales) = (m.data(n), b.alloc_bytes(n).unwrap(), m.stat(rows));
            let shape = QuantizeShape { rows, width, gelu };
            move |read_| {
                b.quantize_rows(&shape, x.all(), codes.all_mut(), scales.all_mut());
                [read_bytes(read_, &codes), read_stat(b, read_, &[&scales])].concat()
            }
        });
    }
    let (up, len) = layer(h, wide);
    if b.prepare_linear_fp8(&up, rows).is_err() {
        return;
    }
    of.add("linear_fp8", Work::Flops(2 * rows * h * wide), move |m| {
        let (params, x, mut y) = (m.data(len), m.data(rows * h), m.data(rows * wide));
        let [(x_codes, x_scales), (w_codes, w_scales)] = [(rows, x.all()), (wide, params.part(0..wide * h))].map(|(rows, x)| {
            let (mut codes, mut scales) = (b.alloc_bytes(rows * h).unwrap(), b.alloc_stat(rows).unwrap());
            b.quantize_rows(&QuantizeShape { rows, width: h, gelu: false }, x, codes.all_mut(), scales.all_mut());
            (codes, scales)
        });
        move |read_| {
            let [x, weight] = [(&x_codes, &x_scales), (&w_codes, &w_scales)]
                .map(|(codes, scales)| Quantized::<B> { codes: codes.all(), scales: scales.all() });
            b.linear_fp8(&params, &up, rows, x, weight, y.all_mut());
            read(b, read_, &[&y])
        }
    });
}

fn activations<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, n) = (of.b, of.s.rows() * of.s.width);
    of.add("silu", traffic(2 * n, 0), move |m| {
        let (x, mut y) = (m.data(n), m.data(n));
        move |read_| {
            b.silu(x.all(), y.all_mut());
            read(b, read_, &[&y])
        }
    });
    of.add("silu_backward", traffic(3 * n, 0), move |m| {
        let (x, dy, mut dx) = (m.data(n), m.data(n), m.data(n));
        move |read_| {
            b.silu_backward(x.all(), dy.all(), dx.all_mut());
            read(b, read_, &[&dx])
        }
    });
    of.add("leaky_relu", traffic(3 * n, 0), move |m| {
        let (x, residual, mut y) = (m.data(n), m.data(n), m.data(n));
        move |read_| {
            b.leaky_relu(x.all(), Some(residual.all()), y.all_mut());
            read(b, read_, &[&y])
        }
    });
    of.add("leaky_relu_backward", traffic(3 * n, 0), move |m| {
        let (x, dy, mut dx) = (m.data(n), m.data(n), m.data(n));
        move |read_| {
            b.leaky_relu_backward(x.all(), dy.all(), dx.all_mut());
            read(b, read_, &[&dx])
        }
    });
}

fn attention<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, Sizes { batch, heads, head_dim, text, .. }) = (of.b, of.s);
    let shape = AttentionShape { batch, heads, head_dim, image: of.s.image(), text, text_queries: true };
    let s = shape.keys();
    let (joint, image, texts) = (batch * s * of.s.hidden(), of.s.rows() * of.s.hidden(), batch * text * of.s.hidden());
    let forward = 4 * batch * heads * s * s * head_dim;
    of.add("attention", Work::Flops(forward), move |m| {
        let [q, k, v] = [(); 3].map(|()| m.data(joint));
        let (mut out_image, mut out_text, mut lse) = (m.data(image), m.data(texts), m.stat(batch * heads * s));
        move |read_| {
            b.attention(&shape, [&q, &k, &v], &mut out_image, Some(&mut out_text), &mut lse);
            [read(b, read_, &[&out_image, &out_text]), read_stat(b, read_, &[&lse])].concat()
        }
    });
    of.add("attention_backward", Work::Flops(forward * 5 / 2), move |m| {
        let [q, k, v, mut dq, mut dk, mut dv] = [(); 6].map(|()| m.data(joint));
        let (mut out_image, mut out_text, mut lse) = (m.data(image), m.data(texts), m.stat(batch * heads * s));
        let (d_image, d_text) = (m.data(image), m.data(texts));
        b.attention(&shape, [&q, &k, &v], &mut out_image, Some(&mut out_text), &mut lse);
        move |read_| {
            let (out, d_out) = ([Some(&out_image), Some(&out_text)], [Some(&d_image), Some(&d_text)]);
            b.attention_backward(&shape, [&q, &k, &v], out, &lse, d_out, [&mut dq, &mut dk, &mut dv]);
            read(b, read_, &[&dq, &dk, &dv])
        }
    });
}

fn qk_norm<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, Sizes { batch, heads, head_dim, text, .. }) = (of.b, of.s);
    let sequence = of.s.image() + text;
    let shape = QkNormShape { batch, tokens: of.s.image(), heads, head_dim, sequence, start: 0, norm: Some((0, head_dim)) };
    let (rows, joint) = (of.s.rows(), batch * sequence * of.s.hidden());
    let (fused, kept) = (rows * 3 * of.s.hidden(), rows * 2 * heads);
    of.add("qk_norm", traffic(2 * fused, kept), move |m| {
        let (params, qkv, mut rstd) = (m.data(2 * head_dim), m.data(fused), m.stat(kept));
        let [mut q, mut k, mut v] = [(); 3].map(|()| m.data(joint));
        move |read_| {
            b.qk_norm(&params, &shape, qkv.all(), &mut q, &mut k, &mut v, &mut rstd);
            [read(b, read_, &[&q, &k, &v]), read_stat(b, read_, &[&rstd])].concat()
        }
    });
    // The value third of qkv is not read.
    of.add("qk_norm_backward", traffic(2 * fused + 2 * fused / 3, kept), move |m| {
        let (params, mut grads) = (m.data(2 * head_dim), m.stat(2 * head_dim));
        let (qkv, mut rstd, mut d_qkv) = (m.data(fused), m.stat(kept), m.data(fused));
        let [mut q, mut k, mut v] = [(); 3].map(|()| m.data(joint));
        b.qk_norm(&params, &shape, qkv.all(), &mut q, &mut k, &mut v, &mut rstd);
        move |read_| {
            let d_joint = [&q, &k, &v];
            b.qk_norm_backward(&params, Some(&mut grads), &shape, true, qkv.all(), &rstd, d_joint, d_qkv.all_mut());
            [read(b, read_, &[&d_qkv]), read_stat(b, read_, &[&grads])].concat()
        }
    });
}

fn adaln<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, h, rows, batch) = (of.b, of.s.hidden(), of.s.rows(), of.s.batch);
    let (n, columns) = (rows * h, batch * 3 * h);
    let shape = AdalnShape { batch, tokens: of.s.image(), hidden: h, stride: 3 * h };
    let (gate, modulation) = (0, Some(Modulation { shift: h, scale: 2 * h }));
    of.add("adaln", traffic(4 * n + columns, 2 * rows), move |m| {
        let (x, y, table) = (m.data(n), m.data(n), m.data(columns));
        let (mut x_out, mut out, mut stats) = (m.data(n), m.data(n), m.stat(rows * 2));
        move |read_| {
            let mut norms = [NormOut { out: out.all_mut(), modulation }];
            let branches = [Branch { y: y.all(), gate }];
            b.adaln(&shape, x.all(), &branches, Some(table.all()), Some(x_out.all_mut()), &mut norms, Some(&mut stats));
            [read(b, read_, &[&x_out, &out]), read_stat(b, read_, &[&stats])].concat()
        }
    });
    of.add("adaln_backward", traffic(6 * n + 2 * columns, 2 * rows), move |m| {
        let (x_out, y, d_out, table) = (m.data(n), m.data(n), m.data(n), m.data(columns));
        let (mut out, mut stats) = (m.data(n), m.stat(rows * 2));
        let mut norms = [NormOut { out: out.all_mut(), modulation }];
        b.adaln(&shape, x_out.all(), &[], Some(table.all()), None, &mut norms, Some(&mut stats));
        let (mut dx, mut d_y, mut d_table) = (m.data(n), m.data(n), m.data(columns));
        move |read_| {
            let norms = [NormGrad { d_out: d_out.all(), modulation }];
            let mut branches = [BranchGrad { y: y.all(), gate, d_y: d_y.all_mut() }];
            let (kept, columns, d_columns) = (Some(&stats), Some(table.all()), Some(&mut d_table));
            b.adaln_backward(&shape, x_out.all(), kept, columns, dx.all_mut(), true, None, &norms, &mut branches, d_columns);
            read(b, read_, &[&dx, &d_y, &d_table])
        }
    });
}

fn embed<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, batch, grid, h, n) = (of.b, of.s.batch, of.s.grid, of.s.hidden(), of.s.latents());
    let (rows, image) = (of.s.rows(), of.s.image());
    let shape = of.s.patches(PatchOrder::ChannelLast);
    of.add("patchify", traffic(n, n), move |m| {
        let (latent, mut tokens) = (m.stat(n), m.data(n));
        move |read_| {
            b.patchify(&shape, latent.all(), tokens.all_mut());
            read(b, read_, &[&tokens])
        }
    });
    of.add("unpatchify", traffic(n, n), move |m| {
        let (mut latent, tokens) = (m.stat(n), m.data(n));
        move |read_| {
            b.unpatchify(&shape, tokens.all(), latent.all_mut());
            read_stat(b, read_, &[&latent])
        }
    });
    let max = grid.0.max(grid.1) + 2;
    of.add("pos_embed", traffic(2 * rows * h + image * h, 0), move |m| {
        let (pos, mut x) = (m.data(max * max * h), m.data(rows * h));
        move |read_| {
            b.pos_embed(batch, grid, max, &pos, x.all_mut());
            read(b, read_, &[&x])
        }
    });
    let width = FREQUENCIES + POOLED;
    of.add("timestep_embedding", traffic(batch * (width + POOLED), batch), move |m| {
        let (t, pooled, mut out) = (m.times(batch), m.data(batch * POOLED), m.data(batch * width));
        move |read_| {
            b.timestep_embedding(t.all(), Some(pooled.all()), out.all_mut());
            read(b, read_, &[&out])
        }
    });
}

fn flow<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, batch, n) = (of.b, of.s.batch, of.s.latents());
    of.add("timesteps", traffic(0, batch), move |m| {
        let (step, mut t) = (step(b), m.times(batch));
        move |read_| {
            b.timesteps(&step, 1, &TimestepDistribution::LogitNormal { mean: 1.0, std: 1.0 }, t.all_mut());
            read_stat(b, read_, &[&t])
        }
    });
    of.add("normal", traffic(0, n), move |m| {
        let (step, mut out) = (step(b), m.stat(n));
        move |read_| {
            b.normal(&step, 2, n / batch, out.all_mut());
            read_stat(b, read_, &[&out])
        }
    });
    of.add("flow_noise", traffic(0, 3 * n), move |m| {
        let (step, x0, t, mut x_t, mut velocity) = (step(b), m.stat(n), m.times(batch), m.stat(n), m.stat(n));
        move |read_| {
            b.flow_noise(&step, 2, Some((6, 0.1)), x0.all(), t.all(), x_t.all_mut(), Some(velocity.all_mut()));
            read_stat(b, read_, &[&x_t, &velocity])
        }
    });
    let patches = of.s.patches(PatchOrder::ChannelFirst);
    of.add("predict_x0_renoise", traffic(2 * n, 2 * n), move |m| {
        let (step, x_t, velocity, t, t_hat) = (step(b), m.stat(n), m.data(n), m.times(batch), m.times(batch));
        let (mut x0_hat, mut renoised) = (m.stat(n), m.data(n));
        move |read_| {
            let out = (x0_hat.all_mut(), renoised.all_mut());
            b.predict_x0_renoise(&step, 4, &patches, x_t.all(), velocity.all(), t.all(), t_hat.all(), out.0, out.1);
            [read_stat(b, read_, &[&x0_hat]), read(b, read_, &[&renoised])].concat()
        }
    });
    of.add("predict_x0_renoise_backward", traffic(2 * n, n), move |m| {
        let (t, t_hat, d_renoised, d_x0_hat, mut d_velocity) = (m.times(batch), m.times(batch), m.data(n), m.stat(n), m.data(n));
        move |read_| {
            let upstream = (Some(d_renoised.all()), Some(d_x0_hat.all()));
            b.predict_x0_renoise_backward(&patches, t.all(), t_hat.all(), upstream.0, upstream.1, d_velocity.all_mut());
            read(b, read_, &[&d_velocity])
        }
    });
    of.add("euler_cfg", traffic(0, 4 * n), move |m| {
        let (mut x, velocity, unconditional) = (m.stat(n), m.stat(n), m.stat(n));
        move |read_| {
            b.euler_cfg(x.all_mut(), velocity.all(), Some(unconditional.all()), 3.0, -0.25);
            read_stat(b, read_, &[&x])
        }
    });
}

fn losses<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, n) = (of.b, of.s.latents());
    of.add("mse", traffic(0, 3 * n), move |m| {
        let (x, target, mut d, mut loss) = (m.stat(n), m.stat(n), m.stat(n), m.stat(1));
        move |read_| {
            b.mse(x.all(), target.all(), 1.0, 1.0, Some(d.all_mut()), loss.all_mut());
            read_stat(b, read_, &[&d, &loss])
        }
    });
    let groups = Groups { real: true, mismatch: true, perturbed: true };
    let shape = HingeShape {
        loss: AdversarialLoss::NonSaturating,
        heads: 4,
        groups,
        batch: of.s.batch,
        positions: of.s.image(),
        mismatch_weight: 0.5,
        r1_weight: 0.1,
        generator_weight: 1.0,
        share: 1.0,
    };
    let one = shape.heads * of.s.rows();
    let all = one * groups.count();
    of.add("hinge", traffic(0, 2 * all + one), move |m| {
        let (logits, mut d_d, mut d_g) = (m.stat(all), m.stat(all), m.stat(one));
        let mut stats = m.stat(shape.heads * HINGE_STATS);
        move |read_| {
            b.hinge(&shape, logits.all(), Some(d_d.all_mut()), Some(d_g.all_mut()), stats.all_mut());
            read_stat(b, read_, &[&d_d, &d_g, &stats])
        }
    });
}

fn heads<B: Backend>(of: &mut List<'_, '_, B>) {
    let (b, batch, rows, w) = (of.b, of.s.batch, of.s.rows(), of.s.width);
    let (linear, len) = layer(9 * w, w);
    let shape = ConvShape { linear, batch, rows: of.s.grid.0, columns: of.s.grid.1 };
    let flops = Work::Flops(2 * rows * 9 * w * w);
    of.add("conv3x3", flops, move |m| {
        let (params, x, mut y) = (m.data(len), m.data(rows * w), m.data(rows * w));
        move |read_| {
            b.conv3x3(&params, &shape, x.all(), y.all_mut());
            read(b, read_, &[&y])
        }
    });
    of.add("conv3x3_backward_input", flops, move |m| {
        let (params, dy, mut dx) = (m.data(len), m.data(rows * w), m.data(rows * w));
        move |read_| {
            b.conv3x3_backward_input(&params, &shape, dy.all(), dx.all_mut(), false);
            read(b, read_, &[&dx])
        }
    });
    of.add("conv3x3_backward_weight", flops, move |m| {
        let (mut grads, x, dy) = (m.stat(len), m.data(rows * w), m.data(rows * w));
        move |read_| {
            b.conv3x3_backward_weight(&mut grads, &shape, x.all(), dy.all());
            read_stat(b, read_, &[&grads])
        }
    });
    let (linear, len) = layer(w, 1);
    let shape = HeadLogitsShape { linear, batch, positions: of.s.image() };
    of.add("head_logits", traffic(rows * w + batch * w, rows), move |m| {
        let (params, h, cm, mut logits) = (m.data(len), m.data(rows * w), m.data(batch * w), m.stat(rows));
        move |read_| {
            b.head_logits(&params, &shape, h.all(), cm.all(), logits.all_mut());
            read_stat(b, read_, &[&logits])
        }
    });
    of.add("head_logits_backward", traffic(2 * rows * w + 2 * batch * w, rows), move |m| {
        let (params, h, cm, d_logits) = (m.data(len), m.data(rows * w), m.data(batch * w), m.stat(rows));
        let (mut grads, mut dh, mut d_cm) = (m.stat(len), m.data(rows * w), m.data(batch * w));
        move |read_| {
            let trained = Some((&mut grads, d_cm.all_mut()));
            b.head_logits_backward(&params, &shape, h.all(), cm.all(), d_logits.all(), dh.all_mut(), trained);
            [read(b, read_, &[&dh, &d_cm]), read_stat(b, read_, &[&grads])].concat()
        }
    });
}

fn optimiser<B: Backend>(of: &mut List<'_, '_, B>) {
    let b = of.b;
    let n = 12 * of.s.hidden() * of.s.hidden(); // a block's weights, about
    of.add("global_norm", traffic(0, n), move |m| {
        let (grads, mut norm) = (m.stat(n), m.stat(1));
        move |read_| {
            b.global_norm(&grads, &mut norm);
            read_stat(b, read_, &[&norm])
        }
    });
    let shape = AdamwShape { lr_index: 0, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01, clip: 1.0, ema_decay: 0.99 };
    // Reads gradient, master, moments and average, writes all but the gradient.
    of.add("adamw", traffic(n, 9 * n), move |m| {
        let (step, grads, mut norm) = (step(b), m.stat(n), m.stat(1));
        b.fill(norm.all_mut(), 2.0);
        let (mut params, mut master, mut ema) = (m.data(n), m.stat(n), m.stat(n));
        let mut moments = [(); 2].map(|()| {
            let mut moment = m.stat(n);
            b.fill(moment.all_mut(), 0.0);
            Moment::Full(moment)
        });
        let mut counters = b.alloc_stat(ADAMW_COUNTERS).unwrap();
        move |read_| {
            let [moment1, moment2] = &mut moments;
            let state = AdamwState {
                params: &mut params,
                master: &mut master,
                moment1: Some(moment1),
                moment2,
                ema: Some(&mut ema),
                counters: &mut counters,
            };
            b.adamw(&step, &shape, &grads, &norm, state);
            let full = moments.iter().filter_map(|moment| if let Moment::Full(values) = moment { Some(values) } else { None });
            let full: Vec<&B::Stat> = full.collect();
            [read(b, read_, &[&params]), read_stat(b, read_, &[&[&master, &ema][..], &full].concat())].concat()
        }
    });
}
