//! Captions and lists of pictures: the first byte chooses the format.
#![no_main]

use ladd_fast::data::prepare::{captions, metadata, names};
use ladd_fast_fuzz::say;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, content)) = input.split_first() else { return };
    match first {
        b'l' => drop(say(metadata::from_jsonl(content))),
        b'c' => drop(say(metadata::from_csv(content))),
        b'j' => drop(say(captions::from_json(content))),
        b'n' => drop(names::samples(&String::from_utf8_lossy(content).lines().collect::<Vec<_>>())),
        _ => drop(say(captions::from_text(content)).map(|captions| captions::choose(&captions, 1, "a").map(str::len))),
    }
});
