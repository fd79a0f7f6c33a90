//! Floating-point operations of one LADD step.

use crate::Result;
use crate::device::Groups;
use crate::ladd::{LaddConfig, Phase, Target, Update};
use crate::model::{Flops, HeadsPass, HeadsShape, ModelConfig, Pass, Shape};

impl LaddConfig {
    /// Operations of one optimiser step on one micro-batch of `shape`, counted as in [`ModelConfig::flops`].
    ///
    /// # Errors
    /// When a tap names a block the teacher does not have.
    pub fn flops(&self, student: &ModelConfig, teacher: &ModelConfig, shape: Shape) -> Result<Flops> {
        let adversarial = self.adversarial_weight > 0.0;
        let phases: &[Phase] = match self.update {
            Update::Simultaneous => &[Phase::Both],
            Update::Alternating if adversarial => &[Phase::Student, Phase::Heads],
            Update::Alternating => &[Phase::Student],
        };
        let phases = phases.iter().map(|phase| self.phase_flops(*phase, student, teacher, shape));
        phases.sum()
    }

    fn phase_flops(&self, phase: Phase, student: &ModelConfig, teacher: &ModelConfig, shape: Shape) -> Result<Flops> {
        let taps = self.resolved_taps(teacher.depth)?;
        let mut total = student.flops(shape, student.depth, true, Pass::Forward);
        if phase != Phase::Heads {
            total = total + student.flops(shape, student.depth, true, Pass::Backward);
        }
        if let (Some(target), true) = (&self.target, phase != Phase::Heads) {
            let rows = shape.batch * if target.guided() { 2 } else { 1 };
            total = total + teacher.flops(Shape { batch: rows, ..shape }, teacher.depth, true, Pass::Forward);
            if matches!(target, Target::Consistency { .. }) {
                total = total + student.flops(shape, student.depth, true, Pass::Forward);
            }
        }
        if self.adversarial_weight == 0.0 {
            return Ok(total);
        }
        let groups = match phase {
            Phase::Student => Groups::FAKE,
            Phase::Both | Phase::Heads => Groups { real: true, mismatch: self.mismatch_weight > 0.0, perturbed: self.r1_weight > 0.0 },
        };
        let samples = groups.count() * shape.batch;
        let (rows, columns) = teacher.grid(shape.height, shape.width)?;
        let blocks = taps.last().map_or(1, |tap| tap + 1);
        let heads = HeadsShape { count: taps.len(), hidden: teacher.hidden(), width: self.head_width, pooled: teacher.pooled_dim };
        total = total + teacher.flops(Shape { batch: samples, ..shape }, blocks, false, Pass::Forward);
        total = total + heads.flops(samples, rows * columns, HeadsPass::Forward);
        if phase != Phase::Student {
            total = total + heads.flops(samples, rows * columns, HeadsPass::BackwardWeights);
        }
        if phase != Phase::Heads {
            total = total + heads.flops(shape.batch, rows * columns, HeadsPass::BackwardFeatures);
            total = total + teacher.flops(shape, blocks, false, Pass::FrozenBackward);
        }
        Ok(total)
    }
}
