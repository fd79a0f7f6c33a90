//! Icon sets as npm's `@iconify-json` packages hold them: `icons.json` with the inside of an SVG document for every name, and
//! `metadata.json` with categories. Parsers over bytes; SVG becomes pixels by `resvg`, without fonts and without reading any
//! file. Called by `emoji` and [`super::Library`].

use std::collections::{BTreeMap, BTreeSet};

use image::RgbImage;
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::roxmltree::Document;
use resvg::usvg::{ImageHrefResolver, Options, Tree};
use serde::Deserialize;

/// Side that an icon has where nothing says otherwise.
const USUAL_SIDE: f64 = 16.0;
/// Largest number that a drawing may contain.
const LARGEST: f64 = 1e6;
/// Attributes that hold no sizes, but may hold digits.
const WITHOUT_SIZES: [&str; 11] =
    ["class", "clip-path", "fill", "filter", "flood-color", "href", "id", "mask", "stop-color", "stroke", "style"];

/// A set of icons in one style.
#[derive(Clone, Debug, Deserialize)]
pub struct IconSet {
    /// The style's name.
    pub prefix: String,
    icons: BTreeMap<String, Icon>,
    left: Option<f64>,
    top: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
}

/// One icon.
#[derive(Clone, Debug, Deserialize)]
struct Icon {
    body: String,
    #[serde(default)]
    hidden: bool,
    left: Option<f64>,
    top: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
}

impl IconSet {
    /// Reads `icons.json`.
    ///
    /// # Errors
    /// When it is no icon set, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("is no Iconify icon set ({error})"))
    }

    /// Names of the icons that are not hidden, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.icons.iter().filter(|(_, icon)| !icon.hidden).map(|(name, _)| name.as_str())
    }

    /// The SVG document of an icon.
    pub fn svg(&self, name: &str) -> Option<String> {
        let icon = self.icons.get(name)?;
        let left = icon.left.or(self.left).unwrap_or(0.0);
        let top = icon.top.or(self.top).unwrap_or(0.0);
        let width = icon.width.or(self.width).unwrap_or(USUAL_SIDE);
        let height = icon.height.or(self.height).unwrap_or(USUAL_SIDE);
        Some(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{left} {top} {width} {height}">{}</svg>"#,
            icon.body
        ))
    }
}

/// The names in each category, from `metadata.json`.
///
/// # Errors
/// When it is no such file, in words.
pub fn categories(bytes: &[u8]) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default)]
        categories: BTreeMap<String, BTreeSet<String>>,
    }
    let metadata: Metadata = serde_json::from_slice(bytes).map_err(|error| format!("has no categories that can be read ({error})"))?;
    Ok(metadata.categories)
}

/// Draws an SVG document into a square of `side` pixels over a colour.
///
/// # Errors
/// When it is no SVG, in words.
pub fn render(svg: &str, side: u32, background: [u8; 3]) -> Result<RgbImage, String> {
    let nothing = ImageHrefResolver { resolve_data: Box::new(|_, _, _| None), resolve_string: Box::new(|_, _| None) };
    let options = Options { image_href_resolver: nothing, ..Options::default() };
    let document = Document::parse(svg).map_err(|error| format!("is no SVG picture ({error})"))?;
    measurable(&document)?;
    let tree = Tree::from_xmltree(&document, &options).map_err(|error| format!("is no SVG picture ({error})"))?;
    let mut pixmap = Pixmap::new(side, side).ok_or_else(|| format!("cannot be drawn with {side}x{side} pixels"))?;
    let [r, g, b] = background;
    pixmap.fill(Color::from_rgba8(r, g, b, 255));
    let (width, height) = (tree.size().width(), tree.size().height());
    let scale = side as f32 / width.max(height);
    let shift = |length: f32| (side as f32 - length * scale) / 2.0;
    let place = Transform::from_row(scale, 0.0, 0.0, scale, shift(width), shift(height));
    resvg::render(&tree, place, &mut pixmap.as_mut());
    let pixels = pixmap.data().chunks_exact(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
    RgbImage::from_raw(side, side, pixels).ok_or_else(|| "cannot be drawn".to_owned())
}

/// Refuses shapes so large that drawing their curves takes memory without bound: numbers in attributes that measure.
fn measurable(document: &Document<'_>) -> Result<(), String> {
    let attributes = document.descendants().flat_map(|node| node.attributes());
    for attribute in attributes.filter(|attribute| !WITHOUT_SIZES.contains(&attribute.name())) {
        if let Some(number) = numbers(attribute.value()).find(|number| number.abs() > LARGEST) {
            return Err(format!("has {number:e} in the attribute `{}`, too large to be drawn", attribute.name()));
        }
    }
    Ok(())
}

/// The numbers in a text, whatever stands between them: `.5.5-3e2` holds three.
fn numbers(text: &str) -> impl Iterator<Item = f64> {
    let bytes = text.as_bytes();
    let is = |at: usize, any: &[u8]| bytes.get(at).is_some_and(|byte| any.contains(byte));
    let digits = move |from: usize| from + bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            let start = at;
            let whole = digits(start + usize::from(is(start, b"+-")));
            let mantissa = if is(whole, b".") { digits(whole + 1) } else { whole };
            let exponent = mantissa + 1 + usize::from(is(mantissa + 1, b"+-"));
            let scaled = is(mantissa, b"eE") && bytes.get(exponent).is_some_and(u8::is_ascii_digit);
            at = if scaled { digits(exponent) } else { mantissa }.max(start + 1);
            if let Some(number) = text.get(start..at).and_then(|part| part.parse().ok()) {
                return Some(number);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &str = r##"{"prefix": "own", "width": 10, "height": 10, "lastModified": 3, "icons": {
        "red-disc": {"body": "<circle cx='5' cy='5' r='4' fill='#f00'/>"},
        "wide": {"body": "<rect width='20' height='10' fill='#00f'/>", "width": 20},
        "old": {"body": "", "hidden": true}}}"##;

    #[test]
    fn icons_are_drawn() {
        let set = IconSet::parse(SET.as_bytes()).unwrap();
        assert_eq!(set.names().collect::<Vec<_>>(), ["red-disc", "wide"]);
        let disc = render(&set.svg("red-disc").unwrap(), 20, [255; 3]).unwrap();
        assert_eq!((disc.get_pixel(10, 10).0, disc.get_pixel(0, 0).0), ([255, 0, 0], [255; 3]));
        let wide = render(&set.svg("wide").unwrap(), 20, [255; 3]).unwrap();
        assert_eq!((wide.get_pixel(1, 10).0, wide.get_pixel(1, 2).0, wide.get_pixel(19, 14).0), ([0, 0, 255], [255; 3], [0, 0, 255]));
        assert!(set.svg("none").is_none());
    }

    #[test]
    fn damage_is_said_and_files_are_not_read() {
        assert!(IconSet::parse(b"[]").unwrap_err().contains("no Iconify"));
        assert!(categories(b"{\"categories\": 3}").is_err());
        assert!(categories(b"{}").unwrap().is_empty());
        assert!(render("<svg", 8, [0; 3]).unwrap_err().contains("no SVG"));
        // Found by fuzzing: an arc of this radius is cut into pieces until memory ends.
        let giant =
            format!("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'><path d='M0 6a9 {} 0 1 0 2 10z'/></svg>", "8".repeat(90));
        assert!(render(&giant, 8, [0; 3]).unwrap_err().contains("e89 in the attribute `d`"));
        assert!(render(&giant.replace(&"8".repeat(90), "1e90"), 8, [0; 3]).is_err());
        assert!(render(&giant.replace(&"8".repeat(90), "1e-9"), 8, [0; 3]).is_ok());
    }

    #[test]
    fn numbers_are_found_wherever_they_stand() {
        let found = |text: &str| numbers(text).collect::<Vec<_>>();
        assert_eq!(found("M08 6a9,-12.5-3e2z"), [8.0, 6.0, 9.0, -12.5, -300.0]);
        assert_eq!(found("scale(1e-5 +2E+3)"), [1e-5, 2000.0]);
        assert_eq!(found(".5.5e9.1 5e ü7"), [0.5, 0.5e9, 0.1, 5.0, 7.0]);
        assert!(found("e - . none").is_empty());
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/demo/comparison.png");
        let outside =
            format!("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'><image href='{manifest}' width='8' height='8'/></svg>");
        assert!(render(&outside, 8, [9; 3]).unwrap().pixels().all(|p| p.0 == [9; 3]));
    }
}
