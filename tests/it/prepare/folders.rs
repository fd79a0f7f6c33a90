//! Folders: where captions come from, which pictures are used, and to which size they are brought.

use image::{ImageFormat, Rgb, RgbImage};

use super::{Desk, encoded, near, plain};
use crate::cli::succeed;

#[test]
fn captions_come_from_texts_json_and_lists() {
    let desk = Desk::new();
    desk.write("in/a.png", plain((32, 32), [255, 0, 0]));
    desk.write("in/a.txt", "red,\n plain");
    desk.write("in/b.jpg", encoded(RgbImage::from_pixel(40, 40, Rgb([0, 200, 0])), ImageFormat::Jpeg));
    desk.write("in/b.json", r#"{"caption": "green"}"#);
    desk.write("in/sub/c.webp", encoded(RgbImage::from_pixel(64, 64, Rgb([0, 0, 255])), ImageFormat::WebP));
    desk.write("in/sub/metadata.jsonl", "{\"file_name\": \"c.webp\", \"text\": \"blue\"}\n");
    desk.write("in/d.png", plain((32, 32), [9, 9, 9]));
    desk.write("in/metadata.csv", "file_name,text\nd.png,\"black, nearly\"\n");
    desk.prepare(&["in"], &[]);
    let prepared = desk.open();
    assert_eq!(prepared.captions(), ["red, plain", "green", "black, nearly", "blue"]);
    for (index, colour) in [[255, 0, 0], [0, 200, 0], [9, 9, 9], [0, 0, 255]].into_iter().enumerate() {
        assert!(prepared.picture(index).1.pixels().all(|pixel| near(*pixel, colour, 3)), "{index}");
    }
    assert_eq!(std::fs::read_to_string(desk.path("out/captions.txt")).unwrap(), "red, plain\ngreen\nblack, nearly\nblue\n");
    assert!(image::open(desk.path("out/buckets.png")).is_ok());
    assert!(desk.skipped().is_empty());
}

#[test]
fn one_of_several_captions_is_chosen_by_the_seed() {
    let captions = |seed: &str| {
        let desk = Desk::new();
        for i in 0..12 {
            desk.write(&format!("in/{i}.png"), plain((32, 32), [i * 20, 0, 0]));
            desk.write(&format!("in/{i}.json"), r#"["one", "two"]"#);
        }
        desk.prepare(&["in"], &["--seed", seed]);
        desk.open().captions()
    };
    let first = captions("1");
    assert_eq!(first, captions("1"));
    assert_ne!(first, captions("2"));
    assert!(first.contains(&"one".to_owned()) && first.contains(&"two".to_owned()));
}

#[test]
fn missing_captions_are_refused_or_made() {
    let desk = Desk::new();
    desk.write("in/sub/red_big-apple.png", plain((32, 32), [255, 0, 0]));
    desk.write("in/ok.png", plain((32, 32), [0, 0, 0]));
    desk.write("in/ok.txt", "ok");
    let error = desk.fails(&["in"], &[]);
    assert!(
        error.contains("in/sub/red_big-apple.png: has no caption, as have 1 of 2 pictures") && error.contains("--caption-from"),
        "{error}"
    );
    desk.prepare(&["in"], &["--caption-from", "filename"]);
    assert_eq!(desk.open().captions(), ["ok", "red big apple"]);
    std::fs::remove_dir_all(desk.path("out")).unwrap();
    desk.prepare(&["in"], &["--caption-from", "none"]);
    assert_eq!(desk.open().captions(), ["ok", ""]);
}

#[test]
fn pictures_go_to_the_bucket_nearest_in_aspect() {
    let desk = Desk::new();
    for (name, size, expected) in [("a", (100, 100), [8, 8]), ("b", (120, 80), [6, 8]), ("c", (400, 200), [4, 8]), ("d", (70, 100), [8, 6])]
    {
        desk.write(&format!("in/{name}.png"), plain(size, [50, 60, 70]));
        desk.write(&format!("in/{name}.txt"), format!("{expected:?}"));
    }
    desk.prepare(&["in"], &[]);
    let prepared = desk.open();
    assert_eq!(prepared.dataset.buckets().len(), 4);
    for index in 0..4 {
        let [_, height, width] = prepared.dataset.shape(index).unwrap();
        assert_eq!(prepared.picture(index).0, format!("{:?}", [height, width]));
    }
}

#[test]
fn the_crop_keeps_a_bright_subject() {
    let desk = Desk::new();
    let disc = |centre: f32| {
        RgbImage::from_fn(300, 60, |x, y| {
            let inside = (x as f32 - centre).hypot(y as f32 - 30.0) < 18.0;
            if inside { Rgb([255, 220, 0]) } else { Rgb([10, 10, 30]) }
        })
    };
    for (name, centre) in [("left", 25.0), ("right", 270.0)] {
        desk.write(&format!("in/{name}.png"), encoded(disc(centre), ImageFormat::Png));
        desk.write(&format!("in/{name}.txt"), name);
    }
    let bright = |more: &[&str]| -> Vec<usize> {
        desk.prepare(&["in"], more);
        let prepared = desk.open();
        let count = |index: usize| prepared.picture(index).1.pixels().filter(|pixel| pixel.0[0] > 128).count();
        let counts = (0..2).map(count).collect();
        std::fs::remove_dir_all(desk.path("out")).unwrap();
        counts
    };
    // A disc of radius 18 in a picture 60 high, brought to a height of 16: 72 pixels.
    assert!(bright(&[]).iter().all(|count| count.abs_diff(72) < 12), "{:?}", bright(&[]));
    assert_eq!(bright(&["--crop", "center"]), [0, 0]);
}

#[test]
fn what_cannot_be_used_is_listed_with_its_reason() {
    let desk = Desk::new();
    let jpeg = encoded(RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 4) as u8, (y * 4) as u8, 0])), ImageFormat::Jpeg);
    let png = encoded(RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 4) as u8, (y * 4) as u8, (x * y) as u8])), ImageFormat::Png);
    desk.write("in/good.png", &png);
    desk.write("in/cut.jpg", &jpeg[..jpeg.len() - 20]);
    desk.write("in/cut.png", &png[..png.len() / 2]);
    desk.write("in/empty.png", "");
    desk.write("in/text.jpg", "no picture");
    desk.write("in/tiny.png", plain((7, 100), [0; 3]));
    desk.write("in/foreign.gif", "GIF89a");
    for name in ["good", "cut", "empty", "text", "tiny", "foreign"] {
        desk.write(&format!("in/{name}.txt"), name);
    }
    desk.write("in/bad.png", plain((32, 32), [0; 3]));
    desk.write("in/bad.txt", b"\xff\xfe");
    desk.write("in/metadata.jsonl", "{\"file_name\": \"gone.png\", \"text\": \"x\"}\n{\"file_name\": \"../out.png\", \"text\": \"x\"}\n");
    let said = desk.prepare(&["in"], &[]);
    assert!(said.contains("1 picture in 1 size"), "{said}");
    let skipped = desk.skipped();
    let reason = |name: &str| skipped.iter().find(|(picture, _)| picture == name).map_or("", |(_, reason)| reason.as_str());
    for (name, part) in [
        ("cut.jpg", "is cut short"),
        ("cut.png", "cannot be decoded"),
        ("empty.png", "is no JPEG"),
        ("text.jpg", "is no JPEG"),
        ("tiny.png", "has 7x100 pixels: its shorter side is below 8"),
        ("foreign.gif", "is a .gif picture"),
        ("bad.png", "its caption is not UTF-8"),
        ("gone.png", "is no picture of this folder"),
        ("../out.png", "lies outside"),
    ] {
        assert!(reason(name).contains(part), "{name}: {:?}", reason(name));
    }
    assert_eq!(skipped.len(), 9);
    // One number everywhere, and no caption of a picture that is not there.
    assert_eq!(std::fs::read_to_string(desk.path("out/captions.txt")).unwrap(), "good\n");
    let output = desk.run(&["in"], &[]);
    assert!(output.contains("9 pictures could not be used") && !output.contains(" skipped ("), "{output}");
    let info = succeed(&["info", &desk.name("out")]);
    assert!(info.contains("1 of 1 in 1 shard,") && info.contains("9 pictures that could not be used"), "{info}");
    let error = desk.fails(&["in"], &["--strict"]);
    assert!(error.contains("9 pictures could not be used") && error.contains("skipped.jsonl"), "{error}");
}

#[test]
fn the_folder_of_the_result_is_no_source() {
    let desk = Desk::new();
    for name in ["a", "b"] {
        desk.write(&format!("{name}.png"), plain((32, 32), [0; 3]));
        desk.write(&format!("{name}.txt"), name);
        desk.write(&format!("other/out/{name}.png"), plain((32, 32), [0; 3])); // another folder of that name
        desk.write(&format!("other/out/{name}.txt"), name);
    }
    for more in [&[][..], &[], &["--caption-from", "filename"]] {
        assert!(desk.prepare(&["."], more).contains("4 pictures in 1 size"), "{more:?}");
    }
    let error = desk.fails(&["out"], &[]);
    assert!(error.contains("is the folder of --out too"), "{error}");
}

#[test]
fn held_out_pictures_are_kept_apart() {
    let desk = Desk::new();
    for i in 0..40 {
        desk.write(&format!("in/{i}.png"), plain((32, 32), [i * 6, 100, 0]));
        desk.write(&format!("in/{i}.txt"), format!("{i}"));
    }
    desk.prepare(&["in"], &["--hold-out", "0.25"]);
    let (trained, held) = (desk.open(), super::Prepared::open(&desk.path("out/held-out")));
    assert!((4..18).contains(&held.dataset.len()), "{}", held.dataset.len());
    let mut all = [trained.captions(), held.captions()].concat();
    all.sort_by_key(|caption| caption.parse::<u32>().unwrap());
    assert_eq!(all, (0..40).map(|i| format!("{i}")).collect::<Vec<_>>());
    assert_eq!(trained.dataset.settings().unwrap().pipeline, held.dataset.settings().unwrap().pipeline);
}
