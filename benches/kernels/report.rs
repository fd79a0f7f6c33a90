//! The report: what was measured on which machine, as JSON, and one table from ours and PyTorch's.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

pub use super::facts::{facts, four_digits};

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Joins the results of both sides: for each operation and shape our median, PyTorch's best, and the ratio.
pub fn join(ours: &Path, pytorch: &Path) -> Value {
    let (ours, theirs) = (read(ours), read(pytorch));
    let empty = Vec::new();
    let list = |side: &Value| side["results"].as_array().unwrap_or(&empty).clone();
    let peers = list(&theirs);
    let joined: Vec<Value> = list(&ours)
        .into_iter()
        .map(|mut entry| {
            let same = |peer: &&Value| peer["operation"] == entry["operation"] && peer["shape"] == entry["shape"];
            if let Some(peer) = peers.iter().find(same) {
                let ratio = peer["median_us"].as_f64().zip(entry["median_us"].as_f64()).map(|(them, us)| four_digits(them / us));
                entry["pytorch_us"] = peer["median_us"].clone();
                entry["pytorch_how"] = peer["how"].clone();
                entry["speedup"] = json!(ratio);
            }
            entry
        })
        .collect();
    let side = |side: &Value| {
        let mut facts = side.clone();
        facts.as_object_mut().map(|facts| facts.remove("results"));
        facts
    };
    json!({ "ladd_fast": side(&ours), "pytorch": side(&theirs), "results": joined })
}

/// A table in Markdown of joined or of our own results.
pub fn table(report: &Value) -> String {
    let mut lines = vec![
        "| operation | shape | µs | rate | of the machine's | PyTorch µs | speedup |".to_owned(),
        "|---|---|--:|--:|--:|--:|--:|".to_owned(),
    ];
    let number = |value: &Value| value.as_f64().map_or_else(String::new, |v| v.to_string());
    for entry in report["results"].as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        let share = entry["fraction"].as_f64().map_or_else(String::new, |f| format!("{:.0} %", 100.0 * f));
        let peer = match entry["pytorch_how"].as_str() {
            Some(how) => format!("{} ({how})", number(&entry["pytorch_us"])),
            None => String::new(),
        };
        let speedup = entry["speedup"].as_f64().map_or_else(String::new, |s| format!("{s:.2}"));
        let (us, rate) = (number(&entry["median_us"]), number(&entry["rate"]));
        let (operation, shape, unit) = (text("operation"), text("shape"), text("unit"));
        lines.push(format!("| {operation} | {shape} | {us} | {rate} {unit} | {share} | {peer} | {speedup} |"));
    }
    lines.join("\n")
}

/// A table in Markdown of the fastest variant at each shape and of the one that is chosen.
pub fn variants_table(report: &Value) -> String {
    let mut lines =
        vec!["| operation | shape | fastest | µs | rate | chosen | µs |".to_owned(), "|---|---|---|--:|--:|---|--:|".to_owned()];
    let empty = Vec::new();
    let results = report["results"].as_array().unwrap_or(&empty);
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let micros = |entry: &Value| entry["median_us"].as_f64().unwrap_or(f64::INFINITY);
    let of = |entry: &Value| (text(entry, "operation"), text(entry, "shape"));
    for group in results.chunk_by(|a, b| of(a) == of(b)) {
        let Some(fastest) = group.iter().min_by(|a, b| micros(a).total_cmp(&micros(b))) else { continue };
        let (operation, shape) = of(fastest);
        let (variant, unit, rate) = (text(fastest, "variant"), text(fastest, "unit"), &fastest["rate"]);
        let chosen = group.iter().find(|entry| entry["chosen"] == true);
        let chosen = chosen.map_or_else(|| " | ".to_owned(), |entry| format!("{} | {}", text(entry, "variant"), micros(entry)));
        lines.push(format!("| {operation} | {shape} | {variant} | {} | {rate} {unit} | {chosen} |", micros(fastest)));
    }
    lines.join("\n")
}
