//! What loading takes: the program runs under a limit on its own memory (mapped files do not count), on a network of a quarter
//! of a gigabyte that is nothing but a hole in a file.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use ladd_fast::format::{Pipeline, Role, parameter_shapes};
use ladd_fast::model::ModelConfig;
use ladd_fast::text::TextConfig;
use ladd_fast::vae::CodecConfig;
use serde_json::{Map, Value, json};

/// One block, 1536 wide as SD3-medium's: 63 million weights.
fn pipeline() -> Pipeline {
    let model = ModelConfig {
        depth: 1,
        heads: 24,
        head_dim: 64,
        in_channels: 16,
        patch: 2,
        context_dim: 16,
        pooled_dim: 16,
        pos_embed_max: 4,
        qk_norm: true,
        dual_attention_blocks: 0,
        conditioning_channels: 0,
    };
    let codec = CodecConfig::Dct { block: 4, channels: 1, mean: vec![0.0; 16], std: vec![1.0; 16] };
    let text = TextConfig::Words { dim: 16, tokens: 2 };
    Pipeline { model, codec, text, shift: 1.0, spacing: Default::default(), role: Role::Student, notes: Default::default() }
}

/// A checkpoint of zeros, none of which is on the disk. Returns how many weights it has.
fn sparse(path: &Path, dtype: &str, size: usize) -> usize {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "ladd_fast": serde_json::to_string(&pipeline()).unwrap() }));
    let mut end = 0;
    for (name, shape) in parameter_shapes(&pipeline().model) {
        let start = end;
        end += size * shape.iter().product::<usize>();
        header.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    end / size
}

/// Runs the program with `megabytes` of memory for all but its mapped files.
fn within(megabytes: usize, arguments: &[&str]) -> Output {
    let script = format!("ulimit -d {}; exec \"$0\" \"$@\" --threads 2", megabytes << 10);
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_ladd-fast")]).args(arguments).env_remove("RUST_LOG");
    command.output().unwrap()
}

#[test]
fn loading_takes_one_copy_and_exporting_none() {
    let scratch = tempfile::tempdir().unwrap();
    for (dtype, size) in [("F32", 4), ("F16", 2)] {
        let file = scratch.path().join("zeros.safetensors");
        let weights = sparse(&file, dtype, size);
        let one_copy = (4 * weights) >> 20;
        assert!(one_copy > 230, "{one_copy} MiB");
        let (name, out) = (file.to_str().unwrap(), scratch.path().join(format!("{dtype}.safetensors")));
        let check = |output: Output, what: &str| {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{what} of {dtype}: {message}");
        };
        let spare = 96;
        check(within(spare, &["info", name]), "info");
        check(within(spare, &["export", name, "--format", "original", "--dtype", "f8", "--out", out.to_str().unwrap()]), "export");
        let pictures = scratch.path().join("pictures");
        let draw = ["sample", "--network", name, "bag", "--steps", "1", "--device", "cpu", "--out", pictures.to_str().unwrap()];
        check(within(one_copy + spare, &draw), "sample");
        // The limit does bite.
        assert!(!within(one_copy - 1, &draw).status.success());
    }
}
