//! Pixels of any colour profile to sRGB, with what is transparent laid over a colour: what networks are trained on.
//! Called by [`super::picture`].

use image::{DynamicImage, RgbImage};
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

/// Converts a decoded picture from its embedded profile (none means sRGB) and composes it over `background`.
///
/// # Errors
/// When the profile cannot be read, or is one of another kind of pixels than the picture's, in words.
pub fn to_srgb(image: &DynamicImage, profile: Option<&[u8]>, background: [u8; 3]) -> Result<RgbImage, String> {
    let Some(profile) = profile else { return Ok(compose(&image.to_rgba8().into_raw(), image, background)) };
    let unreadable = |error: moxcms::CmsError| format!("its colour profile cannot be used ({error})");
    let profile = ColorProfile::new_from_slice(profile).map_err(unreadable)?;
    let grey = match profile.color_space {
        DataColorSpace::Rgb => false,
        DataColorSpace::Gray if !image.color().has_color() => true,
        other => return Err(format!("its colour profile is one of {other:?} pixels, which is not read: save it as sRGB")),
    };
    let options = TransformOptions::default();
    let (from, srgb) = (if grey { Layout::GrayAlpha } else { Layout::Rgba }, ColorProfile::new_srgb());
    if is_deep(image) {
        let pixels = if grey { image.to_luma_alpha16().into_raw() } else { image.to_rgba16().into_raw() };
        let mut converted = vec![0u16; image.width() as usize * image.height() as usize * 4];
        let transform = profile.create_transform_16bit(from, &srgb, Layout::Rgba, options).map_err(unreadable)?;
        transform.transform(&pixels, &mut converted).map_err(unreadable)?;
        let bytes: Vec<u8> = converted.into_iter().map(|value| ((u32::from(value) + 128) / 257) as u8).collect();
        return Ok(compose(&bytes, image, background));
    }
    let pixels = if grey { image.to_luma_alpha8().into_raw() } else { image.to_rgba8().into_raw() };
    let mut converted = vec![0u8; image.width() as usize * image.height() as usize * 4];
    let transform = profile.create_transform_8bit(from, &srgb, Layout::Rgba, options).map_err(unreadable)?;
    transform.transform(&pixels, &mut converted).map_err(unreadable)?;
    Ok(compose(&converted, image, background))
}

/// Whether a pixel has more than 8 bits a channel.
fn is_deep(image: &DynamicImage) -> bool {
    let color = image.color();
    color.bytes_per_pixel() > color.channel_count()
}

/// `alpha colour + (1 - alpha) background` of `pixels`, red, green, blue and alpha, rounded.
fn compose(pixels: &[u8], size: &DynamicImage, background: [u8; 3]) -> RgbImage {
    let mut out = RgbImage::new(size.width(), size.height());
    for (target, pixel) in out.pixels_mut().zip(pixels.chunks_exact(4)) {
        let alpha = u32::from(pixel[3]);
        for ((target, colour), behind) in target.0.iter_mut().zip(pixel).zip(background) {
            *target = ((u32::from(*colour) * alpha + u32::from(behind) * (255 - alpha) + 127) / 255) as u8;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    fn first(image: &DynamicImage, profile: Option<&ColorProfile>) -> [u8; 3] {
        let bytes = profile.map(|profile| profile.encode().unwrap());
        to_srgb(image, bytes.as_deref(), [255; 3]).unwrap().get_pixel(0, 0).0
    }

    #[test]
    fn transparency_is_laid_over_the_background() {
        let image = DynamicImage::from(ImageBuffer::from_pixel(1, 1, Rgba([200u8, 0, 100, 51])));
        assert_eq!(first(&image, None), [244, 204, 224]);
        assert_eq!(to_srgb(&image, None, [0, 0, 0]).unwrap().get_pixel(0, 0).0, [40, 0, 20]);
        let grey = DynamicImage::from(ImageBuffer::from_pixel(1, 1, LumaA([100u8, 0])));
        assert_eq!(first(&grey, None), [255; 3]);
    }

    #[test]
    fn profiles_are_converted() {
        // Display P3's (200, 80, 40) in sRGB, by the published matrices: 0.5775, 0.0802, 0.0212 linear in P3.
        let pixel = DynamicImage::from(ImageBuffer::from_pixel(1, 1, Rgb([200u8, 80, 40])));
        let converted = first(&pixel, Some(&ColorProfile::new_display_p3()));
        for (found, expected) in converted.iter().zip([216u8, 69, 17]) {
            assert!(found.abs_diff(expected) <= 3, "{converted:?}");
        }
        let unchanged = first(&pixel, Some(&ColorProfile::new_srgb()));
        assert!(unchanged.iter().zip([200u8, 80, 40]).all(|(a, b)| a.abs_diff(b) <= 1), "{unchanged:?}");
        let deep = DynamicImage::from(ImageBuffer::from_pixel(1, 1, Rgb([200u16 * 257, 80 * 257, 40 * 257])));
        let of_deep = first(&deep, Some(&ColorProfile::new_display_p3()));
        assert!(of_deep.iter().zip(converted).all(|(a, b)| a.abs_diff(b) <= 1), "{of_deep:?} {converted:?}");
        assert_eq!(first(&deep, None), [200, 80, 40]);
    }

    #[test]
    fn grey_pictures_keep_grey_profiles() {
        // Linear grey 55 of 255 is 128 in sRGB's curve.
        let linear = ColorProfile::new_gray_with_gamma(1.0);
        let grey = DynamicImage::from(ImageBuffer::from_pixel(1, 1, Luma([55u8])));
        let [r, g, b] = first(&grey, Some(&linear));
        assert!(r == g && g == b && r.abs_diff(128) <= 2, "{r} {g} {b}");
        let deep = DynamicImage::from(ImageBuffer::from_pixel(1, 1, Luma([55u16 * 257])));
        assert!(first(&deep, Some(&linear))[0].abs_diff(128) <= 2);
        let colour = DynamicImage::from(ImageBuffer::from_pixel(1, 1, Rgb([9u8, 9, 9])));
        assert!(to_srgb(&colour, Some(&linear.encode().unwrap()), [0; 3]).unwrap_err().contains("Gray"));
        assert!(to_srgb(&colour, Some(b"nonsense"), [0; 3]).unwrap_err().contains("colour profile"));
    }
}
