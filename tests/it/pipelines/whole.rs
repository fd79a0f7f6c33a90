//! The whole pipeline: prompts to pixels as diffusers' `StableDiffusion3Pipeline` draws them.

use ladd_fast::device::Backend;
use ladd_fast::device::Storage;
use ladd_fast::device::cpu::Cpu;
use ladd_fast::flow::{SampleSettings, Sampler, SamplerKind, Spacing, TextBatch};
use ladd_fast::format::diffusers;
use ladd_fast::model::mmdit::POS_EMBED;
use ladd_fast::model::{Mmdit, Shape};
use ladd_fast::text::sd3::{EncoderSources, Sd3Encoders};
use ladd_fast::vae::Autoencoder;

use super::{expected, folder};
use crate::golden::close;

#[test]
fn four_guided_steps_draw_the_same_pixels() {
    let (b, expected) = (Cpu::<f32>::new(), expected());
    let (config, tensors) = diffusers::import(folder("sd3")).unwrap();
    let model = Mmdit::new(&b, config.clone(), &tensors[POS_EMBED].data).unwrap();
    let weights = model.layout().arena.gather(|name| tensors.get(name).map(|t| (t.shape.as_slice(), t.data.as_slice()))).unwrap();
    let mut params = b.alloc_data(weights.len()).unwrap();
    b.upload_data(&weights, params.all_mut());

    let tokens = expected.metadata_value("t5_tokens").unwrap().parse().unwrap();
    let mut encoders = Sd3Encoders::load(&EncoderSources::pipeline(&folder("sd3")).unwrap(), tokens, true, config.context_dim).unwrap();
    let prompts: Vec<String> = serde_json::from_str(expected.metadata_value("prompts").unwrap()).unwrap();
    let encoded = encoders.encode(&prompts[..2], |_| ()).unwrap();
    let negative = encoders.encode(&[expected.metadata_value("negative").unwrap()], |_| ()).unwrap().remove(0);
    let context: Vec<f32> = encoded.iter().flat_map(|e| e.context.clone()).collect();
    let pooled: Vec<f32> = encoded.iter().flat_map(|e| e.pooled.clone()).collect();

    let shape = Shape { batch: 2, height: 8, width: 8, text: encoders.tokens() };
    let mut sampler = Sampler::new(&b, &model, shape, true).unwrap();
    let settings = SampleSettings { kind: SamplerKind::Euler, steps: 4, guidance: 3.0, shift: 3.0, spacing: Spacing::Linspace };
    let text = TextBatch { context: &context, pooled: &pooled };
    let negative = TextBatch { context: &negative.context, pooled: &negative.pooled };
    let drawn = sampler.sample_from(&b, &model, &params, &settings, 0, &expected.f32("noise").unwrap(), text, negative).unwrap();
    close("drawn", &drawn, &expected.f32("drawn").unwrap(), 1e-4);
    let pixels = Autoencoder::open(&folder("sd3")).unwrap().decode(&drawn, [4, 8, 8]).unwrap();
    let pixels: Vec<f32> = pixels.iter().map(|v| (v / 2.0 + 0.5).clamp(0.0, 1.0)).collect();
    close("pixels", &pixels, &expected.f32("pixels").unwrap(), 1e-4);
}
