//! Pairs for editing: found by name and by list, cut alike, an edit before its source; and a network that edits, made of them.

use image::{ImageFormat, Rgb, RgbImage};

use super::{Desk, Prepared, encoded, gzip, near, plain, run, tar};
use crate::cli::succeed;

/// The two halves of a pair, each as a sample of a data set of its own would be.
fn halves(prepared: &Prepared, index: usize) -> [RgbImage; 2] {
    let [channels, height, width] = prepared.dataset.shape(index).unwrap();
    let mut latents = vec![0.0; channels * height * width];
    prepared.dataset.sample(index, &mut latents).unwrap();
    let (edit, source) = latents.split_at(latents.len() / 2);
    [edit, source].map(|latent| prepared.pixels(latent, [channels / 2, height, width]))
}

#[test]
fn pairs_are_found_by_their_names_in_folders_and_archives() {
    let (red, green, blue) = (plain((32, 32), [250, 0, 0]), plain((32, 32), [0, 250, 0]), plain((32, 32), [0, 0, 250]));
    let files: [(&str, &[u8]); 7] = [
        ("a.png", &red),
        ("a.source.png", &green),
        ("a.txt", b"make it red"),
        // The source before its edit: a gzipped archive is read but once.
        ("b.source.png", &red),
        ("b.png", &blue),
        ("b.txt", b"make it blue"),
        ("c.png", &blue),
    ];
    for name in ["in", "in.tar", "in.tar.gz"] {
        let desk = Desk::new();
        match name {
            "in" => files.iter().for_each(|(file, bytes)| drop(desk.write(&format!("in/{file}"), bytes))),
            "in.tar" => drop(desk.write(name, tar(&files))),
            _ => drop(desk.write(name, gzip(&tar(&files)))),
        }
        desk.prepare(&[name], &["--pairs"]);
        let prepared = desk.open();
        assert_eq!(prepared.dataset.len(), 2, "{name}");
        for (index, colours) in [[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 0, 0]]].into_iter().enumerate() {
            let halves = halves(&prepared, index);
            assert!(halves.iter().zip(colours).all(|(half, colour)| half.pixels().all(|pixel| near(*pixel, colour, 3))), "{name} {index}");
        }
        assert_eq!(std::fs::read_to_string(desk.path("out/captions.txt")).unwrap(), "make it red\nmake it blue\n");
        let skipped = desk.skipped();
        assert!(skipped.len() == 1 && skipped[0].0 == "c.png" && skipped[0].1.starts_with("has no source"), "{skipped:?}");
        assert!(succeed(&["info", &desk.name("out")]).contains("each an edit and its source"));
    }
}

#[test]
fn pairs_are_cut_in_the_same_place() {
    // The edit has its disc to the right; the source, twice as large, tells its places by red.
    let disc = |x: u32, y: u32| (f64::from(x) - 80.0).hypot(f64::from(y) - 16.0) < 9.0;
    let edit = RgbImage::from_fn(96, 32, |x, y| if disc(x, y) { Rgb([250, 220, 0]) } else { Rgb([20, 20, 20]) });
    let ramp = RgbImage::from_fn(192, 64, |x, _| Rgb([(x * 255 / 191) as u8, 0, 0]));
    let desk = Desk::new();
    desk.write("in/deep/after.png", encoded(edit, ImageFormat::Png));
    desk.write("in/before.png", encoded(ramp, ImageFormat::Png));
    desk.write("in/tall.png", plain((32, 64), [1, 2, 3]));
    desk.write("in/wide.png", plain((64, 32), [1, 2, 3]));
    let lines = [
        r#"{"edited_image": "deep/after.png", "original_image": "before.png", "edit_prompt": "draw a disc"}"#,
        r#"{"file_name": "tall.png", "source": "wide.png", "text": "stretch it"}"#,
    ];
    desk.write("in/metadata.jsonl", lines.join("\n"));
    desk.prepare(&["in"], &["--pairs", "--set", "prepare.max_ratio=1"]);
    let prepared = desk.open();
    let [edit, source] = halves(&prepared, 0);
    assert_eq!((prepared.dataset.len(), edit.dimensions()), (1, (32, 32)));
    let bright = edit.pixels().filter(|pixel| pixel.0[0] > 128).count();
    assert!((220..290).contains(&bright), "the disc is in the picture: {bright}");
    // The window of a third ends at or near the right edge, where red is at least two thirds.
    assert!(source.pixels().all(|pixel| pixel.0[0] > 150), "{:?}", source.get_pixel(0, 0));
    let expected = [("tall.png".to_owned(), "has 32x64 pixels and its source 64x32: their shapes differ".to_owned())];
    assert_eq!(desk.skipped(), expected);
}

#[test]
fn a_network_learns_to_edit_from_pairs() {
    let desk = Desk::new();
    for (i, colour) in [[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]].into_iter().enumerate() {
        desk.write(&format!("in/{i}.png"), plain((32, 32), colour.map(|value| 255 - value)));
        desk.write(&format!("in/{i}.source.png"), plain((32, 32), colour));
        desk.write(&format!("in/{i}.txt"), "invert it");
    }
    let (pictures, pairs) = (desk.name("pictures"), desk.name("pairs"));
    let (teacher, editor, input) = (desk.name("teacher"), desk.name("editor"), desk.name("in"));
    run(&["prepare", &input, "--caption-from", "none", "--out", &pictures]);
    run(&["pretrain", "--data", &pictures, "--run", &teacher, "--steps", "2", "--batch", "4", "--set", "eval.teacher_steps=1"]);
    succeed(&["prepare", &input, "--pairs", "--teacher", &teacher, "--out", &pairs, "--set", "prepare.min_side=8"]);
    let few = ["pretrain.steps=2", "pretrain.batch=4", "distill.steps=2", "distill.batch=4", "ladd.head_width=8", "eval.teacher_steps=1"];
    let sets = few.iter().flat_map(|set| ["--set", set]);
    let distill = ["distill", "--task", "edit", "--teacher", &teacher, "--data", &pairs, "--run", &editor];
    succeed(&distill.into_iter().chain(sets).collect::<Vec<_>>());
    let (source, out) = (desk.name("in/0.source.png"), desk.name("edited.png"));
    succeed(&["edit", &source, "--prompt", "invert it", "--network", &editor, "--out", &out]);
    assert_eq!(image::open(&out).unwrap().to_rgb8().dimensions(), (32, 32));
}
