//! Networks for editing and inpainting as diffusers saves them (`reference/tiny_edit.py`): the same output, and the same folder
//! when they are written again.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::format::{Dtype, SafetensorsFile, TensorView, TensorViews, diffusers, original};
use ladd_fast::model::mmdit::POS_EMBED;
use ladd_fast::model::{Mmdit, Shape};

use crate::golden::close;
use crate::rig::{HostInputs, Rig, data};

#[test]
fn widened_networks_are_those_of_diffusers() {
    let b = Cpu::<f32>::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipelines");
    let expected = SafetensorsFile::open(folder.join("widened.safetensors")).unwrap();
    let [latent, t, context, pooled, conditioning] =
        ["latent", "t", "context", "pooled", "conditioning"].map(|name| expected.f32(name).unwrap());
    for (name, extra) in [("edit", 0), ("inpaint", 1)] {
        let (config, tensors) = diffusers::import(folder.join(name)).unwrap();
        assert_eq!((config.in_channels, config.conditioning_channels), (4, 4 + extra));
        let model = Mmdit::new(&b, config.clone(), &tensors[POS_EMBED].data).unwrap();
        let find = |name: &str| tensors.get(name).map(|t| (t.shape.as_slice(), t.data.as_slice()));
        let weights = model.layout().gather(&config, find).unwrap();
        let rig = Rig { b: &b, params: data(&b, &weights), weights, model };
        let sample = conditioning.len() / 2;
        let first = |sample: &[f32]| sample[..sample.len() / 5 * (4 + extra)].to_vec();
        let inputs = HostInputs {
            shape: Shape { batch: 2, height: 6, width: 4, text: 3 },
            latent: latent.clone(),
            conditioning: Some(conditioning.chunks(sample).flat_map(first).collect()),
            t: t.clone(),
            context: context.clone(),
            pooled: pooled.clone(),
        };
        close(name, &rig.infer(&inputs), &expected.f32(name).unwrap(), 1e-4);

        let again = tempfile::tempdir().unwrap();
        let views: TensorViews<'_> =
            tensors.iter().map(|(name, tensor)| (name.clone(), TensorView::new(&tensor.shape, &tensor.data))).collect();
        diffusers::export(&config, &views, again.path(), Dtype::F32, diffusers::SHARD_BYTES).unwrap();
        assert!(diffusers::import(again.path()).unwrap() == (config.clone(), tensors.clone()), "{name}: written and read again");
        let json = |folder: &std::path::Path| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(folder.join("transformer/config.json")).unwrap()).unwrap()
        };
        for key in ["in_channels", "out_channels"] {
            assert_eq!(json(again.path())[key], json(&folder.join(name))[key], "{name}: {key}");
        }

        // The original single file tells the conditioning from the widths of its first and last layer.
        let file = again.path().join("single.safetensors");
        original::export(&config, &views, &file, Dtype::F32).unwrap();
        let (detected, read) = original::import(&file).unwrap();
        assert!(read == tensors);
        assert_eq!((detected.in_channels, detected.conditioning_channels), (4, 4 + extra));
    }
}
