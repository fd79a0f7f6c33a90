//! Properties of every small network: random depths, heads, widths, grids, batches, with and without norms and dual
//! attention.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::model::{Keep, Mmdit, ModelConfig, Plan, Shape};
use proptest::prelude::*;

use crate::golden::{Tolerance, close, positions, relative_error};
use crate::lab::same_bits;
use crate::rig::{HostInputs, Options, Results, Rig, Upstream, data, normals};

/// A network and sizes that fit it.
fn networks() -> impl Strategy<Value = (ModelConfig, Shape)> {
    let blocks = (1_usize..4).prop_flat_map(|depth| (Just(depth), 0..=depth));
    let widths = (1_usize..4, prop::sample::select(vec![4_usize, 8, 20, 32]));
    let latent = (1_usize..5, 1_usize..3, 1_usize..7, 1_usize..9);
    let text = (1_usize..9, 1_usize..8, 1_usize..5);
    (blocks, widths, latent, text, any::<bool>(), 1_usize..4, 0_usize..4).prop_map(
        |((depth, dual), (heads, head_dim), (channels, patch, rows, columns), (context, pooled, text), qk_norm, batch, spare)| {
            let config = ModelConfig {
                depth,
                heads,
                head_dim,
                in_channels: channels,
                patch,
                context_dim: context,
                pooled_dim: pooled,
                pos_embed_max: rows.max(columns) + spare,
                qk_norm,
                dual_attention_blocks: dual,
                conditioning_channels: [0, channels, channels + 1][spare % 3],
            };
            (config, Shape { batch, height: rows * patch, width: columns * patch, text })
        },
    )
}

/// Each value's neighbour in f32, above or below. A layer norm over four channels leaves two directions of a gradient, so a
/// few networks magnify the last bit of everything they compute a hundredfold: in f64 this shows which ones, and by how much.
fn nudged(values: &[f32]) -> Vec<f32> {
    values.iter().zip(normals(0, 5, values.len())).map(|(v, coin)| if coin > 0.0 { v.next_up() } else { v.next_down() }).collect()
}

fn settings() -> ProptestConfig {
    ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn a_batch_is_its_samples((config, shape) in networks(), seed in any::<u64>()) {
        let b = Cpu::<f32>::new();
        let rig = Rig::new(&b, &config, seed);
        let (inputs, upstream) = (HostInputs::random(&config, shape, seed), Upstream::random(&config, shape, seed));
        let whole = rig.run(&inputs, &upstream, rig.whole(&inputs));
        let mut grads = vec![0.0_f64; whole.grads.len()];
        for i in 0..shape.batch {
            let one = inputs.samples(i..i + 1);
            let part = |d: &Vec<f32>| d[d.len() / shape.batch * i..d.len() / shape.batch * (i + 1)].to_vec();
            let d = Upstream { velocity: upstream.velocity.as_ref().map(part), taps: upstream.taps.iter().map(|(i, d)| (*i, part(d))).collect() };
            let alone = rig.run(&one, &d, rig.whole(&one));
            let bound = Tolerance::F32.relative();
            close("velocity", &alone.velocity.unwrap(), &part(whole.velocity.as_ref().unwrap()), bound);
            close("features", alone.taps.last().unwrap(), &part(whole.taps.last().unwrap()), bound);
            close("latent gradient", &alone.d_latent, &part(&whole.d_latent), bound);
            grads.iter_mut().zip(&alone.grads).for_each(|(sum, g)| *sum += f64::from(*g));
        }
        let sum: Vec<f32> = grads.iter().map(|g| *g as f32).collect();
        close("gradients", &whole.grads, &sum, Tolerance::F32.relative());
    }

    #[test]
    fn single_precision_agrees_with_double((config, shape) in networks(), seed in any::<u64>()) {
        let (single, double) = (Cpu::<f32>::new(), Cpu::<f64>::new());
        let (inputs, upstream) = (HostInputs::random(&config, shape, seed), Upstream::random(&config, shape, seed));
        let rig = Rig::new(&single, &config, seed);
        let got = rig.run(&inputs, &upstream, rig.whole(&inputs));
        let mut rig = Rig::new(&double, &config, seed);
        let expected = rig.run(&inputs, &upstream, rig.whole(&inputs));
        rig.params = data(&double, &nudged(&rig.weights));
        let moved = rig.run(&inputs, &upstream.map(nudged), rig.whole(&inputs));
        let of = |results: &Results| {
            let Results { velocity, taps, d_latent, grads } = results;
            [velocity.clone().unwrap(), taps.concat(), d_latent.clone(), grads.clone()]
        };
        let names = ["velocity", "features", "latent gradient", "gradients"];
        for (((name, got), expected), moved) in names.iter().zip(of(&got)).zip(of(&expected)).zip(of(&moved)) {
            let bound = Tolerance::F32.relative().max(4.0 * relative_error(&moved, &expected));
            close(name, &got, &expected, bound);
        }
    }

    #[test]
    fn frozen_recomputed_early_and_roomy_passes_give_the_same_bits((config, shape) in networks(), seed in any::<u64>()) {
        let b = Cpu::<f32>::new();
        let rig = Rig::new(&b, &config, seed);
        let (inputs, upstream) = (HostInputs::random(&config, shape, seed), Upstream::random(&config, shape, seed));
        let mut blocks = vec![(config.depth, upstream.clone()), (config.depth, upstream.clone().only_taps())];
        if config.depth > 1 {
            let mut early = upstream.only_taps();
            early.taps.pop();
            blocks.push((config.depth - 1, early));
        }
        for (blocks, upstream) in blocks {
            let options = Options { blocks, ..rig.whole(&inputs) };
            let checkpointed = 1 + seed as usize % blocks;
            let whole = rig.run(&inputs, &upstream, options);
            if let Some(velocity) = &whole.velocity {
                same_bits("inference", &rig.infer(&inputs), velocity);
            }
            let frozen = rig.run(&inputs, &upstream, Options { frozen: true, ..options });
            let tokens = rig.run(&inputs, &upstream, Options { tokens: true, ..options });
            let again = rig.run(&inputs, &upstream, Options { checkpointed, ..options });
            let both = rig.run(&inputs, &upstream, Options { frozen: true, checkpointed, ..options });
            let roomy = rig.run(&inputs, &upstream, Options { spare: 2, checkpointed: (shape.text > 1).into(), ..options });
            same_bits("planned for more samples", &roomy.d_latent, &whole.d_latent);
            same_bits("planned for more samples: gradients", &roomy.grads, &whole.grads);
            same_bits("planned for more samples: features", &roomy.taps.concat(), &whole.taps.concat());
            same_bits("frozen", &frozen.d_latent, &whole.d_latent);
            same_bits("tokens", &tokens.d_latent, &whole.d_latent);
            same_bits("tokens: gradients", &tokens.grads, &whole.grads);
            same_bits("tokens: velocity", &tokens.velocity.unwrap_or_default(), &whole.velocity.clone().unwrap_or_default());
            same_bits("recomputed", &again.d_latent, &whole.d_latent);
            same_bits("recomputed gradients", &again.grads, &whole.grads);
            same_bits("frozen and recomputed", &both.d_latent, &whole.d_latent);
        }
    }

    #[test]
    fn the_first_samples_alone_are_zeros_behind_them((config, shape) in networks(), seed in any::<u64>(), drop in 0_usize..3) {
        let b = Cpu::<f32>::new();
        let rig = Rig::new(&b, &config, seed);
        let batch = shape.batch - drop.min(shape.batch - 1);
        let (inputs, upstream) = (HostInputs::random(&config, shape, seed), Upstream::random(&config, shape, seed));
        let part = rig.run(&inputs, &upstream, Options { batch, ..rig.whole(&inputs) });
        let zeros = rig.run(&inputs, &upstream.first(batch, shape.batch), rig.whole(&inputs));
        let (taken, rest) = part.d_latent.split_at(part.d_latent.len() / shape.batch * batch);
        let (expected, nothing) = zeros.d_latent.split_at(taken.len());
        close("latent gradient", taken, expected, Tolerance::F32.relative());
        close("gradients", &part.grads, &zeros.grads, Tolerance::F32.relative());
        assert!(rest.iter().all(|d| d.is_nan()), "a sample that takes no part got a gradient");
        assert!(nothing.iter().all(|d| *d == 0.0));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused((config, shape) in networks(), which in 0_usize..6) {
        let b = Cpu::<f32>::new();
        let model = Mmdit::new(&b, config.clone(), &positions(&config, 1)).unwrap();
        let width = shape.width;
        let p = config.patch;
        let too_long = p * (config.pos_embed_max + 1);
        let (bad, says) = match which {
            0 => (Shape { height: 0, ..shape }, "patches"),
            1 if p > 1 => (Shape { width: width + 1, ..shape }, "multiples"),
            2 => (Shape { height: too_long, ..shape }, "positional grid"),
            3 => (Shape { width: too_long, ..shape }, "positional grid"),
            4 => (Shape { batch: 0, ..shape }, "batch"),
            _ => (Shape { text: 0, ..shape }, "text"),
        };
        let plan = |shape: Shape| Plan { shape, blocks: config.depth, velocity: true, keep: Keep::Everything, checkpointed: 0 };
        let error = model.activations(&b, plan(bad)).unwrap_err().to_string();
        prop_assert!(error.contains(says), "{}", error);
        let fits = model.activations(&b, plan(shape));
        prop_assert!(fits.is_ok(), "{:?}", fits.err());
    }
}

#[test]
fn a_positional_grid_of_another_size_is_refused() {
    let config = ModelConfig {
        depth: 1,
        heads: 1,
        head_dim: 4,
        in_channels: 1,
        patch: 1,
        context_dim: 1,
        pooled_dim: 1,
        pos_embed_max: 3,
        qk_norm: false,
        dual_attention_blocks: 0,
        conditioning_channels: 0,
    };
    let b = Cpu::<f32>::new();
    let error = Mmdit::new(&b, config.clone(), &[0.0; 35]).unwrap_err().to_string();
    assert!(error.contains("35") && error.contains("36"), "{error}");
    let bad = ModelConfig { dual_attention_blocks: 2, ..config };
    assert!(Mmdit::new(&b, bad, &[0.0; 36]).unwrap_err().to_string().contains("dual_attention_blocks"));
}
