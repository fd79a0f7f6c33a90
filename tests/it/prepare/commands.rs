//! From pictures to a student with the commands, emoji in two styles, and what is refused.

use super::{Desk, plain, run, small};
use crate::cli::{refuse, succeed};

/// Eight objects in three own styles, as Iconify's packages hold them: discs, squares and rings, coloured alike.
fn emoji(desk: &Desk) {
    let shape = |style: &str, colour: &str| match style {
        "disc" => format!("<circle cx='8' cy='8' r='6' fill='{colour}'/>"),
        "square" => format!("<rect x='3' y='3' width='10' height='10' fill='{colour}'/>"),
        _ => format!("<circle cx='8' cy='8' r='5' fill='none' stroke='{colour}' stroke-width='3'/>"),
    };
    let colours = ["red", "green", "blue", "orange", "purple", "black", "gray", "teal"];
    for style in ["disc", "square", "ring"] {
        let icons: Vec<_> = colours.iter().map(|c| format!(r#""{c}-thing": {{"body": "{}"}}"#, shape(style, c))).collect();
        let only = format!(r#""{style}-only": {{"body": ""}}"#);
        let set = format!(r#"{{"prefix": "{style}", "icons": {{{}, {only}}}, "width": 16, "height": 16}}"#, icons.join(", "));
        desk.write(&format!("emoji/{style}/icons.json"), set);
        desk.write(&format!("emoji/{style}/metadata.json"), r#"{"categories": {"Warm": ["red-thing", "orange-thing"]}}"#);
    }
}

#[test]
fn emoji_are_prepared_trained_on_and_measured() {
    let desk = Desk::new();
    emoji(&desk);
    let (icons, data, teacher) = (desk.name("emoji"), desk.name("data"), desk.name("teacher"));
    let said = run(&["prepare", "--emoji", &icons, "--out", &data, "--hold-out", "0.2"]);
    assert!(said.contains("in 1 size in"), "{said}");
    let (trained, held) = (super::Prepared::open(&desk.path("data")), super::Prepared::open(&desk.path("data/held-out")));
    assert_eq!(trained.dataset.len() + held.dataset.len(), 24);
    assert!(held.dataset.len() > 1, "{}", held.dataset.len());
    let place = trained.captions().iter().position(|caption| caption == "disc style red thing").unwrap();
    let (_, disc) = trained.picture(place);
    assert!(super::near(*disc.get_pixel(16, 16), [255, 0, 0], 3) && super::near(*disc.get_pixel(0, 0), [255; 3], 3));

    let steps = ["--steps", "2", "--batch", "4", "--set", "pretrain.sample_every=1", "--set", "eval.teacher_steps=1"];
    run(&[&["pretrain", "--data", &data, "--run", &teacher][..], &steps].concat());
    // Grids are in colour.
    let grid = image::open(desk.path("teacher/samples/step_000002.png")).unwrap().to_rgb8();
    assert!(grid.pixels().any(|p| p.0[0].abs_diff(p.0[1]) > 40), "a grid of noise in colour has colours");

    let (prompts, latents, student) = (desk.name("data/captions.txt"), desk.name("latents"), desk.name("student"));
    let draw = ["synthesize", "--teacher", &teacher, "--prompts", &prompts, "--count", "12", "--steps", "1", "--out", &latents];
    succeed(&draw);
    let few =
        ["--steps", "2", "--batch", "4", "--set", "ladd.head_width=8", "--set", "distill.control=false", "--set", "eval.teacher_steps=1"];
    succeed(&[&["distill", "--teacher", &teacher, "--data", &latents, "--run", &student][..], &few].concat());

    // Prepared pictures also serve as they are.
    let real = desk.name("real");
    succeed(&[&["distill", "--teacher", &teacher, "--data", &data, "--run", &real][..], &few].concat());

    let out = desk.name("results");
    let table = succeed(&["eval", "--network", &student, "--pairs", &data, "--steps", "1,2", "--out", &out]);
    assert!(table.contains("| seen ") && table.contains("| held out ") && table.contains("among the 8 objects"), "{table}");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(desk.path("results/pairs.json")).unwrap()).unwrap();
    assert_eq!((json["rows"].as_array().unwrap().len(), json["styles"].as_u64()), (4, Some(3)));
    assert_eq!((json["rows"][0]["pairs"].as_str(), json["rows"][0]["count"].as_u64().is_some()), (Some("seen"), true));
    assert!(image::open(desk.path("results/pairs.png")).is_ok());
    assert!(succeed(&["info", &data]).contains("up to 1024 pixels"));
}

#[test]
fn emoji_of_a_category_and_a_style_can_be_chosen() {
    let desk = Desk::new();
    emoji(&desk);
    let (icons, data) = (desk.name("emoji"), desk.name("out"));
    let sets = ["--set", r#"prepare.emoji_styles=["disc", "ring"]"#, "--set", r#"prepare.emoji_categories=["Warm"]"#];
    run(&[&["prepare", "--emoji", &icons, "--out", &data][..], &sets].concat());
    let mut captions = desk.open().captions();
    captions.sort();
    assert_eq!(captions, ["disc style orange thing", "disc style red thing", "ring style orange thing", "ring style red thing"]);
    let fails = |sets: &[&str]| {
        let command = small(&[&["prepare", "--emoji", &icons, "--out", &data][..], sets].concat());
        refuse(&command.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert!(fails(&["--set", r#"prepare.emoji_categories=["Cold"]"#]).contains("there are Warm"));
    assert!(fails(&["--set", r#"prepare.emoji_styles=["blob"]"#]).contains("get-emoji"));
    desk.write("emoji/ring/icons.json", "{");
    assert!(fails(&[]).contains("no Iconify icon set"));
}

#[test]
fn mistakes_are_one_line() {
    let desk = Desk::new();
    desk.write("in/a.png", plain((32, 32), [0; 3]));
    desk.write("in/a.txt", "a");
    desk.write("file.txt", "no source");
    std::fs::create_dir(desk.path("empty")).unwrap();
    assert!(desk.fails(&["no/such"], &[]).contains("no/such"));
    assert!(desk.fails(&["file.txt"], &[]).contains("neither a folder nor a .tar"));
    assert!(desk.fails(&["empty"], &[]).contains("holds no pictures"));
    assert!(desk.fails(&["in"], &["--background", "#12"]).contains("#rrggbb"));
    assert!(desk.fails(&["in"], &["--crop", "left"]).contains("left"));
    assert!(desk.fails(&["in"], &["--hold-out", "2"]).contains("between 0 and 0.9"));
    assert!(desk.fails(&["in"], &["--area", "10"]).contains("prepare.area = 10"));
    assert!(desk.fails(&["in"], &["--set", "prepare.multiple=12"]).contains("multiple of 8"));
    assert!(desk.fails(&["in"], &["--set", "model.in_channels=20"]).contains("16 channels in grey and 48 in colour"));
    assert!(desk.fails(&["in"], &["--set", "data.latent=vae"]).contains("--teacher"));
    assert!(desk.fails(&["in"], &["--set", "prepare.min_side=100"]).contains("no picture of 1 can be used"));
    assert!(desk.fails(&[], &[]).contains("SOURCE"));
    desk.write("in/metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"a\"}\n{");
    assert!(desk.fails(&["in"], &[]).contains("metadata.jsonl: line 2: is no JSON"));
    desk.write("in/metadata.jsonl", "");
    desk.write("in/metadata.csv", "name,text\na,b\n");
    assert!(desk.fails(&["in"], &[]).contains("metadata.csv: has no column `file_name`"));
    desk.write("out/manifest.json", "{}");
    desk.write("in/metadata.csv", "file_name,text\na.png,b\n");
    assert!(desk.fails(&["in"], &[]).contains("is no manifest"));
}

#[test]
fn the_demo_takes_pictures_of_ones_own() {
    let desk = Desk::new();
    for i in 0..6u8 {
        desk.write(&format!("in/{i}.png"), plain((40, 40), [i * 40, 30, 90]));
    }
    let (source, out) = (desk.name("in"), desk.name("out"));
    succeed(&["prepare", &source, "--teacher", "builtin", "--caption-from", "filename", "--out", &out]);
    let prepared = desk.open();
    assert_eq!(prepared.dataset.shape(0).unwrap(), [16, 8, 8]);
    let luma = (0.299 * 200.0 + 0.587 * 30.0 + 0.114 * 90.0f64).round() as u8;
    assert!(super::near(*prepared.picture(5).1.get_pixel(3, 3), [luma; 3], 2), "{:?}", prepared.picture(5).1.get_pixel(3, 3));
}

/// Stable Diffusion 3's autoencoder on pictures of two sizes: its means, to 16 bits.
#[cfg(feature = "text")]
#[test]
fn an_autoencoder_encodes_pictures_of_several_sizes() {
    use ladd_fast::vae::Autoencoder;

    let desk = Desk::new();
    desk.write("in/a.png", plain((32, 32), [200, 30, 90]));
    desk.write("in/b.png", plain((48, 32), [20, 130, 190]));
    let (source, out) = (desk.name("in"), desk.name("out"));
    let teacher = crate::pipelines::folder("sd3");
    let teacher = teacher.to_str().unwrap();
    let sizes = ["--area", "1024", "--set", "prepare.multiple=8", "--caption-from", "filename"];
    succeed(&[&["prepare", &source, "--teacher", teacher, "--out", &out][..], &sizes].concat());
    let dataset = ladd_fast::data::LatentDataset::open(desk.path("out"), &|_, _| ()).unwrap();
    let autoencoder = Autoencoder::open(teacher.as_ref()).unwrap();
    for (index, (size, colour)) in [([24, 40], [20, 130, 190]), ([32, 32], [200, 30, 90])].into_iter().enumerate() {
        let [c, h, w] = dataset.shape(index).unwrap();
        assert_eq!([h * 4, w * 4], size, "picture {index}");
        let mut latent = vec![0.0; c * h * w];
        dataset.sample(index, &mut latent).unwrap();
        let pixels: Vec<f32> = colour.iter().flat_map(|v| vec![*v as f32 / 127.5 - 1.0; size[0] * size[1]]).collect();
        let expected = autoencoder.encode(&pixels, [3, size[0], size[1]]).unwrap();
        let most = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!(latent.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 2e-3 * most), "picture {index}");
    }
    let error = refuse(&[
        "prepare",
        &source,
        "--teacher",
        teacher,
        "--out",
        &out,
        "--area",
        "1024",
        "--set",
        "prepare.multiple=12",
        "--caption-from",
        "none",
    ]);
    assert!(error.contains("multiple of 8"), "{error}");
}
