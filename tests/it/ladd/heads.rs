//! The discriminator heads.

use ladd_fast::device::{Backend, Storage};
use ladd_fast::model::{Heads, HeadsActivations, HeadsShape};

use crate::golden::{Golden, Tolerance, cases, parameters};
use crate::lab::same_bits;
use crate::operations::on_every_backend;
use crate::rig::{data, stat};

on_every_backend!(chains: heads);

/// Operands of a case.
struct Given<B: Backend> {
    samples: usize,
    features: Vec<B::Data>,
    t_hat: B::Stat,
    pooled: B::Data,
    d_logits: B::Stat,
}

impl<B: Backend> Given<B> {
    fn new(b: &B, case: &Golden) -> Self {
        Self {
            samples: case.size("B"),
            features: (0..case.size("taps")).map(|i| data(b, &case.input(&format!("features{i}")))).collect(),
            t_hat: stat(b, &case.input("t_hat")),
            pooled: data(b, &case.input("pooled")),
            d_logits: stat(b, &case.input("d_logits")),
        }
    }

    fn poison(b: &B, case: &Golden) -> Self {
        let mut given = Self::new(b, case);
        let bad = |len: usize| vec![f32::NAN; len];
        given.features.iter_mut().for_each(|f| b.upload_data(&bad(f.len()), f.all_mut()));
        b.upload_data(&bad(given.pooled.len()), given.pooled.all_mut());
        b.upload_stat(&bad(given.t_hat.len()), given.t_hat.all_mut());
        b.upload_stat(&bad(given.d_logits.len()), given.d_logits.all_mut());
        given
    }
}

/// Logits, gradients of the weights' arena, gradients of the features.
struct Results {
    logits: Vec<f32>,
    grads: Vec<f32>,
    d_features: Vec<Vec<f32>>,
}

fn run<B: Backend>(b: &B, heads: &Heads, params: &B::Data, given: &Given<B>, acts: &mut HeadsActivations<B>) -> Results {
    let Given { samples, features, t_hat, pooled, d_logits } = given;
    let features: Vec<&B::Data> = features.iter().collect();
    let mut logits = stat(b, &vec![f32::NAN; d_logits.len()]);
    heads.forward(b, params, *samples, &features, t_hat.all(), pooled.all(), acts, &mut logits);
    let mut grads = stat(b, &vec![0.0; heads.arena().len()]);
    heads.backward_weights(b, params, *samples, d_logits, acts, &mut grads);
    let mut d_features: Vec<B::Data> = features.iter().map(|f| data(b, &vec![f32::NAN; f.len()])).collect();
    heads.backward_features(b, params, *samples, &features, d_logits, acts, &mut d_features);
    Results {
        logits: b.download_stat(logits.all()).unwrap(),
        grads: b.download_stat(grads.all()).unwrap(),
        d_features: d_features.iter().map(|d| b.download_data(d.all()).unwrap()).collect(),
    }
}

fn heads<B: Backend>(b: &B, tolerance: Tolerance) {
    for case in cases("heads") {
        let count = case.size("taps");
        let heads =
            Heads::new(HeadsShape { count, hidden: case.size("hidden"), width: case.size("width"), pooled: case.size("pooled_dim") });
        let params = data(b, &parameters(heads.arena(), case.config["param_seed"].as_u64().unwrap()));
        let grid = (case.size("gh"), case.size("gw"));
        let given = Given::new(b, &case);
        let mut acts = heads.activations(b, given.samples, grid).unwrap();
        run(b, &heads, &params, &Given::poison(b, &case), &mut acts);
        let got = run(b, &heads, &params, &given, &mut acts);
        case.compare("out.logits", &got.logits, tolerance);
        for (i, d) in got.d_features.iter().enumerate() {
            case.compare(&format!("grad.features{i}"), d, tolerance);
        }
        for (entry, gradient) in heads.arena().scatter(&got.grads) {
            case.compare(&format!("grad.param.{}", entry.name), gradient, tolerance);
        }

        // Planned for more samples: the same bits.
        let mut roomy = heads.activations(b, given.samples + 2, grid).unwrap();
        let again = run(b, &heads, &params, &given, &mut roomy);
        same_bits("logits", &again.logits, &got.logits);
        same_bits("gradients", &again.grads, &got.grads);
        same_bits("feature gradients", &again.d_features.concat(), &got.d_features.concat());
    }
}
