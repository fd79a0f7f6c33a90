//! A tokenizer's folder: its settings, CLIP's two lists or a whole tokenizer.json, then a prompt to cut into tokens.
#![no_main]

use ladd_fast::text::sd3::PromptTokenizer;
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 5] = ["tokenizer/prompt", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json"];

fuzz_target!(|input: &[u8]| {
    files(&FILES, input);
    let here = folder().join("tokenizer");
    let Some(tokenizer) = judge(PromptTokenizer::open(&here, 77)) else { return };
    let prompt = String::from_utf8_lossy(&std::fs::read(here.join("prompt")).unwrap_or_default()).into_owned();
    judge(tokenizer.encode(&[&prompt]));
    judge(tokenizer.cuts(&prompt));
});
