//! Joint attention, by the rule of attention kernels: the error against float64 may be at most twice that of the plain
//! computation in the kernel's type, plus twice what adding 0.3 to the result and taking it away again costs in that type.
//!
//! The CPU is held to it against the golden files. CUDA rounds what it is given to bf16, which alone costs more than its
//! kernels do: it is compared with the CPU in f64 on inputs that are rounded already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use half::bf16;
use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use ladd_fast::device::cuda::policy::{ATTENTION_TILES, AttentionForward, AttentionTile, Choices, Work};
use ladd_fast::device::{AttentionShape, Backend};
use ladd_fast::flow::philox::fill_normals;

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, same_bits};

on_every_backend!(text_that_does_not_ask, a_smaller_batch, absent_streams);

#[test]
fn golden_f32() {
    attention(&Cpu::<f32>::new(), Tolerance::F32);
}

#[test]
fn golden_f64() {
    attention(&Cpu::<f64>::new(), Tolerance::F64);
}

fn shape(case: &Golden) -> AttentionShape {
    let size = |key| case.size(key);
    AttentionShape { batch: size("B"), heads: size("H"), head_dim: size("D"), image: size("N"), text: size("L"), text_queries: true }
}

/// Everything an attention computes, on the host.
#[derive(Clone)]
struct Results {
    out_image: Vec<f32>,
    out_text: Vec<f32>,
    lse: Vec<f32>,
    /// Empty where only the forward pass ran.
    d_qkv: [Vec<f32>; 3],
}

/// Forward and backward on the backend. `inputs`: q, k, v and the upstream of image and text.
fn run<B: Backend>(lab: &Lab<'_, B>, shape: &AttentionShape, inputs: [&[f32]; 5]) -> Results {
    run_passes(lab, shape, inputs, true)
}

/// Forward on the backend, and backward where asked for.
fn run_passes<B: Backend>(lab: &Lab<'_, B>, shape: &AttentionShape, inputs: [&[f32]; 5], backward: bool) -> Results {
    let AttentionShape { batch, heads, head_dim, image, text, text_queries } = *shape;
    let (hidden, joint) = (heads * head_dim, batch * heads * shape.keys() * head_dim);
    let [q, k, v, d_image, d_text] = inputs.map(|values| lab.data(values));
    let (mut out_image, mut out_text) = (lab.blank_data(batch * image * hidden), lab.blank_data(batch * text * hidden));
    let mut lse = lab.blank_stat(batch * heads * shape.keys());
    lab.b.attention(shape, [&q, &k, &v], &mut out_image, text_queries.then_some(&mut out_text), &mut lse);
    let mut d_qkv = [Vec::new(), Vec::new(), Vec::new()];
    if backward {
        let [mut dq, mut dk, mut dv] = [(); 3].map(|()| lab.blank_data(joint));
        let outs = [Some(&out_image), text_queries.then_some(&out_text)];
        let upstream = [Some(&d_image), text_queries.then_some(&d_text)];
        lab.b.attention_backward(shape, [&q, &k, &v], outs, &lse, upstream, [&mut dq, &mut dk, &mut dv]);
        d_qkv = [dq, dk, dv].map(|d| lab.read(&d, joint));
    }
    Results {
        out_image: lab.read(&out_image, batch * image * hidden),
        out_text: lab.read(&out_text, batch * text * hidden),
        lse: lab.read_stat(&lse, batch * heads * shape.keys()),
        d_qkv,
    }
}

/// The formula as it stands, in f32, one head after the other: what the rule measures a kernel against. No `lse`.
fn plain(shape: &AttentionShape, inputs: [&[f32]; 5]) -> Results {
    let AttentionShape { batch, heads, head_dim: d, image, text, .. } = *shape;
    let (s, hidden) = (shape.keys(), heads * d);
    let [q, k, v, d_image, d_text] = inputs;
    let mut results = Results {
        out_image: vec![0.0; batch * image * hidden],
        out_text: vec![0.0; batch * text * hidden],
        lse: Vec::new(),
        d_qkv: [(); 3].map(|()| vec![0.0; batch * heads * s * d]),
    };
    let scale = 1.0 / (d as f32).sqrt();
    let mut p = vec![0.0_f32; s];
    let mut dp = vec![0.0_f32; s];
    for task in 0..batch * heads {
        let (b, head) = (task / heads, task % heads);
        let head_of = |x: &[f32]| x[task * s * d..(task + 1) * s * d].to_vec();
        let (q, k, v) = (head_of(q), head_of(k), head_of(v));
        // Transposed, so that the loops over keys run along memory.
        let columns = |x: &[f32]| -> Vec<f32> { (0..s * d).map(|i| x[i % s * d + i / s]).collect() };
        let (k_columns, v_columns) = (columns(&k), columns(&v));
        let [dq, dk, dv] = &mut results.d_qkv;
        for i in 0..s {
            p.fill(0.0);
            dp.fill(0.0);
            let (out, d_out) = if i < image {
                let at = ((b * image + i) * heads + head) * d;
                (&mut results.out_image[at..at + d], &d_image[at..at + d])
            } else {
                let at = ((b * text + i - image) * heads + head) * d;
                (&mut results.out_text[at..at + d], &d_text[at..at + d])
            };
            for c in 0..d {
                let (query, upstream) = (q[i * d + c], d_out[c]);
                p.iter_mut().zip(&k_columns[c * s..]).for_each(|(p, k)| *p += query * k);
                dp.iter_mut().zip(&v_columns[c * s..]).for_each(|(dp, v)| *dp += upstream * v);
            }
            p.iter_mut().for_each(|p| *p *= scale);
            let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            p.iter_mut().for_each(|p| *p = (*p - max).exp());
            let sum = pairwise(&p);
            p.iter_mut().for_each(|p| *p /= sum);
            let products: Vec<f32> = p.iter().zip(&dp).map(|(p, dp)| p * dp).collect();
            let delta = pairwise(&products);
            for j in 0..s {
                let ds = p[j] * (dp[j] - delta) * scale;
                for c in 0..d {
                    out[c] += p[j] * v[j * d + c];
                    dq[(task * s + i) * d + c] += ds * k[j * d + c];
                    dk[(task * s + j) * d + c] += ds * q[i * d + c];
                    dv[(task * s + j) * d + c] += p[j] * d_out[c];
                }
            }
        }
    }
    results
}

/// Sum in the order that numerical libraries use.
fn pairwise(values: &[f32]) -> f32 {
    if values.len() <= 16 {
        return values.iter().sum();
    }
    let (low, high) = values.split_at(values.len() / 2);
    pairwise(low) + pairwise(high)
}

/// The rule, for one tensor. In f64 nothing but the golden file's rounding is left; and what is zero in exact arithmetic
/// (the gradient of the query of a single key) leaves the rule no scale.
fn judge(what: &str, got: &[f32], plain: &[f32], expected: &[f32], tolerance: Tolerance) {
    close(what, got, expected, tolerance.relative());
    if tolerance == Tolerance::F64 || expected.iter().all(|v| *v == 0.0) {
        return;
    }
    let worst =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m: f32, v| if v > m || v.is_nan() { v } else { m });
    let there_and_back: Vec<f32> = expected.iter().map(|v| (v + 0.3) - 0.3).collect();
    let bound = 2.0 * worst(plain, expected) + 2.0 * worst(&there_and_back, expected);
    let error = worst(got, expected);
    println!("{what}: largest error {error:.1e} of {bound:.1e}");
    assert!(error <= bound, "{what}: largest error {error:.2e} exceeds {bound:.2e}");
}

fn attention<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("attention") {
        let shape = shape(&case);
        assert!((case.number("scale") - (shape.head_dim as f64).powf(-0.5)).abs() < 1e-12);
        let inputs = ["q", "k", "v", "d_out_x", "d_out_c"].map(|name| case.input(name));
        let inputs = inputs.each_ref().map(|values| &values[..]);
        let got = run(&lab, &shape, inputs);
        let plain = if tolerance == Tolerance::F64 { run(&lab, &shape, inputs) } else { plain(&shape, inputs) };
        let check = |name: &str, pick: &dyn Fn(&Results) -> Vec<f32>| {
            judge(&format!("{} {name}", case.name), &pick(&got), &pick(&plain), &case.result(name), tolerance);
        };
        case.compare("out.lse", &got.lse, tolerance);
        if case.has("out.out_x") {
            check("out.out_x", &|r| r.out_image.clone());
            if shape.text > 0 {
                check("out.out_c", &|r| r.out_text.clone());
            }
            for (i, name) in ["grad.q", "grad.k", "grad.v"].into_iter().enumerate() {
                check(name, &|r| r.d_qkv[i].clone());
            }
        } else {
            let rows: Vec<usize> = case.integers("in.rows").iter().map(|row| *row as usize).collect();
            check("out.out_rows", &|r| output_rows(&shape, r, &rows));
            for (i, name) in ["grad.q_rows", "grad.k_rows", "grad.v_rows"].into_iter().enumerate() {
                check(name, &|r| joint_rows(&shape, &r.d_qkv[i], &rows));
            }
        }
    }
}

/// Rows of the joint sequence `[B, rows, H D]` from the outputs of both streams.
fn output_rows(shape: &AttentionShape, results: &Results, rows: &[usize]) -> Vec<f32> {
    let hidden = shape.heads * shape.head_dim;
    let row = |b: usize, s: usize| match s.checked_sub(shape.image) {
        None => &results.out_image[(b * shape.image + s) * hidden..][..hidden],
        Some(s) => &results.out_text[(b * shape.text + s) * hidden..][..hidden],
    };
    (0..shape.batch).flat_map(|b| rows.iter().flat_map(move |s| row(b, *s).iter().copied())).collect()
}

/// Rows `[B, H, rows, D]` of a joint buffer.
fn joint_rows(shape: &AttentionShape, joint: &[f32], rows: &[usize]) -> Vec<f32> {
    let (s, d) = (shape.keys(), shape.head_dim);
    let row = |task: usize, at: usize| &joint[(task * s + at) * d..][..d];
    (0..shape.batch * shape.heads).flat_map(|task| rows.iter().flat_map(move |at| row(task, *at).iter().copied())).collect()
}

/// Random inputs of a shape: q, k, v, upstream of image and text.
fn random(shape: &AttentionShape) -> [Vec<f32>; 5] {
    let hidden = shape.heads * shape.head_dim;
    let joint = shape.batch * shape.keys() * hidden;
    let lengths = [joint, joint, joint, shape.batch * shape.image * hidden, shape.batch * shape.text * hidden];
    std::array::from_fn(|i| {
        let mut values = vec![0.0; lengths[i]];
        fill_normals(3, 0, i as u32, 0, &mut values);
        values
    })
}

/// In the last block text only answers: the image's output is the same, and the gradients are those with nothing upstream
/// of the text. The text's queries, and their gradients, are not touched.
fn text_that_does_not_ask<B: Backend>(b: &B, tolerance: Tolerance) {
    // A width that is padded, and one that has a kernel of its own.
    for head_dim in [32, 64] {
        only_the_image_asks(b, tolerance, head_dim);
    }
}

fn only_the_image_asks<B: Backend>(b: &B, tolerance: Tolerance, head_dim: usize) {
    let lab = Lab::new(b);
    let full = AttentionShape { batch: 2, heads: 3, head_dim, image: 70, text: 9, text_queries: true };
    let mut inputs = random(&full);
    inputs[4].fill(0.0);
    let expected = run(&lab, &full, inputs.each_ref().map(|values| &values[..]));
    let is_text = |i: usize| i / full.head_dim % full.keys() >= full.image;
    inputs[0].iter_mut().enumerate().filter(|(i, _)| is_text(*i)).for_each(|(_, q)| *q = f32::NAN);
    let shape = AttentionShape { text_queries: false, ..full };
    let got = run(&lab, &shape, inputs.each_ref().map(|values| &values[..]));
    close("image", &got.out_image, &expected.out_image, tolerance.relative());
    assert!(got.out_text.iter().all(|v| v.is_nan()), "text was written");
    for (i, got) in got.d_qkv.iter().enumerate().skip(1) {
        close(["", "dk", "dv"][i], got, &expected.d_qkv[i], tolerance.relative());
    }
    let image_only = |values: &[f32]| -> Vec<f32> { values.iter().enumerate().filter(|(i, _)| !is_text(*i)).map(|(_, v)| *v).collect() };
    close("dq", &image_only(&got.d_qkv[0]), &image_only(&expected.d_qkv[0]), tolerance.relative());
    let dq_of_text = got.d_qkv[0].iter().enumerate().filter(|(i, _)| is_text(*i));
    assert!(dq_of_text.clone().count() > 0 && dq_of_text.clone().all(|(_, v)| v.is_nan()), "queries of the text got a gradient");
}

/// A smaller batch in buffers planned for more: the same bits, and the rest untouched.
fn a_smaller_batch<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    let full = AttentionShape { batch: 3, heads: 2, head_dim: 64, image: 33, text: 4, text_queries: true };
    let inputs = random(&full);
    let inputs = inputs.each_ref().map(|values| &values[..]);
    let whole = run(&lab, &full, inputs);
    let part = AttentionShape { batch: 2, ..full };
    let first = run(&lab, &part, inputs);
    let check = |what: &str, part: &[f32], whole: &[f32]| same_bits(what, part, &whole[..whole.len() / 3 * 2]);
    check("image", &first.out_image, &whole.out_image);
    check("text", &first.out_text, &whole.out_text);
    check("lse", &first.lse, &whole.lse);
    first.d_qkv.iter().zip(&whole.d_qkv).for_each(|(part, whole)| check("gradient", part, whole));
}

/// A stream without outputs or without anything upstream counts as zeros.
fn absent_streams<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    let shape = AttentionShape { batch: 2, heads: 2, head_dim: 64, image: 50, text: 20, text_queries: true };
    let inputs = random(&shape);
    let [q, k, v, d_image, d_text] = inputs.each_ref().map(|values| lab.data(values));
    let [zero_image, zero_text] = [3, 4].map(|i| lab.data(&vec![0.0; inputs[i].len()]));
    let (mut image, mut text) = (lab.blank_data(inputs[3].len()), lab.blank_data(inputs[4].len()));
    let mut lse = lab.blank_stat(shape.batch * shape.heads * shape.keys());
    lab.b.attention(&shape, [&q, &k, &v], &mut image, Some(&mut text), &mut lse);
    let backward = |out: [Option<&B::Data>; 2], upstream: [Option<&B::Data>; 2]| {
        let mut d = [(); 3].map(|()| lab.blank_data(inputs[0].len()));
        lab.b.attention_backward(&shape, [&q, &k, &v], out, &lse, upstream, d.each_mut());
        d.map(|d| lab.read(&d, inputs[0].len()))
    };
    let check = |what: &str, absent: [Vec<f32>; 3], zeros: [Vec<f32>; 3]| {
        absent.iter().zip(&zeros).for_each(|(absent, zeros)| same_bits(what, absent, zeros));
    };
    let (outs, zero_outs) = ([Some(&image), Some(&text)], [Some(&zero_image), Some(&zero_text)]);
    check("nothing upstream of the text", backward(outs, [Some(&d_image), None]), backward(outs, [Some(&d_image), zero_outs[1]]));
    check("nothing upstream of the image", backward(outs, [None, Some(&d_text)]), backward(outs, [zero_outs[0], Some(&d_text)]));
    let upstream = [Some(&d_image), Some(&d_text)];
    check("no output of the text", backward([outs[0], None], upstream), backward([outs[0], zero_outs[1]], upstream));
    let nothing = backward(outs, [None, None]);
    assert!(nothing.iter().flatten().all(|v| *v == 0.0), "gradients out of nothing");
}

// ---- CUDA: every kernel, every length -------------------------------------------------------------------------------

/// Where a test of the emulated device runs: on the kernels for Hopper where there are some, or on the portable ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernels {
    Hopper,
    Portable,
}

impl Kernels {
    fn device(self, schedule: Schedule) -> Cuda {
        Cuda::new(Arc::new(match self {
            Self::Hopper => Emulated::new(schedule),
            Self::Portable => Emulated::ampere(schedule),
        }))
    }
}

/// A shape of `keys` tokens, a fifth of them (or `text`) text.
fn of_length(batch: usize, head_dim: usize, keys: usize) -> AttentionShape {
    let text = if keys > 1000 { 333 } else { keys / 5 };
    AttentionShape { batch, heads: 1, head_dim, image: keys - text, text, text_queries: true }
}

/// Lengths around the tiles of every kernel.
const SHORT: [usize; 6] = [1, 63, 64, 65, 127, 129];

#[test]
fn short_sequences_by_portable_kernels() {
    for keys in SHORT {
        for (batch, head_dim) in [(1, 64), (3, 64), (1, 128), (1, 20), (1, 32), (1, 100)] {
            emulated(Kernels::Portable, &Schedule::ALL, of_length(batch, head_dim, keys), true);
        }
    }
}

#[test]
fn short_sequences_by_kernels_for_hopper() {
    for keys in SHORT {
        for (batch, head_dim) in [(1, 64), (3, 64), (1, 128), (3, 128)] {
            emulated(Kernels::Hopper, &Schedule::ALL, of_length(batch, head_dim, keys), true);
        }
    }
}

#[test]
fn several_heads() {
    for kernels in [Kernels::Portable, Kernels::Hopper] {
        let shape = AttentionShape { batch: 3, heads: 3, head_dim: 64, image: 130, text: 77, text_queries: true };
        emulated(kernels, &Schedule::ALL, shape, true);
    }
}

/// About SD3's 512 x 512 and 1024 x 1024 pixels with 154 and 333 tokens of text, and what ends elsewhere in a tile.
#[test]
fn long_sequences_by_kernels_for_hopper() {
    for keys in [1178, 1357] {
        emulated(Kernels::Hopper, &Schedule::ALL, of_length(1, 64, keys), false);
    }
    emulated(Kernels::Hopper, &DEFAULT_AND_RANDOM, of_length(1, 128, 1178), false);
    for keys in [4250, 4429] {
        emulated(Kernels::Hopper, &DEFAULT_AND_RANDOM, of_length(1, 64, keys), false);
    }
}

#[test]
fn long_sequences_by_portable_kernels() {
    for keys in [1178, 1357] {
        emulated(Kernels::Portable, &Schedule::ALL, of_length(1, 64, keys), true);
    }
    emulated(Kernels::Portable, &DEFAULT_AND_RANDOM, of_length(1, 128, 1178), true);
    for keys in [4250, 4429] {
        emulated(Kernels::Portable, &DEFAULT_AND_RANDOM, of_length(1, 64, keys), true);
    }
}

#[test]
fn portable_kernels_serve_every_call() {
    for schedule in Schedule::ALL {
        let cuda = Kernels::Portable.device(schedule);
        text_that_does_not_ask(&cuda, Tolerance::Bf16);
        a_smaller_batch(&cuda, Tolerance::Bf16);
        absent_streams(&cuda, Tolerance::Bf16);
    }
}

// ---- the backward pass on Hopper ------------------------------------------------------------------------------------

/// Several blocks of keys, whose sums of dq meet: two at 207 tokens with all heads at once, ten at 1178; odd and even numbers
/// of tiles of queries.
#[test]
fn sums_of_dq_by_kernels_for_hopper() {
    let heads = AttentionShape { batch: 2, heads: 2, head_dim: 128, image: 130, text: 77, text_queries: true };
    emulated(Kernels::Hopper, &Schedule::ALL, heads, true);
    emulated(Kernels::Hopper, &Schedule::ALL, of_length(1, 64, 1178), true);
}

/// Without an order sums keep to the rule; keys and values, to which one block adds, keep their bits.
#[test]
fn sums_of_dq_without_an_order() {
    for head_dim in [64, 128] {
        let expected = Expected::of(AttentionShape { heads: 2, ..of_length(1, head_dim, 207) }, true);
        let ordered = expected.check(&Kernels::Hopper.device(Schedule::default()));
        for schedule in Schedule::ALL {
            let cuda = Kernels::Hopper.device(schedule).without_order();
            expected.check(&cuda);
            // Again, where sums are left in memory.
            let got = expected.check(&cuda);
            (1..3).for_each(|i| same_bits("dk or dv", &got.d_qkv[i], &ordered.d_qkv[i]));
        }
    }
}

#[test]
fn kernels_for_hopper_serve_every_call() {
    for schedule in Schedule::ALL {
        let cuda = Kernels::Hopper.device(schedule);
        only_the_image_asks(&cuda, Tolerance::Bf16, 128);
        text_that_does_not_ask(&cuda, Tolerance::Bf16);
        a_smaller_batch(&cuda, Tolerance::Bf16);
        absent_streams(&cuda, Tolerance::Bf16);
    }
}

/// Scores near -250: zeros that fill up the last tile of keys score more than any key, and their exponentials overflow.
fn far_below_zero(shape: AttentionShape) -> Expected {
    let mut inputs = random(&shape);
    // In one column only: the more of k is the same for all keys, the more of dS cancels in dQ, and its rounding does not.
    inputs[0].iter_mut().step_by(64).for_each(|q| *q = 256.0);
    inputs[1].iter_mut().step_by(64).for_each(|k| *k = -8.0);
    let expected = Expected::of_inputs(shape, true, inputs);
    assert!(expected.results.lse.iter().all(|lse| *lse < -200.0), "{:?}", expected.results.lse);
    expected
}

#[test]
fn scores_far_below_zero() {
    // The last block of keys holds one row, a strip and one row, all rows but one.
    for keys in [70, 129, 145, 255] {
        let expected = far_below_zero(of_length(1, 64, keys));
        for kernels in [Kernels::Portable, Kernels::Hopper] {
            expected.check(&kernels.device(Schedule::default()));
        }
    }
}

#[test]
fn keys_that_nobody_asks_get_no_gradient() {
    for schedule in Schedule::ALL {
        let cuda = Kernels::Portable.device(schedule);
        let shape = AttentionShape { batch: 2, heads: 2, head_dim: 64, image: 0, text: 70, text_queries: false };
        let got = run(&Lab::new(&cuda), &shape, random(&shape).each_ref().map(|values| &values[..]));
        assert!(got.lse.iter().chain(&got.out_text).chain(&got.d_qkv[0]).all(|v| v.is_nan()), "something was written for a query");
        assert!(got.d_qkv[1].iter().chain(&got.d_qkv[2]).all(|v| *v == 0.0), "a key got a gradient");
    }
}

// ---- the variants for Hopper ----------------------------------------------------------------------------------------

/// Every variant for a shape's head width: to the rule, and to the same bits on every device and wherever the sums are the
/// same ones: whatever the number of queries of a block, the order of warpgroups and the number of blocks; only tiles of keys,
/// polynomials and cuts change sums.
fn every_variant(shape: AttentionShape, devices: &[Cuda], works: &[Work]) {
    let expected = Expected::of(shape, false);
    let sums = |variant: &AttentionForward| {
        let cuts = (variant.work == Work::Cut).then_some(variant.tile.queries());
        (variant.tile.keys, variant.tile.polynomial, cuts)
    };
    let mut firsts = BTreeMap::new();
    for variant in AttentionForward::all(shape.head_dim).filter(|variant| works.contains(&variant.work)) {
        for (i, device) in devices.iter().enumerate() {
            println!("{} on device {i}: {shape:?}", variant.name());
            let got = expected.run(&device.choosing(Choices::of("attention", &variant.name())));
            let first = firsts.entry(sums(&variant)).or_insert_with(|| {
                expected.judge_all(&got);
                got.clone()
            });
            got.same_bits(first);
        }
    }
}

const WORKS: [Work; 3] = [Work::Persistent, Work::Cut, Work::Blocks];

/// One key behind two tiles of each size; more tiles of queries than the emulated device has multiprocessors, which cuts run
/// across; fewer keys than a tile; text that does not ask.
#[test]
fn every_variant_for_hopper() {
    let [all, two] =
        [&Schedule::ALL[..], &DEFAULT_AND_RANDOM].map(|list| list.iter().map(|of| Kernels::Hopper.device(*of)).collect::<Vec<_>>());
    for head_dim in [64, 128] {
        let shape = |batch, heads, image, text| AttentionShape { batch, heads, head_dim, image, text, text_queries: true };
        every_variant(shape(1, 3, 200, 57), &all, &WORKS);
        let long = if head_dim == 64 { 353 } else { 161 };
        every_variant(AttentionShape { text_queries: false, ..shape(3, 1, long - 30, 30) }, &two, &WORKS);
        every_variant(shape(2, 3, 30, 10), &two, &WORKS[..1]);
    }
}

#[test]
fn every_variant_for_hopper_at_512_pixels() {
    every_variant(of_length(1, 64, 1178), &DEFAULT_AND_RANDOM.map(|of| Kernels::Hopper.device(of)), &[Work::Cut]);
}

/// More tiles than a device has multiprocessors, and not a multiple.
#[cfg(feature = "cuda")]
#[test]
#[cfg_attr(not(gpu), ignore = "needs a GPU")]
fn every_variant_on_cuda_gpu() {
    let twice = [crate::devices::gpu(), crate::devices::gpu()];
    for head_dim in [64, 128] {
        let shape = |batch, heads, keys| AttentionShape { heads, ..of_length(batch, head_dim, keys) };
        every_variant(shape(3, 24, 353), &twice, &WORKS);
        every_variant(shape(1, 38, 1357), &twice, &WORKS);
        every_variant(AttentionShape { text_queries: false, ..shape(2, 5, 161) }, &twice, &WORKS);
    }
}

/// The kernels are compiled for what the policy says they are.
#[test]
fn the_list_of_variants_is_that_of_the_kernels() {
    let source = std::fs::read_to_string(crate::root().join("kernels/attention_sm90.cu")).unwrap();
    let compiled: BTreeSet<&str> = source.lines().filter(|line| line.starts_with("ATTENTION(")).collect();
    let listed: BTreeSet<String> = ATTENTION_TILES
        .iter()
        .map(|tile| {
            let AttentionTile { kernel, head_dim, groups, keys, stages, turns, polynomial, .. } = tile;
            let name = kernel.trim_start_matches("attention_sm90_");
            format!("ATTENTION({name}, {head_dim}, {groups}, {keys}, {stages}, {turns}, {polynomial})")
        })
        .collect();
    assert_eq!(compiled, listed.iter().map(String::as_str).collect());
    for tile in &ATTENTION_TILES {
        let suffixes = [if tile.turns { "_turns" } else { "" }, ["", "_p1"][tile.polynomial as usize]].concat();
        let name = format!("attention_sm90_d{}_q{}_k{}{suffixes}", tile.head_dim, tile.queries(), tile.keys);
        assert_eq!(tile.kernel, name);
    }
}

#[test]
#[should_panic(expected = "there are portable, d64_q128_k128_turns.persistent, d64_q128_k128_turns.cut")]
fn unknown_variants_are_refused() {
    let cuda = Kernels::Hopper.device(Schedule::default()).choosing(Choices::of("attention", "d64_q1"));
    let shape = of_length(1, 64, 3);
    run(&Lab::new(&cuda), &shape, random(&shape).each_ref().map(|values| &values[..]));
}

#[test]
#[should_panic(expected = "head_dim 136 is too wide")]
fn too_wide_heads_are_refused() {
    let cuda = Kernels::Hopper.device(Schedule::default());
    let lab = Lab::new(&cuda);
    let shape = of_length(1, 136, 3);
    run(&lab, &shape, random(&shape).each_ref().map(|values| &values[..]));
}

#[cfg(feature = "cuda")]
#[test]
#[cfg_attr(not(gpu), ignore = "needs a GPU")]
fn every_length_on_cuda_gpu() {
    let cuda = crate::devices::gpu();
    for keys in SHORT.into_iter().chain([1178, 1357, 4250, 4429]) {
        for (batch, head_dim) in [(1, 64), (3, 64), (1, 128), (3, 128), (1, 20), (1, 32), (1, 100)] {
            let expected = Expected::of(of_length(batch, head_dim, keys), true);
            let first = expected.check(&cuda);
            expected.check(&cuda).same_bits(&first);
        }
    }
}

/// Blocks that add to the same sums of dq, many more than run at a time and fewer: a race would show in some run.
#[cfg(feature = "cuda")]
#[test]
#[cfg_attr(not(gpu), ignore = "needs a GPU")]
fn sums_of_dq_keep_their_bits_on_cuda_gpu() {
    let cuda = crate::devices::gpu();
    for (batch, heads, head_dim, keys) in [(1, 24, 64, 1178), (4, 24, 64, 1178), (1, 2, 64, 4250), (1, 12, 128, 1178)] {
        let shape = AttentionShape { heads, ..of_length(batch, head_dim, keys) };
        let inputs = random(&shape);
        let inputs = inputs.each_ref().map(|values| &values[..]);
        let first = run(&Lab::new(&cuda), &shape, inputs);
        (0..20).for_each(|_| run(&Lab::new(&cuda), &shape, inputs).same_bits(&first));
    }
}

/// In turn, and one random warp as far as it gets with everything asynchronous as late as it may be.
const DEFAULT_AND_RANDOM: [Schedule; 2] = [Schedule::ALL[0], Schedule::ALL[3]];

/// Holds a shape to the rule, and every schedule, and a second run, to the bits of the first.
fn emulated(kernels: Kernels, schedules: &[Schedule], shape: AttentionShape, backward: bool) {
    println!("{kernels:?} {shape:?}");
    let expected = Expected::of(shape, backward);
    let first = expected.check(&kernels.device(schedules[0]));
    for schedule in &schedules[1..] {
        println!("{schedule:?}");
        expected.run(&kernels.device(*schedule)).same_bits(&first);
    }
}

impl Results {
    fn same_bits(&self, other: &Self) {
        same_bits("image", &self.out_image, &other.out_image);
        same_bits("text", &self.out_text, &other.out_text);
        same_bits("lse", &self.lse, &other.lse);
        self.d_qkv.iter().zip(&other.d_qkv).for_each(|(a, b)| same_bits("gradient", a, b));
    }
}

/// A shape's inputs, rounded to bf16, its results in f64, and what the rule allows.
struct Expected {
    shape: AttentionShape,
    backward: bool,
    inputs: [Vec<f32>; 5],
    results: Results,
    /// Of outputs, dq, dk, dv.
    plain_errors: [f32; 4],
}

impl Expected {
    fn of(shape: AttentionShape, backward: bool) -> Self {
        Self::of_inputs(shape, backward, random(&shape))
    }

    fn of_inputs(shape: AttentionShape, backward: bool, inputs: [Vec<f32>; 5]) -> Self {
        let inputs = inputs.map(|values| values.into_iter().map(round).collect::<Vec<_>>());
        let cpu = Cpu::<f64>::new();
        let slices = inputs.each_ref().map(|values| &values[..]);
        let results = run_passes(&Lab::new(&cpu), &shape, slices, backward);
        let plain_errors = plain_errors(&shape, slices, &results);
        Self { shape, backward, inputs, results, plain_errors }
    }

    fn run<B: Backend>(&self, b: &B) -> Results {
        run_passes(&Lab::new(b), &self.shape, self.inputs.each_ref().map(|values| &values[..]), self.backward)
    }

    fn check<B: Backend>(&self, b: &B) -> Results {
        let got = self.run(b);
        self.judge_all(&got);
        got
    }

    fn judge_all(&self, got: &Results) {
        let expected = &self.results;
        // What nobody asked for is not written: both hold what was there.
        let [lse, expected_lse] = [got, expected].map(|results| self.asked(&results.lse));
        // fp32 from bf16 inputs: only the order of fp32 sums separates it from the reference.
        close("lse", &lse, &expected_lse, 1e-5);
        self.judge("image", &got.out_image, &expected.out_image, self.plain_errors[0]);
        if self.shape.text_queries {
            self.judge("text", &got.out_text, &expected.out_text, self.plain_errors[0]);
        } else {
            assert!(got.out_text.iter().all(|v| v.is_nan()), "text was written");
        }
        for (i, what) in ["dq", "dk", "dv"].into_iter().enumerate() {
            self.judge(what, &got.d_qkv[i], &expected.d_qkv[i], self.plain_errors[1 + i]);
        }
    }

    /// The values of `[B, H, S]` of tokens that ask; the others are to be untouched.
    fn asked(&self, values: &[f32]) -> Vec<f32> {
        let (asked, others): (Vec<_>, Vec<_>) = values.iter().enumerate().partition(|(i, _)| i % self.shape.keys() < self.shape.queries());
        assert!(others.iter().all(|(_, v)| v.is_nan()), "values of tokens that do not ask were written");
        asked.into_iter().map(|(_, v)| *v).collect()
    }

    /// The rule. The relative error of all values is a second measure, which does not depend on a few large ones: rounding
    /// P, dS and the result to bf16, each by 1.7e-3 in the mean square, leaves up to 2.6e-3.
    fn judge(&self, what: &str, got: &[f32], expected: &[f32], plain_error: f32) {
        close(what, got, expected, Tolerance::Bf16.relative());
        let there_and_back = |v: f32| (round(round(round(v) + 0.3) - 0.3) - round(v)).abs();
        let absolute = expected.iter().map(|v| there_and_back(*v)).fold(0.0, f32::max);
        let error = got.iter().zip(expected).map(|(g, e)| (g - e).abs()).fold(0.0, f32::max);
        let bound = 2.0 * plain_error + 2.0 * absolute;
        println!("{what}: largest error {error:.1e} of {bound:.1e} (plain {plain_error:.1e})");
        // Where the result is zero in exact arithmetic (the gradient of the query of a single key), the rule has no scale.
        assert!(error <= bound || bound == 0.0, "{what}: largest error {error:.2e} exceeds {bound:.2e} in {:?}", self.shape);
    }
}

fn round(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Largest errors of the plain computation with bf16 inputs and results, P and dS rounded, fp32 sums: of outputs, dq, dk, dv.
/// Long sequences are sampled, which can only make the bound smaller.
fn plain_errors(shape: &AttentionShape, inputs: [&[f32]; 5], expected: &Results) -> [f32; 4] {
    let AttentionShape { batch, heads, head_dim: d, image, text, .. } = *shape;
    let s = shape.keys();
    let scale = 1.0 / (d as f32).sqrt();
    let backward = !expected.d_qkv[0].is_empty();
    let mut errors = [0.0_f32; 4];
    let mut note = |which: usize, got: Vec<f32>, expected: &[f32]| {
        let worst = got.iter().zip(expected).map(|(g, e)| (round(*g) - e).abs()).fold(0.0, f32::max);
        errors[which] = errors[which].max(worst);
    };
    // `sum over i of weights[i] rows[i]`, scaled.
    let weighted = |weights: &[f32], row: &dyn Fn(usize) -> Vec<f32>, scale: f32| {
        let mut sum = vec![0.0; d];
        for (i, weight) in weights.iter().enumerate() {
            sum.iter_mut().zip(row(i)).for_each(|(sum, v)| *sum += weight * v);
        }
        sum.iter_mut().for_each(|v| *v *= scale);
        sum
    };
    for task in 0..batch * heads {
        let (b, head) = (task / heads, task % heads);
        let joint = |which: usize, token: usize| &inputs[which][(task * s + token) * d..][..d];
        let (q, k, v) = (|token| joint(0, token), |token| joint(1, token), |token| joint(2, token));
        let stream_row = |of_image: &[f32], of_text: &[f32], token: usize| match token.checked_sub(image) {
            None => of_image[((b * image + token) * heads + head) * d..][..d].to_vec(),
            Some(token) => of_text[((b * text + token) * heads + head) * d..][..d].to_vec(),
        };
        let out = |token: usize| stream_row(&expected.out_image, &expected.out_text, token);
        let d_out = |token: usize| stream_row(inputs[3], inputs[4], token);
        let delta: Vec<f32> = (0..s).map(|i| dot(&d_out(i), &out(i).into_iter().map(round).collect::<Vec<_>>())).collect();
        for row in (0..s).step_by(s.div_ceil(130)) {
            // As a query.
            let scores: Vec<f32> = (0..s).map(|j| dot(q(row), k(j)) * scale).collect();
            let p: Vec<f32> = scores.iter().map(|score| (score - expected.lse[task * s + row]).exp()).collect();
            let p_rounded: Vec<f32> = p.iter().copied().map(round).collect();
            note(0, weighted(&p_rounded, &|j| v(j).to_vec(), 1.0), &out(row));
            if !backward {
                continue;
            }
            let d_out_row = d_out(row);
            let ds: Vec<f32> = (0..s).map(|j| round(p[j] * (dot(&d_out_row, v(j)) - delta[row]))).collect();
            let of_row = |which: usize| &expected.d_qkv[which][(task * s + row) * d..][..d];
            note(1, weighted(&ds, &|j| k(j).to_vec(), scale), of_row(0));
            // As a key.
            let p: Vec<f32> = (0..s).map(|i| (dot(q(i), k(row)) * scale - expected.lse[task * s + i]).exp()).collect();
            let ds: Vec<f32> = (0..s).map(|i| round(p[i] * (dot(&d_out(i), v(row)) - delta[i]))).collect();
            let p: Vec<f32> = p.into_iter().map(round).collect();
            note(2, weighted(&ds, &|i| q(i).to_vec(), scale), of_row(1));
            note(3, weighted(&p, &d_out, 1.0), of_row(2));
        }
    }
    errors
}
