//! Latents to tokens and back.

use ladd_fast::device::{Backend, PatchOrder, PatchShape};

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases};
use crate::lab::{Lab, same_bits};

on_every_backend!(patchify, unpatchify);

fn shape(case: &Golden, order: PatchOrder) -> PatchShape {
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

/// Permutations round nothing: the very bits. Each is the other's gradient.
fn patchify<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("patchify") {
        let shape = shape(&case, PatchOrder::ChannelFirst);
        let (latent, d_tokens) = (case.input("latent"), case.input("d_tokens"));
        let n = latent.len();
        let (mut tokens, mut d_latent) = (lab.blank_data(n), lab.blank_stat(n));
        b.patchify(&shape, (&lab.stat(&latent)).into(), (&mut tokens).into());
        b.unpatchify(&shape, (&lab.data(&d_tokens)).into(), (&mut d_latent).into());
        case.equal("out.tokens", &lab.read(&tokens, n));
        case.equal("grad.latent", &lab.read_stat(&d_latent, n));
    }
}

fn unpatchify<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("unpatchify") {
        let shape = shape(&case, PatchOrder::ChannelLast);
        let (tokens, d_latent) = (case.input("tokens"), case.input("d_latent"));
        let n = tokens.len();
        let (mut latent, mut d_tokens) = (lab.blank_stat(n), lab.blank_data(n));
        b.unpatchify(&shape, (&lab.data(&tokens)).into(), (&mut latent).into());
        b.patchify(&shape, (&lab.stat(&d_latent)).into(), (&mut d_tokens).into());
        case.equal("out.latent", &lab.read_stat(&latent, n));
        case.equal("grad.tokens", &lab.read(&d_tokens, n));

        // The first sample alone, of buffers planned for two.
        let first = PatchShape { batch: 1, ..shape };
        let mut alone = lab.blank_stat(n / 2);
        b.unpatchify(&first, (&lab.data(&tokens)).into(), (&mut alone).into());
        same_bits("first sample", &lab.read_stat(&alone, n / 2), &case.result("out.latent")[..n / 2]);
    }
}
