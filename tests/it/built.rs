//! What nvcc made of the kernels: every kernel for every architecture, without spills, with the instructions it was
//! written for. `build.rs` has already refused spills and serialised wgmma; this reads the machine code itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use ladd_fast::device::cuda::built::{FATBINS, KERNELS};
use ladd_fast::device::cuda::policy::{ATTENTION_TILES, AttentionTile};

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
const EXPECTED: [(&str, &str, &str); 22] = [
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
    ("quantize_rows_x16", "sm_80", ".128"),
    ("quantize_rows_x16", "sm_90a", ".128"),
    ("quantize_rows_gelu_x16", "sm_90a", ".128"),
    ("quantize_rows", "sm_90a", "F2FP.SATFINITE.E4M3"),
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

/// Address and text of a line `/*0a10*/ @P0 BRA 0x980 ;` of a listing, without the predicate.
fn instruction(line: &str) -> Option<(u64, &str)> {
    let (address, text) = line.trim().strip_prefix("/*")?.split_once("*/")?;
    let text = text.split(';').next().unwrap_or_default().trim();
    let text = if text.starts_with('@') { text.split_once(' ').map_or("", |(_, rest)| rest) } else { text };
    (!text.is_empty()).then_some((u64::from_str_radix(address, 16).ok()?, text))
}

/// The shortest loop with products and exponentials in it.
fn main_loop<'a>(code: &[(u64, &'a str)]) -> Option<Vec<&'a str>> {
    let loops = code.iter().filter_map(|&(end, text)| {
        let target = text.strip_prefix("BRA ")?.rsplit("0x").next()?;
        let begin = u64::from_str_radix(target.trim(), 16).ok().filter(|begin| *begin < end)?;
        let body: Vec<&str> = code.iter().filter(|(at, _)| (begin..=end).contains(at)).map(|(_, text)| *text).collect();
        let has = |what: &str| body.iter().any(|text| text.starts_with(what));
        (has("HGMMA") && has("MUFU.EX2")).then_some(body)
    });
    loops.min_by_key(Vec::len)
}

/// Of Hopper's attention, every variant: it fits its block's registers, its exponentials stand between the wait for the scores
/// and the wait for the product with the values, and it has about as many instructions as the model counts with.
#[test]
fn exponentials_run_beside_products() {
    let Some(cuobjdump) = cuobjdump() else {
        eprintln!("skipped: cuobjdump is not installed (scripts/install-nvcc)");
        return;
    };
    let (file, fatbin) = FATBINS.iter().find(|(file, _)| *file == "attention_sm90").unwrap();
    let functions = machine_code(&cuobjdump, file, fatbin, "sm_90a");
    for tile @ AttentionTile { kernel, keys, polynomial, .. } in &ATTENTION_TILES {
        let built = KERNELS.iter().find(|built| built.name == *kernel && built.arch == "sm_90a").unwrap();
        assert!(built.registers * tile.threads() <= 65536, "{kernel}: {} registers, {} threads", built.registers, tile.threads());
        let code: Vec<_> = functions[*kernel].lines().filter_map(instruction).collect();
        let body = main_loop(&code).unwrap_or_else(|| panic!("{kernel} has no loop with products and exponentials"));
        let waits: Vec<_> = (0..body.len()).filter(|i| body[*i].starts_with("WARPGROUP.DEPBAR")).collect();
        let [scores, output] = waits[..] else { panic!("{kernel}: {} waits for products in the loop", waits.len()) };
        let exponentials = body[scores..output].iter().filter(|text| text.starts_with("MUFU.EX2")).count();
        // Of its tile a thread has half a column's scores, and two maxima to adapt to.
        let all = (keys / 2 * (8 - polynomial) / 8 + 2) as usize;
        println!("{kernel}: {} instructions, {exponentials} of {all} exponentials beside products", body.len());
        assert!(exponentials >= all - 2, "{kernel}: {exponentials} of {all} exponentials stand between the waits");
        let expected = f64::from(tile.instructions);
        let close = (body.len() as f64 - expected).abs() <= 0.1 * expected;
        assert!(close, "{kernel}: {} instructions for a tile of keys; src/device/cuda/policy.rs says {expected}", body.len());
    }
}
