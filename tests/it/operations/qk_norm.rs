//! Split of fused qkv rows into the joint buffers, with RMSNorm of queries and keys.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, QkNormShape, Storage};

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Arena, Lab, normals, same_bits};

on_every_backend!(qk_norm, every_width_of_heads);

/// One stream of a case: its shape, rows and place among the arena's tensors.
struct Stream<B: Backend> {
    suffix: &'static str,
    shape: QkNormShape,
    qkv: B::Data,
    rstd: B::Stat,
    first_tensor: usize,
}

fn streams<B: Backend>(lab: &Lab<'_, B>, case: &Golden, arena: &mut Arena) -> Vec<Stream<B>> {
    let (batch, heads, head_dim) = (case.size("B"), case.size("H"), case.size("D"));
    let (image, text) = (case.size("N"), case.size("L"));
    let sequence = image + text;
    let mut streams = Vec::new();
    for (i, (suffix, tokens, start)) in [("x", image, 0), ("c", text, image)].into_iter().filter(|s| s.1 > 0).enumerate() {
        let norm = case.config["qk_norm"].as_bool().unwrap();
        let norm = norm.then(|| (arena.add(&case.input(&format!("ln_q_{suffix}"))), arena.add(&case.input(&format!("ln_k_{suffix}")))));
        streams.push(Stream {
            suffix,
            shape: QkNormShape { batch, tokens, heads, head_dim, sequence, start, norm },
            qkv: lab.data(&case.input(&format!("qkv_{suffix}"))),
            rstd: lab.blank_stat(batch * tokens * 2 * heads),
            first_tensor: 2 * i,
        });
    }
    streams
}

fn qk_norm<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("qk_norm") {
        let mut arena = Arena::default();
        let mut streams = streams(&lab, &case, &mut arena);
        let (params, mut grads) = (arena.upload(&lab), arena.gradients(&lab));
        let joint = case.shape("out.q").iter().product();
        let [mut q, mut k, mut v] = [(); 3].map(|()| lab.blank_data(joint));
        for s in &mut streams {
            b.qk_norm(&params, &s.shape, (&s.qkv).into(), &mut q, &mut k, &mut v, &mut s.rstd);
        }
        for (name, buffer) in [("out.q", &q), ("out.k", &k), ("out.v", &v)] {
            case.compare(name, &lab.read(buffer, joint), tolerance);
        }

        let [d_q, d_k, d_v] = ["d_q", "d_k", "d_v"].map(|name| lab.data(&case.input(name)));
        let backward = |s: &Stream<B>, grads: Option<&mut B::Stat>, queries: bool, d_q: &B::Data| {
            let rows = s.shape.batch * s.shape.tokens;
            let len = rows * 3 * s.shape.heads * s.shape.head_dim;
            let mut d_qkv = lab.blank_data(len);
            b.qk_norm_backward(&params, grads, &s.shape, queries, (&s.qkv).into(), &s.rstd, [d_q, &d_k, &d_v], (&mut d_qkv).into());
            lab.read(&d_qkv, len)
        };
        for s in &streams {
            let d_qkv = backward(s, Some(&mut grads), true, &d_q);
            case.compare(&format!("grad.qkv_{}", s.suffix), &d_qkv, tolerance);
            same_bits("frozen", &backward(s, None, true, &d_q), &d_qkv);
            keys_only(s.shape.heads * s.shape.head_dim, &d_qkv, &backward(s, None, false, &lab.blank_data(joint)));
        }
        let added = arena.added(&lab, &grads);
        for s in streams.iter().filter(|s| s.shape.norm.is_some()) {
            case.compare(&format!("grad.ln_q_{}", s.suffix), &added[s.first_tensor], tolerance);
            case.compare(&format!("grad.ln_k_{}", s.suffix), &added[s.first_tensor + 1], tolerance);
        }
    }
}

/// Where nobody asks, the query part of each row is zero and the rest is as before.
fn keys_only(hidden: usize, full: &[f32], keys_only: &[f32]) {
    for (full, row) in full.chunks_exact(3 * hidden).zip(keys_only.chunks_exact(3 * hidden)) {
        same_bits("queries that nobody asks", &row[..hidden], &vec![0.0; hidden]);
        same_bits("keys and values", &row[hidden..], &full[hidden..]);
    }
}

/// What one stream gives: the joint buffers, the statistics, the gradient of the rows and what was added to the weights'.
struct Results {
    joint: Vec<f32>,
    rstd: Vec<f32>,
    d_qkv: Vec<f32>,
    d_weights: Vec<Vec<f32>>,
    /// The gradient of the rows without that of the weights, and where no query asks.
    d_qkv_frozen: Vec<f32>,
    d_qkv_unasked: Vec<f32>,
}

/// Runs a stream whose rows begin at element `skip`. The backward starts from `rstd` where it is given.
fn run<B: Backend>(lab: &Lab<'_, B>, shape: &QkNormShape, skip: usize, rstd: Option<&[f32]>) -> Results {
    let QkNormShape { batch, tokens, heads, head_dim, sequence, norm, .. } = *shape;
    let (rows, joint) = (3 * batch * tokens * heads * head_dim, batch * heads * sequence * head_dim);
    let mut arena = Arena::default();
    let weights = [1, 2].map(|stream| arena.add(&normals(31, stream, head_dim, 0.25, 1.0)));
    let shape = QkNormShape { norm: norm.map(|_| (weights[0], weights[1])), ..*shape };
    let (params, mut grads) = (arena.upload(lab), arena.gradients(lab));
    let qkv = lab.data(&[vec![f32::NAN; skip], normals(31, 3, rows, 1.0, 0.25)].concat());
    let mut kept = lab.blank_stat(2 * batch * tokens * heads);
    // The rest of the sequence belongs to the other stream.
    let [mut q, mut k, mut v] = [(); 3].map(|()| lab.blank_data(joint));
    lab.b.qk_norm(&params, &shape, qkv.part(skip..skip + rows), &mut q, &mut k, &mut v, &mut kept);
    let statistics = lab.read_stat(&kept, 2 * batch * tokens * heads);
    if let Some(rstd) = rstd {
        kept = lab.stat(rstd);
    }
    let d_joint = [4, 5, 6].map(|stream| lab.data(&normals(31, stream, joint, 1.0, 0.0)));
    let [d_q, d_k, d_v] = &d_joint;
    let unknown = lab.blank_data(joint);
    let backward = |grads: Option<&mut B::Stat>, queries: bool| {
        let d_q = if queries { d_q } else { &unknown };
        let mut d_qkv = lab.blank_data(skip + rows);
        let view = d_qkv.part_mut(skip..skip + rows);
        lab.b.qk_norm_backward(&params, grads, &shape, queries, qkv.part(skip..skip + rows), &kept, [d_q, d_k, d_v], view);
        let mut d_qkv = lab.read(&d_qkv, skip + rows);
        assert!(d_qkv[..skip].iter().all(|v| v.is_nan()), "something was written before the first row");
        d_qkv.split_off(skip)
    };
    Results {
        joint: [&q, &k, &v].into_iter().flat_map(|buffer| lab.read(buffer, joint)).collect(),
        rstd: statistics,
        d_qkv: backward(Some(&mut grads), true),
        d_qkv_frozen: backward(None, true),
        d_qkv_unasked: backward(None, false),
        d_weights: arena.added(lab, &grads),
    }
}

/// Batch, tokens, heads, width of heads, tokens before and after this stream's: the real models' heads, one token, more
/// tokens than one block takes, and widths that no wide path knows.
const SHAPES: [[usize; 6]; 7] = [
    [1, 5, 24, 64, 0, 3],
    [3, 7, 38, 64, 4, 0],
    [1, 1, 1, 64, 0, 0],
    [2, 150, 4, 32, 1, 2],
    [1, 9, 5, 128, 2, 2],
    [2, 3, 3, 40, 1, 0],
    [1, 6, 2, 17, 0, 5],
];

/// Against the CPU in f64, with norms and without, rows at any element.
fn every_width_of_heads<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    let exact = Cpu::<f64>::new();
    let exact = Lab::new(&exact);
    let (bound, stat) = (tolerance.relative(), tolerance.of_stat().relative());
    for [batch, tokens, heads, head_dim, before, after] in SHAPES {
        let sequence = before + tokens + after;
        for (norm, skip) in [(Some((0, 0)), 0), (Some((0, 0)), 1), (None, 0), (None, 3)] {
            let shape = QkNormShape { batch, tokens, heads, head_dim, sequence, start: before, norm };
            let what = |name: &str| format!("{name} of {shape:?} from element {skip} on");
            let got = run(&lab, &shape, skip, None);
            let wanted = run(&exact, &shape, skip, norm.map(|_| &*got.rstd));
            let written = |values: &[f32]| -> Vec<f32> { values.iter().copied().filter(|v| !v.is_nan()).collect() };
            let places = |values: &[f32]| values.iter().map(|v| v.is_nan()).collect::<Vec<bool>>();
            assert_eq!(places(&got.joint), places(&wanted.joint), "{}", what("places in the joint buffers"));
            same_bits(&what("frozen"), &got.d_qkv_frozen, &got.d_qkv);
            keys_only(heads * head_dim, &got.d_qkv, &got.d_qkv_unasked);
            if norm.is_none() {
                same_bits(&what("copies"), &written(&got.joint), &written(&wanted.joint));
                same_bits(&what("copied gradients"), &got.d_qkv, &wanted.d_qkv);
                assert!(got.rstd.iter().all(|v| v.is_nan()) && got.d_weights.concat().iter().all(|v| *v == 0.0));
                continue;
            }
            close(&what("joint"), &written(&got.joint), &written(&wanted.joint), bound);
            close(&what("d_qkv"), &got.d_qkv, &wanted.d_qkv, bound);
            // fp32 sums over values that both sides hold exactly.
            close(&what("rstd"), &got.rstd, &wanted.rstd, stat);
            for (got, wanted) in got.d_weights.iter().zip(&wanted.d_weights) {
                close(&what("d_weight"), got, wanted, stat);
            }
            let again = run(&lab, &shape, skip, None);
            same_bits(&what("second run"), &again.d_weights.concat(), &got.d_weights.concat());
        }
    }
}
