//! Networks to and from the single-file checkpoints in which Stable Diffusion 3 is published.
//!
//! Such a file says nothing about its architecture: it is read off the tensors' names and shapes. FP8 files may hold a factor
//! for each weight (`scale_weight`), by which it is multiplied.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::names::differences;
use super::stored::Piece;
use super::{Dtype, Entry, SafetensorsFile, StoredTensors, TensorViews, Tensors, parameter_shapes, prepare_safetensors, write_atomically};
use crate::model::ModelConfig;
use crate::{Error, Result};

/// What stands before the names of the network in a file that holds text encoders and a VAE as well.
const PREFIX: &str = "model.diffusion_model.";
/// Width of a head in every published model. Without QK norm nothing in the file tells it.
const HEAD_DIM: usize = 64;
/// What stands in the place of `weight` where there is a factor for it.
const SCALE: &str = "scale_weight";
/// What else files with such factors hold: a mark, and factors for activations, which drawing in full precision needs not.
const IGNORED: [&str; 2] = ["scaled_fp8", "scale_input"];

/// Reads an original single-file checkpoint into memory, as [`open`] finds it.
///
/// # Errors
/// As [`open`].
pub fn import(path: impl AsRef<Path>) -> Result<(ModelConfig, Tensors)> {
    let (model, tensors) = open(path)?;
    Ok((model, tensors.load()?))
}

/// Opens an original single-file checkpoint, with the prefix `model.diffusion_model.` (other tensors are then ignored) or
/// without. Without QK norm, heads are taken to be 64 wide, as in every published model.
///
/// # Errors
/// When the file is damaged, is no MMDiT, or tensors are missing, left over or misshapen.
pub fn open(path: impl AsRef<Path>) -> Result<(ModelConfig, StoredTensors)> {
    let file = Arc::new(SafetensorsFile::open(path)?);
    let prefix = if file.names().iter().any(|name| name.starts_with(PREFIX)) { PREFIX } else { "" };
    let mut shapes = BTreeMap::new();
    let mut scales = BTreeMap::new();
    for name in file.names() {
        let Some(short) = name.strip_prefix(prefix) else { continue };
        let (layer, last) = short.rsplit_once('.').unwrap_or(("", short));
        if last == SCALE {
            scales.insert(format!("{layer}.weight"), factor(&file, name)?);
        } else if !IGNORED.contains(&last) {
            shapes.insert(short.to_owned(), file.shape(name)?.to_vec());
        }
    }
    let model = detect(&shapes).map_err(|cause| Error::file(file.path(), cause))?;
    let wrong = differences(&parameter_shapes(&model), &shapes);
    if !wrong.is_empty() {
        return Err(Error::file(file.path(), format!("does not hold the model that its first tensors announce: {wrong}")));
    }
    let mut tensors = StoredTensors::default();
    for (name, shape) in shapes {
        let scale = scales.remove(&name).unwrap_or(1.0);
        let piece = Piece::of_file(&file, &format!("{prefix}{name}"), 0..shape.iter().product(), scale);
        tensors.place(name, shape, vec![piece]);
    }
    match scales.keys().next() {
        Some(name) => Err(Error::file(file.path(), format!("holds a factor for `{name}`, which it does not hold"))),
        None => Ok((model, tensors)),
    }
}

fn factor(file: &SafetensorsFile, name: &str) -> Result<f32> {
    match file.f32(name)?.as_slice() {
        [factor] if factor.is_finite() => Ok(*factor),
        other => Err(Error::file(file.path(), format!("holds {} numbers in `{name}`, where one factor is expected", other.len()))),
    }
}

/// Writes an original single-file checkpoint of the network alone, below the prefix `model.diffusion_model.`; with FP8 as it is,
/// without factors. The old file, if there was one, is replaced atomically.
///
/// # Errors
/// When the tensors are not those of `model`, a value does not fit `dtype`, or the file cannot be written.
pub fn export(model: &ModelConfig, tensors: &TensorViews<'_>, path: impl AsRef<Path>, dtype: Dtype) -> Result<()> {
    let path = path.as_ref();
    let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let wrong = differences(&parameter_shapes(model), &shapes);
    if !wrong.is_empty() {
        return Err(Error::file(path, format!("is not written, the tensors do not fit the model: {wrong}")));
    }
    let entries = tensors.iter().map(|(name, tensor)| Entry::view(format!("{PREFIX}{name}"), tensor, dtype)).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let prepared = prepare_safetensors(&metadata, entries).map_err(|error| Error::file(path, format!("is not written: {error}")))?;
    write_atomically(path, |out| prepared.write(out))
}

/// Reads the architecture off the shapes.
fn detect(shapes: &BTreeMap<String, Vec<usize>>) -> Result<ModelConfig, String> {
    let shape = |name: &str, axes: usize| match shapes.get(name) {
        Some(shape) if shape.len() == axes => Ok(shape.as_slice()),
        Some(shape) => Err(format!("has `{name}` with the shape {shape:?}, which is not that of a Stable Diffusion 3 model")),
        None => Err(format!("has no `{name}`: it is not an original Stable Diffusion 3 file (a diffusers folder is imported as a folder)")),
    };
    let block = |name: &str| name.strip_prefix("joint_blocks.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    let embedder = shape("x_embedder.proj.weight", 4)?;
    let positions = shape("pos_embed", 3)?[1];
    let side = positions.isqrt();
    if side * side != positions {
        return Err(format!("has a positional grid of {positions} tokens, which is not a square"));
    }
    let hidden = embedder[0];
    // What the network reads beyond what it predicts is its conditioning.
    let area = embedder[2].saturating_mul(embedder[2]).max(1);
    let outputs = shapes.get("final_layer.linear.bias").and_then(|shape| shape.first()).filter(|n| **n > 0 && n.is_multiple_of(area));
    let channels = outputs.map_or(embedder[1], |outputs| outputs / area);
    let normed = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight").and_then(|shape| shape.first().copied());
    let head_dim = normed.unwrap_or(HEAD_DIM);
    if head_dim == 0 || !hidden.is_multiple_of(head_dim) {
        return Err(format!("has the hidden width {hidden}, which is no multiple of the head width {head_dim}"));
    }
    let depth = shapes.keys().filter_map(|name| block(name)).max().map_or(0, |last| last.saturating_add(1));
    if depth > shapes.len() {
        return Err(format!("numbers a block {}, but has only {} tensors", depth - 1, shapes.len()));
    }
    let model = ModelConfig {
        depth,
        heads: hidden / head_dim,
        head_dim,
        in_channels: channels,
        patch: embedder[2],
        context_dim: shape("context_embedder.weight", 2)?[1],
        pooled_dim: shape("y_embedder.mlp.0.weight", 2)?[1],
        pos_embed_max: side,
        qk_norm: normed.is_some(),
        dual_attention_blocks: shapes.keys().filter(|name| name.ends_with(".x_block.attn2.qkv.weight")).count(),
        conditioning_channels: embedder[1].saturating_sub(channels),
    };
    model.validate().map_err(|error| format!("describes no model that can be built: {error}"))?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Tensor;
    use crate::format::checkpoint::tests::example;
    use crate::format::stored::views;

    fn import_with(prefix: &str, tensors: &Tensors, others: &[&str]) -> Result<(ModelConfig, Tensors)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sd3.safetensors");
        let other = Tensor::zeros(&[2]);
        let mut entries: Vec<_> =
            tensors.iter().map(|(name, t)| Entry::floats(format!("{prefix}{name}"), &t.shape, vec![&t.data], Dtype::F16)).collect();
        entries.extend(others.iter().map(|name| Entry::floats(*name, &[2], vec![&other.data], Dtype::F32)));
        let prepared = prepare_safetensors(&BTreeMap::new(), entries).unwrap();
        write_atomically(&path, |out| prepared.write(out)).unwrap();
        import(path)
    }

    #[test]
    fn the_architecture_is_read_off_the_shapes() {
        for (qk_norm, dual) in [(false, 0), (true, 0), (true, 2)] {
            let checkpoint = example(qk_norm, dual);
            for (prefix, others) in [("", &[][..]), (PREFIX, &["first_stage_model.x", "text_encoders.y"][..])] {
                let (model, tensors) = import_with(prefix, &checkpoint.tensors, others).unwrap();
                assert_eq!(model, checkpoint.pipeline.model);
                assert!(tensors == checkpoint.tensors);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let tensors = example(true, 1).tensors;
        let mut cut = tensors.clone();
        cut.remove("joint_blocks.1.x_block.mlp.fc1.bias");
        let error = import_with("", &cut, &["lora"]).unwrap_err().to_string();
        assert!(
            error.contains("missing: joint_blocks.1.x_block.mlp.fc1.bias") && error.contains("not part of this model: lora"),
            "{error}"
        );
        cut.remove("x_embedder.proj.weight");
        assert!(import_with("", &cut, &[]).unwrap_err().to_string().contains("has no `x_embedder.proj.weight`"));
        let mut bent = tensors.clone();
        bent.insert("pos_embed".into(), Tensor::zeros(&[1, 35, 128]));
        assert!(import_with("", &bent, &[]).unwrap_err().to_string().contains("35 tokens"));
        let mut distant = tensors;
        distant.insert("joint_blocks.99999999999999.x_block.w".into(), Tensor::zeros(&[1]));
        assert!(import_with("", &distant, &[]).unwrap_err().to_string().contains("numbers a block 99999999999999"));
    }

    #[test]
    fn export_and_import_are_inverse() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sd3.safetensors");
        for (qk_norm, dual) in [(false, 0), (true, 0), (true, 2)] {
            let checkpoint = example(qk_norm, dual);
            let model = &checkpoint.pipeline.model;
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                export(model, &views(&checkpoint.tensors), &path, dtype).unwrap();
                assert!(import(&path).unwrap() == (model.clone(), checkpoint.tensors.clone()), "{dtype:?}");
            }
            // In FP8 once, and again from there to the same.
            export(model, &views(&checkpoint.tensors), &path, Dtype::F8E4M3).unwrap();
            let (found, coarse) = import(&path).unwrap();
            assert!(&found == model && coarse != checkpoint.tensors);
            let bytes = std::fs::read(&path).unwrap();
            export(model, &views(&coarse), &path, Dtype::F8E4M3).unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes);
        }
        let mut tensors = example(false, 0).tensors;
        tensors.get_mut("x_embedder.proj.weight").unwrap().data[3] = 500.0;
        let error = export(&example(false, 0).pipeline.model, &views(&tensors), &path, Dtype::F8E4M3).unwrap_err().to_string();
        assert!(error.contains("holds 500, beyond float8's largest value 448"), "{error}");
        tensors.remove("pos_embed");
        let error = export(&example(false, 0).pipeline.model, &views(&tensors), &path, Dtype::F32).unwrap_err().to_string();
        assert!(error.contains("missing: pos_embed"), "{error}");
    }

    #[test]
    fn weights_with_factors_are_multiplied() {
        let tensors = example(true, 0).tensors;
        let mut scaled = tensors.clone();
        let name = "joint_blocks.0.x_block.attn.qkv";
        scaled.get_mut(&format!("{name}.weight")).unwrap().data.iter_mut().for_each(|w| *w *= 4.0);
        scaled.insert(format!("{name}.scale_weight"), Tensor { shape: vec![], data: vec![0.25] });
        scaled.insert(format!("{name}.scale_input"), Tensor { shape: vec![], data: vec![1.0] });
        scaled.insert("scaled_fp8".into(), Tensor::zeros(&[2]));
        assert!(import_with(PREFIX, &scaled, &[]).unwrap().1 == tensors);
        scaled.insert("none.scale_weight".into(), Tensor { shape: vec![1], data: vec![1.0] });
        assert!(import_with("", &scaled, &[]).unwrap_err().to_string().contains("a factor for `none.weight`"));
        scaled.insert("none.scale_weight".into(), Tensor::zeros(&[3]));
        assert!(import_with("", &scaled, &[]).unwrap_err().to_string().contains("3 numbers in `none.scale_weight`"));
    }
}
