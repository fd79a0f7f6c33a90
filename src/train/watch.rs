//! Watches a distillation for the two ways in which it is known to fail quietly: heads that are saturated or at chance
//! for long, and numbers that are no longer finite.

use std::ops::RangeInclusive;

use super::{HeadStats, StepRecord};
use crate::{Error, Result};

/// Steps out of range after which a head is worth a warning.
const PATIENCE: u32 = 200;
/// Steps in a row that may be skipped because a gradient was not finite.
const SKIPS: u32 = 50;
/// Where the mean accuracy of a healthy head lies.
const ACCURACY: RangeInclusive<f32> = 0.55..=0.95;
/// Where the gap between its mean logits on real and fake lies.
const GAP: RangeInclusive<f32> = 0.1..=15.0;

/// The watch. Show it every record.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Per head, the last step in which it was healthy, and whether it was complained about since.
    healthy: Vec<(u32, bool)>,
    /// The last step whose update was applied, and the number of skipped updates then.
    applied: (u32, [u32; 2]),
}

impl Watch {
    /// Looks at one record; returns what is worth telling the user.
    ///
    /// # Errors
    /// When so many updates in a row were skipped that the run cannot recover.
    pub fn observe(&mut self, record: &StepRecord) -> Result<Vec<String>> {
        self.check_finite(record)?;
        let mut warnings = Vec::new();
        self.healthy.resize(record.heads.len(), (record.step.saturating_sub(1), false));
        for (head, (since, told)) in record.heads.iter().zip(&mut self.healthy) {
            match problem(head) {
                None => (*since, *told) = (record.step, false),
                Some(problem) if !*told && record.step - *since >= PATIENCE => {
                    *told = true;
                    warnings.push(format!("the head on block {} has had {problem} for {PATIENCE} steps", head.block));
                }
                Some(_) => {}
            }
        }
        Ok(warnings)
    }

    fn check_finite(&mut self, record: &StepRecord) -> Result<()> {
        if record.skipped == self.applied.1 || record.step <= self.applied.0 {
            self.applied = (record.step, record.skipped);
            return Ok(());
        }
        let news: u32 = record.skipped.iter().zip(self.applied.1).map(|(now, then)| now.saturating_sub(then)).sum();
        let steps = record.step - self.applied.0;
        if news < steps {
            self.applied = (record.step, record.skipped);
        } else if steps >= SKIPS {
            return Err(Error::Usage(format!(
                "the distillation has diverged: no gradient was finite in the last {steps} steps (step {}); resume from an earlier checkpoint, \
                 or begin again with a smaller optim.student.lr or optim.heads.lr",
                record.step
            )));
        }
        Ok(())
    }
}

/// What is wrong with a head, in words.
fn problem(head: &HeadStats) -> Option<String> {
    let accuracy = (head.accuracy_real + head.accuracy_fake) / 2.0;
    let gap = head.mean_real - head.mean_fake;
    if !ACCURACY.contains(&accuracy) {
        let meaning = if accuracy < *ACCURACY.start() { "it tells nothing apart" } else { "it is saturated" };
        Some(format!("an accuracy outside {:?} (now {accuracy:.2}: {meaning})", ACCURACY))
    } else if !GAP.contains(&gap) {
        Some(format!("a gap between the logits of real and fake outside {:?} (now {gap:.2})", GAP))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u32, accuracy: f32, skipped: u32) -> StepRecord {
        let head = HeadStats { block: 3, accuracy_real: accuracy, accuracy_fake: accuracy, mean_real: 1.0, ..HeadStats::default() };
        StepRecord { step, heads: vec![head], skipped: [skipped, 0], ..StepRecord::default() }
    }

    #[test]
    fn a_saturated_head_is_reported_once() {
        let mut watch = Watch::default();
        let warnings: Vec<_> = (1..=450).flat_map(|step| watch.observe(&record(step, 0.99, 0)).unwrap()).collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("block 3") && warnings[0].contains("saturated"), "{warnings:?}");
    }

    #[test]
    fn a_head_that_recovers_is_not_reported() {
        let mut watch = Watch::default();
        for step in 1..=1000 {
            let accuracy = if step % 100 == 0 { 0.7 } else { 0.5 };
            assert!(watch.observe(&record(step, accuracy, 0)).unwrap().is_empty());
        }
    }

    #[test]
    fn a_diverged_run_ends() {
        let mut watch = Watch::default();
        let error = (1..=100).find_map(|step| watch.observe(&record(step, 0.7, step)).err()).unwrap().to_string();
        assert!(error.contains("diverged") && error.contains("step 50"), "{error}");
        let mut watch = Watch::default();
        assert!((1..=1000).all(|step| watch.observe(&record(step, 0.7, step / 3)).is_ok()), "single skips are fine");
    }
}
