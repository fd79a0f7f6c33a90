//! Pictures that a user names: read, checked against what the network takes, and turned into numbers.

use std::path::Path;

use image::{ImageReader, Limits, RgbImage};

use crate::cli::common::{Encoders, network};
use crate::edit::Mask;
use crate::{Error, Result};

/// Longest side that is read.
const MOST: u32 = 1 << 14;
/// Most memory that decoding a picture may take.
const MEMORY: u64 = 1 << 30;

/// Reads a PNG or JPEG file.
///
/// # Errors
/// When it cannot be read, is neither, is damaged or is too large.
pub fn read(path: &Path) -> Result<RgbImage> {
    let damaged = |error: &dyn std::fmt::Display| {
        Error::file(path, format!("is no picture that can be read ({error}): give a whole PNG or JPEG file"))
    };
    let reader = ImageReader::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut reader = reader.with_guessed_format().map_err(|e| Error::io("read", path, e))?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height, limits.max_alloc) = (Some(MOST), Some(MOST), Some(MEMORY));
    reader.limits(limits);
    Ok(reader.decode().map_err(|e| damaged(&e))?.to_rgb8())
}

/// A picture as the network takes it.
#[derive(Debug)]
pub struct Source {
    /// As it was read.
    pub image: RgbImage,
    /// Its latent's shape, `[C, H, W]`.
    pub latent_shape: [usize; 3],
    /// Its latent.
    pub latent: Vec<f32>,
    /// Pixels of a latent's position.
    pub factor: usize,
}

impl Source {
    /// Reads and encodes the picture at `path`.
    ///
    /// # Errors
    /// When it cannot be read, its size does not suit the network, or the network's autoencoder is not at hand.
    pub fn read(path: &Path, encoders: &Encoders<'_>) -> Result<Self> {
        let image = read(path)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let latent_shape = network::latent_shape(encoders.pipeline, height, width)
            .map_err(|e| Error::file(path, format!("{height} rows of {width} pixels: {e}")))?;
        let shape = encoders.image_shape(latent_shape)?;
        let pixels = pixels(&image, shape[0]);
        let latent = encoders.encode(&pixels, shape)?;
        Ok(Self { factor: height / latent_shape[1], image, latent_shape, latent })
    }
}

/// A picture `[channels, H, W]` in [-1, 1]; one channel is its luminance.
fn pixels(image: &RgbImage, channels: usize) -> Vec<f32> {
    let scaled = |byte: u8| f32::from(byte) / 127.5 - 1.0;
    if channels == 1 {
        let grey = image::imageops::grayscale(image);
        return grey.pixels().map(|pixel| scaled(pixel.0[0])).collect();
    }
    (0..channels).flat_map(|channel| image.pixels().map(move |pixel| scaled(pixel.0[channel.min(2)]))).collect()
}

/// Reads a mask for a picture: what is nearer to white than to black is painted.
///
/// # Errors
/// When it cannot be read, has another size than the picture, or paints nothing.
pub fn read_mask(path: &Path, of: &RgbImage) -> Result<Mask> {
    let image = read(path)?;
    if image.dimensions() != of.dimensions() {
        let size = |image: &RgbImage| format!("{} rows of {} pixels", image.height(), image.width());
        return Err(Error::file(path, format!("has {}, the picture {}: a mask is as large as its picture", size(&image), size(of))));
    }
    let values: Vec<f32> = image::imageops::grayscale(&image).pixels().map(|pixel| f32::from(u8::from(pixel.0[0] >= 128))).collect();
    if values.iter().all(|value| *value == 0.0) {
        return Err(Error::file(path, "is black everywhere, so that there is nothing to fill: paint white what is to be drawn anew"));
    }
    Ok(Mask { height: image.height() as usize, width: image.width() as usize, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn pictures_become_numbers_and_masks() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut image = RgbImage::from_pixel(2, 1, Rgb([255, 255, 255]));
        image.put_pixel(0, 0, Rgb([0, 0, 0]));
        image.save(path("a.png")).unwrap();
        image.save(path("a.jpg")).unwrap();
        assert_eq!(read(&path("a.png")).unwrap(), image);
        assert_eq!(read(&path("a.jpg")).unwrap().dimensions(), (2, 1));
        assert_eq!(pixels(&image, 1), [-1.0, 1.0]);
        assert_eq!(pixels(&image, 3), [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]);
        assert_eq!(read_mask(&path("a.png"), &image).unwrap().values, [0.0, 1.0]);
        let other = RgbImage::new(3, 1);
        assert!(read_mask(&path("a.png"), &other).unwrap_err().to_string().contains("has 1 rows of 2 pixels, the picture 1 rows of 3"));
        RgbImage::new(2, 1).save(path("black.png")).unwrap();
        assert!(read_mask(&path("black.png"), &image).unwrap_err().to_string().contains("black everywhere"));
        std::fs::write(path("no.png"), b"no picture").unwrap();
        assert!(read(&path("no.png")).unwrap_err().to_string().contains("is no picture"));
        let whole = std::fs::read(path("a.png")).unwrap();
        std::fs::write(path("cut.png"), &whole[..whole.len() / 2]).unwrap();
        assert!(read(&path("cut.png")).unwrap_err().to_string().contains("is no picture"));
        assert!(read(&path("none.png")).unwrap_err().to_string().contains("cannot read"));
    }
}
