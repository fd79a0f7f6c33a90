//! Joint attention, by the rule of attention kernels: the error against float64 may be at most twice that of the plain
//! computation in the kernel's type, plus twice what adding 0.3 to the result and taking it away again costs in that type.

use ladd_fast::device::{AttentionShape, Backend};
use ladd_fast::flow::philox::fill_normals;

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, same_bits};

on_every_backend!(attention, text_that_does_not_ask, a_smaller_batch);

fn shape(case: &Golden) -> AttentionShape {
    let size = |key| case.size(key);
    AttentionShape { batch: size("B"), heads: size("H"), head_dim: size("D"), image: size("N"), text: size("L"), text_queries: true }
}

/// Everything an attention computes, on the host.
struct Results {
    out_image: Vec<f32>,
    out_text: Vec<f32>,
    lse: Vec<f32>,
    d_qkv: [Vec<f32>; 3],
}

/// Forward and backward on the backend. `inputs`: q, k, v and the upstream of image and text.
fn run<B: Backend>(lab: &Lab<'_, B>, shape: &AttentionShape, inputs: [&[f32]; 5]) -> Results {
    let AttentionShape { batch, heads, head_dim, image, text, text_queries } = *shape;
    let (hidden, joint) = (heads * head_dim, batch * heads * shape.keys() * head_dim);
    let [q, k, v, d_image, d_text] = inputs.map(|values| lab.data(values));
    let (mut out_image, mut out_text) = (lab.blank_data(batch * image * hidden), lab.blank_data(batch * text * hidden));
    let mut lse = lab.blank_stat(batch * heads * shape.keys());
    lab.b.attention(shape, [&q, &k, &v], &mut out_image, text_queries.then_some(&mut out_text), &mut lse);
    let [mut dq, mut dk, mut dv] = [(); 3].map(|()| lab.blank_data(joint));
    let outs = [Some(&out_image), text_queries.then_some(&out_text)];
    let upstream = [Some(&d_image), text_queries.then_some(&d_text)];
    lab.b.attention_backward(shape, [&q, &k, &v], outs, &lse, upstream, [&mut dq, &mut dk, &mut dv]);
    Results {
        out_image: lab.read(&out_image, batch * image * hidden),
        out_text: lab.read(&out_text, batch * text * hidden),
        lse: lab.read_stat(&lse, batch * heads * shape.keys()),
        d_qkv: [dq, dk, dv].map(|d| lab.read(&d, joint)),
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
    let lab = Lab::new(b);
    let full = AttentionShape { batch: 2, heads: 3, head_dim: 32, image: 70, text: 9, text_queries: true };
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
