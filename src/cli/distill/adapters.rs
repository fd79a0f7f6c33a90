//! A distillation's adapters (LoRA): those that it trains instead of the whole student, and those of other trainings that are merged
//! into the finished student, as the paper re-applies the teacher's preference LoRA.

use std::path::PathBuf;

use crate::Result;
use crate::cli::common::{Loaded, lora};
use crate::config::Config;
use crate::format::{Dtype, Pipeline};
use crate::lora::{Layout, Lora, select};
use crate::model::ModelConfig;
use crate::train::{AdapterPlan, RunFolder};

/// The adapters to train; `None` where all weights are trained.
pub fn plan(config: &Config, model: &ModelConfig) -> Result<Option<AdapterPlan>> {
    let settings = &config.lora;
    if settings.rank == 0 {
        return Ok(None);
    }
    let targets = select(model, &settings.targets)?;
    Ok(Some(AdapterPlan { targets, rank: settings.rank, scale: settings.scale(), seed: config.seed }))
}

/// What is merged into the student at the end.
pub struct Reapplied(Vec<(String, f32, Lora)>);

impl Reapplied {
    /// Reads the files now: hours later is no time to find one missing.
    pub fn read(config: &Config, teacher: &Loaded) -> Result<Self> {
        let read = |(path, scale): (&str, f32)| Ok((path.to_owned(), scale, lora::read(teacher, &PathBuf::from(path))?));
        config.lora.reapplied().map(read).collect::<Result<_>>().map(Self)
    }

    /// Whether there is nothing to merge.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Merges all, and notes it.
    pub fn apply(&self, student: &mut Loaded) -> Result<()> {
        for (_, scale, adapters) in &self.0 {
            lora::merge_into(student, adapters, *scale)?;
        }
        let names: Vec<_> = self.0.iter().map(|(path, scale, _)| format!("{path} at {scale}")).collect();
        if !names.is_empty() {
            student.pipeline.notes.insert("lora".to_owned(), names.join(", "));
        }
        Ok(())
    }
}

/// Writes the trained adapters beside the student, for diffusers.
pub fn save(run: &RunFolder, mut lora: Lora, student: &Pipeline) -> Result<()> {
    lora.role = Some(student.role);
    lora.notes = student.notes.clone();
    lora.save(&run.folder("student")?, Layout::Diffusers, Dtype::F32).map(drop)
}
