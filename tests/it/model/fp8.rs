//! A frozen network whose products run in FP8.

use ladd_fast::device::Backend;
use ladd_fast::device::cpu::Cpu;
use ladd_fast::model::{ModelConfig, Shape};

use crate::golden::{Tolerance, close, relative_error};
use crate::lab::same_bits;
use crate::operations::on_every_backend;
use crate::rig::{HostInputs, Options, Results, Rig, Upstream};

on_every_backend!(chains: near_the_network_it_stands_for, recomputed_and_roomy_passes_give_the_same_bits);

/// Dual attention in the first block, RMSNorm, widths that FP8 takes.
fn config() -> ModelConfig {
    ModelConfig {
        depth: 3,
        heads: 2,
        head_dim: 64,
        in_channels: 4,
        patch: 2,
        context_dim: 20,
        pooled_dim: 12,
        pos_embed_max: 8,
        qk_norm: true,
        dual_attention_blocks: 1,
        conditioning_channels: 0,
    }
}

const SHAPE: Shape = Shape { batch: 2, height: 6, width: 10, text: 5 };

fn run<B: Backend>(b: &B, options: impl Fn(Options) -> Options) -> Results {
    let rig = Rig::new(b, &config(), 3);
    let inputs = HostInputs::random(&config(), SHAPE, 4);
    let upstream = Upstream::random(&config(), SHAPE, 5).only_taps();
    rig.run(&inputs, &upstream, options(Options { frozen: true, fp8: true, ..rig.whole(&inputs) }))
}

/// Features err by what e4m3 rounds away (a code errs by up to 2^-4, its root mean square over a row is about a third of
/// that, and the residual stream carries more than the blocks add), not by nothing. Other devices agree with the CPU's f32.
fn near_the_network_it_stands_for<B: Backend>(b: &B, tolerance: Tolerance) {
    let exact = run(&Cpu::<f32>::new(), |options| Options { fp8: false, ..options });
    let cpu = run(&Cpu::<f32>::new(), |options| options);
    let got = run(b, |options| options);
    for (i, ((got, cpu), exact)) in got.taps.iter().zip(&cpu.taps).zip(&exact.taps).enumerate() {
        let error = relative_error(got, exact);
        println!("block {i}: {error:.1e} from fp32, {:.1e} from the CPU's FP8", relative_error(got, cpu));
        assert!((2e-3..6e-2).contains(&error), "block {i}: relative error {error:.2e}");
        close(&format!("block {i}"), got, cpu, tolerance.relative().max(1e-3));
    }
    let error = relative_error(&got.d_latent, &exact.d_latent);
    println!("gradient of the latent: {error:.1e}");
    assert!((1e-3..0.15).contains(&error), "gradient of the latent: relative error {error:.2e}");
}

fn recomputed_and_roomy_passes_give_the_same_bits<B: Backend>(b: &B, _: Tolerance) {
    let whole = run(b, |options| options);
    for (what, other) in [
        ("recomputed", run(b, |options| Options { checkpointed: 3, ..options })),
        ("planned for more samples", run(b, |options| Options { spare: 2, checkpointed: 2, ..options })),
    ] {
        same_bits(what, &other.d_latent, &whole.d_latent);
        same_bits(what, &other.taps.concat(), &whole.taps.concat());
    }
    let early = run(b, |options| Options { blocks: 2, ..options });
    same_bits("without the last block", &early.taps[0], &whole.taps[0]);
}
