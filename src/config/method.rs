//! From `distill.method` and the sections of its baseline to the step that is run.

use super::Config;
use crate::ladd::{LaddConfig, Method, Target};

impl Config {
    /// The step of `distill.method`: section `[ladd]`, and for a baseline what it puts in place of its losses.
    pub fn step(&self) -> LaddConfig {
        let ladd = self.ladd.clone();
        let guidance = |own: f32| if own == 0.0 { self.synthesize.guidance } else { own };
        let score = || Target::Score {
            weight: self.add.weight,
            weighting: self.add.weighting,
            t: self.add.t.clone(),
            guidance: guidance(self.add.teacher_guidance),
        };
        match self.distill.method {
            Method::Ladd => ladd,
            Method::Add => LaddConfig { target: Some(score()), ..ladd },
            Method::Score => LaddConfig { target: Some(score()), adversarial_weight: 0.0, ..ladd },
            Method::Lcm => {
                let target = Target::Consistency { intervals: self.lcm.intervals, guidance: guidance(self.lcm.teacher_guidance) };
                LaddConfig { target: Some(target), adversarial_weight: 0.0, ..ladd }
            }
            Method::Regression => LaddConfig { adversarial_weight: 0.0, distillation_weight: 1.0, ..ladd },
        }
    }
}
