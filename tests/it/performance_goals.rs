//! `scripts/performance-goals`: what it makes of no results, of partial ones, of dry runs; needs Python 3.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::root;

/// Runs the script on a folder; `None` where there is no Python.
fn run(folder: &Path, files: &[&Path]) -> Option<(i32, String)> {
    let script = root().join("scripts/performance-goals");
    let output = Command::new("python3").arg(script).args(files).arg("--root").arg(folder).output();
    let Ok(output) = output else {
        println!("skipped: there is no python3");
        return None;
    };
    Some((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn page(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("docs/performance-goals.md")).unwrap()
}

/// The last cell of the row that begins with `name`.
fn verdict<'a>(page: &'a str, name: &str) -> &'a str {
    let row = page.lines().find(|line| line.starts_with(&format!("| {name}"))).unwrap_or_else(|| panic!("no row {name}"));
    row.trim_end_matches(" |").rsplit("| ").next().unwrap()
}

/// A result file with these parts.
fn results(parts: Value) -> Value {
    let mut file = json!({ "gpu": { "name": "NVIDIA T 1" }, "date": "2000-01-01", "commit": "0", "dry": false, "parts": [] });
    for (key, value) in parts.as_object().unwrap() {
        file[key] = value.clone();
    }
    file
}

/// The page of one result file.
fn page_of(parts: Value) -> Option<(String, Value)> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("raw.json");
    std::fs::write(&file, results(parts).to_string()).unwrap();
    let (code, errors) = run(folder.path(), &[&file])?;
    assert_eq!((code, &*errors), (0, ""));
    let kept = std::fs::read_to_string(folder.path().join("benches/results/goals_nvidia_t_1.json")).unwrap();
    Some((page(folder.path()), serde_json::from_str(&kept).unwrap()))
}

#[test]
fn without_results_every_row_is_not_measured() {
    let folder = tempfile::tempdir().unwrap();
    let Some((code, errors)) = run(folder.path(), &[]) else { return };
    assert_eq!((code, &*errors), (0, ""));
    let page = page(folder.path());
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")).collect();
    assert!(rows.len() > 40 && rows.iter().all(|row| row.ends_with("| not measured |")), "{page}");
}

#[test]
fn the_committed_page_is_that_of_the_committed_results() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("benches/results");
    std::fs::create_dir_all(&kept).unwrap();
    for file in std::fs::read_dir(root().join("benches/results")).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), kept.join(file.file_name())).unwrap();
    }
    let Some((code, _)) = run(folder.path(), &[]) else { return };
    assert_eq!(code, 0);
    assert!(page(folder.path()) == page(&root()), "run scripts/performance-goals");
}

#[test]
fn partial_results_are_judged_as_far_as_they_go() {
    let attention = |us: f64, rate: f64| json!({ "operation": "attention", "shape": "B=4 S=4250 D=64", "median_us": us, "rate": rate });
    let adaln = |fraction: f64| json!({ "operation": "adaln", "shape": "x", "median_us": 1.0, "fraction": fraction });
    // Fast enough, but nothing to compare with; a row below its goal needs no peer to have missed it.
    let Some((page, _)) = page_of(json!({ "kernels": { "results": [attention(1.0, 530.0), adaln(0.96)] } })) else { return };
    assert_eq!(verdict(&page, "attention, B=4 S=4250 D=64"), "not measured");
    assert_eq!(verdict(&page, "adaln, x"), "met");
    assert_eq!(verdict(&page, "qk_norm"), "not measured");
    let (page, _) = page_of(json!({ "kernels": { "results": [attention(1.0, 510.0), adaln(0.94)] } })).unwrap();
    assert_eq!(verdict(&page, "attention, B=4 S=4250 D=64"), "missed");
    assert_eq!(verdict(&page, "adaln, x"), "missed");
    let both = json!({ "kernels": { "results": [attention(1.0, 530.0)] }, "kernels_pytorch": { "results": [attention(1.2, 0.0)] } });
    let (page, _) = page_of(both).unwrap();
    assert_eq!(verdict(&page, "attention, B=4 S=4250 D=64"), "met");
    assert!(page.contains("| 530 TFLOP/s | 442 | 1.20x |"), "{page}");
    let cut = json!({ "parts": [{ "part": "step", "status": "stopped after 9 s" }], "kernels": null, "steps_pytorch": [] });
    assert!(page_of(cut).unwrap().0.contains("Not run to the end: step (stopped after 9 s)."));
}

#[test]
fn steps_are_compared_at_the_largest_batch_that_fits_both() {
    let step = |mode: &str, batch: u64, ms: f64| {
        let flops = json!({ "total": batch * 1000 });
        let (model, resolution) = ("sd3-medium", 1024);
        json!({ "model": model, "mode": mode, "batch": batch, "resolution": resolution, "median_ms": ms, "flops": flops,
                "mfu": 0.55, "tflop_s": 1.0, "peak_memory_gb": 60.0, "checkpointing": false })
    };
    let ours =
        [step("simultaneous", 4, 450.0), step("simultaneous", 2, 200.0), step("simultaneous", 1, 100.0), step("alternating", 2, 260.0)];
    let none = json!({ "out_of_memory": true });
    let peer = |ms: f64| json!({ "median_ms": ms, "peak_memory_gb": 66.0 });
    let run = |batch: u64, compile: &str, alternating: Value, simultaneous: Value| json!({ "config": { "batch": batch, "compile": compile }, "alternating": alternating, "simultaneous": simultaneous });
    let peers =
        [run(4, "blocks", none.clone(), none), run(2, "blocks", peer(360.0), peer(240.0)), run(2, "model", peer(350.0), peer(250.0))];
    let sampling = json!({ "results": [{ "model": "sd3-medium", "mode": "sampling", "batch": 1, "resolution": 1024, "median_ms": 70.0,
                                         "flops": { "total": 1 }, "tflop_s": 1.0 }] });
    let parts = json!({ "steps": { "results": ours }, "steps_pytorch": peers, "sampling": sampling,
                        "sampling_pytorch": { "sampling": { "median_ms": 98.0, "graph": true } } });
    let Some((page, kept)) = page_of(parts) else { return };
    // The fastest way of each mode counts: 350 / 200 and 240 / 200.
    let name = "LADD step, SD3-medium, 1024x1024, B=2, against";
    assert_eq!(verdict(&page, &format!("{name} alternating updates")), "met");
    assert_eq!(verdict(&page, &format!("{name} simultaneous updates")), "missed");
    assert_eq!(verdict(&page, "peak memory of the step"), "met");
    assert_eq!(verdict(&page, "MFU of the step"), "met");
    assert_eq!(verdict(&page, "SD3-medium, 1024x1024, 4 steps"), "met");
    // Four times the operations in 4.5 times the time.
    assert_eq!(verdict(&page, "time a FLOP above the smallest case's, over batch, 1024x1024"), "missed");
    let rows = kept["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"].as_str().unwrap().ends_with("alternating updates")).unwrap();
    assert_eq!((row["ours"].as_f64(), row["peer"].as_f64(), row["ratio"].as_f64()), (Some(200.0), Some(350.0), Some(1.75)));
}

#[test]
fn what_is_no_measurement_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("raw.json");
    let no_gpu = results(json!({ "gpu": null }));
    for (text, says) in [
        (results(json!({ "dry": true })).to_string(), "is a dry run"),
        (no_gpu.to_string(), "names no GPU"),
        ("{}".to_owned(), "no results of scripts/bench-gpu"),
        ("{".to_owned(), "raw.json"),
    ] {
        std::fs::write(&file, text).unwrap();
        let Some((code, errors)) = run(folder.path(), &[&file]) else { return };
        assert_eq!((code, errors.lines().count()), (2, 1), "{errors}");
        assert!(errors.contains(says), "{errors}");
    }
}
