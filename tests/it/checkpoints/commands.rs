//! `ladd-fast export`.

use std::path::Path;

use ladd_fast::format::{diffusers, original};

use super::golden;
use crate::cli::{refuse, succeed};

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn networks_are_exported_and_described_as_what_they_were() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let source = golden("sd3.5-large");
    let source = source.to_str().unwrap();
    let export = |network: &str, format: &str, out: &str, more: &[&str]| {
        succeed(&[&["export", network, "--format", format, "--dtype", "f16", "--out", out][..], more].concat())
    };
    let (folder, file, native) = (path("folder"), path("file.safetensors"), path("native.safetensors"));
    export(source, "original", &file, &[]);
    export(&file, "diffusers", &folder, &["--shard-size", "100KB"]);
    export(&folder, "native", &native, &[]);
    assert!(files(&scratch.path().join("folder/transformer")).len() > 3);
    let fingerprint = |network: &str| {
        let about = succeed(&["info", network]);
        about.lines().find(|line| line.starts_with("fingerprint")).unwrap().to_owned()
    };
    for network in [&file, &folder, &native] {
        assert_eq!(fingerprint(network), fingerprint(source));
    }
    assert!(original::import(&file).unwrap() == diffusers::import(source).unwrap());

    // A student of the demo's kind, from another folder of the program.
    export("builtin", "native", &path("teacher.safetensors"), &[]);
    assert!(succeed(&["info", &path("teacher.safetensors")]).contains("role         teacher"));

    let taken = refuse(&["export", source, "--format", "original", "--out", &file]);
    assert!(taken.contains("file.safetensors: exists already"), "{taken}");
    assert!(refuse(&["export", source, "--format", "diffusers", "--out", &folder]).contains("exists already"));
    assert!(refuse(&["export", source, "--format", "original", "--out", &path("no/x")]).contains("does not exist"));
    assert!(refuse(&["export", "nowhere", "--format", "native", "--out", &path("x")]).contains("nowhere"));
    assert!(refuse(&["export", source, "--format", "native", "--shard-size", "1GB", "--out", &path("x")]).contains("--shard-size"));
    assert!(refuse(&["export", source, "--format", "diffusers", "--shard-size", "big", "--out", &path("x")]).contains("500MB"));
    assert!(refuse(&["export", source, "--out", &path("x")]).contains("--format"));
    assert_eq!(files(scratch.path()), ["file.safetensors", "folder", "native.safetensors", "teacher.safetensors"]);
}

/// A limit on the size of files stands for a disk that is full: the write fails halfway.
#[cfg(unix)]
#[test]
fn nothing_half_written_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    let source = golden("sd3-medium");
    for format in ["original", "diffusers", "native"] {
        let out = scratch.path().join("out");
        let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\"";
        let arguments = ["export", source.to_str().unwrap(), "--format", format, "--dtype", "f32", "--out", out.to_str().unwrap()];
        let mut command = std::process::Command::new("sh");
        let output = command.args(["-c", script, env!("CARGO_BIN_EXE_ladd-fast")]).args(arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{format}: {message}");
        assert!(message.lines().count() == 1 && message.starts_with("error: ") && message.contains("out"), "{format}: {message}");
        assert_eq!(files(scratch.path()), [""; 0], "{format}");
    }
}
