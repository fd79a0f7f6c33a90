//! Both samplers against their golden trajectories.

use ladd_fast::device::{Backend, StepValues, Storage};
use ladd_fast::flow::philox::stream;
use ladd_fast::flow::{SampleSettings, Sampler, SamplerKind, TextBatch};
use ladd_fast::model::Shape;

use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::same_bits;
use crate::operations::on_every_backend;
use crate::rig::{Rig, data, stat};

on_every_backend!(chains: euler, renoise);

const FIRST_SAMPLE: u32 = 3;

/// The sampler's own trajectory shows at its end only; the states in between are what the end was made from.
fn skip_states_in_between(case: &Golden, steps: usize) {
    (0..steps - 1).for_each(|k| case.skip(&format!("out.step{k}")));
}

fn start<B: Backend>(b: &B, case: &Golden, shape: Shape, numel: usize) {
    let mut step = b.alloc_step().unwrap();
    let first_sample = case.size("first_sample") as u32;
    assert_eq!(first_sample, FIRST_SAMPLE);
    b.upload_step(&StepValues { seed: case.size("noise_seed") as u64, first_sample, ..StepValues::default() }, &mut step);
    let mut noise = stat(b, &vec![f32::NAN; shape.batch * numel]);
    b.normal(&step, stream::SAMPLER_START, numel, noise.all_mut());
    case.equal("out.start", &b.download_stat(noise.all()).unwrap());
}

fn run<B: Backend>(b: &B, op: &str, settings: &dyn Fn(&Golden) -> SampleSettings, tolerance: Tolerance) {
    for case in cases(op) {
        let config = case.model(None);
        let rig = Rig::new(b, &config, case.config["param_seed"].as_u64().unwrap());
        let (settings, seed) = (settings(&case), case.size("noise_seed") as u64);
        let [batch, _, height, width] = case.shape("out.start")[..] else { panic!("a latent has four dimensions") };
        let (context, pooled) = (case.input("context"), case.input("pooled"));
        let shape = Shape { batch, height, width, text: context.len() / batch / config.context_dim };
        let numel = config.in_channels * height * width;
        start(b, &case, shape, numel);
        case.compare("out.times", &settings.times().unwrap(), tolerance);
        skip_states_in_between(&case, settings.steps);

        // Each sample has a negative text of its own in the golden file: one call a sample.
        let guided = settings.guidance != 1.0;
        let negative = if guided { ["negative_context", "negative_pooled"] } else { ["context", "pooled"] }.map(|name| case.input(name));
        let part = |values: &[f32], i: usize| values[values.len() / batch * i..values.len() / batch * (i + 1)].to_vec();
        let mut sampler = Sampler::new(b, &rig.model, shape, guided).unwrap();
        let conditioning = case.has_input("conditioning").then(|| case.input("conditioning"));
        let mut one = |params: &B::Data, i: usize| {
            let texts = [&context, &pooled, &negative[0], &negative[1]].map(|values| part(values, i));
            let text = TextBatch { context: &texts[0], pooled: &texts[1] };
            let negative = TextBatch { context: &texts[2], pooled: &texts[3] };
            let first = FIRST_SAMPLE + i as u32;
            if let Some(conditioning) = &conditioning {
                sampler.condition(b, &part(conditioning, i));
            }
            sampler.sample(b, &rig.model, params, &settings, seed, first, 1, text, negative).unwrap()
        };
        let latents: Vec<f32> = (0..batch).flat_map(|i| one(&rig.params, i)).collect();
        case.compare(&format!("out.step{}", settings.steps - 1), &latents, tolerance);

        // By now a device that replays does; and it tells one network's weights from another's.
        same_bits("again", &one(&rig.params, 0), &latents[..numel]);
        let zeros = data(b, &vec![0.0; rig.weights.len()]);
        assert_ne!(one(&zeros, 0), &latents[..numel], "another network's weights");
        same_bits("and again", &one(&rig.params, 1 % batch), &latents[numel * (1 % batch)..][..numel]);

        // The whole batch with the first sample's negative text: the first sample is the same.
        let (context_, pooled_) = (part(&negative[0], 0), part(&negative[1], 0));
        let (text, negative) = (TextBatch { context: &context, pooled: &pooled }, TextBatch { context: &context_, pooled: &pooled_ });
        if let Some(conditioning) = &conditioning {
            sampler.condition(b, conditioning);
        }
        let together = sampler.sample(b, &rig.model, &rig.params, &settings, seed, FIRST_SAMPLE, batch, text, negative).unwrap();
        close("the first of a batch", &together[..numel], &latents[..numel], tolerance.relative());
        if !guided {
            close("a batch", &together, &latents, tolerance.relative());
        }
    }
}

fn euler<B: Backend>(b: &B, tolerance: Tolerance) {
    let settings = |case: &Golden| SampleSettings {
        start: 1.0,
        image_guidance: case.config["image_guidance"].as_f64().unwrap_or(1.0) as f32,
        kind: SamplerKind::Euler,
        steps: case.size("steps"),
        guidance: case.number("guidance") as f32,
        shift: case.number("shift") as f32,
        spacing: Default::default(),
    };
    run(b, "sampler_euler", &settings, tolerance);
}

fn renoise<B: Backend>(b: &B, tolerance: Tolerance) {
    let settings = |case: &Golden| SampleSettings {
        start: 1.0,
        image_guidance: 1.0,
        kind: SamplerKind::Renoise,
        steps: case.size("steps"),
        guidance: 1.0,
        shift: 1.0,
        spacing: Default::default(),
    };
    run(b, "sampler_renoise", &settings, tolerance);
}
