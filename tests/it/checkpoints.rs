//! Checkpoints of every kind of Stable Diffusion 3 in every format, against diffusers: read, run, written, read again.
//!
//! `tests/golden/pipelines` holds one of each kind as diffusers saved it (`reference/tiny_checkpoints.py`), what diffusers computes
//! from it, and the digest of every tensor of the original single file.

mod commands;
mod damage;
#[cfg(target_os = "linux")]
mod memory;

use std::collections::BTreeMap;
use std::path::PathBuf;

use ladd_fast::device::cpu::Cpu;
use ladd_fast::format::{Dtype, SafetensorsFile, StoredTensors, diffusers, original};
use ladd_fast::model::mmdit::POS_EMBED;
use ladd_fast::model::{Mmdit, ModelConfig, Shape};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use crate::golden::close;
use crate::rig::{HostInputs, Rig, data};

/// The kinds, and their folders.
pub const KINDS: [(&str, &str); 3] = [("sd3-medium", "sd3-medium"), ("sd3.5-medium", "sd3"), ("sd3.5-large", "sd3.5-large")];
const PREFIX: &str = "model.diffusion_model.";

fn golden(name: &str) -> PathBuf {
    crate::root().join("tests/golden/pipelines").join(name)
}

/// What diffusers computes.
fn expected() -> SafetensorsFile {
    SafetensorsFile::open(golden("kinds.safetensors")).unwrap()
}

/// The output of the network for the inputs of a kind, from the weights that are stored.
fn velocity(kind: &str, config: &ModelConfig, stored: &StoredTensors) -> Vec<f32> {
    let (b, file) = (Cpu::<f32>::new(), expected());
    let input = |name: &str| file.f32(&format!("{kind}.{name}")).unwrap();
    let shape = Shape { batch: 2, height: 6, width: 10, text: 7 };
    let inputs = HostInputs {
        shape,
        latent: input("latent"),
        conditioning: None,
        t: input("t"),
        context: input("context"),
        pooled: input("pooled"),
    };
    let model = Mmdit::new(&b, config.clone(), &stored.read(POS_EMBED).unwrap().data).unwrap();
    let weights = stored.gather(&model.layout().arena).unwrap();
    let params = data(&b, &weights);
    Rig { b: &b, model, weights, params }.infer(&inputs)
}

/// Shape and digest of every tensor of a file.
fn digests(file: &std::path::Path) -> BTreeMap<String, (Vec<usize>, String)> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let hex = |data: &[u8]| Sha256::digest(data).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    tensors.iter().map(|(name, view)| (name.clone(), (view.shape().to_vec(), hex(view.data())))).collect()
}

/// The same of the original file that Python's conversion makes.
fn expected_digests(kind: &str, dtype: Dtype) -> BTreeMap<String, (Vec<usize>, String)> {
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("originals.json")).unwrap()).unwrap();
    let key = match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::BF16 => "BF16",
        Dtype::F8E4M3 => "F8_E4M3",
    };
    let row = |row: &serde_json::Value| {
        let shape = row["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap() as usize).collect();
        (shape, row[key].as_str().unwrap().to_owned())
    };
    all[kind].as_object().unwrap().iter().map(|(name, value)| (format!("{PREFIX}{name}"), row(value))).collect()
}

#[test]
fn every_kind_computes_what_diffusers_computes() {
    for (kind, folder) in KINDS {
        let (config, stored) = diffusers::open(golden(folder)).unwrap();
        assert_eq!((config.qk_norm, config.dual_attention_blocks > 0), (kind != "sd3-medium", kind == "sd3.5-medium"), "{kind}");
        close(kind, &velocity(kind, &config, &stored), &expected().f32(&format!("{kind}.velocity")).unwrap(), 1e-4);
    }
}

#[test]
fn every_kind_is_written_in_both_formats_and_read_again_to_the_bit() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, folder) = (scratch.path().join("original.safetensors"), scratch.path().join("diffusers"));
    for (kind, place) in KINDS {
        let (config, stored) = diffusers::open(golden(place)).unwrap();
        let exact = stored.load().unwrap();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8E4M3] {
            let what = format!("{kind} in {dtype:?}");
            original::export(&config, &stored.views(), &file, dtype).unwrap();
            assert!(digests(&file) == expected_digests(kind, dtype), "{what}: not what Python's conversion makes");
            let (found, from_original) = original::open(&file).unwrap();
            assert_eq!(found, config, "{what}: the configuration is read off the tensors");
            let rounded = from_original.load().unwrap();
            assert_eq!(rounded == exact, matches!(dtype, Dtype::F32 | Dtype::F16), "{what}");

            // From the one file to the other, in shards and in one, and back.
            for shard_bytes in [40_000, usize::MAX] {
                diffusers::export(&config, &from_original.views(), &folder, dtype, shard_bytes).unwrap();
                let sharded = folder.join("transformer/diffusion_pytorch_model.safetensors.index.json").is_file();
                assert_eq!(sharded, shard_bytes == 40_000, "{what}");
                let (found, from_folder) = diffusers::open(&folder).unwrap();
                assert!(found == config && from_folder.load().unwrap() == rounded, "{what}: diffusers' folder differs");
                let again = scratch.path().join("again.safetensors");
                original::export(&config, &from_folder.views(), &again, dtype).unwrap();
                assert!(std::fs::read(&again).unwrap() == std::fs::read(&file).unwrap(), "{what}: other bytes");
            }
        }
    }
}

/// As published: text encoders and autoencoder in the same file.
#[test]
fn other_parts_of_a_single_file_are_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, whole) = (scratch.path().join("original.safetensors"), scratch.path().join("whole.safetensors"));
    for (kind, place) in KINDS {
        let (config, stored) = diffusers::open(golden(place)).unwrap();
        original::export(&config, &stored.views(), &file, Dtype::F16).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut views = tensors.tensors();
        let other = views[0].1.clone();
        let names = ["text_encoders.clip_l.transformer.text_model.final_layer_norm.bias", "first_stage_model.decoder.conv_in.bias"];
        views.extend(names.map(|name| (name.to_owned(), other.clone())));
        std::fs::write(&whole, safetensors::serialize(views, None).unwrap()).unwrap();
        let (found, with_others) = original::open(&whole).unwrap();
        assert!(found == config && with_others.load().unwrap() == stored.load().unwrap(), "{kind}");

        // Without the prefix, as the transformer alone is passed on.
        let bare = tensors.tensors().into_iter().map(|(name, view)| (name.strip_prefix(PREFIX).unwrap().to_owned(), view));
        std::fs::write(&whole, safetensors::serialize(bare, None).unwrap()).unwrap();
        let (found, without_prefix) = original::open(&whole).unwrap();
        assert!(found == config && without_prefix.load().unwrap() == stored.load().unwrap(), "{kind}");
    }
}
