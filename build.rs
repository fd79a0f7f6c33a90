//! Builds the kernels. Feature `emulator`: as host C++, by the C++ compiler that `cc` finds. Feature `cuda`: by nvcc, one
//! fatbin per file, embedded into the program together with what ptxas reports. Without either, nothing is built.

// A build script has no other way to end the build than to end itself.
#![allow(clippy::expect_used)]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Tests that need a GPU are ignored, and counted as such, where there is none.
    println!("cargo::rustc-check-cfg=cfg(gpu)");
    if ["/dev/nvidia0", "/dev/dxg"].iter().any(|device| std::path::Path::new(device).exists()) {
        println!("cargo::rustc-cfg=gpu");
    }
    #[cfg(feature = "emulator")]
    emulator::build();
    #[cfg(feature = "cuda")]
    nvcc::build();
}

/// The .cu files of a folder, sorted.
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn kernels(folder: &str) -> Vec<std::path::PathBuf> {
    println!("cargo::rerun-if-changed=kernels");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("the folder {folder}: {error}"))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    files.sort();
    files
}

#[cfg(feature = "emulator")]
mod emulator {
    /// Misaligned accesses, null pointers and indices outside arrays call the emulator (faults.cpp).
    const CHECKS: [&str; 2] = ["-fsanitize=alignment,null,bounds", "-fno-sanitize-recover=all"];

    pub fn build() {
        compile("ladd_fast_kernels", super::kernels("kernels"), &CHECKS);
        // Kernels with known mistakes, for the tests of the emulator itself.
        compile("ladd_fast_emulator_tests", super::kernels("kernels/emulator/tests"), &CHECKS);
        compile("ladd_fast_emulator", vec!["kernels/emulator/emulator.cpp".into()], &[]);
    }

    fn compile(name: &str, files: Vec<std::path::PathBuf>, flags: &[&str]) {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++20").include("kernels").include("kernels/emulator").define("LADD_EMULATOR", None);
        build.opt_level(2).flag("-include").flag("emulator.h").flag("-xc++").flags(flags).files(files);
        // `#pragma unroll` is for nvcc; tensor maps are passed by value, about whose alignment old compilers differed.
        build.flag("-Wno-unknown-pragmas").flag_if_supported("-Wno-psabi");
        // A sum of a product is rounded twice, as the kernels' explicit roundings promise and as Rust does.
        build.flag("-ffp-contract=off");
        // Kernels register themselves before main: the linker must keep objects that nothing refers to.
        build.link_lib_modifier("+whole-archive").compile(name);
    }
}

#[cfg(feature = "cuda")]
mod nvcc {
    use std::collections::hash_map::DefaultHasher;
    use std::fmt::Write as _;
    use std::hash::{Hash, Hasher};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Mutex;
    use std::{env, fs};

    /// Ampere as code and as PTX for whatever is newer; Hopper with its own instructions (TMA, wgmma).
    /// Compressed, they are a fifth of their size; the driver unpacks them as it loads them.
    const FLAGS: [&str; 9] = [
        "-std=c++17",
        "-O3",
        "-lineinfo",
        "-Ikernels",
        "-gencode=arch=compute_80,code=[sm_80,compute_80]",
        "-gencode=arch=compute_90a,code=sm_90a",
        "--compress-mode=size",
        "-Xptxas=-v",
        "-fatbin",
    ];

    /// Ends the build with one message.
    fn fail(message: &str) -> ! {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }

    /// `NVCC`, `CUDA_HOME`, `CUDA_PATH`, the search path, this project's own wheels, the usual folder: the first there is.
    fn find() -> Option<PathBuf> {
        for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "LADD_FAST_KERNELS"] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        if let Some(nvcc) = env::var_os("NVCC").map(PathBuf::from) {
            if !nvcc.is_file() {
                fail(&format!("NVCC={} is not a file: name the compiler itself, or unset NVCC", nvcc.display()));
            }
            return Some(nvcc);
        }
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin/nvcc"));
        let path = env::var_os("PATH").unwrap_or_default();
        let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc")).collect::<Vec<_>>();
        let wheels = fs::read_dir(".nvcc/lib").into_iter().flatten().filter_map(Result::ok);
        let wheels = wheels.map(|python| python.path().join("site-packages/nvidia/cu13/bin/nvcc")).collect::<Vec<_>>();
        println!("cargo::rerun-if-changed=.nvcc/lib");
        let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
        homes.chain(on_path).chain(wheels).chain([usual]).find(|candidate| candidate.is_file())
    }

    pub fn build() {
        let Some(nvcc) = find() else {
            fail("the feature `cuda` needs nvcc 13, which is not installed: run scripts/install-nvcc (no root, 300 MB), or set CUDA_HOME");
        };
        let files = super::kernels("kernels");
        let headers = headers();
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_usize).clamp(1, files.len());
        let queue = Mutex::new(files.iter());
        let reports = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let Some(file) = queue.lock().ok().and_then(|mut files| files.next()) else { return };
                        let report = compile(&nvcc, file, &headers, &out);
                        if let Ok(mut reports) = reports.lock() {
                            reports.push((file.clone(), report));
                        }
                    }
                });
            }
        });
        let mut reports = reports.into_inner().unwrap_or_default();
        reports.sort();
        if reports.len() != files.len() {
            fail("a thread that compiled kernels ended early");
        }
        let failures: Vec<&str> = reports.iter().filter_map(|(_, report)| report.as_ref().err()).map(String::as_str).collect();
        if !failures.is_empty() {
            fail(&failures.join("\n"));
        }
        let mut kernels = Vec::new();
        let mut complaints = String::new();
        for (file, report) in &reports {
            let Ok(report) = report else { continue };
            parse(stem(file), report, &mut kernels, &mut complaints);
        }
        if !complaints.is_empty() {
            fail(&complaints);
        }
        write(&out, &files, &kernels);
    }

    fn stem(file: &Path) -> &str {
        file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
    }

    /// Everything the kernels include, in one string, to tell whether a fatbin is out of date.
    fn headers() -> String {
        let folder = |path: &str| fs::read_dir(path).into_iter().flatten().filter_map(Result::ok).map(|e| e.path()).collect::<Vec<_>>();
        let mut files = folder("kernels/include");
        files.push("kernels/abi.h".into());
        files.sort();
        files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
    }

    /// Compiles one file unless what was compiled before is still right. Returns ptxas' report.
    ///
    /// Cargo builds in a folder of its own for every profile and set of features: `LADD_FAST_KERNELS` names one that they share.
    fn compile(nvcc: &Path, file: &Path, headers: &str, out: &Path) -> Result<String, String> {
        let source = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let mut hasher = DefaultHasher::new();
        (nvcc, FLAGS, &source, headers).hash(&mut hasher);
        let name = format!("{}-{:016x}", stem(file), hasher.finish());
        let kept = env::var_os("LADD_FAST_KERNELS").map_or_else(|| out.to_owned(), PathBuf::from);
        fs::create_dir_all(&kept).map_err(|e| format!("{}: {e}", kept.display()))?;
        let [fatbin, log] = ["fatbin", "ptxas"].map(|ending| kept.join(format!("{name}.{ending}")));
        if !(fatbin.is_file() && log.is_file()) {
            // Under their own names only when they are whole, the report last: another build may look for them.
            let made = kept.join(format!("{name}.{}", std::process::id()));
            let output = Command::new(nvcc).args(FLAGS).arg("-o").arg(&made).arg(file).output();
            let output = output.map_err(|e| format!("{} does not start: {e}", nvcc.display()))?;
            let report = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if !output.status.success() {
                return Err(format!("nvcc does not compile {}:\n{report}", file.display()));
            }
            let place = || fs::rename(&made, &fatbin).and_then(|()| fs::write(&made, report)).and_then(|()| fs::rename(&made, &log));
            place().map_err(|e| format!("{}: {e}", kept.display()))?;
        }
        let failed = |e: std::io::Error| format!("{}: {e}", fatbin.display());
        fs::copy(&fatbin, out.join(format!("{}.fatbin", stem(file)))).map_err(failed)?;
        fs::read_to_string(&log).map_err(failed)
    }

    /// What ptxas says about one kernel on one architecture.
    struct Report {
        file: String,
        kernel: String,
        arch: String,
        registers: u32,
        shared: u32,
    }

    /// Reads ptxas' report. Spilled registers and serialised wgmma are complaints: both cost several times the speed.
    fn parse(file: &str, report: &str, kernels: &mut Vec<Report>, complaints: &mut String) {
        let quoted = |line: &str, nth: usize| line.split('\'').nth(nth).unwrap_or_default().to_owned();
        let number_before = |line: &str, what: &str| -> u32 {
            let words: Vec<&str> = line.split(what).next().unwrap_or_default().split_whitespace().collect();
            words.last().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        let (mut kernel, mut arch) = (String::new(), String::new());
        for line in report.lines() {
            if line.contains("Compiling entry function") {
                (kernel, arch) = (quoted(line, 1), quoted(line, 3));
            } else if line.contains("bytes spill stores") {
                let spilled = number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
                if spilled > 0 {
                    let _ = writeln!(complaints, "kernels/{file}.cu: {kernel} spills {spilled} bytes of registers on {arch}");
                }
            } else if line.contains("(C75") {
                let _ = writeln!(complaints, "kernels/{file}.cu: {kernel} on {arch}: {}", line.trim());
            } else if line.contains(" registers") && line.contains("Used") {
                let registers = number_before(line, " registers");
                let shared = if line.contains("bytes smem") { number_before(line, " bytes smem") } else { 0 };
                kernels.push(Report { file: file.to_owned(), kernel: kernel.clone(), arch: arch.clone(), registers, shared });
            }
        }
    }

    /// Writes the table that `src/device/cuda/built.rs` includes.
    fn write(out: &Path, files: &[PathBuf], kernels: &[Report]) {
        let mut text = String::from("/// File and fatbin.\npub static FATBINS: &[(&str, &[u8])] = &[\n");
        for file in files {
            let name = stem(file);
            let _ = writeln!(text, "    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\"))),");
        }
        text.push_str("];\n\n/// Every kernel on every architecture.\npub static KERNELS: &[BuiltKernel] = &[\n");
        for Report { file, kernel, arch, registers, shared } in kernels {
            let _ = writeln!(
                text,
                "    BuiltKernel {{ file: {file:?}, name: {kernel:?}, arch: {arch:?}, registers: {registers}, shared: {shared} }},"
            );
        }
        text.push_str("];\n");
        fs::write(out.join("kernels.rs"), text).expect("OUT_DIR can be written to");
    }
}
