//! What nvcc made of the kernels: every kernel for every architecture, without spills, with the instructions it was
//! written for. `build.rs` has already refused spills and serialised wgmma; this reads the machine code itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use ladd_fast::device::cuda::built::{FATBINS, KERNELS};

const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

#[test]
fn every_kernel_is_built_for_every_architecture() {
    let folder = crate::root().join("kernels");
    let mut found = 0;
    for (file, _) in FATBINS {
        let source = std::fs::read_to_string(folder.join(format!("{file}.cu"))).unwrap();
        let built: BTreeSet<_> = KERNELS.iter().filter(|k| k.file == *file).map(|k| (k.name, k.arch)).collect();
        assert!(!built.is_empty(), "kernels/{file}.cu holds no kernel");
        for (name, _) in &built {
            for arch in ARCHITECTURES {
                assert!(built.contains(&(*name, arch)), "kernels/{file}.cu: {name} is not built for {arch}");
            }
        }
        // What the emulator runs is what nvcc built: names outside macros are registered one by one.
        for line in source.lines().filter(|line| line.starts_with("LADD_KERNEL(")) {
            let name = line.trim_start_matches("LADD_KERNEL(").trim_end_matches(')');
            assert!(built.iter().any(|(built, _)| *built == name), "kernels/{file}.cu registers {name}, which nvcc did not build");
        }
        found += built.len();
    }
    assert_eq!(found, KERNELS.len(), "two files hold a kernel of the same name");
}

/// The disassembler beside nvcc, if it is there.
fn cuobjdump() -> Option<PathBuf> {
    let root = crate::root();
    let wheels = std::fs::read_dir(root.join(".nvcc/lib")).into_iter().flatten().filter_map(Result::ok);
    let wheels = wheels.map(|python| python.path().join("site-packages/nvidia/cu13/bin/cuobjdump"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = std::env::split_paths(&path).map(|folder| folder.join("cuobjdump")).collect();
    wheels.chain(on_path).find(|candidate| candidate.is_file())
}

/// Machine code by kernel.
fn machine_code(cuobjdump: &PathBuf, file: &str, fatbin: &[u8], arch: &str) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{file}.fatbin"));
    std::fs::write(&path, fatbin).unwrap();
    let bin = cuobjdump.parent().unwrap();
    let search = std::env::join_paths([bin.to_path_buf()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())));
    let output = Command::new(cuobjdump).env("PATH", search.unwrap()).args(["-sass", "-arch", arch]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}: {}", cuobjdump.display(), String::from_utf8_lossy(&output.stderr));
    let mut functions: BTreeMap<String, String> = BTreeMap::new();
    let mut current = None;
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some(name) = line.trim().strip_prefix("Function : ") {
            current = Some(name.to_owned());
        } else if let Some(name) = &current {
            let code = functions.entry(name.clone()).or_default();
            code.push_str(line);
            code.push('\n');
        }
    }
    functions
}

/// Instructions that a kernel was written to use: part of its name, architecture, instruction.
const EXPECTED: [(&str, &str, &str); 18] = [
    ("_x8", "sm_80", ".128"),
    ("_x8", "sm_90a", ".128"),
    ("_x4", "sm_80", ".128"),
    ("_x4", "sm_90a", ".128"),
    ("attention_sm90", "sm_90a", "HGMMA"),
    ("attention_sm90", "sm_90a", "UTMALDG"),
    ("attention_backward_sm90_d", "sm_90a", "HGMMA"),
    ("attention_backward_sm90_d", "sm_90a", "UTMALDG"),
    ("attention_backward_sm90_d", "sm_90a", "UBLKRED"),
    ("attention_backward_sm90_prepare", "sm_90a", ".128"),
    ("attention_backward_sm90_finish", "sm_90a", ".128"),
    ("attention_d", "sm_80", "HMMA.16816"),
    ("attention_d", "sm_80", "LDSM"),
    ("attention_keys", "sm_80", "HMMA.16816"),
    ("attention_queries", "sm_80", "HMMA.16816"),
    ("conv3x3_large", "sm_80", "HMMA.16816"),
    ("conv3x3_large", "sm_80", "LDGSTS"),
    ("conv3x3_backward", "sm_80", "HMMA.16816"),
];

/// Kernels that may use local memory: the range reduction of the double-precision sine keeps an array there.
const LOCAL_MEMORY: [&str; 1] = ["timestep_embedding"];

#[test]
fn the_machine_code_holds_the_instructions_it_was_written_for() {
    let Some(cuobjdump) = cuobjdump() else {
        eprintln!("skipped: cuobjdump is not installed (scripts/install-nvcc)");
        return;
    };
    let mut matched = BTreeSet::new();
    for (file, fatbin) in FATBINS {
        for arch in ARCHITECTURES {
            let functions = machine_code(&cuobjdump, file, fatbin, arch);
            assert!(!functions.is_empty(), "kernels/{file}.cu: no machine code for {arch}");
            for (name, code) in &functions {
                if LOCAL_MEMORY.contains(&name.as_str()) {
                    continue;
                }
                for local in ["LDL", "STL"] {
                    assert!(
                        !code.contains(&format!("{local}.")) && !code.contains(&format!(" {local} ")),
                        "{name} on {arch} uses local memory ({local})"
                    );
                }
                for (i, (part, on, instruction)) in EXPECTED.iter().enumerate() {
                    if *on == arch && name.contains(part) {
                        assert!(code.contains(instruction), "{name} on {arch} has no {instruction}");
                        matched.insert(i);
                    }
                }
            }
        }
    }
    assert_eq!(matched.len(), EXPECTED.len(), "an expectation fits no kernel");
}
