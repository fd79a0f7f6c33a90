//! A picture in any format: decoded upright, in sRGB.
#![no_main]

use ladd_fast::data::prepare::{jpeg, picture};
use ladd_fast_fuzz::say;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    jpeg::outline(input);
    say(picture::decode(input, [255; 3]));
});
