//! The commands on a pipeline of Stable Diffusion 3, from prompts to pictures.

use std::path::{Path, PathBuf};

use crate::cli::{refuse, succeed};

use super::folder;

/// A folder to work in, and settings that make everything small.
struct Desk {
    scratch: tempfile::TempDir,
    teacher: String,
}

impl Desk {
    fn new() -> Self {
        Self { scratch: tempfile::tempdir().unwrap(), teacher: folder("sd3").to_str().unwrap().to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The arguments of a command, with few T5 rows and the prompts' cache on this desk.
    fn arguments(&self, command: &[&str]) -> Vec<String> {
        let sets = ["encoders.t5_tokens=21".to_owned(), format!("encoders.cache={}", self.name("cache"))];
        let sets = sets.into_iter().flat_map(|set| ["--set".to_owned(), set]);
        let words = command.iter().map(|word| (*word).to_owned());
        words.clone().take(1).chain(sets).chain(words.skip(1)).collect()
    }

    fn run(&self, command: &[&str]) -> String {
        let arguments = self.arguments(command);
        succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn fail(&self, command: &[&str]) -> String {
        let arguments = self.arguments(command);
        refuse(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn pictures(folder: &Path) -> Vec<image::RgbImage> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name != "grid.png"));
    files.sort();
    files.iter().map(|file| image::open(file).unwrap().to_rgb8()).collect()
}

#[test]
fn a_pipeline_is_sampled_synthesized_distilled_and_its_student_sampled() {
    let desk = Desk::new();
    let teacher = desk.teacher.as_str();
    assert!(desk.run(&["info", teacher]).contains("downscale 4"));

    let out = desk.name("samples");
    let size = ["--width", "48", "--height", "32", "--steps", "2", "--out", &out];
    desk.run(&[&["sample", "--network", teacher, "a red apple", "the the"][..], &size].concat());
    let drawn = pictures(&desk.path("samples"));
    assert_eq!(drawn.iter().map(image::RgbImage::dimensions).collect::<Vec<_>>(), [(48, 32), (48, 32)]);
    assert_ne!(drawn[0], drawn[1]);
    assert!(desk.path("cache").read_dir().unwrap().count() >= 2, "prompts are kept");

    std::fs::write(desk.path("prompts.txt"), "a red apple\na quiz\n").unwrap();
    let (prompts, latents, run) = (desk.name("prompts.txt"), desk.name("latents"), desk.name("run"));
    let sizes = ["--set", "synthesize.height=32", "--set", "synthesize.width=32"];
    let command = ["synthesize", "--teacher", teacher, "--prompts", &prompts, "--count", "8", "--steps", "2", "--out", &latents];
    desk.run(&[&command[..], &sizes].concat());
    let command = ["distill", "--teacher", teacher, "--data", &latents, "--steps", "3", "--batch", "2", "--run", &run];
    let few = ["--set", "eval.teacher_steps=2", "--set", "distill.control=false", "--set", "ladd.head_width=8"];
    desk.run(&[&command[..], &few].concat());
    assert!(desk.path("run/comparison.png").is_file() && desk.path("run/student/transformer/config.json").is_file());

    // The student knows where its encoders are.
    let out = desk.name("student");
    desk.run(&["sample", "--network", &run, "a red apple", "--width", "32", "--height", "32", "--out", &out]);
    assert_eq!(pictures(&desk.path("student")).len(), 1);
}

#[test]
fn what_a_network_needs_is_said() {
    let desk = Desk::new();
    // A folder with nothing but the transformer.
    let bare = desk.path("bare");
    std::fs::create_dir_all(bare.join("transformer")).unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::copy(folder("sd3/transformer").join(file), bare.join("transformer").join(file)).unwrap();
    }
    let bare = bare.to_str().unwrap();
    let error = desk.fail(&["sample", "--network", bare, "x"]);
    assert!(error.contains("text_encoder"), "{error}");
    let error = desk.fail(&["sample", "--network", &desk.teacher, "x", "--set", "encoders.path=nowhere"]);
    assert!(error.contains("nowhere"), "{error}");
    let error = desk.fail(&["sample", "--network", &desk.teacher, "x", "--set", "encoders.t5_tokens=0"]);
    assert!(error.contains("between 1 and 512"), "{error}");
    let error = desk.fail(&["sample", "--network", &desk.teacher, "x", "--width", "20"]);
    assert!(error.contains("no multiple of 8"), "{error}");
}
