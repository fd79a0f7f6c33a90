//! Builds the kernels: with the feature `emulator` as host C++ (needs a C++ compiler), with the feature `cuda` by nvcc.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "emulator")]
    emulator();
}

#[cfg(feature = "emulator")]
fn kernels() -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir("kernels")
        .expect("the folder kernels/")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    files.sort();
    files
}

#[cfg(feature = "emulator")]
fn emulator() {
    println!("cargo:rerun-if-changed=kernels");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").include("kernels").include("kernels/emulator").define("LADD_EMULATOR", None);
    // A GPU rounds each of the intrinsics __fmul_rn, __fadd_rn by itself; so must this compiler.
    build.flag("-ffp-contract=off");
    build.opt_level(2).warnings(false).flag("-include").flag("emulator.h").flag("-xc++");
    build.file("kernels/emulator/emulator.cpp").files(kernels());
    // Kernels register themselves before main: the linker must keep objects that nothing refers to.
    build.link_lib_modifier("+whole-archive").compile("ladd_fast_emulator");
}
