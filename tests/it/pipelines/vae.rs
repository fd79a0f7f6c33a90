//! The autoencoder.

use ladd_fast::vae::Autoencoder;

use super::{expected, folder, single_file};
use crate::golden::close;

#[test]
fn moments_and_pictures_are_those_of_diffusers() {
    let (expected, vae) = (expected(), Autoencoder::open(&folder("sd3")).unwrap());
    assert_eq!(vae.downscale(), 4);
    let moments = vae.moments(&expected.f32("image").unwrap(), [3, 24, 40]).unwrap();
    close("mean", &moments.mean, &expected.f32("mean").unwrap(), 1e-5);
    close("std", &moments.std, &expected.f32("std").unwrap(), 1e-5);
    let scaled: Vec<f32> = moments.mean.iter().map(|z| (z - 0.0609) * 1.5305).collect();
    assert_eq!(vae.encode(&expected.f32("image").unwrap(), [3, 24, 40]).unwrap(), scaled);
    // The reference decodes what it is given; `decode` takes the network's latents.
    let latents: Vec<f32> = expected.f32("latent").unwrap().iter().map(|z| (z - 0.0609) * 1.5305).collect();
    close("decoded", &vae.decode(&latents, [4, 6, 10]).unwrap(), &expected.f32("decoded").unwrap(), 1e-5);
}

#[test]
fn tiles_are_blended_as_diffusers_blends_them() {
    let (expected, vae) = (expected(), Autoencoder::open(&folder("sd3/vae")).unwrap().with_tile(8));
    for (name, [h, w]) in [("tall", [48, 24]), ("wide", [24, 48])] {
        let of = |what: &str| expected.f32(&format!("{name}.{what}")).unwrap();
        close("mean", &vae.moments(&of("image"), [3, h, w]).unwrap().mean, &of("mean"), 1e-5);
        let latents: Vec<f32> = of("latent").iter().map(|z| (z - 0.0609) * 1.5305).collect();
        close("decoded", &vae.decode(&latents, [4, h / 4, w / 4]).unwrap(), &of("decoded"), 1e-5);
    }
}

/// The original names of the tiny autoencoder's tensors, written down once more, the other way round.
fn original(name: &str) -> String {
    let levels = 3;
    let mut parts: Vec<String> = name.split('.').map(str::to_owned).collect();
    if parts[1] == "mid_block" {
        let index = parts[3].parse::<usize>().unwrap();
        let which = if parts[2] == "resnets" { format!("block_{}", index + 1) } else { "attn_1".to_owned() };
        parts.splice(1..4, ["mid".to_owned(), which]);
    } else if parts[1] == "down_blocks" || parts[1] == "up_blocks" {
        let level = parts[2].parse::<usize>().unwrap();
        let (side, level) = if parts[1] == "up_blocks" { ("up", levels - 1 - level) } else { ("down", level) };
        (parts[1], parts[2]) = (side.to_owned(), level.to_string());
        match parts[3].as_str() {
            "resnets" => parts[3] = "block".to_owned(),
            other => {
                let moved = other.trim_end_matches("samplers").to_owned() + "sample";
                parts.splice(3..5, [moved]);
            }
        }
    }
    let renamed = parts.join(".");
    let pairs = [
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
    ];
    pairs.iter().fold(renamed, |name, (theirs, ours)| name.replace(theirs, ours))
}

#[test]
fn a_single_file_holds_the_same_autoencoder() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("sd3.safetensors");
    let parts = [("vae", "diffusion_pytorch_model.safetensors")];
    single_file(&file, &parts, |_, name| Some(format!("first_stage_model.{}", original(name))));
    let (expected, vae) = (expected(), Autoencoder::open(&file).unwrap());
    assert_eq!(vae.config(), Autoencoder::open(&folder("sd3")).unwrap().config());
    let moments = vae.moments(&expected.f32("image").unwrap(), [3, 24, 40]).unwrap();
    close("mean", &moments.mean, &expected.f32("mean").unwrap(), 1e-5);
    single_file(&file, &parts, |_, name| name.starts_with("decoder").then(|| format!("first_stage_model.{}", original(name))));
    let error = Autoencoder::open(&file).unwrap_err().to_string();
    assert!(error.contains("holds no autoencoder"), "{error}");
    single_file(&file, &parts, |_, name| (!name.contains("conv_out")).then(|| original(name)));
    let error = Autoencoder::open(&file).unwrap_err().to_string();
    assert!(error.contains("has no tensor `encoder.conv_out.weight`") && !error.contains('\n'), "{error}");
}

#[test]
fn other_sizes_are_refused() {
    let vae = Autoencoder::open(&folder("sd3")).unwrap();
    let error = vae.encode(&[0.0; 3 * 24 * 42], [3, 24, 42]).unwrap_err().to_string();
    assert!(error.contains("multiples of 4 pixels, not 3x24x42"), "{error}");
    let error = vae.decode(&[0.0; 16], [16, 1, 1]).unwrap_err().to_string();
    assert!(error.contains("latents of 4 channels"), "{error}");
}
