//! From bytes to pixels: all eight orientations, colour profiles, transparency, grey and 16 bits.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{DynamicImage, ExtendedColorType, ImageBuffer, ImageEncoder, ImageFormat, Luma, Rgb, RgbImage, Rgba};
use ladd_fast::data::prepare::picture::decode;
use moxcms::ColorProfile;

use super::{encoded, near};

const WHITE: [u8; 3] = [255; 3];

/// The Exif block that holds an orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
    block.extend([0, orientation, 0, 0, 0, 0, 0, 0]);
    block
}

/// Red, green, blue and white corners, and where the corners are that a camera stores for each orientation.
#[test]
fn all_eight_orientations_come_out_upright() {
    let corner = |x: u32, y: u32| [[[255, 0, 0], [0, 160, 0]], [[0, 0, 255], [250, 250, 250]]][usize::from(y > 15)][usize::from(x > 23)];
    let upright = DynamicImage::from(RgbImage::from_fn(48, 32, |x, y| Rgb(corner(x, y))));
    let stored = |orientation: u8| match orientation {
        1 => upright.clone(),
        2 => upright.fliph(),
        3 => upright.rotate180(),
        4 => upright.flipv(),
        5 => upright.rotate90().fliph(),
        6 => upright.rotate270(),
        7 => upright.rotate270().fliph(),
        _ => upright.rotate90(),
    };
    for orientation in 1..=8 {
        let image = stored(orientation).to_rgb8();
        let (width, height) = image.dimensions();
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 95);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&image, width, height, ExtendedColorType::Rgb8).unwrap();
        let mut png = Vec::new();
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&image, width, height, ExtendedColorType::Rgb8).unwrap();
        for (bytes, most) in [(jpeg, 12), (png, 0)] {
            let found = decode(&bytes, WHITE).unwrap();
            assert_eq!(found.dimensions(), (48, 32), "orientation {orientation}");
            for (x, y) in [(4, 4), (44, 4), (4, 28), (44, 28)] {
                assert!(near(*found.get_pixel(x, y), corner(x, y), most), "orientation {orientation}: {:?}", found.get_pixel(x, y));
            }
        }
    }
}

#[test]
fn colour_profiles_become_srgb() {
    let image = RgbImage::from_pixel(16, 16, Rgb([200, 80, 40]));
    let profile = ColorProfile::new_display_p3().encode().unwrap();
    let mut png = Vec::new();
    let mut encoder = PngEncoder::new(&mut png);
    encoder.set_icc_profile(profile.clone()).unwrap();
    encoder.write_image(&image, 16, 16, ExtendedColorType::Rgb8).unwrap();
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 100);
    encoder.set_icc_profile(profile).unwrap();
    encoder.write_image(&image, 16, 16, ExtendedColorType::Rgb8).unwrap();
    for bytes in [png, jpeg] {
        let found = *decode(&bytes, WHITE).unwrap().get_pixel(8, 8);
        assert!(near(found, [216, 69, 17], 3), "{found:?}");
    }
    let mut broken = Vec::new();
    let mut encoder = PngEncoder::new(&mut broken);
    encoder.set_icc_profile(b"nonsense".to_vec()).unwrap();
    encoder.write_image(&image, 16, 16, ExtendedColorType::Rgb8).unwrap();
    assert!(decode(&broken, WHITE).unwrap_err().contains("colour profile"));
}

#[test]
fn transparency_grey_and_deep_pictures_are_read() {
    let first = |image: DynamicImage, format: ImageFormat| *decode(&encoded(image, format), [0, 0, 255]).unwrap().get_pixel(0, 0);
    let half = ImageBuffer::from_pixel(4, 4, Rgba([255u8, 0, 0, 128]));
    assert!(near(first(half.clone().into(), ImageFormat::Png), [128, 0, 127], 1));
    assert!(near(first(half.into(), ImageFormat::WebP), [128, 0, 127], 1));
    assert!(near(first(ImageBuffer::from_pixel(4, 4, Luma([77u8])).into(), ImageFormat::Png), [77; 3], 0));
    assert!(near(first(ImageBuffer::from_pixel(4, 4, Luma([77u8])).into(), ImageFormat::Jpeg), [77; 3], 1));
    assert!(near(first(ImageBuffer::from_pixel(4, 4, Luma([77u16 * 257])).into(), ImageFormat::Png), [77; 3], 0));
    let deep = ImageBuffer::from_pixel(4, 4, Rgba([200u16 * 257, 0, 0, 65535]));
    assert!(near(first(deep.into(), ImageFormat::Png), [200, 0, 0], 0));
}

/// A JPEG of four components, as programs for print write them: only its headers matter.
#[test]
fn cmyk_is_said_to_be_unreadable() {
    let mut jpeg = vec![0xff, 0xd8, 0xff, 0xc0, 0, 20, 8, 0, 16, 0, 16, 4];
    jpeg.extend([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 4, 0x11, 0]);
    jpeg.extend([0xff, 0xda, 0, 14, 4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0, 0xff, 0xd9]);
    assert!(decode(&jpeg, WHITE).unwrap_err().contains("CMYK"));
}

#[test]
fn every_cut_of_a_picture_is_refused_without_a_panic() {
    let image = RgbImage::from_fn(24, 24, |x, y| Rgb([(x * 10) as u8, (y * 10) as u8, ((x * y) % 251) as u8]));
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
        let bytes = encoded(image.clone(), format);
        // The last bytes of a PNG are checksums, and say that it ends.
        for length in 0..bytes.len() - 24 {
            assert!(decode(&bytes[..length], WHITE).is_err(), "{format:?} of {length} bytes");
        }
        decode(&bytes, WHITE).unwrap();
    }
}
