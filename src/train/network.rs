//! A network in training: weights, gradients and optimiser state, all in arenas of one layout.

use crate::device::packed::Packing;
use crate::device::{ADAMW_COUNTERS, AdamwShape, AdamwState, Backend, DeviceError, Moment, Storage};
use crate::train::{Moments, OptimConfig};

/// Weights and optimiser state of one network.
#[derive(Debug)]
pub struct Network<B: Backend> {
    /// Weights in the compute type.
    pub params: B::Data,
    /// Weights in fp32.
    pub master: B::Stat,
    /// Gradients, added up over the micro-batches of a step.
    pub grads: B::Stat,
    /// First moment; none where `beta1` is 0.
    pub moment1: Option<Moment<B>>,
    /// Second moment.
    pub moment2: Moment<B>,
    /// Moving average of the weights.
    pub ema: Option<B::Stat>,
    /// Updates applied and skipped.
    pub counters: B::Stat,
    /// Global gradient norm of the last step, before clipping.
    pub norm: B::Stat,
    shape: AdamwShape,
}

impl<B: Backend> Network<B> {
    /// Starts training from the host arena `weights`. `lr_index` says which learning rate of the step is this network's;
    /// `ema_decay` 0 keeps no average.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    pub fn new(b: &B, weights: &[f32], optim: &OptimConfig, lr_index: usize, ema_decay: f64) -> Result<Self, DeviceError> {
        let mut network = Self::zeroed(b, weights.len(), optim, lr_index, ema_decay)?;
        b.upload_data(weights, network.params.all_mut());
        b.upload_stat(weights, network.master.all_mut());
        if let Some(ema) = &mut network.ema {
            b.upload_stat(weights, ema.all_mut());
        }
        Ok(network)
    }

    /// The same with `len` weights that are zero, for weights that are made or read on the device.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    pub fn zeroed(b: &B, len: usize, optim: &OptimConfig, lr_index: usize, ema_decay: f64) -> Result<Self, DeviceError> {
        let packed = |packing| (optim.moments == Moments::Packed).then_some(packing);
        Ok(Self {
            params: b.alloc_data(len)?,
            master: b.alloc_stat(len)?,
            grads: b.alloc_stat(len)?,
            moment1: (optim.beta1 > 0.0).then(|| Moment::new(b, len, packed(Packing::SIGNED))).transpose()?,
            moment2: Moment::new(b, len, packed(Packing::UNSIGNED))?,
            ema: (ema_decay > 0.0).then(|| b.alloc_stat(len)).transpose()?,
            counters: b.alloc_stat(ADAMW_COUNTERS)?,
            norm: b.alloc_stat(1)?,
            shape: AdamwShape {
                lr_index,
                beta1: optim.beta1,
                beta2: optim.beta2,
                eps: optim.eps,
                weight_decay: optim.weight_decay,
                clip: optim.clip,
                ema_decay,
            },
        })
    }

    /// Sets the gradients to zero, at the beginning of a step.
    pub fn zero_gradients(&mut self, b: &B) {
        b.fill(self.grads.all_mut(), 0.0);
    }

    /// Clips and applies the gradients.
    pub fn update(&mut self, b: &B, step: &B::Step) {
        b.global_norm(&self.grads, &mut self.norm);
        let Self { params, master, grads, moment1, moment2, ema, counters, norm, shape } = self;
        b.adamw(step, shape, grads, norm, AdamwState { params, master, moment1: moment1.as_mut(), moment2, ema: ema.as_mut(), counters });
    }

    /// The weights an evaluation should use: the average where there is one.
    ///
    /// # Errors
    /// When the device failed before.
    pub fn averaged_weights(&self, b: &B) -> Result<Vec<f32>, DeviceError> {
        b.download_stat(self.ema.as_ref().unwrap_or(&self.master).all())
    }
}
