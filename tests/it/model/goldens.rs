//! Blocks and models against their golden cases.

use ladd_fast::device::Backend;
use ladd_fast::model::Shape;

use crate::golden::{Golden, Tolerance, cases};
use crate::lab::same_bits;
use crate::operations::on_every_backend;
use crate::rig::{HostInputs, Options, Results, Rig, Upstream};

on_every_backend!(chains: blocks_and_models);

fn inputs(case: &Golden) -> HostInputs {
    let [latent, t, context, pooled] = ["latent", "t", "context", "pooled"].map(|name| case.input(name));
    let text = context.len() / t.len() / case.size("context_dim");
    let conditioning = case.has_input("conditioning").then(|| case.input("conditioning"));
    HostInputs { shape: Shape { batch: t.len(), height: 6, width: 10, text }, latent, conditioning, t, context, pooled }
}

/// Every pass of every case: the plain one, and the same bits with activation checkpointing and from a frozen network.
fn blocks_and_models<B: Backend>(b: &B, tolerance: Tolerance) {
    for case in cases("model") {
        let config = case.model(None);
        let rig = Rig::new(b, &config, case.config["param_seed"].as_u64().unwrap());
        let inputs = inputs(&case);
        let taps = |blocks: usize| (0..blocks).map(|i| (i, case.input(&format!("d_tap{i}")))).collect();
        let velocity = Some(case.input("d_velocity"));
        let passes: Vec<(&str, usize, Upstream)> = if case.has("grad.all.latent") {
            vec![("all", config.depth, Upstream { velocity, taps: taps(config.depth) })]
        } else {
            vec![
                ("velocity", config.depth, Upstream { velocity, taps: Vec::new() }),
                ("taps", config.depth, Upstream { velocity: None, taps: taps(config.depth) }),
                ("early", config.depth - 1, Upstream { velocity: None, taps: taps(config.depth - 1) }),
            ]
        };
        for (pass, blocks, upstream) in passes {
            let options = Options { blocks, ..rig.whole(&inputs) };
            let got = rig.run(&inputs, &upstream, options);
            check(&rig, &case, pass, &got, tolerance);
            let frozen = rig.run(&inputs, &upstream, Options { frozen: true, ..options });
            same_bits("latent gradient of a frozen network", &frozen.d_latent, &got.d_latent);
            let again = rig.run(&inputs, &upstream, Options { checkpointed: blocks, ..options });
            same_bits("latent gradient with checkpointing", &again.d_latent, &got.d_latent);
            same_bits("gradients with checkpointing", &again.grads, &got.grads);
            same_bits("features with checkpointing", &again.taps.concat(), &got.taps.concat());
        }
    }
}

fn check<B: Backend>(rig: &Rig<'_, B>, case: &Golden, pass: &str, got: &Results, tolerance: Tolerance) {
    if let Some(velocity) = &got.velocity {
        case.compare("out.velocity", velocity, tolerance);
    }
    for (i, tap) in got.taps.iter().enumerate() {
        case.compare(&format!("out.tap{i}"), tap, tolerance);
    }
    case.compare(&format!("grad.{pass}.latent"), &got.d_latent, tolerance);
    if pass == "early" {
        return; // only the latent's gradient is stored
    }
    for (entry, gradient) in rig.model.layout().arena.scatter(&got.grads) {
        let name = format!("grad.{pass}.param.{}", entry.name);
        if case.has(&name) {
            case.compare(&name, gradient, tolerance);
        } else {
            assert!(gradient.iter().all(|g| *g == 0.0), "{}: {name} is not reached, yet has a gradient", case.name);
        }
    }
}
