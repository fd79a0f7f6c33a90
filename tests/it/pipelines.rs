//! Stable Diffusion 3's text encoders and autoencoder against diffusers and transformers, on the tiny pipeline that
//! `reference/tiny_pipelines.py` writes.

mod commands;
mod text;
mod vae;
mod whole;

use std::path::PathBuf;

use ladd_fast::format::SafetensorsFile;

/// The folder of the tiny pipelines.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipelines").join(name)
}

/// What diffusers computes from them.
pub fn expected() -> SafetensorsFile {
    SafetensorsFile::open(folder("expected.safetensors")).unwrap()
}

/// An original single file with the parts of the tiny pipeline that `rename` gives names to, `(folder, name) -> name`.
pub fn single_file(target: &std::path::Path, parts: &[(&str, &str)], rename: impl Fn(&str, &str) -> Option<String>) {
    use safetensors::tensor::{Dtype, TensorView};
    let files: Vec<_> = parts.iter().map(|(part, file)| (*part, std::fs::read(folder("sd3").join(part).join(file)).unwrap())).collect();
    let mut views = Vec::new();
    for (part, bytes) in &files {
        for (name, view) in safetensors::SafeTensors::deserialize(bytes).unwrap().tensors() {
            assert_eq!(view.dtype(), Dtype::F16);
            let Some(renamed) = rename(part, &name) else { continue };
            let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let data = &bytes[start..start + view.data().len()];
            // Original files keep the projections of the attention as 1x1 convolutions.
            let mut shape = view.shape().to_vec();
            if renamed.contains(".attn_1.") && shape.len() == 2 {
                shape.extend([1, 1]);
            }
            views.push((renamed, TensorView::new(Dtype::F16, shape, data).unwrap()));
        }
    }
    std::fs::write(target, safetensors::serialize(views, None).unwrap()).unwrap();
}
