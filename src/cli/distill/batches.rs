//! Micro-batches for the LADD step: latents from the shards, text from the table of prompts, and what the task conditions on.

use crate::Result;
use crate::cli::common::draw::Prompts;
use crate::cli::common::{Encoders, Outcome};
use crate::config::Config;
use crate::data::{Batch, Bucket, LatentDataset, Loader};
use crate::edit::{Conditioned, MaskKind, Task};
use crate::ladd::HostBatch;
use crate::model::Shape;
use crate::train::MicroBatch;

/// The memory of the micro-batches of one step.
pub struct Batches {
    prompts: Prompts,
    tokens: usize,
    mismatch: bool,
    task: Task,
    masks: Vec<MaskKind>,
    seed: u64,
    micro: Vec<Micro>,
}

#[derive(Default)]
struct Micro {
    latents: Batch,
    conditioned: Conditioned,
    context: Vec<f32>,
    pooled: Vec<f32>,
    other_context: Vec<f32>,
    other_pooled: Vec<f32>,
}

impl Batches {
    /// Encodes the prompts of the data set. With `mismatch` every sample also gets another sample's text.
    pub fn new(config: &Config, encoders: &Encoders<'_>, dataset: &LatentDataset, mismatch: bool) -> Outcome<Self> {
        let micro = (0..config.distill.accumulate).map(|_| Micro::default()).collect();
        let (prompts, tokens) = (encoders.prompts(dataset.prompts())?, encoders.tokens()?);
        Ok(Self { prompts, tokens, mismatch, task: config.task, masks: config.inpaint.masks.clone(), seed: config.seed, micro })
    }

    /// Sizes of the micro-batches, one of each bucket.
    pub fn shapes(&self, dataset: &LatentDataset, batch: usize) -> Vec<Shape> {
        let shape = |bucket: &Bucket| Shape { batch, height: bucket.shape[1], width: bucket.shape[2], text: self.tokens };
        dataset.buckets().iter().map(shape).collect()
    }

    /// The micro-batches of `step`.
    pub fn next(&mut self, loader: &mut Loader, step: u32) -> Result<Vec<MicroBatch<'_>>> {
        for (index, micro) in self.micro.iter_mut().enumerate() {
            loader.batch_into(step, index, &mut micro.latents)?;
            micro.conditioned.prepare(self.task, &self.masks, &micro.latents, (self.seed, step, index))?;
            let which: Vec<usize> = micro.latents.prompts.iter().map(|p| *p as usize).collect();
            self.prompts.gather(which.iter().copied(), &mut micro.context, &mut micro.pooled)?;
            if self.mismatch {
                let others = mismatched(&which);
                self.prompts.gather(others.into_iter(), &mut micro.other_context, &mut micro.other_pooled)?;
            }
        }
        let tokens = self.tokens;
        let (mismatch, micro) = (self.mismatch, &self.micro);
        Ok(micro
            .iter()
            .map(|m| {
                let [_, height, width] = m.latents.shape;
                let shape = Shape { batch: m.latents.prompts.len(), height, width, text: tokens };
                let other = mismatch.then_some((m.other_context.as_slice(), m.other_pooled.as_slice()));
                let (x0, conditioning) = (m.conditioned.x0.as_slice(), m.conditioned.given());
                let values = HostBatch { x0, conditioning, context: &m.context, pooled: &m.pooled, mismatch: other };
                MicroBatch { shape, values }
            })
            .collect())
    }
}

/// For every sample the prompt of the next sample of the batch that has another one; its own where there is none.
fn mismatched(which: &[usize]) -> Vec<usize> {
    let n = which.len();
    (0..n).map(|i| (1..n).map(|d| which[(i + d) % n]).find(|p| *p != which[i]).unwrap_or(which[i])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatched_prompts_differ_where_they_can() {
        assert_eq!(mismatched(&[0, 0, 1, 2]), [1, 1, 2, 0]);
        assert_eq!(mismatched(&[3, 3]), [3, 3]);
        assert!(mismatched(&[]).is_empty());
    }
}
