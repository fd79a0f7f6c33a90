//! Networks from the single-file checkpoints in which Stable Diffusion 3 is published.
//!
//! Such a file says nothing about its architecture: it is read off the tensors' names and shapes.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use super::checkpoint::read_tensor;
use super::names::differences;
use super::{SafetensorsFile, Tensors, parameter_shapes};
use crate::model::ModelConfig;
use crate::{Error, Result};

/// What stands before the names of the network in a file that holds text encoders and a VAE as well.
const PREFIX: &str = "model.diffusion_model.";
/// Width of a head in every published model. Without QK norm nothing in the file tells it.
const HEAD_DIM: usize = 64;

/// Reads an original single-file checkpoint, with the prefix `model.diffusion_model.` (other tensors are then ignored)
/// or without. Without QK norm, heads are taken to be 64 wide, as in every published model.
///
/// # Errors
/// When the file is damaged, is no MMDiT, or tensors are missing, left over or misshapen.
pub fn import(path: impl AsRef<Path>) -> Result<(ModelConfig, Tensors)> {
    let file = SafetensorsFile::open(path)?;
    let prefix = if file.names().iter().any(|name| name.starts_with(PREFIX)) { PREFIX } else { "" };
    let mut shapes = BTreeMap::new();
    for name in file.names() {
        if let Some(short) = name.strip_prefix(prefix) {
            shapes.insert(short.to_owned(), file.shape(name)?.to_vec());
        }
    }
    let model = detect(&shapes).map_err(|cause| Error::file(file.path(), cause))?;
    let wrong = differences(&parameter_shapes(&model), &shapes);
    if !wrong.is_empty() {
        return Err(Error::file(file.path(), format!("does not hold the model that its first tensors announce: {wrong}")));
    }
    let read = |name: String| Ok((name.clone(), read_tensor(&file, &format!("{prefix}{name}"))?));
    let tensors = shapes.into_keys().collect::<Vec<_>>().into_par_iter().map(read).collect::<Result<_>>()?;
    Ok((model, tensors))
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
        in_channels: embedder[1],
        patch: embedder[2],
        context_dim: shape("context_embedder.weight", 2)?[1],
        pooled_dim: shape("y_embedder.mlp.0.weight", 2)?[1],
        pos_embed_max: side,
        qk_norm: normed.is_some(),
        dual_attention_blocks: shapes.keys().filter(|name| name.ends_with(".x_block.attn2.qkv.weight")).count(),
    };
    model.validate().map_err(|error| format!("describes no model that can be built: {error}"))?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checkpoint::tests::example;
    use crate::format::{Dtype, Entry, Tensor, prepare_safetensors, write_atomically};

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
}
