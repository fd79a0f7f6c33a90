//! Pictures that a user names: read, checked against what the network takes, and turned into numbers.

use std::io::Read;
use std::path::Path;

use image::RgbImage;

use crate::cli::common::output::many;
use crate::cli::common::{Encoders, network};
use crate::data::prepare::picture::decode;
use crate::edit::Mask;
use crate::{Error, Result};

/// Most bytes of a file that is read.
const MOST: u64 = 1 << 29;
/// What is behind transparent pixels of a picture, as `prepare` has it without `--background`.
const WHITE: [u8; 3] = [255; 3];
/// What is behind transparent pixels of a mask: nothing is painted there.
const BLACK: [u8; 3] = [0; 3];

/// Reads a PNG, JPEG or WebP file as [`decode`] does: upright, in sRGB, what is transparent laid over `background`.
fn read(path: &Path, background: [u8; 3]) -> Result<RgbImage> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > MOST {
        return Err(Error::file(path, format!("has more than {MOST} bytes, too many for a picture")));
    }
    decode(&bytes, background).map_err(|cause| Error::file(path, format!("{cause}; give a whole PNG, JPEG or WebP picture")))
}

/// A picture as the network takes it.
#[derive(Debug)]
pub struct Source {
    /// As it was read: upright, without transparency.
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
        let image = read(path, WHITE)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let multiple = network::pixels_of_latent(encoders.pipeline) * encoders.pipeline.model.patch;
        let latent_shape = network::latent_shape(encoders.pipeline, height, width)
            .map_err(|e| Error::file(path, format!("has {}: {e}; crop or resize it to multiples of {multiple}", size(&image))))?;
        let shape = encoders.image_shape(latent_shape)?;
        let pixels = pixels(&image, shape[0]);
        let latent = encoders.encode(&pixels, shape)?;
        Ok(Self { factor: height / latent_shape[1], image, latent_shape, latent })
    }
}

/// `1 row of 20 pixels`.
fn size(image: &RgbImage) -> String {
    format!("{} of {}", many(image.height() as usize, "row"), many(image.width() as usize, "pixel"))
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

/// Reads a mask for a picture: what is nearer to white than to black is painted. What is transparent is not, whatever its colour:
/// paint programs keep the shape of a mask there.
///
/// # Errors
/// When it cannot be read, has another size than the picture, or paints nothing.
pub fn read_mask(path: &Path, of: &RgbImage) -> Result<Mask> {
    let image = read(path, BLACK)?;
    if image.dimensions() != of.dimensions() {
        return Err(Error::file(path, format!("has {}, the picture {}: a mask is as large as its picture", size(&image), size(of))));
    }
    let values: Vec<f32> = image::imageops::grayscale(&image).pixels().map(|pixel| f32::from(u8::from(pixel.0[0] >= 128))).collect();
    if values.iter().all(|value| *value == 0.0) {
        return Err(Error::file(
            path,
            "is black or transparent everywhere, so that there is nothing to fill: paint white what is to be drawn anew",
        ));
    }
    Ok(Mask { height: image.height() as usize, width: image.width() as usize, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder, Rgb, Rgba, RgbaImage};

    #[test]
    fn pictures_become_numbers_and_masks() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut image = RgbImage::from_pixel(2, 1, Rgb([255, 255, 255]));
        image.put_pixel(0, 0, Rgb([0, 0, 0]));
        image.save(path("a.png")).unwrap();
        image.save(path("a.jpg")).unwrap();
        let read = |name: &str| read(&path(name), WHITE);
        assert_eq!(read("a.png").unwrap(), image);
        assert_eq!(read("a.jpg").unwrap().dimensions(), (2, 1));
        assert_eq!(pixels(&image, 1), [-1.0, 1.0]);
        assert_eq!(pixels(&image, 3), [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]);
        assert_eq!(read_mask(&path("a.png"), &image).unwrap().values, [0.0, 1.0]);
        let other = RgbImage::new(3, 2);
        assert!(
            read_mask(&path("a.png"), &other).unwrap_err().to_string().contains("has 1 row of 2 pixels, the picture 2 rows of 3 pixels")
        );
        RgbImage::new(2, 1).save(path("black.png")).unwrap();
        assert!(read_mask(&path("black.png"), &image).unwrap_err().to_string().contains("is black or transparent everywhere"));
        std::fs::write(path("no.png"), b"no picture").unwrap();
        assert!(read("no.png").unwrap_err().to_string().contains("is no JPEG, PNG or WebP picture; give a whole"));
        let whole = std::fs::read(path("a.png")).unwrap();
        std::fs::write(path("cut.png"), &whole[..whole.len() / 2]).unwrap();
        assert!(read("cut.png").unwrap_err().to_string().contains("cannot be decoded"));
        let whole = std::fs::read(path("a.jpg")).unwrap();
        std::fs::write(path("cut.jpg"), &whole[..whole.len() - 2]).unwrap();
        assert!(read("cut.jpg").unwrap_err().to_string().contains("is cut short"));
        assert!(read("none.png").unwrap_err().to_string().contains("cannot read"));
    }

    /// Red to the left, green to the right, as a camera stores it that was turned by a quarter; and with a shape that is only in
    /// the transparency.
    #[test]
    fn pictures_and_masks_are_upright_and_laid_over_their_background() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let turned = |name: &str, pixels: [[u8; 3]; 2]| {
            let mut bytes = Vec::new();
            let mut encoder = PngEncoder::new(&mut bytes);
            let exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"; // 6: turned to the right
            encoder.set_exif_metadata(exif.to_vec()).unwrap();
            encoder.write_image(pixels.as_flattened(), 2, 1, ExtendedColorType::Rgb8).unwrap();
            std::fs::write(path(name), bytes).unwrap();
        };
        turned("turned.png", [[200, 0, 0], [0, 200, 0]]);
        let upright = read(&path("turned.png"), WHITE).unwrap();
        assert_eq!((upright.dimensions(), upright.get_pixel(0, 0).0, upright.get_pixel(0, 1).0), ((1, 2), [200, 0, 0], [0, 200, 0]));
        turned("mask.png", [[0; 3], [255; 3]]);
        assert_eq!(read_mask(&path("mask.png"), &upright).unwrap().values, [0.0, 1.0]);

        let mut clear = RgbaImage::from_pixel(1, 2, Rgba([255; 4]));
        clear.put_pixel(0, 0, Rgba([255, 255, 255, 0]));
        clear.save(path("shape.png")).unwrap();
        assert_eq!(read_mask(&path("shape.png"), &upright).unwrap().values, [0.0, 1.0]);
        clear.put_pixel(0, 0, Rgba([0, 0, 0, 0]));
        clear.save(path("clear.png")).unwrap();
        assert_eq!(read(&path("clear.png"), WHITE).unwrap().get_pixel(0, 0).0, [255; 3]);
    }
}
