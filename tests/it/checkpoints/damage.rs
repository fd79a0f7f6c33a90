//! What can be wrong with a checkpoint: one line each, exit code 2, in every format.

use std::path::Path;

use ladd_fast::format::{Dtype, diffusers, original, save};
use ladd_fast::format::{Pipeline, Role};
use ladd_fast::text::TextConfig;
use ladd_fast::vae::CodecConfig;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::golden;
use crate::cli::refuse;

/// Writes a file of tensors again with some left out, renamed or reshaped.
fn edit(file: &Path, change: impl Fn(&str) -> Option<(String, Option<Vec<usize>>)>) {
    let bytes = std::fs::read(file).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let kept = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().filter_map(|(name, view)| {
        let (name, shape) = change(&name)?;
        Some((name, TensorView::new(view.dtype(), shape.unwrap_or(view.shape().to_vec()), view.data()).unwrap()))
    });
    let edited = safetensors::serialize(kept.collect::<Vec<_>>(), header.metadata().clone()).unwrap();
    drop(bytes);
    std::fs::write(file, edited).unwrap();
}

fn says(path: &Path, parts: &[&str]) {
    let error = refuse(&["info", path.to_str().unwrap()]);
    parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
}

/// Tensors that are missing, left over and misshapen are named.
fn tensors_are_named(path: &Path, file: &Path, bias: &str) {
    let good = std::fs::read(file).unwrap();
    let keep = |name: &str| Some((name.to_owned(), None));
    let short = bias.strip_prefix("model.diffusion_model.").unwrap_or(bias);
    edit(file, |name| if name == bias { None } else { keep(name) });
    says(path, &["missing:", short]);
    edit(file, |name| if name.ends_with("context_embedder.bias") { Some((format!("{name}2"), None)) } else { keep(name) });
    says(path, &["not part of this model:", "context_embedder.bias2"]);
    std::fs::write(file, &good).unwrap();
    edit(file, |name| if name == bias { Some((name.to_owned(), Some(vec![1, 16]))) } else { keep(name) });
    says(path, &["of the wrong shape:", short, "[1, 16] instead of [16]"]);
    for cut in [0, 7, 100, good.len() / 2, good.len() - 1] {
        std::fs::write(file, &good[..cut]).unwrap();
        says(path, &["truncated", file.file_name().unwrap().to_str().unwrap()]);
    }
    std::fs::write(file, &good).unwrap();
}

#[test]
fn tensors_that_do_not_fit_are_named_in_every_format() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, stored) = diffusers::open(golden("sd3.5-large")).unwrap();
    let file = scratch.path().join("original.safetensors");
    original::export(&model, &stored.views(), &file, Dtype::F16).unwrap();
    tensors_are_named(&file, &file, "model.diffusion_model.final_layer.linear.bias");

    let folder = scratch.path().join("diffusers");
    diffusers::export(&model, &stored.views(), &folder, Dtype::F16, usize::MAX).unwrap();
    tensors_are_named(&folder, &folder.join("transformer/diffusion_pytorch_model.safetensors"), "proj_out.bias");

    let (codec, text) = (CodecConfig::External { channels: 4, downscale: 8 }, TextConfig::External { context_dim: 48, pooled_dim: 40 });
    let pipeline = Pipeline { model, codec, text, shift: 3.0, spacing: Default::default(), role: Role::Teacher, notes: Default::default() };
    let file = scratch.path().join("native.safetensors");
    save(&pipeline, &stored.views(), &file, Dtype::F32).unwrap();
    tensors_are_named(&file, &file, "final_layer.linear.bias");
}

#[test]
fn shards_that_do_not_fit_their_index_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("sd3");
    let inner = folder.join("transformer");
    std::fs::create_dir_all(&inner).unwrap();
    for entry in std::fs::read_dir(golden("sd3.5-large/transformer")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), inner.join(entry.file_name())).unwrap();
    }
    refused(&folder, &inner);
}

fn refused(folder: &Path, inner: &Path) {
    let index = inner.join("diffusion_pytorch_model.safetensors.index.json");
    let shard = |i: usize| inner.join(format!("diffusion_pytorch_model-{i:05}-of-00003.safetensors"));
    let good = std::fs::read_to_string(&index).unwrap();
    let replaced = |from: &str, to: &str| std::fs::write(&index, good.replace(from, to)).unwrap();
    replaced("diffusion_pytorch_model-00002", "../diffusion_pytorch_model-00002");
    says(folder, &["index.json", "not a file of its own folder"]);
    replaced("diffusion_pytorch_model-00002", "absent-00002");
    says(folder, &["absent-00002-of-00003.safetensors"]);
    std::fs::write(&index, &good[..good.len() / 2]).unwrap();
    says(folder, &["index.json", "damaged"]);
    std::fs::write(&index, &good).unwrap();

    // A tensor that is in two shards.
    let (second, third) = (std::fs::read(shard(2)).unwrap(), std::fs::read(shard(3)).unwrap());
    let (second, third) = (SafeTensors::deserialize(&second).unwrap(), SafeTensors::deserialize(&third).unwrap());
    let doubled: Vec<_> = second.tensors().into_iter().chain(third.tensors().into_iter().take(1)).collect();
    let kept = std::fs::read(shard(2)).unwrap();
    std::fs::write(shard(2), safetensors::serialize(doubled, None).unwrap()).unwrap();
    says(folder, &["00002-of-00003.safetensors: holds `", "does not place there"]);
    std::fs::write(shard(2), &kept[..kept.len() / 2]).unwrap();
    says(folder, &["00002-of-00003.safetensors", "truncated"]);
    std::fs::remove_file(shard(2)).unwrap();
    says(folder, &["00002-of-00003.safetensors"]);
}
