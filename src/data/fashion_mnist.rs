//! Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT licence): 70000 grey pictures of clothing, 28 x 28.
//!
//! Read from the four gzipped idx files that `scripts/get-demo-data` fetches. Pictures are padded with black to 32 x 32,
//! so that they divide into blocks and patches, and scaled to [-1, 1].

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::format::SafetensorsFile;
use crate::{Error, Result};

/// The ten classes; their names serve as prompts.
pub const CLASS_NAMES: [&str; 10] = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// Shape of a padded image, `[C, H, W]`.
pub const IMAGE_SHAPE: [usize; 3] = [1, SIDE + 2 * PADDING, SIDE + 2 * PADDING];

const SIDE: usize = 28;
const PADDING: usize = 2;
/// More images than any such file holds: a larger number in a header is damage.
const MOST: usize = 1 << 20;
/// First bytes of an idx file of bytes with three axes (images) and one (labels).
const IMAGES_MAGIC: [u8; 4] = [0, 0, 8, 3];
const LABELS_MAGIC: [u8; 4] = [0, 0, 8, 1];

/// The first 2048 training images, part of the program.
static TRAIN_IMAGES: &[u8] = include_bytes!("demo/train-images-idx3-ubyte.gz");
static TRAIN_LABELS: &[u8] = include_bytes!("demo/train-labels-idx1-ubyte.gz");
/// A hundred test images, ten of each class.
static TEST_IMAGES: &[u8] = include_bytes!("demo/test_images.safetensors");

/// Which part of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// 60000 images to train on.
    Train,
    /// 10000 images to measure against.
    Test,
}

/// One part of the data set, in memory.
#[derive(Clone, Debug)]
pub struct FashionMnist {
    pixels: Vec<u8>, // [n, 28, 28]
    labels: Vec<u8>, // [n]
}

impl FashionMnist {
    /// Reads one part from a folder.
    ///
    /// # Errors
    /// When a file is missing or damaged, or images and labels do not match.
    pub fn load(folder: impl AsRef<Path>, split: Split) -> Result<Self> {
        let folder = folder.as_ref();
        let name = match split {
            Split::Train => "train",
            Split::Test => "t10k",
        };
        let (images, labels) = (folder.join(format!("{name}-images-idx3-ubyte.gz")), folder.join(format!("{name}-labels-idx1-ubyte.gz")));
        let pixels = read_idx(&images, IMAGES_MAGIC, &[SIDE, SIDE])?;
        let classes = read_idx(&labels, LABELS_MAGIC, &[])?;
        Self::checked(pixels, classes, &labels)
    }

    /// The images that are part of the program: the first 2048 to train on, a hundred of all classes to measure against.
    ///
    /// # Errors
    /// Never in a program that was built from intact files.
    pub fn builtin(split: Split) -> Result<Self> {
        let name = Path::new("the built-in images");
        if split == Split::Test {
            let file = SafetensorsFile::from_bytes("the built-in test images", TEST_IMAGES)?;
            return Self::checked(file.u8("images")?.to_vec(), file.u8("labels")?.to_vec(), name);
        }
        let pixels = parse_idx(TRAIN_IMAGES, name, IMAGES_MAGIC, &[SIDE, SIDE])?;
        Self::checked(pixels, parse_idx(TRAIN_LABELS, name, LABELS_MAGIC, &[])?, name)
    }

    fn checked(pixels: Vec<u8>, classes: Vec<u8>, labels: &Path) -> Result<Self> {
        if pixels.len() != classes.len() * SIDE * SIDE {
            let count = pixels.len() / (SIDE * SIDE);
            return Err(Error::file(labels, format!("has {} labels for the {count} images beside it: fetch both again", classes.len())));
        }
        if let Some(bad) = classes.iter().find(|class| usize::from(**class) >= CLASS_NAMES.len()) {
            return Err(Error::file(labels, format!("has the label {bad}, but there are only {} classes", CLASS_NAMES.len())));
        }
        Ok(Self { pixels, labels: classes })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class of every image, as an index into [`CLASS_NAMES`].
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Some of the images, padded and scaled; the range is cut to those there are, `[n, 1, 32, 32]`.
    pub fn images(&self, range: Range<usize>) -> Vec<f32> {
        let end = range.end.min(self.len());
        padded(&self.pixels[range.start.min(end) * SIDE * SIDE..end * SIDE * SIDE])
    }
}

/// Raw 28 x 28 images as `[n, 1, 32, 32]` in [-1, 1].
pub(crate) fn padded(pixels: &[u8]) -> Vec<f32> {
    let [_, height, width] = IMAGE_SHAPE;
    let scaled = |pixel: u8| f32::from(pixel) / 127.5 - 1.0;
    let mut out = vec![scaled(0); pixels.len() / (SIDE * SIDE) * height * width];
    for (image, target) in pixels.chunks_exact(SIDE * SIDE).zip(out.chunks_exact_mut(height * width)) {
        for (row, target) in image.chunks_exact(SIDE).zip(target.chunks_exact_mut(width).skip(PADDING)) {
            target[PADDING..].iter_mut().zip(row).for_each(|(value, pixel)| *value = scaled(*pixel));
        }
    }
    out
}

/// Reads a gzipped idx file: magic, number of items, the other sizes (big endian), then bytes.
fn read_idx(path: &Path, magic: [u8; 4], item: &[usize]) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            Error::file(path, "is missing: run `scripts/get-demo-data`, which fetches Fashion-MNIST, or name the folder that holds it")
        }
        _ => Error::io("read", path, source),
    })?;
    parse_idx(file, path, magic, item)
}

fn parse_idx(file: impl Read, path: &Path, magic: [u8; 4], item: &[usize]) -> Result<Vec<u8>> {
    let damaged =
        |cause: String| Error::file(path, format!("{cause}: it is damaged or another data set, fetch it again with scripts/get-demo-data"));
    let mut content = MultiGzDecoder::new(file);
    let mut word = || {
        let mut bytes = [0; 4];
        content.read_exact(&mut bytes).map(|()| bytes).map_err(|error| damaged(format!("cannot be unpacked ({error})")))
    };
    let found = word()?;
    if found != magic {
        return Err(damaged(format!("starts with {found:?} instead of {magic:?}")));
    }
    let count = u32::from_be_bytes(word()?) as usize;
    for size in item {
        let found = u32::from_be_bytes(word()?) as usize;
        if found != *size {
            return Err(damaged(format!("has items of size {found} instead of {size}")));
        }
    }
    if count > MOST {
        return Err(damaged(format!("announces {count} items")));
    }
    let expected = count * item.iter().product::<usize>();
    let mut bytes = Vec::with_capacity(expected);
    content.take(expected as u64 + 1).read_to_end(&mut bytes).map_err(|error| damaged(format!("cannot be unpacked ({error})")))?;
    if bytes.len() != expected {
        let relation = if bytes.len() > expected { "more than" } else { "only" };
        return Err(damaged(format!("holds {relation} {} of the {expected} bytes it announces", bytes.len().min(expected))));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn write_gz(path: &Path, parts: &[&[u8]]) {
        let mut out = flate2::write::GzEncoder::new(File::create(path).unwrap(), flate2::Compression::fast());
        out.write_all(&parts.concat()).unwrap();
        out.finish().unwrap();
    }

    fn example() -> (tempfile::TempDir, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let pixels: Vec<u8> = (0..3 * 784).map(|i| (i % 251) as u8).collect();
        write_gz(&folder.path().join("train-images-idx3-ubyte.gz"), &[&IMAGES_MAGIC, &[0, 0, 0, 3, 0, 0, 0, 28, 0, 0, 0, 28], &pixels]);
        write_gz(&folder.path().join("train-labels-idx1-ubyte.gz"), &[&LABELS_MAGIC, &[0, 0, 0, 3], &[9, 0, 4]]);
        (folder, pixels)
    }

    #[test]
    fn images_are_padded_and_scaled() {
        let (folder, pixels) = example();
        let data = FashionMnist::load(folder.path(), Split::Train).unwrap();
        assert_eq!((data.len(), data.labels()), (3, &[9, 0, 4][..]));
        let images = data.images(1..3);
        assert_eq!(images.len(), 2 * 1024);
        for (e, value) in images.iter().enumerate() {
            let (image, y, x) = (e / 1024 + 1, e / 32 % 32, e % 32);
            let inside = (2..30).contains(&y) && (2..30).contains(&x);
            let byte = if inside { pixels[image * 784 + (y - 2) * 28 + x - 2] } else { 0 };
            assert_eq!(*value, f32::from(byte) / 127.5 - 1.0);
        }
        assert_eq!(data.images(2..99).len(), 1024);
        assert!(data.images(7..9).is_empty());
    }

    #[test]
    fn the_built_in_images_are_all_there() {
        let (train, test) = (FashionMnist::builtin(Split::Train).unwrap(), FashionMnist::builtin(Split::Test).unwrap());
        assert_eq!((train.len(), test.len()), (2048, 100));
        for data in [&train, &test] {
            assert!((0..10).all(|class| data.labels().iter().filter(|label| **label == class).count() * 11 > data.len()));
        }
        assert_ne!(train.images(0..1), test.images(0..1));
    }

    #[test]
    fn damage_is_named() {
        let (folder, pixels) = example();
        let images = folder.path().join("train-images-idx3-ubyte.gz");
        let labels = folder.path().join("train-labels-idx1-ubyte.gz");
        let says = |what: &str| {
            let error = FashionMnist::load(folder.path(), Split::Train).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("idx"), "{error}");
        };
        assert!(FashionMnist::load(folder.path(), Split::Test).unwrap_err().to_string().contains("scripts/get-demo-data"));
        write_gz(&labels, &[&LABELS_MAGIC, &[0, 0, 0, 2], &[1, 2]]);
        says("2 labels for the 3 images");
        write_gz(&labels, &[&LABELS_MAGIC, &[0, 0, 0, 3], &[1, 2, 10]]);
        says("label 10");
        write_gz(&labels, &[&IMAGES_MAGIC, &[0, 0, 0, 3], &[1, 2, 3]]);
        says("starts with [0, 0, 8, 3]");
        write_gz(&images, &[&IMAGES_MAGIC, &[0, 0, 0, 3, 0, 0, 0, 28, 0, 0, 0, 28], &pixels[1..]]);
        says("holds only 2351 of the 2352 bytes");
        write_gz(&images, &[&IMAGES_MAGIC, &[0, 0, 0, 3, 0, 0, 0, 28, 0, 0, 0, 28], &pixels, &[1]]);
        says("holds more than 2352");
        write_gz(&images, &[&IMAGES_MAGIC, &[255, 0, 0, 3, 0, 0, 0, 28, 0, 0, 0, 28]]);
        says("announces 4278190083 items");
        write_gz(&images, &[&IMAGES_MAGIC, &[0, 0, 0, 3, 0, 0, 0, 32, 0, 0, 0, 32]]);
        says("size 32 instead of 28");
        std::fs::write(&images, b"not gzip").unwrap();
        says("cannot be unpacked");
    }
}
