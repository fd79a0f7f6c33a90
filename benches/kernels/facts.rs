//! Where and with what a benchmark ran.

use std::process::Command;

use serde_json::{Value, json};

/// The first line that a command prints, if it runs.
fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    let line = String::from_utf8_lossy(&output.stdout).lines().next().map(str::trim).map(str::to_owned);
    line.filter(|line| !line.is_empty())
}

/// The commit that was built: from the repository, or where there is none from LADD_FAST_COMMIT.
fn commit() -> Option<String> {
    let Some(commit) = ask("git", &["rev-parse", "--short", "HEAD"]) else { return std::env::var("LADD_FAST_COMMIT").ok() };
    let changed = ask("git", &["status", "--porcelain", "--untracked-files=no"]).is_some();
    Some(if changed { format!("{commit} and uncommitted changes") } else { commit })
}

/// What a reader needs to know about a run.
pub fn facts(device: &str, rules: &str) -> Value {
    let gpu = ask("nvidia-smi", &["--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader", "--id=0"]);
    json!({
        "device": device,
        "gpu": gpu,
        "date": ask("date", &["-u", "+%Y-%m-%d"]),
        "commit": commit(),
        "versions": { "ladd_fast": env!("CARGO_PKG_VERSION"), "cuda_driver": cuda_driver() },
        "rules": rules,
    })
}

#[cfg(feature = "cuda")]
fn cuda_driver() -> Option<i32> {
    ladd_fast::device::cuda::real::driver_version().ok()
}

#[cfg(not(feature = "cuda"))]
fn cuda_driver() -> Option<i32> {
    None
}

/// Three significant digits are all that a timing has; four are kept.
pub fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
