//! The contact sheet of a data set: for every bucket its size, how many pictures it has, drawn as a bar, and some of them, as
//! they were cut.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::text::{Anchor, Ink};

/// The pictures of one size.
#[derive(Clone, Debug)]
pub struct ContactRow {
    /// The size, e.g. `1152 x 896`.
    pub label: String,
    /// How many there are.
    pub count: usize,
    /// Some of them.
    pub pictures: Vec<RgbImage>,
}

/// A whole sheet.
#[derive(Clone, Debug)]
pub struct ContactSheet {
    /// Written on top.
    pub title: String,
    /// A second line.
    pub subtitle: String,
    /// One row per size.
    pub rows: Vec<ContactRow>,
}

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([28, 30, 36]);
const SOFT: Rgb<u8> = Rgb([110, 116, 128]);
const BAR: Rgb<u8> = Rgb([70, 130, 180]);
const TRACK: Rgb<u8> = Rgb([236, 238, 242]);

const MARGIN: u32 = 24;
const GAP: u32 = 8;
/// Height of the pictures of a row.
const HEIGHT: u32 = 96;
/// Width of the bars.
const BARS: u32 = 180;
/// Left of the pictures: margin, bar, space.
const LEFT: u32 = MARGIN + BARS + 28;
const WIDTH: u32 = 1180;
const TITLE: Ink = Ink::bold(25.0, INK);
const SUBTITLE: Ink = Ink::regular(17.0, SOFT);
const LABEL: Ink = Ink::bold(18.0, INK);
const COUNT: Ink = Ink::regular(16.0, SOFT);

/// Draws the sheet.
pub fn draw_contact_sheet(sheet: &ContactSheet) -> RgbImage {
    let most = sheet.rows.iter().map(|row| row.count).max().unwrap_or(0).max(1);
    let total: usize = sheet.rows.iter().map(|row| row.count).sum();
    let top = MARGIN + 36 + 30 + GAP;
    let mut picture = RgbImage::from_pixel(WIDTH, top + sheet.rows.len() as u32 * (HEIGHT + 2 * GAP) + MARGIN, PAPER);
    let room = (WIDTH - 2 * MARGIN) as f32;
    TITLE.draw(&mut picture, MARGIN as f32, MARGIN as f32 + 12.0, Anchor::Left, &TITLE.fit(&sheet.title, room));
    SUBTITLE.draw(&mut picture, MARGIN as f32, MARGIN as f32 + 44.0, Anchor::Left, &SUBTITLE.fit(&sheet.subtitle, room));
    for (number, row) in sheet.rows.iter().enumerate() {
        let y = top + number as u32 * (HEIGHT + 2 * GAP);
        LABEL.draw(&mut picture, MARGIN as f32, y as f32 + 22.0, Anchor::Left, &row.label);
        let percent = 100.0 * row.count as f64 / total.max(1) as f64;
        COUNT.draw(&mut picture, MARGIN as f32, y as f32 + 48.0, Anchor::Left, &format!("{}, {percent:.0} %", row.count));
        fill(&mut picture, MARGIN, y + 66, BARS, 12, TRACK);
        let full = (BARS as usize * row.count).div_ceil(most) as u32;
        fill(&mut picture, MARGIN, y + 66, full.min(BARS), 12, BAR);
        let mut x = LEFT;
        for image in &row.pictures {
            let width = (image.width() * HEIGHT).div_ceil(image.height().max(1)).max(1);
            if x + width > WIDTH - MARGIN {
                break;
            }
            imageops::replace(&mut picture, &scaled(image, width), i64::from(x), i64::from(y));
            x += width + GAP;
        }
    }
    picture
}

/// A picture at the height of a row; small ones keep their pixels visible.
fn scaled(image: &RgbImage, width: u32) -> RgbImage {
    let filter = if image.height() <= HEIGHT { FilterType::Nearest } else { FilterType::Triangle };
    imageops::resize(image, width, HEIGHT, filter)
}

fn fill(picture: &mut RgbImage, x: u32, y: u32, width: u32, height: u32, colour: Rgb<u8>) {
    for (dy, dx) in (0..height).flat_map(|dy| (0..width).map(move |dx| (dy, dx))) {
        if let Some(pixel) = picture.get_pixel_mut_checked(x + dx, y + dy) {
            *pixel = colour;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_rows_are_full() {
        let row = |count: usize, pictures: usize| ContactRow {
            label: format!("{count}"),
            count,
            pictures: vec![RgbImage::from_pixel(20, 10, Rgb([200, 0, 0])); pictures],
        };
        let sheet = ContactSheet { title: "t".into(), subtitle: String::new(), rows: vec![row(40, 9), row(10, 0), row(0, 1)] };
        let picture = draw_contact_sheet(&sheet);
        assert_eq!(picture.pixels().filter(|p| **p == BAR).count() as u32, 12 * (BARS + BARS / 4));
        let red = picture.pixels().filter(|p| p.0 == [200, 0, 0]).count() as u32;
        assert_eq!(red, (4 + 1) * 192 * 96, "four fit beside the bar");
        assert!(draw_contact_sheet(&ContactSheet { title: String::new(), subtitle: String::new(), rows: vec![] }).height() > 0);
    }
}
