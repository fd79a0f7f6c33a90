//! Split of fused qkv rows into the joint buffers, with RMSNorm of queries and keys.

use ladd_fast::device::{Backend, QkNormShape};

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases};
use crate::lab::{Arena, Lab, same_bits};

on_every_backend!(qk_norm);

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
