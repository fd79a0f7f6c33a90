//! The whole pipeline: prompts to pixels as diffusers' `StableDiffusion3Pipeline` draws them, with a transformer of each kind.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::flow::{SampleSettings, Sampler, SamplerKind, Spacing, TextBatch};
use ladd_fast::format::{SafetensorsFile, diffusers};
use ladd_fast::model::mmdit::POS_EMBED;
use ladd_fast::model::{Mmdit, Shape};
use ladd_fast::text::TextEmbedding;
use ladd_fast::text::sd3::{EncoderSources, Sd3Encoders};
use ladd_fast::vae::Autoencoder;

use super::{expected, folder};
use crate::checkpoints::KINDS;
use crate::golden::close;
use crate::rig::data;

/// What the prompts of the draw become: two positive ones, and the negative one.
fn encoded(context_dim: usize) -> (Vec<TextEmbedding>, TextEmbedding, usize) {
    let expected = expected();
    let tokens = expected.metadata_value("t5_tokens").unwrap().parse().unwrap();
    let mut encoders = Sd3Encoders::load(&EncoderSources::pipeline(&folder("sd3")).unwrap(), tokens, true, context_dim).unwrap();
    let prompts: Vec<String> = serde_json::from_str(expected.metadata_value("prompts").unwrap()).unwrap();
    let positive = encoders.encode(&prompts[..2], |_| ()).unwrap();
    let negative = encoders.encode(&[expected.metadata_value("negative").unwrap()], |_| ()).unwrap().remove(0);
    (positive, negative, encoders.tokens())
}

/// Four guided steps with the transformer in a folder.
fn drawn(place: &str) -> Vec<f32> {
    let b = Cpu::<f32>::new();
    let (config, stored) = diffusers::open(folder(place)).unwrap();
    let model = Mmdit::new(&b, config.clone(), &stored.read(POS_EMBED).unwrap().data).unwrap();
    let params = data(&b, &stored.gather(&model.layout().arena).unwrap());
    let (positive, negative, tokens) = encoded(config.context_dim);
    let context: Vec<f32> = positive.iter().flat_map(|e| e.context.clone()).collect();
    let pooled: Vec<f32> = positive.iter().flat_map(|e| e.pooled.clone()).collect();

    let shape = Shape { batch: 2, height: 8, width: 8, text: tokens };
    let mut sampler = Sampler::new(&b, &model, shape, true).unwrap();
    let settings = SampleSettings {
        kind: SamplerKind::Euler,
        steps: 4,
        guidance: 3.0,
        image_guidance: 1.0,
        shift: 3.0,
        spacing: Spacing::Linspace,
        start: 1.0,
    };
    let text = TextBatch { context: &context, pooled: &pooled };
    let negative = TextBatch { context: &negative.context, pooled: &negative.pooled };
    sampler.sample_from(&b, &model, &params, &settings, 0, &expected().f32("noise").unwrap(), text, negative).unwrap()
}

#[test]
fn four_guided_steps_draw_the_same_pixels() {
    let (expected, drawn) = (expected(), drawn("sd3"));
    close("drawn", &drawn, &expected.f32("drawn").unwrap(), 1e-4);
    let pixels = Autoencoder::open(&folder("sd3")).unwrap().decode(&drawn, [4, 8, 8]).unwrap();
    let pixels: Vec<f32> = pixels.iter().map(|v| (v / 2.0 + 0.5).clamp(0.0, 1.0)).collect();
    close("pixels", &pixels, &expected.f32("pixels").unwrap(), 1e-4);
}

#[test]
fn four_guided_steps_of_every_kind_draw_the_same_latents() {
    let expected = SafetensorsFile::open(folder("kinds.safetensors")).unwrap();
    for (kind, place) in KINDS {
        close(kind, &drawn(place), &expected.f32(&format!("{kind}.drawn")).unwrap(), 1e-4);
    }
}
