//! The text encoders of an original single file, and of a pipeline's folder.
#![no_main]

use ladd_fast::text::sd3::{EncoderSources, Sd3Encoders};
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 4] = [
    "pipeline/text_encoder/config.json",
    "pipeline/text_encoder/model.safetensors",
    "pipeline/text_encoder_2/config.json",
    "pipeline/text_encoder_2/model.safetensors",
];

fuzz_target!(|input: &[u8]| {
    files(&FILES, input);
    let here = folder().join("pipeline");
    let Some(sources) = judge(EncoderSources::pipeline(&here)) else { return };
    judge(Sd3Encoders::load(&sources, 8, false, 64));
    let Some(single) = judge(EncoderSources::single(&here.join("text_encoder/model.safetensors"), &here)) else { return };
    single.has_t5();
    judge(Sd3Encoders::fingerprint_of(&single, 8, true, 64));
});
