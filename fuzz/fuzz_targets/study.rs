//! A study's file.
#![no_main]

use ladd_fast::study::Study;
use ladd_fast_fuzz::{file, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some(study) = judge(Study::load(&file("study.toml", input))) {
        judge(study.select(&[]));
    }
});
