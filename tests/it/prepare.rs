//! `ladd-fast prepare`, from pictures on disk to a data set that trains: every kind of source, every orientation, colour
//! profiles, hostile archives, truncated files, interruption, mistakes.

mod archives;
mod commands;
mod folders;
mod pairs;
mod pixels;
mod resume;

use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use ladd_fast::data::LatentDataset;
use ladd_fast::format::Pipeline;
use ladd_fast::vae::CodecConfig;
use tempfile::TempDir;

use crate::cli::{refuse, succeed};

/// Settings of a new, small, coloured network, for which pictures are prepared here: up to 32 x 32 pixels.
const SMALL: [&str; 10] = [
    "model.in_channels=48",
    "model.depth=1",
    "model.heads=1",
    "model.head_dim=8",
    "model.context_dim=8",
    "model.pooled_dim=8",
    "model.pos_embed_max=4",
    "prepare.min_side=8",
    "data.tokens=3",
    "data.whiten=0",
];

/// A folder to work in.
pub struct Desk(TempDir);

impl Desk {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file, with the folders above it.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The arguments of `prepare SOURCES... --out out`, with the settings of the small network, and more.
    fn arguments(&self, sources: &[&str], more: &[&str]) -> Vec<String> {
        let sets = SMALL.iter().flat_map(|set| ["--set", set]).map(str::to_owned);
        let sources = sources.iter().map(|source| self.name(source));
        let tail = ["--out".to_owned(), self.name("out")].into_iter().chain(more.iter().map(|word| (*word).to_owned()));
        std::iter::once("prepare".to_owned()).chain(sets).chain(sources).chain(tail).collect()
    }

    pub fn prepare(&self, sources: &[&str], more: &[&str]) -> String {
        succeed(&self.arguments(sources, more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What it says beside its result.
    pub fn run(&self, sources: &[&str], more: &[&str]) -> String {
        let output = crate::cli::run(&self.arguments(sources, more).iter().map(String::as_str).collect::<Vec<_>>());
        assert!(output.status.success());
        crate::cli::text(&output.stderr)
    }

    pub fn fails(&self, sources: &[&str], more: &[&str]) -> String {
        refuse(&self.arguments(sources, more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn open(&self) -> Prepared {
        Prepared::open(&self.path("out"))
    }

    /// The list of what could not be used, as (picture, reason).
    pub fn skipped(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.path("out/skipped.jsonl")).unwrap();
        let field = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap().to_owned();
        let entry = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            (field(&value, "picture"), field(&value, "reason"))
        };
        text.lines().map(entry).collect()
    }
}

/// A data set that was prepared.
pub struct Prepared {
    pub dataset: LatentDataset,
    codec: CodecConfig,
}

impl Prepared {
    pub fn open(folder: &Path) -> Self {
        let dataset = LatentDataset::open(folder, &|_, _| ()).unwrap();
        let Pipeline { codec, .. } = dataset.settings().unwrap().pipeline.clone();
        Self { dataset, codec }
    }

    /// Caption and pixels of a sample.
    pub fn picture(&self, index: usize) -> (String, RgbImage) {
        let shape = self.dataset.shape(index).unwrap();
        let mut latent = vec![0.0; shape.iter().product()];
        let prompt = self.dataset.sample(index, &mut latent).unwrap();
        (self.dataset.prompts()[prompt as usize].clone(), self.pixels(&latent, shape))
    }

    /// The picture that a latent is of.
    pub fn pixels(&self, latent: &[f32], shape: [usize; 3]) -> RgbImage {
        let [channels, height, width] = self.codec.image_shape(shape).unwrap();
        let pixels = self.codec.decode(latent, shape).unwrap();
        let byte = |value: f32| ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
        let at = |channel: usize, x: u32, y: u32| byte(pixels[(channel.min(channels - 1) * height + y as usize) * width + x as usize]);
        RgbImage::from_fn(width as u32, height as u32, |x, y| Rgb([at(0, x, y), at(1, x, y), at(2, x, y)]))
    }

    pub fn captions(&self) -> Vec<String> {
        (0..self.dataset.len()).map(|index| self.picture(index).0).collect()
    }
}

/// A command with the settings of the small network.
pub fn run(command: &[&str]) -> String {
    succeed(&small(command).iter().map(String::as_str).collect::<Vec<_>>())
}

fn small(command: &[&str]) -> Vec<String> {
    let sets = SMALL.iter().flat_map(|set| ["--set", set]);
    command.iter().copied().chain(sets).map(str::to_owned).collect()
}

/// Whether all channels agree to within `most`.
pub fn near(found: Rgb<u8>, expected: [u8; 3], most: u8) -> bool {
    found.0.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= most)
}

pub fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.into().write_to(&mut std::io::Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// A plain picture as PNG.
pub fn plain(size: (u32, u32), colour: [u8; 3]) -> Vec<u8> {
    encoded(RgbImage::from_pixel(size.0, size.1, Rgb(colour)), ImageFormat::Png)
}

/// A tar archive of files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        // Written directly: the builder would refuse names that lead out of a folder.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
