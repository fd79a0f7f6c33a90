//! The bytes of a picture to upright sRGB pixels: JPEG, PNG and WebP, orientation by EXIF, colour profile, transparency, grey and
//! 16 bits. What cannot be used gives the reason in words, within limits of memory. Called by [`super::Library`].

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::{colour, jpeg};

/// Most pixels of a picture: more are taken for an attack on memory.
const MOST_PIXELS: u64 = 100_000_000;
/// Bytes a decoder may allocate beside the pixels.
const MOST_MEMORY: u64 = 1 << 30;
/// Longest side.
const LONGEST_SIDE: u32 = 1 << 16;

/// Decodes a picture and composes what is transparent over `background`.
///
/// # Errors
/// Why it cannot be used.
pub fn decode(bytes: &[u8], background: [u8; 3]) -> Result<RgbImage, String> {
    let format = image::guess_format(bytes).ok().filter(|f| matches!(f, ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP));
    let format = format.ok_or("is no JPEG, PNG or WebP picture")?;
    if format == ImageFormat::Jpeg {
        check_jpeg(bytes)?;
    }
    let broken = |error: image::ImageError| one_line(&format!("cannot be decoded: {error}"));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS || width == 0 || height == 0 {
        return Err(format!("has {width}x{height} pixels; 1 to {MOST_PIXELS} are read"));
    }
    decoder.set_limits(limits()).map_err(broken)?;
    let orientation = decoder.orientation().map_err(broken)?;
    let profile = decoder.icc_profile().map_err(broken)?;
    let image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let mut upright = DynamicImage::ImageRgb8(colour::to_srgb(&image, profile.as_deref(), background)?);
    upright.apply_orientation(orientation);
    Ok(upright.into_rgb8())
}

fn check_jpeg(bytes: &[u8]) -> Result<(), String> {
    let outline = jpeg::outline(bytes).ok_or("is a JPEG whose headers are damaged")?;
    match outline.components {
        1 | 3 => {}
        4 => return Err("is a JPEG in CMYK, whose colours cannot be converted here: save it as RGB".into()),
        other => return Err(format!("is a JPEG of {other} colour components")),
    }
    if outline.complete { Ok(()) } else { Err("is cut short: the end of the JPEG is missing".into()) }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_MEMORY);
    limits.max_image_width = Some(LONGEST_SIDE);
    limits.max_image_height = Some(LONGEST_SIDE);
    limits
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
