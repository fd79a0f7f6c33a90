//! What a JPEG says about itself before it is decoded: how many colour components it has, and whether its end is there.
//!
//! The decoder fills what is missing of a truncated file with grey, and turns CMYK into wrong colours; both must be told apart
//! from pictures before. A pure function over bytes. Called by [`super::picture`].

/// The marker that begins the compressed pixels.
const START_OF_SCAN: u8 = 0xda;
/// The marker at the end, after 0xff.
const END_OF_IMAGE: u8 = 0xd9;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// 1 grey, 3 colour, 4 CMYK.
    pub components: u8,
    /// Whether the end marker is there.
    pub complete: bool,
}

/// Walks the segments of a JPEG up to its pixels; nothing if it is none, or ends before.
pub fn outline(bytes: &[u8]) -> Option<Outline> {
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    let mut components = None;
    loop {
        let [0xff, marker, after @ ..] = rest else { return None };
        match *marker {
            0xff => rest = &rest[1..], // fill bytes
            0x01 | 0xd0..=0xd7 => rest = after,
            START_OF_SCAN => {
                let complete = after.windows(2).rev().any(|pair| pair == [0xff, END_OF_IMAGE]);
                return Some(Outline { components: components?, complete });
            }
            marker => {
                let length = usize::from(u16::from_be_bytes(*after.first_chunk()?)).max(2);
                let segment = after.get(..length)?;
                if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
                    components = segment.get(7).copied(); // length, precision, height, width, components
                }
                rest = after.get(length..)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, ImageFormat};

    fn jpeg(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write_to(&mut std::io::Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
        bytes
    }

    #[test]
    fn components_and_end_are_found() {
        let colour = jpeg(&DynamicImage::new_rgb8(30, 20));
        assert_eq!(outline(&colour), Some(Outline { components: 3, complete: true }));
        assert_eq!(outline(&jpeg(&DynamicImage::new_luma8(3, 2))), Some(Outline { components: 1, complete: true }));
        let cut = &colour[..colour.len() - 2];
        assert_eq!(outline(cut), Some(Outline { components: 3, complete: false }));
    }

    #[test]
    fn any_bytes_are_survived() {
        let good = jpeg(&DynamicImage::new_rgb8(9, 9));
        for length in 0..good.len() {
            outline(&good[..length]);
        }
        assert_eq!(outline(b""), None);
        assert_eq!(outline(&[0xff, 0xd8, 0xff, 0xe0, 0, 0]), None);
        assert_eq!(outline(&[0xff; 100]), None);
    }
}
