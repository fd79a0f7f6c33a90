//! From a batch of training latents to what the networks predict and what they are conditioned on.

use super::{Dice, Mask, MaskKind, Task};
use crate::data::Batch;
use crate::{Error, Result};

/// A micro-batch for a task. The memory is used again.
#[derive(Clone, Debug, Default)]
pub struct Conditioned {
    /// Latents to be predicted `[B, C, H, W]`.
    pub x0: Vec<f32>,
    /// The conditioning `[B, K, H, W]`; empty where the task has none.
    pub conditioning: Vec<f32>,
}

impl Conditioned {
    /// Prepares micro-batch `micro` of `step`. Samples for editing are pairs `[2C, H, W]`, the target before its source; samples for
    /// inpainting are whole pictures, for which masks of `kinds` are drawn.
    ///
    /// # Errors
    /// When a batch for editing does not hold pairs.
    pub fn prepare(&mut self, task: Task, kinds: &[MaskKind], batch: &Batch, (seed, step, micro): (u64, u32, usize)) -> Result<()> {
        self.x0.clear();
        self.conditioning.clear();
        let [channels, height, width] = batch.shape;
        let samples = batch.latents.chunks_exact(channels * height * width);
        match task {
            Task::Generate => self.x0.extend_from_slice(&batch.latents),
            Task::Edit if !channels.is_multiple_of(2) => {
                return Err(Error::Usage(format!("latents of {channels} channels are no pairs of a target and its source")));
            }
            Task::Edit => samples.for_each(|pair| {
                let (target, source) = pair.split_at(pair.len() / 2);
                self.x0.extend_from_slice(target);
                self.conditioning.extend_from_slice(source);
            }),
            Task::Inpaint => {
                let first = (micro * batch.prompts.len()) as u64;
                for (i, latent) in samples.enumerate() {
                    let mask = Mask::draw(kinds, height, width, &mut Dice::new(seed, step, first + i as u64));
                    self.x0.extend_from_slice(latent);
                    self.conditioning.extend(masked_latent(latent, &mask));
                }
            }
        }
        Ok(())
    }

    /// The conditioning, where there is one.
    pub fn given(&self) -> Option<&[f32]> {
        (!self.conditioning.is_empty()).then_some(self.conditioning.as_slice())
    }
}

/// What a network for inpainting reads: the latent with zeros where it is painted, and the mask, `[C + 1, H, W]`.
pub fn masked_latent(latent: &[f32], mask: &Mask) -> Vec<f32> {
    let planes = latent.chunks_exact(mask.values.len());
    let kept = planes.flat_map(|plane| plane.iter().zip(&mask.values).map(|(value, painted)| if *painted > 0.0 { 0.0 } else { *value }));
    kept.chain(mask.values.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(channels: usize) -> Batch {
        let latents = (1..=2 * channels * 4).map(|i| i as f32).collect();
        Batch { shape: [channels, 2, 2], latents, prompts: vec![0, 1], samples: vec![4, 2] }
    }

    #[test]
    fn pairs_come_apart() {
        let mut conditioned = Conditioned::default();
        conditioned.prepare(Task::Edit, &[], &batch(2), (1, 2, 0)).unwrap();
        assert_eq!(conditioned.x0, [1.0, 2.0, 3.0, 4.0, 9.0, 10.0, 11.0, 12.0]);
        assert_eq!(conditioned.given().unwrap(), [5.0, 6.0, 7.0, 8.0, 13.0, 14.0, 15.0, 16.0]);
        assert!(conditioned.prepare(Task::Edit, &[], &batch(3), (1, 2, 0)).unwrap_err().to_string().contains("3 channels are no pairs"));
        conditioned.prepare(Task::Generate, &[], &batch(2), (1, 2, 0)).unwrap();
        assert_eq!((conditioned.x0.len(), conditioned.given()), (16, None));
    }

    #[test]
    fn what_is_painted_is_hidden() {
        let mask = Mask { height: 2, width: 2, values: vec![0.0, 1.0, 0.0, 0.0] };
        assert_eq!(
            masked_latent(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &mask),
            [1.0, 0.0, 3.0, 4.0, 5.0, 0.0, 7.0, 8.0, 0.0, 1.0, 0.0, 0.0]
        );
    }

    #[test]
    fn every_sample_has_a_mask_of_its_own_and_micro_batches_go_on_counting() {
        let mut parts = [Conditioned::default(), Conditioned::default()];
        let mut whole = Conditioned::default();
        let large = |n: usize| Batch { shape: [1, 8, 8], latents: vec![1.0; n * 64], prompts: vec![0; n], samples: vec![0; n] };
        whole.prepare(Task::Inpaint, &MaskKind::ALL, &large(8), (1, 2, 0)).unwrap();
        for (micro, part) in parts.iter_mut().enumerate() {
            part.prepare(Task::Inpaint, &MaskKind::ALL, &large(4), (1, 2, micro)).unwrap();
        }
        assert_eq!([parts[0].conditioning.clone(), parts[1].conditioning.clone()].concat(), whole.conditioning);
        assert!(whole.conditioning.chunks(128).skip(1).any(|c| c != &whole.conditioning[..128]));
        assert!(whole.conditioning.chunks(128).all(|c| c[..64].iter().zip(&c[64..]).all(|(kept, painted)| kept + painted == 1.0)));
    }
}
