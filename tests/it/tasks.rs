//! Editing and inpainting from the command line, with a tiny network: whole runs, resumed ones, and the pictures that come of them.

use std::path::Path;

use image::{Rgb, RgbImage};
use tempfile::TempDir;

use crate::cli::{TEACHER, refuse, succeed, succeed_in};

/// The arguments of a run that takes a second or two: pairs, a teacher, a student.
fn distill<'a>(task: &'a str, run: &'a str) -> Vec<&'a str> {
    // Rates at which a few steps are enough for the source to count.
    const SETTINGS: [&str; 19] = [
        "pretrain.optim.lr=0.03",
        "pretrain.optim.warmup_steps=0",
        "pretrain.ema_decay=0",
        "distill.ema_decay=0",
        "data.images=builtin",
        "edit.pairs=12",
        "edit.steps=1",
        "edit.candidates=1",
        "pretrain.steps=4",
        "pretrain.batch=3",
        "pretrain.checkpoint_every=2",
        "pretrain.keep_checkpoints=9",
        "distill.checkpoint_every=2",
        "distill.keep_checkpoints=9",
        "distill.sample_every=0",
        "distill.eval_every=0",
        "ladd.head_width=8",
        "eval.samples=100",
        "eval.teacher_steps=1",
    ];
    let mut arguments = vec!["distill", "--task", task, "--teacher", TEACHER.path(), "--steps", "4", "--batch", "4", "--run", run];
    SETTINGS.iter().for_each(|set| arguments.extend(["--set", set]));
    arguments.extend(["--set", "eval.student_steps=1", "--set", "distill.control=false"]);
    arguments
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A whole run, and the same run as if it had been killed in the teacher's training, and in the distillation.
fn run_and_resume(task: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let (name, run) = ("run", folder.path().join("run"));
    let succeed = |arguments: &[&str]| succeed_in(folder.path(), arguments);
    let table = succeed(&distill(task, name));
    for row in ["| teacher", "| teacher, source withheld", "| before LADD", "| student (LADD)", "comparison.png", "student"] {
        assert!(table.contains(row), "{row}: {table}");
    }
    assert!(image::open(run.join("comparison.png")).unwrap().width() > 1000);
    let results: serde_json::Value = serde_json::from_slice(&bytes(&run, "results.json")).unwrap();
    assert_eq!(results["task"], task);
    let config: serde_json::Value = serde_json::from_slice(&bytes(&run, "student/transformer/config.json")).unwrap();
    let width = if task == "edit" { 32 } else { 33 };
    assert_eq!((&config["in_channels"], &config["out_channels"]), (&width.into(), &16.into()));
    assert!(succeed(&["info", name]).contains("4 of 4"));
    assert!(succeed(&["info", "run/teacher-run"]).contains("state        finished\n"));
    let (what, more) = if task == "edit" { ("edits pictures", 16) } else { ("fills holes in pictures", 17) };
    let network = succeed(&["info", "run/student/student.safetensors"]);
    assert!(
        network.contains(&format!("task         {what}")) && network.contains(&format!("16 channels and {more} that condition")),
        "{network}"
    );

    let student = bytes(&run, "student/student.safetensors");
    for gone in
        ["student", "checkpoints/step_000004", "checkpoints/step_000002", "teacher-run/teacher", "teacher-run/checkpoints/step_000004"]
    {
        std::fs::remove_dir_all(run.join(gone)).unwrap();
    }
    let begun = succeed(&["info", "run/teacher-run"]);
    assert!(
        begun.contains("state        unfinished; unless it is running now, go on with: ladd-fast distill --run run --resume\n"),
        "{begun}"
    );
    succeed(&["distill", "--run", name, "--resume"]);
    assert!(student == bytes(&run, "student/student.safetensors"), "resumed in the teacher's training, another student");
    for gone in ["student", "checkpoints/step_000004"] {
        std::fs::remove_dir_all(run.join(gone)).unwrap();
    }
    succeed(&["distill", "--run", name, "--resume"]);
    assert!(student == bytes(&run, "student/student.safetensors"), "resumed in the distillation, another student");
    folder
}

/// A picture of the demo's size, dark to the left and light to the right.
fn picture(path: &Path) -> RgbImage {
    let image = RgbImage::from_fn(32, 32, |x, y| Rgb([(x * 7 + y % 3) as u8; 3]));
    image.save(path).unwrap();
    image
}

#[test]
fn a_network_that_edits() {
    let folder = run_and_resume("edit");
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (run, source, out) = (path("run"), path("source.png"), path("out.png"));
    let before = picture(source.as_ref());
    let edit_by = |network: &str, more: &[&str]| {
        let mut all = vec!["edit", source.as_str(), "--prompt", "mirror it", "--network", network, "--out", out.as_str()];
        all.extend(more);
        succeed(&all);
        image::open(&out).unwrap().to_rgb8()
    };
    let edit = |more: &[&str]| edit_by(&run, more);
    let one = edit(&["--steps", "1"]);
    assert_eq!((one.dimensions(), image::open(path("out-before-after.png")).is_ok()), ((32, 32), true));
    assert_eq!(one, edit(&["--steps", "1"]), "the same seed, another picture");
    assert_ne!(one, edit(&["--steps", "1", "--seed", "1"]));
    // The source counts, and so do both guidances of the teacher.
    std::fs::remove_file(&source).unwrap();
    image::imageops::flip_vertical(&before).save(&source).unwrap();
    assert_ne!(one, edit(&["--steps", "1"]), "another source, the same picture");
    let teacher = path("run/teacher-run");
    let guided = |scale: &str| edit_by(&teacher, &["--steps", "2", "--guidance", "2", "--image-guidance", scale]);
    assert_ne!(guided("1"), guided("3"));

    picture(source.as_ref());
    std::fs::write(path("cut.png"), &std::fs::read(&source).unwrap()[..40]).unwrap();
    RgbImage::new(30, 32).save(path("odd.png")).unwrap();
    let bad = |image: &str, network: &str, out: &str| refuse(&["edit", image, "--prompt", "mirror it", "--network", network, "--out", out]);
    assert!(bad(&path("none.png"), &run, &out).contains("cannot read"));
    assert!(bad(&path("cut.png"), &run, &out).contains("cut.png: cannot be decoded"));
    let odd = bad(&path("odd.png"), &run, &out);
    assert!(odd.contains("no multiple of 8") && odd.contains("crop or resize it to multiples of 8"), "{odd}");
    assert!(bad(&source, &run, &source).contains("source.png would be overwritten"));
    picture(path("out-before-after.png").as_ref());
    assert!(bad(&path("out-before-after.png"), &run, &out).contains("out-before-after.png would be overwritten"));
    assert!(
        bad(&source, TEACHER.path(), &out).contains("use `ladd-fast sample`, or train one with `ladd-fast distill --preset demo-edit`")
    );
    assert!(bad(&source, &run, &path("out.bmp")).contains("must end in .png"));
    assert!(refuse(&["sample", "--network", &run, "bag"]).contains("edits pictures: use `ladd-fast edit`"));
    assert!(refuse(&["inpaint", &source, &source, "--network", &run]).contains("use `ladd-fast edit`"));
    assert!(refuse(&["distill", "--teacher", &teacher]).contains("is for edit: say --task edit"));
    assert!(refuse(&["edit", &source, "--network", &run]).contains("--prompt"));
    assert!(refuse(&["distill", "--task", "draw"]).contains("task (set by `--task`)"));
}

#[test]
fn a_network_that_inpaints() {
    let folder = run_and_resume("inpaint");
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (run, source, mask, out) = (path("run"), path("source.png"), path("mask.png"), path("out.png"));
    let before = picture(source.as_ref());
    let painted = |x: u32, y: u32| (5..20).contains(&x) && y >= 11;
    RgbImage::from_fn(32, 32, |x, y| Rgb([if painted(x, y) { 255 } else { 0 }; 3])).save(&mask).unwrap();
    let inpaint = |more: &[&str]| {
        let mut all = vec!["inpaint", source.as_str(), mask.as_str(), "--prompt", "bag", "--network", run.as_str(), "--out", out.as_str()];
        all.extend(more);
        succeed(&all);
        image::open(&out).unwrap().to_rgb8()
    };
    let filled = inpaint(&[]);
    let differs = |other: &RgbImage, inside: bool| {
        let mut pixels = other.enumerate_pixels().filter(|(x, y, _)| painted(*x, *y) == inside);
        pixels.any(|(x, y, pixel)| pixel != before.get_pixel(x, y))
    };
    assert!(!differs(&filled, false) && differs(&filled, true), "what was not painted is kept, what was is drawn");
    assert!(differs(&inpaint(&["--no-paste"]), false));
    assert!(image::open(path("out-before-after.png")).is_ok());

    RgbImage::new(32, 32).save(path("black.png")).unwrap();
    RgbImage::from_pixel(32, 24, Rgb([255; 3])).save(path("small.png")).unwrap();
    let bad = |mask: &str| refuse(&["inpaint", &source, mask, "--network", &run, "--out", &out]);
    assert!(bad(&path("black.png")).contains("nothing to fill"));
    let over = refuse(&["inpaint", &source, &mask, "--network", &run, "--out", &path("./mask.png")]);
    assert!(over.contains("mask.png would be overwritten"), "{over}");
    assert!(bad(&path("small.png")).contains("a mask is as large as its picture"));
    assert!(bad(&path("none.png")).contains("cannot read"));
    assert!(refuse(&["edit", &source, "--prompt", "x", "--network", &run]).contains("use `ladd-fast inpaint`"));
    assert!(refuse(&["info", "--set", "inpaint.masks=[]"]).contains("inpaint.masks is empty"));
}
