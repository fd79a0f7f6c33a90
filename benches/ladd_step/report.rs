//! One JSON report from the rounds that `scripts/bench-step` measured, ours and PyTorch's in turns.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// The rounds of one side: `{side}-{part}-{round}.json`, each what `--json` prints.
fn rounds(folder: &Path, side: &str) -> Vec<Value> {
    let mut files: Vec<_> = fs::read_dir(folder).expect("the folder of the rounds").map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{side}-"))));
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).expect("a round");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}: {text}", path.display()))
    };
    files.iter().map(read).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

fn three_digits(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Medians of each round.
fn medians(rounds: &[Value], name: &str) -> Vec<f64> {
    rounds.iter().filter_map(|round| round[name]["median_ms"].as_f64()).collect()
}

/// Largest peak of the rounds that measured `name`.
fn peak(rounds: &[Value], name: &str) -> f64 {
    rounds.iter().filter(|round| !round[name].is_null()).filter_map(|round| round["peak_rss_mb"].as_f64()).fold(0.0, f64::max)
}

/// The report: for each benchmark both sides' medians, and how many times as long PyTorch takes. `facts` is a JSON
/// object that the report begins with.
pub fn report(folder: &Path, facts: &str) -> Value {
    let (ours, theirs) = (rounds(folder, "ladd-fast"), rounds(folder, "pytorch"));
    let mut report: Map<String, Value> = serde_json::from_str(facts).expect("facts in JSON");
    report.insert("threads".into(), json!({ "ladd_fast": ours[0]["threads"], "pytorch": theirs[0]["threads"] }));
    report.insert("versions".into(), json!({ "ladd_fast": ours[0]["ladd-fast"], "pytorch": theirs[0]["torch"] }));
    report.insert("config".into(), theirs[0]["config"].clone());
    for name in ["simultaneous", "alternating", "model_forward", "model_forward_backward"] {
        let (us, them) = (medians(&ours, name), medians(&theirs, name));
        assert!(!us.is_empty() && us.len() == them.len(), "{name}: {} rounds of ours, {} of theirs", us.len(), them.len());
        let entry = json!({
            "ladd_fast_ms": three_digits(median(&us)),
            "pytorch_ms": three_digits(median(&them)),
            "speedup": three_digits(median(&them) / median(&us)),
            "ladd_fast_rounds_ms": us,
            "pytorch_rounds_ms": them,
            "ladd_fast_peak_rss_mb": peak(&ours, name),
            "pytorch_peak_rss_mb": peak(&theirs, name),
        });
        report.insert(name.into(), entry);
    }
    Value::Object(report)
}
