//! Which matrices of an MMDiT can be adapted, and which a name or a group of names means.
//!
//! A target is a module of diffusers' `SD3Transformer2DModel`. The network keeps queries, keys and values as one matrix: they are
//! three targets, each a third of its rows.

use serde::{Deserialize, Serialize};

use crate::format::{diffusers, parameter_shapes};
use crate::model::ModelConfig;
use crate::{Error, Result};

/// A matrix that an adapter can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Diffusers' module, such as `transformer_blocks.0.attn.to_q`.
    pub module: String,
    /// The network's tensor that holds the matrix.
    pub tensor: String,
    /// First row there.
    pub row: usize,
    /// Rows.
    pub outputs: usize,
    /// Width of a row.
    pub inputs: usize,
    /// Whether diffusers holds the second half of the rows first.
    pub swapped: bool,
}

impl Target {
    /// The elements of its tensor that it is.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.row * self.inputs..(self.row + self.outputs) * self.inputs
    }

    /// Its group, see [`select`].
    fn group(&self) -> &'static str {
        let inside = |part: &str| self.module.contains(part);
        match () {
            () if inside(".attn.") => "attention",
            () if inside(".attn2.") => "attention2",
            () if inside(".ff.") || inside(".ff_context.") => "mlp",
            () if inside("norm1") || inside("norm_out") => "adaln",
            () => "embedders",
        }
    }

    /// Whether `name` means it: its group, its module, or the end of its module as in PEFT's `target_modules`.
    fn is_meant(&self, name: &str) -> bool {
        let end = self.module.strip_suffix(name);
        name == "all" || name == self.group() || end.is_some_and(|start| start.is_empty() || start.ends_with('.'))
    }
}

/// Every matrix of the network.
pub fn targets(model: &ModelConfig) -> Vec<Target> {
    let shapes = parameter_shapes(model);
    let of = |matrix: diffusers::Matrix| {
        let (rows, inner) = shapes.get(&matrix.original)?.split_first()?;
        let outputs = if matrix.third.is_some() { rows / 3 } else { *rows };
        Some(Target {
            module: matrix.module,
            tensor: matrix.original,
            row: matrix.third.unwrap_or(0) * outputs,
            outputs,
            inputs: inner.iter().product(),
            swapped: matrix.swapped,
        })
    };
    diffusers::matrices(model).into_iter().filter_map(of).collect()
}

/// The targets that `names` mean. A name is a group (`attention`: the joint attention's eight projections a block, what
/// diffusers' scripts train; `attention2`, `mlp`, `adaln`, `embedders`, `all`), a module, or the end of one (`attn.to_q`).
///
/// # Errors
/// Names the name that means nothing in this network.
pub fn select(model: &ModelConfig, names: &[String]) -> Result<Vec<Target>> {
    let mut targets = targets(model);
    if let Some(nothing) = names.iter().find(|name| !targets.iter().any(|target| target.is_meant(name))) {
        return Err(Error::Config(format!(
            "lora.targets names `{nothing}`, which this network does not have: name a group (attention, attention2, mlp, adaln, \
             embedders, all) or the end of a diffusers module, such as attn.to_q"
        )));
    }
    targets.retain(|target| names.iter().any(|name| target.is_meant(name)));
    Ok(targets)
}

/// Section `[lora]`: adapters instead of the whole student, and what is merged into the student at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the student's adapters; 0 trains all weights.
    pub rank: usize,
    /// The adapters' product is multiplied by `alpha / rank`; 0 means as much as `rank`.
    pub alpha: f64,
    /// Which matrices get an adapter, see [`select`].
    pub targets: Vec<String>,
    /// Files of adapters that are merged into the finished student, such as one of a preference training (DPO).
    pub reapply: Vec<String>,
    /// How strongly each of them; empty means 1.
    pub reapply_scales: Vec<f64>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 0, alpha: 0.0, targets: vec!["attention".into()], reapply: Vec::new(), reapply_scales: Vec::new() }
    }
}

impl LoraConfig {
    /// `alpha / rank`.
    pub fn scale(&self) -> f32 {
        if self.alpha == 0.0 { 1.0 } else { (self.alpha / self.rank.max(1) as f64) as f32 }
    }

    /// The files to merge at the end, with their scales.
    pub fn reapplied(&self) -> impl Iterator<Item = (&str, f32)> {
        let scales = self.reapply_scales.iter().copied().chain(std::iter::repeat(1.0));
        self.reapply.iter().map(String::as_str).zip(scales.map(|scale| scale as f32))
    }

    /// Checks every number.
    ///
    /// # Errors
    /// Names the key and the value that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.rank > 1 << 14 {
            return Err(Error::Config(format!("lora.rank = {} is far out of range; 4 to 256 are usual, 0 trains all weights", self.rank)));
        }
        if !(self.alpha >= 0.0 && self.alpha.is_finite()) {
            return Err(Error::Config(format!("lora.alpha = {} must be a finite number, zero or more", self.alpha)));
        }
        if self.rank > 0 && self.targets.is_empty() {
            return Err(Error::Config("lora.targets is empty: nothing would be trained; name a group such as attention".into()));
        }
        let (files, scales) = (self.reapply.len(), self.reapply_scales.len());
        if scales > 0 && scales != files {
            return Err(Error::Config(format!("lora.reapply_scales has {scales} numbers for the {files} files of lora.reapply")));
        }
        match self.reapply_scales.iter().find(|scale| !scale.is_finite()) {
            Some(scale) => Err(Error::Config(format!("lora.reapply_scales holds {scale}, which is no finite number"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::names::tests::tiny;

    fn modules(names: &[&str], dual: usize) -> Vec<String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        select(&tiny(true, dual), &names).unwrap().into_iter().map(|target| target.module).collect()
    }

    #[test]
    fn the_targets_cover_every_matrix_once() {
        let model = tiny(true, 1);
        let mut covered = std::collections::BTreeMap::<String, Vec<bool>>::new();
        let shapes = parameter_shapes(&model);
        for target in targets(&model) {
            let shape = &shapes[&target.tensor];
            let seen = covered.entry(target.tensor.clone()).or_insert_with(|| vec![false; shape.iter().product()]);
            target.range().for_each(|at| assert!(!std::mem::replace(&mut seen[at], true), "{target:?}"));
        }
        let matrices = shapes.iter().filter(|(name, shape)| shape.len() > 1 && *name != "pos_embed");
        assert_eq!(covered.len(), matrices.count());
        assert!(covered.values().flatten().all(|seen| *seen));
    }

    #[test]
    fn groups_and_ends_of_names_mean_what_they_say() {
        // The last block's text has no output projection.
        assert_eq!(modules(&["attention"], 1).len(), 3 * 8 - 1);
        assert_eq!(modules(&["attention2"], 1), ["to_q", "to_k", "to_v", "to_out.0"].map(|m| format!("transformer_blocks.0.attn2.{m}")));
        assert_eq!(modules(&["attn.to_q"], 1).len(), 3);
        assert_eq!(modules(&["to_q"], 1).len(), 4);
        assert_eq!(modules(&["proj_out", "norm_out.linear"], 1), ["norm_out.linear", "proj_out"]);
        assert_eq!(modules(&["mlp"], 0).len(), 3 * 4 - 2);
        assert_eq!(modules(&["adaln"], 0).len(), 3 * 2 + 1);
        assert_eq!(modules(&["all"], 1).len(), targets(&tiny(true, 1)).len());
        let error = select(&tiny(true, 0), &["attention2".into()]).unwrap_err().to_string();
        assert!(error.contains("`attention2`") && error.contains("adaln"), "{error}");
        assert!(select(&tiny(true, 0), &["n.to_q".into()]).is_err(), "an end begins at a dot");
    }

    #[test]
    fn values_out_of_range_are_named() {
        let wrong = |change: fn(&mut LoraConfig)| {
            let mut config = LoraConfig { rank: 4, ..LoraConfig::default() };
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(wrong(|c| c.rank = 1 << 20).contains("lora.rank = 1048576"));
        assert!(wrong(|c| c.alpha = -1.0).contains("lora.alpha = -1"));
        assert!(wrong(|c| c.targets.clear()).contains("lora.targets"));
        assert!(wrong(|c| c.reapply_scales = vec![1.0]).contains("1 numbers for the 0 files"));
        let config = LoraConfig { reapply: vec!["a".into(), "b".into()], reapply_scales: vec![0.5, 2.0], ..LoraConfig::default() };
        assert_eq!(config.reapplied().collect::<Vec<_>>(), [("a", 0.5), ("b", 2.0)]);
        assert_eq!(LoraConfig { rank: 8, alpha: 4.0, ..LoraConfig::default() }.scale(), 0.5);
    }
}
