//! Pictures for people: labelled image grids, training curves, the table of results.

mod contact;
mod curves;
mod grid;
mod table;
mod tasks;
mod text;

pub use contact::{ContactRow, ContactSheet, draw_contact_sheet};
pub use curves::{Across, COLOURS, Panel, Reference, Series, Stroke, distillation_panels, draw_panels, pretrain_panels};
pub use grid::{Grid, Group, Row, draw_grid};
pub(crate) use table::table as markdown_table;
pub use table::{Gain, Results};
pub use tasks::TaskResults;
pub use text::{Anchor, Ink, Weight};

use std::path::Path;

use image::RgbImage;

use crate::train::run_folder::write_whole;
use crate::{Error, Result};

/// Saves a picture as PNG; an existing file is replaced at once, never half.
///
/// # Errors
/// When the picture cannot be encoded or the file cannot be written.
pub fn save_png(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    picture
        .write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)
        .map_err(|e| Error::file(path, format!("cannot be encoded as PNG: {e}")))?;
    write_whole(path, &bytes)
}
