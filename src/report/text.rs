//! Text on pictures: DejaVu Sans, which is part of the program, laid out and anti-aliased by ab_glyph.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};
use image::{Rgb, RgbImage};

/// Regular or bold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// DejaVu Sans.
    Regular,
    /// DejaVu Sans Bold.
    Bold,
}

/// Which end of the text the given x is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The text begins there.
    Left,
    /// The text is centred there.
    Centre,
    /// The text ends there.
    Right,
}

/// How text is written: size in pixels of the line, weight, colour.
#[derive(Clone, Copy, Debug)]
pub struct Ink {
    /// Height of a line in pixels.
    pub size: f32,
    /// Regular or bold.
    pub weight: Weight,
    /// Colour.
    pub colour: Rgb<u8>,
}

static REGULAR: LazyLock<Option<FontRef<'static>>> = LazyLock::new(|| FontRef::try_from_slice(dejavu::sans::regular()).ok());
static BOLD: LazyLock<Option<FontRef<'static>>> = LazyLock::new(|| FontRef::try_from_slice(dejavu::sans::bold()).ok());

fn font(weight: Weight) -> Option<&'static FontRef<'static>> {
    match weight {
        Weight::Regular => REGULAR.as_ref(),
        Weight::Bold => BOLD.as_ref(),
    }
}

/// `text` with spaces for line ends, tabs and other control characters, which have no glyphs.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Ink {
    /// Regular text.
    pub const fn regular(size: f32, colour: Rgb<u8>) -> Self {
        Self { size, weight: Weight::Regular, colour }
    }

    /// Bold text.
    pub const fn bold(size: f32, colour: Rgb<u8>) -> Self {
        Self { size, weight: Weight::Bold, colour }
    }

    /// Width of `text` in pixels.
    pub fn width(&self, text: &str) -> f32 {
        let Some(font) = font(self.weight) else { return 0.0 };
        let font = font.as_scaled(PxScale::from(self.size));
        let mut width = 0.0;
        let mut previous = None;
        for c in text.chars() {
            let glyph = font.glyph_id(c);
            width += previous.map_or(0.0, |p| font.kern(p, glyph)) + font.h_advance(glyph);
            previous = Some(glyph);
        }
        width
    }

    /// `text` on one line, cut with an ellipsis if it is wider than `width`.
    pub fn fit(&self, text: &str, width: f32) -> String {
        let text = one_line(text);
        if self.width(&text) <= width {
            return text;
        }
        // Where no ellipsis would fit any more; then back to where it does.
        let mut reach = 0.0;
        let fits = |c: &char| {
            reach += self.width(c.encode_utf8(&mut [0; 4]));
            reach <= 2.0 * width // kerning may bring letters nearer
        };
        let mut cut: Vec<char> = text.chars().take_while(fits).collect();
        while cut.pop().is_some() {
            let shorter = cut.iter().collect::<String>().trim_end().to_owned() + "…";
            if self.width(&shorter) <= width {
                return shorter;
            }
        }
        String::new()
    }

    /// Breaks `text` at spaces into at most `lines` lines of at most `width` pixels; the last is cut if need be.
    pub fn wrap(&self, text: &str, width: f32, lines: usize) -> Vec<String> {
        let mut wrapped: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            let full = wrapped.len() >= lines;
            match wrapped.last_mut() {
                Some(line) if full || self.width(&format!("{line} {word}")) <= width => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => wrapped.push(word.to_owned()),
            }
        }
        wrapped.iter().map(|line| self.fit(line, width)).collect()
    }

    /// Writes `text` with the middle of its lower-case letters at height `y`. What lies outside the picture is cut.
    pub fn draw(&self, picture: &mut RgbImage, x: f32, y: f32, anchor: Anchor, text: &str) {
        let Some(font) = font(self.weight) else { return };
        let scaled = font.as_scaled(PxScale::from(self.size));
        let mut pen = match anchor {
            Anchor::Left => x,
            Anchor::Centre => x - self.width(text) / 2.0,
            Anchor::Right => x - self.width(text),
        };
        let baseline = y + 0.24 * self.size;
        let mut previous = None;
        for c in text.chars() {
            let id = scaled.glyph_id(c);
            pen += previous.map_or(0.0, |p| scaled.kern(p, id));
            let glyph = id.with_scale_and_position(self.size, ab_glyph::point(pen, baseline));
            if let Some(outline) = font.outline_glyph(glyph) {
                let corner = outline.px_bounds().min;
                outline.draw(|dx, dy, cover| {
                    blend(picture, corner.x as i64 + i64::from(dx), corner.y as i64 + i64::from(dy), self.colour, cover)
                });
            }
            pen += scaled.h_advance(id);
            previous = Some(id);
        }
    }
}

/// Mixes `colour` into one pixel; outside the picture nothing happens.
fn blend(picture: &mut RgbImage, x: i64, y: i64, colour: Rgb<u8>, cover: f32) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
    if let Some(pixel) = picture.get_pixel_mut_checked(x, y) {
        let cover = cover.clamp(0.0, 1.0);
        for (old, new) in pixel.0.iter_mut().zip(colour.0) {
            *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * cover).round() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INK: Ink = Ink::regular(16.0, Rgb([0, 0, 0]));

    #[test]
    fn long_text_is_cut_and_wrapped() {
        assert_eq!(INK.fit("dress", 500.0), "dress");
        let cut = INK.fit("a very long prompt about a dress", 80.0);
        assert!(cut.ends_with('…') && INK.width(&cut) <= 80.0, "{cut}");
        let lines = INK.wrap("a very long prompt about a dress in the rain", 90.0, 2);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|l| INK.width(l) <= 90.0) && lines[1].ends_with('…'), "{lines:?}");
        let long = "word ".repeat(50_000);
        assert!(INK.fit(&long, 80.0).ends_with('…'), "and not in a time that grows with the square of the length");
        assert_eq!(INK.fit("one\nline\tof\u{7}text", 500.0), "one line of text");
    }

    #[test]
    fn text_outside_the_picture_is_cut_without_a_panic() {
        let mut picture = RgbImage::from_pixel(8, 8, Rgb([255; 3]));
        INK.draw(&mut picture, -20.0, -3.0, Anchor::Left, "wide text");
        INK.draw(&mut picture, 4.0, 30.0, Anchor::Centre, "wide text");
        INK.draw(&mut picture, 4.0, 4.0, Anchor::Right, "wide text");
        assert!(picture.pixels().any(|p| p.0[0] < 200));
    }
}
