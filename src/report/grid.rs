//! Labelled grids of images: groups of rows (teacher, student), one row per sampler setting, one column per prompt.
//!
//! Small images are enlarged by whole factors without smoothing, so that every latent pixel stays visible.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::text::{Anchor, Ink};

/// One row of images.
#[derive(Clone, Debug)]
pub struct Row {
    /// What made them, e.g. `1 step`.
    pub label: String,
    /// A second, smaller line, e.g. `FD 8.7`; may be empty.
    pub note: String,
    /// The images, one per column; missing ones leave a gap.
    pub images: Vec<RgbImage>,
}

/// Rows under one header.
#[derive(Clone, Debug)]
pub struct Group {
    /// The header, e.g. `teacher, guidance 3`.
    pub title: String,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// A whole picture.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Written on top; may be empty.
    pub title: String,
    /// A second line below the title; may be empty.
    pub subtitle: String,
    /// Labels of the columns: the prompts. May be empty.
    pub columns: Vec<String>,
    /// The groups, top to bottom.
    pub groups: Vec<Group>,
}

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([28, 30, 36]);
const SOFT: Rgb<u8> = Rgb([110, 116, 128]);
const RULE: Rgb<u8> = Rgb([214, 217, 223]);
const GAP: Rgb<u8> = Rgb([243, 244, 246]);

const MARGIN: u32 = 24;
const GUTTER: u32 = 6;
const TITLE: Ink = Ink::bold(25.0, INK);
const SUBTITLE: Ink = Ink::regular(17.0, SOFT);
const HEADER: Ink = Ink::bold(18.0, INK);
const LABEL: Ink = Ink::regular(17.0, INK);
const NOTE: Ink = Ink::regular(14.5, SOFT);
const COLUMN: Ink = Ink::regular(15.0, INK);
/// Images are enlarged to about this many pixels.
const CELL: u32 = 96;

/// Labels of rows are wrapped behind this many pixels, and cut after so many lines.
const LABEL_WIDTH: f32 = 320.0;
const LABEL_LINES: u32 = 4;
/// Height of a line of a label.
const LABEL_LINE: u32 = 20;

/// The lines of a row's label that have room beside images of this height, and its note.
fn label_of(row: &Row, height: u32) -> (Vec<String>, String) {
    let note = if row.note.is_empty() { 0 } else { LABEL_LINE };
    let lines = (height.saturating_sub(note) / LABEL_LINE).clamp(1, LABEL_LINES);
    (LABEL.wrap(&row.label, LABEL_WIDTH, lines as usize), NOTE.fit(&row.note, LABEL_WIDTH))
}

/// Draws the grid.
pub fn draw_grid(grid: &Grid) -> RgbImage {
    let rows = || grid.groups.iter().flat_map(|g| &g.rows);
    let columns = rows().map(|r| r.images.len()).max().unwrap_or(0).max(grid.columns.len()) as u32;
    let (width, height) = rows().flat_map(|r| &r.images).fold((1, 1), |(w, h), i| (w.max(i.width()), h.max(i.height())));
    let factor = (CELL / width.max(height)).max(1);
    let (cell_w, cell_h) = (width * factor, height * factor);

    let texts: Vec<_> = rows().map(|row| label_of(row, cell_h)).collect();
    let widths = texts.iter().flat_map(|(lines, note)| lines.iter().map(|line| LABEL.width(line)).chain([NOTE.width(note)]));
    let label_w = widths.fold(0.0, f32::max).ceil() as u32;
    let left = MARGIN + label_w + if label_w > 0 { 16 } else { 0 };
    let headings = (left + columns * (cell_w + GUTTER) + MARGIN).max(420);
    let title_w = TITLE.width(&grid.title).max(SUBTITLE.width(&grid.subtitle)).ceil() as u32 + 2 * MARGIN;
    let picture_w = headings.max(title_w.min(1600));

    let labels: Vec<_> = grid.columns.iter().map(|c| COLUMN.wrap(c, cell_w as f32, 3)).collect();
    let label_lines = labels.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let title_h = if grid.title.is_empty() { 0 } else { 36 } + if grid.subtitle.is_empty() { 0 } else { 26 };
    let top = MARGIN + title_h + label_lines * 18 + if label_lines > 0 { 6 } else { 0 };
    let row_h = cell_h.max(40) + GUTTER;
    let group_h = |g: &Group| if g.title.is_empty() { 10 } else { 40 } + g.rows.len() as u32 * row_h;
    let picture_h = top + grid.groups.iter().map(group_h).sum::<u32>() + MARGIN;

    let mut picture = RgbImage::from_pixel(picture_w, picture_h, PAPER);
    let mut y = MARGIN;
    if !grid.title.is_empty() {
        TITLE.draw(&mut picture, MARGIN as f32, y as f32 + 12.0, Anchor::Left, &TITLE.fit(&grid.title, (picture_w - 2 * MARGIN) as f32));
        y += 36;
    }
    if !grid.subtitle.is_empty() {
        let text = SUBTITLE.fit(&grid.subtitle, (picture_w - 2 * MARGIN) as f32);
        SUBTITLE.draw(&mut picture, MARGIN as f32, y as f32 + 7.0, Anchor::Left, &text);
    }
    for (column, lines) in labels.iter().enumerate() {
        let x = left + column as u32 * (cell_w + GUTTER) + cell_w / 2;
        for (index, line) in lines.iter().rev().enumerate() {
            COLUMN.draw(&mut picture, x as f32, top as f32 - 14.0 - 18.0 * index as f32, Anchor::Centre, line);
        }
    }
    y = top;
    let mut texts = texts.into_iter();
    for group in &grid.groups {
        if group.title.is_empty() {
            y += 10;
        } else {
            rule(&mut picture, MARGIN, y + 3, picture_w - MARGIN);
            HEADER.draw(
                &mut picture,
                MARGIN as f32,
                y as f32 + 21.0,
                Anchor::Left,
                &HEADER.fit(&group.title, (picture_w - 2 * MARGIN) as f32),
            );
            y += 40;
        }
        for row in &group.rows {
            let middle = y as f32 + cell_h as f32 / 2.0;
            let (lines, note) = texts.next().unwrap_or_default();
            let lift = if note.is_empty() { 0.0 } else { 10.0 };
            let half = 0.5 * LABEL_LINE as f32 * lines.len().saturating_sub(1) as f32;
            for (index, line) in lines.iter().enumerate() {
                let height = middle - lift - half + (index as u32 * LABEL_LINE) as f32;
                LABEL.draw(&mut picture, MARGIN as f32, height, Anchor::Left, line);
            }
            NOTE.draw(&mut picture, MARGIN as f32, middle + half + 10.0, Anchor::Left, &note);
            for column in 0..columns {
                let x = left + column * (cell_w + GUTTER);
                match row.images.get(column as usize) {
                    Some(image) => place(&mut picture, image, x, y, factor, (cell_w, cell_h)),
                    None => fill(&mut picture, x, y, cell_w, cell_h, GAP),
                }
            }
            y += row_h;
        }
    }
    picture
}

/// Enlarges an image by a whole factor and centres it in its cell.
fn place(picture: &mut RgbImage, image: &RgbImage, x: u32, y: u32, factor: u32, cell: (u32, u32)) {
    let (width, height) = (image.width() * factor, image.height() * factor);
    if (width, height) != cell {
        fill(picture, x, y, cell.0, cell.1, GAP);
    }
    let large = imageops::resize(image, width, height, FilterType::Nearest);
    let (dx, dy) = ((cell.0 - width) / 2, (cell.1 - height) / 2);
    imageops::replace(picture, &large, i64::from(x + dx), i64::from(y + dy));
}

fn fill(picture: &mut RgbImage, x: u32, y: u32, width: u32, height: u32, colour: Rgb<u8>) {
    for (dy, dx) in (0..height).flat_map(|dy| (0..width).map(move |dx| (dy, dx))) {
        if let Some(pixel) = picture.get_pixel_mut_checked(x + dx, y + dy) {
            *pixel = colour;
        }
    }
}

fn rule(picture: &mut RgbImage, from: u32, y: u32, to: u32) {
    fill(picture, from, y, to.saturating_sub(from), 1, RULE);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32, colour: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(width, height, Rgb(colour))
    }

    fn grid(rows: Vec<Row>) -> Grid {
        Grid {
            title: "title".into(),
            subtitle: String::new(),
            columns: vec!["dress".into(), "ankle boot".into()],
            groups: vec![Group { title: "student".into(), rows }],
        }
    }

    fn row(images: Vec<RgbImage>) -> Row {
        Row { label: "1 step".into(), note: "FD 8.7".into(), images }
    }

    #[test]
    fn small_images_are_enlarged_by_whole_factors() {
        let red = [200, 10, 20];
        let picture = draw_grid(&grid(vec![row(vec![image(32, 32, red), image(32, 32, red)])]));
        let painted = picture.pixels().filter(|p| p.0 == red).count();
        assert_eq!(painted, 2 * 96 * 96);
    }

    #[test]
    fn long_labels_are_wrapped_and_cut() {
        let long = "an oil painting of a lighthouse in a storm\n".repeat(42);
        let row = Row { label: long.clone(), note: long.clone(), images: vec![image(32, 32, [9; 3])] };
        let (lines, note) = label_of(&row, 96);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[2].ends_with('…') && note.ends_with('…') && lines.iter().all(|line| LABEL.width(line) <= LABEL_WIDTH), "{lines:?}");
        let mut wide = grid(vec![row]);
        wide.groups[0].title = long.clone();
        let picture = draw_grid(&wide);
        assert!(picture.width() < 800, "{}", picture.width());
        let word = Row { label: "o".repeat(1800), note: String::new(), images: vec![image(32, 32, [9; 3])] };
        assert!(draw_grid(&grid(vec![word])).width() < 800);
    }

    #[test]
    fn odd_input_draws_something() {
        assert!(draw_grid(&grid(vec![])).width() >= 420);
        assert!(draw_grid(&Grid { title: String::new(), subtitle: String::new(), columns: vec![], groups: vec![] }).height() > 0);
        draw_grid(&grid(vec![row(vec![]), row(vec![image(300, 7, [0; 3]), image(3, 200, [9; 3]), image(1, 1, [5; 3])])]));
    }
}
