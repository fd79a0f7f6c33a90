//! A network in training: weights, gradients and optimiser state, all in arenas of one layout.

use std::sync::Arc;

use crate::Result;
use crate::device::packed::Packing;
use crate::device::{ADAMW_COUNTERS, AdamwShape, AdamwState, Backend, DeviceError, Moment, Storage};
use crate::lora::Lora;
use crate::model::Layout;
use crate::train::{AdapterPlan, Adapters, Moments, OptimConfig};

/// Weights and optimiser state of one network.
#[derive(Debug)]
pub struct Network<B: Backend> {
    /// Weights in the compute type.
    pub params: B::Data,
    /// What the optimiser moves, in fp32: the weights, or a LoRA student's adapters.
    pub master: B::Stat,
    /// Gradients of the weights, added up over the micro-batches of a step.
    pub grads: B::Stat,
    /// First moment; none where `beta1` is 0.
    pub moment1: Option<Moment<B>>,
    /// Second moment.
    pub moment2: Moment<B>,
    /// Moving average of what the optimiser moves.
    pub ema: Option<B::Stat>,
    /// Updates applied and skipped.
    pub counters: B::Stat,
    /// Global gradient norm of the last step, before clipping.
    pub norm: B::Stat,
    /// A LoRA student's adapters, to which the optimiser's state then belongs.
    pub adapters: Option<Adapters<B>>,
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
        network.set(b, 0, weights);
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
            adapters: None,
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

    /// Sets the weights from element `at` of the arena on: parameters, master weights and average.
    pub fn set(&mut self, b: &B, at: usize, values: &[f32]) {
        let place = at..at + values.len();
        b.upload_data(values, self.params.part_mut(place.clone()));
        b.upload_stat(values, self.master.part_mut(place.clone()));
        if let Some(ema) = &mut self.ema {
            b.upload_stat(values, ema.part_mut(place));
        }
    }

    /// Starts the training of adapters of a network that lies as `arena` says and whose weights are `weights`.
    ///
    /// # Errors
    /// When the adapters do not fit the network, or the device's memory is exhausted.
    pub fn with_adapters(
        b: &B,
        weights: Arc<Vec<f32>>,
        (arena, plan): (&Layout, AdapterPlan),
        optim: &OptimConfig,
        lr_index: usize,
        ema_decay: f64,
    ) -> Result<Self> {
        let adapters = Adapters::new(b, plan, arena, weights)?;
        let mut network = Self::new(b, &adapters.initial(), optim, lr_index, ema_decay)?;
        let len = adapters.weights().len();
        network.params = b.alloc_data(len)?;
        network.grads = b.alloc_stat(len)?;
        b.upload_data(adapters.weights(), network.params.all_mut());
        network.adapters = Some(adapters);
        network.refresh(b);
        Ok(network)
    }

    /// Makes the weights again from what the optimiser moves, after that was written from elsewhere.
    pub fn refresh(&mut self, b: &B) {
        match &mut self.adapters {
            None => b.cast(self.master.all(), self.params.all_mut()),
            Some(adapters) => {
                b.cast(self.master.all(), adapters.params.all_mut());
                adapters.rebuild(b, &self.master, &mut self.params);
            }
        }
    }

    /// Sets the gradients to zero, at the beginning of a step.
    pub fn zero_gradients(&mut self, b: &B) {
        b.fill(self.grads.all_mut(), 0.0);
    }

    /// Clips and applies the gradients.
    pub fn update(&mut self, b: &B, step: &B::Step) {
        let Self { params, master, grads, moment1, moment2, ema, counters, norm, adapters, shape } = self;
        let (moment1, ema) = (moment1.as_mut(), ema.as_mut());
        let Some(adapters) = adapters else {
            b.global_norm(grads, norm);
            b.adamw(step, shape, grads, norm, AdamwState { params, master, moment1, moment2, ema, counters });
            return;
        };
        adapters.gradients(b, grads);
        b.global_norm(&adapters.grads, norm);
        let state = AdamwState { params: &mut adapters.params, master, moment1, moment2, ema, counters };
        b.adamw(step, shape, &adapters.grads, norm, state);
        adapters.rebuild(b, master, params);
    }

    /// Queues the average of the weights, in the compute type, into `out`, which lies as they do; the weights themselves where
    /// there is none.
    pub fn average_into(&mut self, b: &B, out: &mut B::Data) {
        let Self { params, master, ema, adapters, .. } = self;
        match (adapters, ema) {
            (None, Some(ema)) => b.cast(ema.all(), out.all_mut()),
            (_, None) => b.copy_data(params.all(), out.all_mut()),
            (Some(adapters), Some(ema)) => {
                b.copy_data(params.all(), out.all_mut());
                b.cast(ema.all(), adapters.params.all_mut());
                adapters.rebuild(b, ema, out);
                // What the next gradients are taken with.
                b.cast(master.all(), adapters.params.all_mut());
                adapters.rebuild(b, master, params);
            }
        }
    }

    /// The weights an evaluation should use: the average where there is one, with a LoRA student's adapters merged.
    ///
    /// # Errors
    /// When the device failed before.
    pub fn averaged_weights(&self, b: &B) -> Result<Vec<f32>, DeviceError> {
        let values = self.averaged(b)?;
        Ok(match &self.adapters {
            Some(adapters) => adapters.merged(&values),
            None => values,
        })
    }

    /// A LoRA student's adapters: their average where there is one.
    ///
    /// # Errors
    /// When the device failed before.
    pub fn averaged_adapters(&self, b: &B) -> Result<Option<Lora>, DeviceError> {
        let Some(adapters) = &self.adapters else { return Ok(None) };
        Ok(Some(adapters.named(&self.averaged(b)?)))
    }

    fn averaged(&self, b: &B) -> Result<Vec<f32>, DeviceError> {
        b.download_stat(self.ema.as_ref().unwrap_or(&self.master).all())
    }
}
