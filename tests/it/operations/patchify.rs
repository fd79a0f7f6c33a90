//! Latents to tokens and back.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, PatchOrder, PatchShape, Storage};

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases};
use crate::lab::{Lab, behind, from, same_bits};

on_every_backend!(patchify, unpatchify, every_shape);

/// Sizes of a case.
pub(super) fn shape(case: &Golden, order: PatchOrder) -> PatchShape {
    let patch = case.size("patch");
    PatchShape {
        batch: case.size("B"),
        channels: case.size("C"),
        height: case.size("gh") * patch,
        width: case.size("gw") * patch,
        patch,
        order,
    }
}

/// Permutations compute nothing: the very bits, of values as tokens hold them. Each is the other's gradient.
fn patchify<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("patchify") {
        let shape = shape(&case, PatchOrder::ChannelFirst);
        let (latent, d_tokens) = (case.input("latent"), case.input("d_tokens"));
        let n = latent.len();
        let (mut tokens, mut d_latent) = (lab.blank_data(n), lab.blank_stat(n));
        b.patchify(&shape, (&lab.stat(&latent)).into(), (&mut tokens).into());
        b.unpatchify(&shape, (&lab.data(&d_tokens)).into(), (&mut d_latent).into());
        same_bits("out.tokens", &lab.read(&tokens, n), &tolerance.held(&case.result("out.tokens")));
        same_bits("grad.latent", &lab.read_stat(&d_latent, n), &tolerance.held(&case.result("grad.latent")));
    }
}

fn unpatchify<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("unpatchify") {
        let shape = shape(&case, PatchOrder::ChannelLast);
        let (tokens, d_latent) = (case.input("tokens"), case.input("d_latent"));
        let n = tokens.len();
        let (mut latent, mut d_tokens) = (lab.blank_stat(n), lab.blank_data(n));
        b.unpatchify(&shape, (&lab.data(&tokens)).into(), (&mut latent).into());
        b.patchify(&shape, (&lab.stat(&d_latent)).into(), (&mut d_tokens).into());
        same_bits("out.latent", &lab.read_stat(&latent, n), &tolerance.held(&case.result("out.latent")));
        same_bits("grad.tokens", &lab.read(&d_tokens, n), &tolerance.held(&case.result("grad.tokens")));

        // The first sample alone, of buffers planned for two.
        let first = PatchShape { batch: 1, ..shape };
        let mut alone = lab.blank_stat(n / 2);
        b.unpatchify(&first, (&lab.data(&tokens)).into(), (&mut alone).into());
        same_bits("first sample", &lab.read_stat(&alone, n / 2), &tolerance.held(&case.result("out.latent"))[..n / 2]);
    }
}

/// Real widths, tokens whose width is no multiple of eight, patches of one and four, tokens that begin anywhere.
fn every_shape<B: Backend>(b: &B, tolerance: Tolerance) {
    let (lab, cpu) = (Lab::new(b), Cpu::<f32>::new());
    for (batch, channels, height, width, patch) in
        [(1, 16, 32, 24, 2), (3, 16, 12, 20, 2), (3, 3, 4, 6, 2), (2, 5, 3, 7, 1), (2, 1, 8, 4, 4)]
    {
        let n = batch * channels * height * width;
        // Small whole numbers, fractions and signs: all of them bf16.
        let values: Vec<f32> = (0..n).map(|i| ((i * 37) % 251) as f32 * 0.5 - 60.0).collect();
        assert_eq!(tolerance.held(&values), values);
        for (order, offset) in [PatchOrder::ChannelFirst, PatchOrder::ChannelLast].into_iter().flat_map(|o| [(o, 0), (o, 3), (o, 8)]) {
            let shape = PatchShape { batch, channels, height, width, patch, order };
            let what = format!("{shape:?} at {offset}");
            let part = offset..offset + n;
            let mut expected = cpu.alloc_data(n).unwrap();
            cpu.patchify(&shape, Lab::new(&cpu).stat(&values).part(0..n), expected.all_mut());
            let mut tokens = lab.data(&behind(offset, &vec![f32::NAN; n]));
            b.patchify(&shape, lab.stat(&values).part(0..n), tokens.part_mut(part.clone()));
            same_bits(&what, &from(offset, &lab.read(&tokens, offset + n)), &expected);
            let mut latent = lab.stat(&behind(offset, &vec![f32::NAN; n]));
            b.unpatchify(&shape, tokens.part(part.clone()), latent.part_mut(part));
            same_bits(&what, &from(offset, &lab.read_stat(&latent, offset + n)), &values);
        }
    }
}
