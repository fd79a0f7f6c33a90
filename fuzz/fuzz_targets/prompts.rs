//! Prompt files: the first byte chooses between text, jsonl and parquet.
#![no_main]

use ladd_fast::data::read_prompts;
use ladd_fast_fuzz::{file, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, content)) = input.split_first() else { return };
    let name = match first {
        b'j' => "prompts.jsonl",
        b'p' => "prompts.parquet",
        _ => "prompts.txt",
    };
    for key in ["", "prompt"] {
        judge(read_prompts(file(name, content), key));
    }
});
