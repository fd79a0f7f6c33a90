//! A safetensors file, every byte of it.
#![no_main]

use ladd_fast::format::SafetensorsFile;
use ladd_fast_fuzz::{file, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let path = file("any.safetensors", input);
    let Some(file) = judge(SafetensorsFile::open(path)) else { return };
    for name in file.names() {
        judge(file.f32(name));
        judge(file.f64(name));
        judge(file.u8(name));
        judge(file.i64(name));
    }
});
