//! Iconify's sets of icons, the first drawn small.
#![no_main]

use ladd_fast::data::prepare::iconify::{IconSet, categories, render};
use ladd_fast_fuzz::say;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    say(categories(input));
    let Some(set) = say(IconSet::parse(input)) else { return };
    if let Some(svg) = set.names().next().and_then(|name| set.svg(name)) {
        say(render(&svg, 16, [255; 3]));
    }
});
