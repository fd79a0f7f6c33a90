//! Files of diffusers, PEFT and sd-scripts: merged, the network computes what those libraries do; what is written loads there.

use std::collections::BTreeMap;
use std::path::Path;

use ladd_fast::device::cpu::Cpu;
use ladd_fast::format::{Dtype, Tensors};
use ladd_fast::lora::{Layout, LoraFile, distance, merge};
use ladd_fast::model::{Mmdit, ModelConfig};
use safetensors::tensor::{Dtype as Stored, TensorView};

use super::{expected, golden, inputs, network, read};
use crate::golden::relative_error;
use crate::rig::{Rig, data};

/// The velocity that the network predicts with adapters at the given strengths.
fn velocity(loras: &[(&str, f32)]) -> Vec<f32> {
    let (model, mut tensors) = network();
    loras.iter().for_each(|(name, strength)| merge(&model, &mut tensors, &read(name), *strength).unwrap());
    predicted(model, &tensors)
}

fn predicted(model: ModelConfig, tensors: &Tensors) -> Vec<f32> {
    let b = Cpu::<f32>::new();
    let network = Mmdit::new(&b, model, &tensors["pos_embed"].data).unwrap();
    let weights = network.layout().arena.gather(|name| tensors.get(name).map(|t| (&t.shape[..], &t.data[..]))).unwrap();
    let params = data(&b, &weights);
    Rig { b: &b, model: network, weights, params }.infer(&inputs())
}

#[test]
fn merged_networks_compute_what_diffusers_and_peft_do() {
    let file = expected();
    let cases: [(&str, &[(&str, f32)]); 10] = [
        ("base", &[]),
        ("diffusers", &[("diffusers", 1.0)]),
        ("old", &[("old.safetensors", 1.0)]),
        ("many", &[("many", 1.0)]),
        ("many.fused", &[("many", 0.7)]),
        ("both", &[("diffusers", 0.7), ("many", -0.4)]),
        ("fused", &[("fused.safetensors", 1.0)]),
        ("peft", &[("peft", 1.0)]),
        ("written", &[("written", 1.0)]),
        ("written_peft", &[("written_peft", 1.0)]),
    ];
    let base = file.f32("base").unwrap();
    for (name, loras) in cases {
        let reference = file.f32(name).unwrap();
        let error = relative_error(&velocity(loras), &reference);
        println!("{name}: {error:.1e}, itself {:.2} from the network without", relative_error(&reference, &base));
        assert!(error < 2e-5, "{name} errs by {error:.2e}");
        assert!(name == "base" || relative_error(&reference, &base) > 0.05, "{name} changes nothing");
    }
}

/// The committed files in `written` and `written_peft` were loaded into the real pipeline by `reference/tiny_loras.py`, and computed
/// what the previous test expects: these are their bytes.
#[test]
fn what_is_written_is_what_diffusers_loaded() {
    let lora = read("many");
    let folder = tempfile::tempdir().unwrap();
    for (layout, name) in [(Layout::Diffusers, "written"), (Layout::Peft, "written_peft")] {
        let file = lora.save(&folder.path().join(name), layout, Dtype::F32).unwrap();
        let written: Vec<_> = std::fs::read_dir(file.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
        for path in &written {
            let same = std::fs::read(path).unwrap() == std::fs::read(golden(name).join(path.file_name().unwrap())).unwrap();
            assert!(same, "{} is no longer what diffusers loaded: see reference/tiny_loras.py", path.display());
        }
        assert_eq!(written.len(), std::fs::read_dir(golden(name)).unwrap().count());
        let again = LoraFile::open(folder.path().join(name)).unwrap().read(&network().0).unwrap();
        assert_eq!(again.adapters.len(), lora.adapters.len());
        again.adapters.iter().for_each(|(module, adapter)| assert_eq!(*adapter, lora.adapters[module].unscaled(), "{module}"));
    }
    // As a file of any name, in 16 bits.
    let path = folder.path().join("my.safetensors");
    assert_eq!(lora.save(&path, Layout::Diffusers, Dtype::BF16).unwrap(), path);
    let rounded = LoraFile::open(&path).unwrap();
    assert_eq!((rounded.type_name(), rounded.layout()), ("BF16", "diffusers"));
}

#[test]
fn what_was_merged_can_be_taken_away() {
    let (model, original) = network();
    let mut tensors = original.clone();
    let loras = [("many", 0.7), ("peft", 1.5), ("fused.safetensors", -2.0)];
    loras.iter().for_each(|(name, strength)| merge(&model, &mut tensors, &read(name), *strength).unwrap());
    let changed = distance(&original, &tensors).unwrap();
    assert!(changed.relative > 0.1, "{changed:?}");
    loras.iter().rev().for_each(|(name, strength)| merge(&model, &mut tensors, &read(name), -strength).unwrap());
    let back = distance(&original, &tensors).unwrap();
    println!("{back:?}");
    assert!(back.relative < 2e-7 && back.largest < 2e-6 && back.differ > 0, "{back:?}");
}

#[test]
fn layouts_are_recognised() {
    for (name, layout) in
        [("diffusers", "diffusers"), ("peft", "PEFT"), ("old.safetensors", "diffusers before PEFT"), ("fused.safetensors", "sd-scripts")]
    {
        assert_eq!(LoraFile::open(golden(name)).unwrap().layout(), layout);
    }
    let fused = read("fused.safetensors");
    assert_eq!(fused.adapters.len(), 3 + 3 + 1);
    assert_eq!(fused.adapters["norm_out.linear"].scale, 0.5);
}

/// Name, rows and columns of a tensor.
type Sides<'a> = (&'a str, usize, usize);

/// A file of zeros with these tensors.
fn file(path: &Path, tensors: &[Sides]) {
    let zeros = vec![0; 4 * tensors.iter().map(|(_, rows, columns)| rows * columns).max().unwrap_or(0)];
    let views = tensors.iter().map(|(name, rows, columns)| {
        (name.to_string(), TensorView::new(Stored::F32, vec![*rows, *columns], &zeros[..4 * rows * columns]).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views.collect::<BTreeMap<_, _>>(), None).unwrap()).unwrap();
}

#[test]
fn files_that_do_not_fit_are_named() {
    const Q: &str = "transformer.transformer_blocks.0.attn.to_q";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let model = network().0;
    let cases: [(&[Sides], &str); 12] = [
        (&[(&a, 4, 32)], "without the B (up) of `transformer_blocks.0.attn.to_q`"),
        (&[(&b, 32, 4)], "without the A (down)"),
        (&[(&a, 4, 32), (&b, 32, 5)], "[32, 5], which does not fit its A of [4, 32]"),
        (&[(&a, 4, 31), (&b, 32, 4)], "[4, 31] where [4, 32] is needed"),
        (&[(&a, 4, 32), (&b, 64, 4)], "[64, 4] where [32, 4] is needed"),
        (&[(&a, 0, 32), (&b, 32, 0)], "does not fit"),
        (&[("x.lora_A.weight", 4, 32), ("x.lora_B.weight", 32, 4)], "modules that this network does not have: x"),
        (&[(&a, 4, 32), (&b, 32, 4), ("x.dora_scale", 1, 1)], "holds `x.dora_scale`, which is no part of a LoRA: DoRA"),
        (&[("joint_blocks.0.x_block.attn.qkv.weight", 96, 32)], "and not a whole network?"),
        (&[("text_encoder.x.lora_A.weight", 4, 4)], "no adapters of a transformer"),
        (&[(&a, 4, 32), (&b, 32, 4), (&format!("{Q}.alpha"), 1, 2)], "not one finite number"),
        (&[(&a, 4, 32), (&b, 32, 4), (&format!("{Q}.lora.down.weight"), 4, 32)], "which are the same part of one adapter"),
    ];
    for (tensors, part) in cases {
        file(&path, tensors);
        let error = LoraFile::open(&path).and_then(|file| file.read(&model)).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("x.safetensors") && !error.contains('\n'), "{part}: {error}");
    }
    let twice = [
        (&*a, 4, 32),
        (&*b, 32, 4),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", 4, 32),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight", 96, 4),
    ];
    file(&path, &twice);
    assert!(LoraFile::open(&path).unwrap().read(&model).unwrap_err().to_string().contains("twice, under two names"));
    // PEFT's scale stands beside its weights.
    file(&path, &[("base_model.model.proj_out.lora_A.weight", 1, 32), ("base_model.model.proj_out.lora_B.weight", 16, 1)]);
    assert!(LoraFile::open(&path).unwrap_err().to_string().contains("adapter_config.json"));
    assert!(LoraFile::open(folder.path()).unwrap_err().to_string().contains("holds no adapters"));
}

#[test]
fn no_truncation_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let whole = std::fs::read(golden("many/pytorch_lora_weights.safetensors")).unwrap();
    let model = network().0;
    for i in 0..300 {
        let mut bytes = whole.clone();
        if i % 2 == 0 {
            bytes.truncate(i * whole.len() / 300);
        } else {
            let at = i * 61 % 6000; // in the header
            bytes[at] = bytes[at].wrapping_add(i as u8);
        }
        std::fs::write(&path, bytes).unwrap();
        let _ = LoraFile::open(&path).and_then(|file| file.read(&model));
    }
}
