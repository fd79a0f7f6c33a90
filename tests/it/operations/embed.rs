//! Positional crop and timestep sinusoids.

use ladd_fast::device::{Backend, Storage};
use ladd_fast::model::FREQUENCIES;

use super::on_every_backend;
use crate::golden::{Tolerance, cases, close};
use crate::lab::{Lab, same_bits};

on_every_backend!(pos_embed, timestep_embedding);

/// The crop is added to every sample.
fn pos_embed<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("pos_embed") {
        let (max, grid, hidden) = (case.size("pos_embed_max"), (case.size("gh"), case.size("gw")), case.size("hidden"));
        let table = case.input("pos_embed");
        let mut pos = b.alloc_data(max * max * hidden).unwrap(); // its length says the width
        b.upload_data(&table, pos.all_mut());
        let n = grid.0 * grid.1 * hidden;
        let base: Vec<f32> = (0..2 * n).map(|i| if i < n { 0.0 } else { (i % 13) as f32 - 6.0 }).collect();
        let mut x = lab.data(&base);
        b.pos_embed(2, grid, max, &pos, (&mut x).into());
        let x = lab.read(&x, 2 * n);
        case.equal("out.cropped", &x[..n]);
        let expected: Vec<f32> = case.result("out.cropped").iter().zip(&base[n..]).map(|(p, x)| p + x).collect();
        close("the second sample", &x[n..], &expected, tolerance.relative());
    }
}

fn timestep_embedding<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("timestep_embedding") {
        assert_eq!(case.size("width"), FREQUENCIES);
        let t = case.input("t");
        let (batch, width) = (t.len(), 3);
        let t = lab.stat(&t);
        let mut out = lab.blank_data(batch * FREQUENCIES);
        b.timestep_embedding(t.part(0..batch), None, (&mut out).into());
        let plain = lab.read(&out, batch * FREQUENCIES);
        case.compare("out.embedding", &plain, tolerance);

        let pooled: Vec<f32> = (0..batch * width).map(|i| i as f32 * 0.25 - 3.0).collect();
        let mut out = lab.blank_data(batch * (FREQUENCIES + width));
        b.timestep_embedding(t.part(0..batch), Some(lab.data(&pooled).part(0..batch * width)), (&mut out).into());
        let rows = lab.read(&out, batch * (FREQUENCIES + width));
        for (i, row) in rows.chunks_exact(FREQUENCIES + width).enumerate() {
            same_bits("sinusoids", &row[..FREQUENCIES], &plain[i * FREQUENCIES..(i + 1) * FREQUENCIES]);
            same_bits("pooled", &row[FREQUENCIES..], &pooled[i * width..(i + 1) * width]);
        }
    }
}
