//! `src/device/cuda/abi.rs` is what bindgen makes of `kernels/abi.h`. `BLESS=1 cargo test --test it abi` writes it anew.

use bindgen::callbacks::{DeriveInfo, ParseCallbacks, TypeKind};

/// Every parameter struct is plain bytes without padding: the compiler checks it.
#[derive(Debug)]
struct PlainBytes;

impl ParseCallbacks for PlainBytes {
    fn add_derives(&self, info: &DeriveInfo<'_>) -> Vec<String> {
        if info.kind == TypeKind::Struct { vec!["bytemuck::Pod".into(), "bytemuck::Zeroable".into()] } else { Vec::new() }
    }
}

#[test]
fn the_bindings_are_those_of_the_header() {
    if clang_sys::load().is_err() {
        eprintln!("skipped: libclang is not installed (Debian: libclang1, pip: libclang with LIBCLANG_PATH)");
        return;
    }
    let root = crate::root();
    let bindings = bindgen::Builder::default()
        .header(root.join("kernels/abi.h").display().to_string())
        .clang_arg("-xc")
        .allowlist_file(".*abi\\.h")
        .derive_default(true)
        .layout_tests(false)
        .disable_header_comment()
        .generate_comments(false)
        .formatter(bindgen::Formatter::Prettyplease)
        .parse_callbacks(Box::new(PlainBytes))
        .generate()
        .unwrap()
        .to_string();
    let text = format!("// Made by bindgen from kernels/abi.h: BLESS=1 cargo test --test it abi\n\n{bindings}");
    let path = root.join("src/device/cuda/abi.rs");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == text, "src/device/cuda/abi.rs is not that of kernels/abi.h: run BLESS=1 cargo test --test it abi");
}
