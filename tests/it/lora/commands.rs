//! `ladd-fast lora`, `--lora`, and distillations with adapters, from outside.

use std::path::Path;

use ladd_fast::format::{Checkpoint, Role};
use tempfile::TempDir;

use super::golden;
use crate::cli::{TEACHER, distill, refuse, succeed};

fn student(path: &Path) -> Checkpoint {
    Checkpoint::load(path.join("student/student.safetensors")).unwrap()
}

#[test]
fn a_lora_student_is_distilled_resumed_merged_and_sampled() {
    let folder = TempDir::new().unwrap();
    let name = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = name("run");
    let more = ["--set", "lora.rank=2", "--set", "lora.alpha=4", "--set", "distill.control=false"];
    let table = succeed(&distill(&run, &more));
    assert!(table.contains("student/pytorch_lora_weights.safetensors"), "{table}");
    let whole = student(folder.path().join("run").as_path());
    assert_eq!(whole.pipeline.role, Role::Student);

    // As if it had been killed after step 4.
    std::fs::remove_dir_all(folder.path().join("run/checkpoints/step_000006")).unwrap();
    std::fs::rename(folder.path().join("run/student"), folder.path().join("student")).unwrap();
    succeed(&["distill", "--run", &run, "--resume"]);
    for file in ["student.safetensors", "pytorch_lora_weights.safetensors", "transformer/diffusion_pytorch_model.safetensors"] {
        let bytes = |part: &str| std::fs::read(folder.path().join(part).join(file)).unwrap();
        assert!(bytes("student") == bytes("run/student"), "the resumed {file} differs");
    }

    // The adapters, merged into the teacher, are the student to the bit.
    let about = succeed(&["lora", "inspect", &run, "--network", TEACHER.path()]);
    assert!(about.contains("rank         2\n") && about.contains("makes        a student"), "{about}");
    let merged = name("merged.safetensors");
    succeed(&["lora", "merge", TEACHER.path(), &run, "--out", &merged]);
    let merged_network = Checkpoint::load(&merged).unwrap();
    assert!(merged_network.tensors == whole.tensors && merged_network.pipeline.role == Role::Student);

    // And away again.
    let said = succeed(&["lora", "unmerge", &merged, &run, "--out", &name("back"), "--against", TEACHER.path()]);
    assert!(said.contains("merged once more, it is off by") && said.contains("it is off the original by"), "{said}");
    assert!(folder.path().join("back/transformer/config.json").is_file());
    assert_eq!(Checkpoint::load(folder.path().join("back/teacher.safetensors")).unwrap().pipeline.role, Role::Teacher);

    // The teacher with the student's adapters draws what the student draws.
    let out = |name: &str| folder.path().join(name).join("bag-seed0-00.png");
    succeed(&["sample", "--network", &run, "--out", &name("a"), "bag"]);
    succeed(&["sample", "--network", TEACHER.path(), "--lora", &run, "--out", &name("b"), "bag"]);
    assert_eq!(std::fs::read(out("a")).unwrap(), std::fs::read(out("b")).unwrap());
    succeed(&["sample", "--network", TEACHER.path(), "--lora", &run, "--lora-scale", "0", "--out", &name("c"), "bag"]);
    assert_ne!(std::fs::read(out("a")).unwrap(), std::fs::read(out("c")).unwrap());
    assert!(succeed(&["eval", "--network", TEACHER.path(), "--lora", &run, "--steps", "1", "--samples", "20"]).contains("student"));

    // The difference of both has that rank.
    let said = succeed(&["lora", "extract", TEACHER.path(), &run, "--rank", "2", "--layout", "peft", "--out", &name("found")]);
    assert!(said.contains("rank 2 keeps 100.00 %"), "{said}");
    assert!(folder.path().join("found/adapter_config.json").is_file());
    succeed(&["lora", "convert", &name("found"), "--network", TEACHER.path(), "--dtype", "bf16", "--out", &name("found.safetensors")]);
    assert!(succeed(&["lora", "inspect", &name("found.safetensors")]).contains("diffusers, BF16"));
}

#[test]
fn a_lora_is_merged_into_the_finished_student() {
    let folder = TempDir::new().unwrap();
    let name = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let few = ["--set", "distill.control=false", "--set", "distill.sample_every=0"];
    let (plain, again) = (name("plain"), name("again"));
    succeed(&distill(&plain, &few));
    let preference = name("preference.safetensors");
    succeed(&["lora", "extract", TEACHER.path(), &plain, "--rank", "3", "--targets", "attention", "--out", &preference]);

    let reapply = ["--reapply-lora", &preference, "--set", "lora.reapply_scales=0.5"];
    let table = succeed(&distill(&again, &[&few[..], &reapply].concat()));
    assert!(table.contains("| student with LoRA"), "{table}");
    succeed(&["lora", "merge", &plain, &preference, "--scale", "0.5", "--out", &name("by-hand.safetensors")]);
    let by_hand = Checkpoint::load(name("by-hand.safetensors")).unwrap();
    let distilled = student(folder.path().join("again").as_path());
    assert!(distilled.tensors == by_hand.tensors, "merged by the distillation and by hand");
    assert!(distilled.pipeline.notes["lora"].contains("preference.safetensors at 0.5"));

    let missing = refuse(&distill(&name("none"), &["--reapply-lora", "no/such.safetensors"]));
    assert!(missing.contains("no/such.safetensors") && !folder.path().join("none").exists(), "{missing}");
}

#[test]
fn mistakes_are_one_line() {
    let other = golden("diffusers");
    let other = other.to_str().unwrap();
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out.safetensors");
    let merge =
        |lora: &str, more: &[&str]| refuse(&[&["lora", "merge", TEACHER.path(), lora, "--out", out.to_str().unwrap()], more].concat());
    assert!(merge("no/such", &[]).contains("no/such"));
    assert!(merge(other, &[]).contains("does not have") && !out.exists());
    assert!(merge(TEACHER.path(), &[]).contains("no part of a LoRA"));
    assert!(merge(other, &["--scale", "1", "--scale", "2"]).contains("--scale is given 2 times for 1 LoRAs"));
    assert!(refuse(&["lora", "extract", TEACHER.path(), TEACHER.path(), "--out", "x"]).contains("do not differ"));
    assert!(refuse(&["lora", "extract", TEACHER.path(), "builtin", "--out", "x"]).contains("different shapes"));
    assert!(refuse(&["sample", "--network", TEACHER.path(), "--lora-scale", "2", "bag"]).contains("--lora"));
    let targets = refuse(&distill("unused", &["--set", "lora.rank=2", "--set", "lora.targets=attn3"]));
    assert!(targets.contains("`attn3`") && !Path::new("unused").exists(), "{targets}");
    assert!(refuse(&["info", "--set", "lora.alpha=-1"]).contains("lora.alpha = -1"));
}
