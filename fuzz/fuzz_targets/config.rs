//! A configuration file, then what follows `--set`, one a line.
#![no_main]

use ladd_fast::config::{Config, Sources};
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    files(&["config.toml", "sets"], input);
    let sets = std::fs::read(folder().join("sets")).unwrap_or_default();
    let sets: Vec<String> = String::from_utf8_lossy(&sets).lines().map(str::to_owned).collect();
    let file = folder().join("config.toml");
    let sources = Sources { file: Some(&file), sets: &sets, ..Sources::default() };
    let Some(config) = judge(Config::load(&sources)) else { return };
    judge(config.validate());
    config.warnings();
    judge(config.resolved());
});
