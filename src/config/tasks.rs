//! The sections of the configuration that belong to editing and inpainting.

use serde::{Deserialize, Serialize};

use super::sections::{at_least_one, guidance_in_range, in_range};
use crate::edit::MaskKind;
use crate::{Error, Result};

/// Section `[edit]`: the demo's pairs of a source and its target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EditConfig {
    /// How many pairs.
    pub pairs: usize,
    /// Share of the pairs whose instruction has one exact answer.
    pub exact: f32,
    /// Time to which a source is noised before the base teacher draws the target from it.
    pub strength: f32,
    /// Euler steps from there.
    pub steps: usize,
    /// Guidance scale of the base teacher.
    pub target_guidance: f32,
    /// Targets drawn for each source; that one is kept which shows the class asked for and overlaps most with the source.
    pub candidates: usize,
}

impl Default for EditConfig {
    fn default() -> Self {
        Self { pairs: 4096, exact: 0.3, strength: 0.75, steps: 8, target_guidance: 4.0, candidates: 3 }
    }
}

impl EditConfig {
    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("edit.pairs", self.pairs)?;
        at_least_one("edit.steps", self.steps)?;
        at_least_one("edit.candidates", self.candidates)?;
        in_range("edit.exact", self.exact, (0.0..=1.0).contains(&self.exact))?;
        in_range("edit.strength", self.strength, self.strength > 0.0 && self.strength <= 1.0)?;
        guidance_in_range("edit.target_guidance", self.target_guidance)
    }
}

/// Section `[inpaint]`: how pictures are masked in training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InpaintConfig {
    /// The kinds of masks, all equally often.
    pub masks: Vec<MaskKind>,
}

impl Default for InpaintConfig {
    fn default() -> Self {
        Self { masks: MaskKind::ALL.to_vec() }
    }
}

impl InpaintConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.masks.is_empty() {
            return Err(Error::Config("inpaint.masks is empty: name at least one of stroke, box, outpaint".into()));
        }
        Ok(())
    }
}
