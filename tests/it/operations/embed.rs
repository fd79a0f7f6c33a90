//! Positional crop and timestep sinusoids.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, Storage};
use ladd_fast::model::FREQUENCIES;

use super::on_every_backend;
use crate::golden::{Tolerance, cases};
use crate::lab::{Lab, behind, from, same_bits};

on_every_backend!(pos_embed, crops_of_real_widths, timestep_embedding, embeddings_of_real_widths);

/// The crop is added to every sample: one sum, rounded once.
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
        let cropped = tolerance.held(&case.result("out.cropped"));
        same_bits("the first sample", &x[..n], &cropped);
        let expected: Vec<f32> = cropped.iter().zip(&base[n..]).map(|(p, x)| p + x).collect();
        same_bits("the second sample", &x[n..], &tolerance.held(&expected));
    }
}

/// Widths with and without 16-byte accesses, crops that leave an odd margin, tensors that begin anywhere.
fn crops_of_real_widths<B: Backend>(b: &B, tolerance: Tolerance) {
    let (lab, max) = (Lab::new(b), 9);
    for (batch, grid, hidden) in [(1, (4, 9), 1536), (3, (9, 2), 2432), (3, (5, 3), 36), (2, (1, 1), 7)] {
        let value = |i: usize, m: usize| ((i * 7919) % m) as f32 / 128.0 - 2.0;
        let table = tolerance.held(&(0..max * max * hidden).map(|i| value(i, 509)).collect::<Vec<_>>());
        let n = batch * grid.0 * grid.1 * hidden;
        let x = tolerance.held(&(0..n).map(|i| value(i, 421)).collect::<Vec<_>>());
        let mut pos = b.alloc_data(table.len()).unwrap();
        b.upload_data(&table, pos.all_mut());
        let at = |i: usize| {
            let (column, row) = (i / hidden % grid.1, i / hidden / grid.1 % grid.0);
            (((max - grid.0) / 2 + row) * max + (max - grid.1) / 2 + column) * hidden + i % hidden
        };
        let expected: Vec<f32> = (0..n).map(|i| x[i] + table[at(i)]).collect();
        for offset in [0, 3, 8] {
            let mut sum = lab.data(&behind(offset, &x));
            b.pos_embed(batch, grid, max, &pos, sum.part_mut(offset..offset + n));
            let what = format!("{batch} x {grid:?} x {hidden} at {offset}");
            same_bits(&what, &from(offset, &lab.read(&sum, offset + n)), &tolerance.held(&expected));
        }
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

/// The first and the last angle, a row of SD3's pooled text behind it. The CPU computes in f64 and rounds, and so does CUDA:
/// the same bits, though angles reach 1000 radians.
fn embeddings_of_real_widths<B: Backend>(b: &B, tolerance: Tolerance) {
    let (lab, cpu, pooled) = (Lab::new(b), Cpu::<f32>::new(), 2048);
    for times in [vec![1.0], vec![0.0, 0.001, 0.999], (0..70).map(|i| i as f32 / 69.0).collect()] {
        let batch = times.len();
        let mut expected = cpu.alloc_data(batch * FREQUENCIES).unwrap();
        cpu.timestep_embedding(Lab::new(&cpu).stat(&times).part(0..batch), None, expected.all_mut());
        let text = tolerance.held(&(0..batch * pooled).map(|i| (i % 301) as f32 / 7.0).collect::<Vec<_>>());
        let n = batch * (FREQUENCIES + pooled);
        for offset in [0, 1] {
            let mut out = lab.data(&behind(offset, &vec![f32::NAN; n]));
            let input = lab.data(&behind(offset, &text));
            let view = input.part(offset..offset + text.len());
            b.timestep_embedding(lab.stat(&times).part(0..batch), Some(view), out.part_mut(offset..offset + n));
            let rows = from(offset, &lab.read(&out, offset + n));
            for (i, row) in rows.chunks_exact(FREQUENCIES + pooled).enumerate() {
                same_bits("sinusoids", &row[..FREQUENCIES], &tolerance.held(&expected[i * FREQUENCIES..(i + 1) * FREQUENCIES]));
                same_bits("pooled", &row[FREQUENCIES..], &text[i * pooled..(i + 1) * pooled]);
            }
        }
    }
}
