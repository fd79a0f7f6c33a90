//! What a run left behind: its settings, its metrics, a checkpoint's state.
#![no_main]

use ladd_fast::train::{Purpose, RunFolder, checkpoint};
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    files(&["run/config.toml", "run/metrics.jsonl", "run/checkpoints/step_000001/state.json"], input);
    judge(checkpoint::read_state(&folder().join("run/checkpoints/step_000001")));
    let Some(run) = judge(RunFolder::open(&folder().join("run"), Purpose::Distill)) else { return };
    judge(run.config());
    judge(run.records());
    judge(run.latest_checkpoint());
});
