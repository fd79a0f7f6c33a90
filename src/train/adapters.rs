//! A LoRA student in training: the weights are `W = W0 + s B A`, and only `A` and `B` learn.
//!
//! The step runs on the product, which lies in the network's own arena, and computes its whole gradient; from that
//! `dA = s Bᵀ dW` and `dB = s dW Aᵀ` follow. AdamW moves the adapters, and `W` is made again. `W0` does not change: the
//! optimiser's master weights, moments and average are those of the adapters alone. Called by [`Network`](super::Network).
//!
//! `A` is kept transposed, `[inputs, rank]`, so that both gradients are the weight gradient of a dense layer and the product is
//! its forward; ranks are padded to whole 16 bytes with zeros, whose gradient is zero.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::device::{Backend, DeviceError, Linear, PatchOrder, PatchShape, Storage};
use crate::flow::philox::{fill_normals, stream};
use crate::format::Role;
use crate::lora::{Adapter, Lora, Target};
use crate::model::Layout;
use crate::{Error, Result};

/// Products on a GPU want rows of whole 16 bytes.
const GRANULE: usize = 8;

/// What the adapters of a student are.
#[derive(Clone, Debug)]
pub struct AdapterPlan {
    /// The matrices that get one.
    pub targets: Vec<Target>,
    /// Rank.
    pub rank: usize,
    /// What the product is multiplied by.
    pub scale: f32,
    /// Seed of `A`; `B` begins at zero.
    pub seed: u64,
}

/// The adapters of one network.
#[derive(Debug)]
pub struct Adapters<B: Backend> {
    plan: AdapterPlan,
    places: Vec<Place>,
    layout: Layout,
    /// Zeros as long as the widest layer: biases, and room for their gradients.
    zeros: std::ops::Range<usize>,
    /// `A` and `B` in the compute type.
    pub params: B::Data,
    /// The same times the scale; none where it is 1.
    scaled: Option<(B::Stat, B::Data)>,
    /// Gradients of `A` and `B`.
    pub grads: B::Stat,
    /// `W0` of the adapted matrices, in the compute type.
    frozen: B::Data,
    /// Room for one matrix's gradient in the compute type, as it is and transposed.
    gradient: [B::Data; 2],
    /// The whole network before, in fp32 on the host.
    weights: Arc<Vec<f32>>,
}

/// Where the parts of one adapter lie.
#[derive(Clone, Debug)]
struct Place {
    outputs: usize,
    inputs: usize,
    /// First element of the matrix in the network's arena, and in `frozen`.
    weight: usize,
    frozen: usize,
    /// First elements of `A` transposed and of `B` in the adapters' arena.
    a: usize,
    b: usize,
}

impl Place {
    fn len(&self) -> usize {
        self.outputs * self.inputs
    }
}

impl<B: Backend> Adapters<B> {
    /// Plans the adapters of a network whose tensors lie as `arena` says and whose weights are `weights`.
    ///
    /// # Errors
    /// When a target is no part of the network, the rank is 0, or the device's memory is exhausted.
    pub fn new(b: &B, plan: AdapterPlan, arena: &Layout, weights: Arc<Vec<f32>>) -> Result<Self> {
        if plan.rank == 0 || plan.targets.is_empty() {
            return Err(Error::Config(format!("adapters of rank {} for {} matrices train nothing", plan.rank, plan.targets.len())));
        }
        let mut layout = Layout::default();
        let widest = plan.targets.iter().map(|target| target.inputs.max(target.outputs)).max().unwrap_or_default();
        let zeros = layout.push("zeros", &[widest]);
        let mut frozen = Layout::default();
        let padded = plan.rank.next_multiple_of(GRANULE);
        let places = plan.targets.iter().map(|target| {
            let entry = arena.entries().iter().find(|entry| entry.name == target.tensor && target.range().end <= entry.len());
            let entry = entry.ok_or_else(|| Error::Usage(format!("this network has no matrix `{}` to adapt", target.module)))?;
            Ok(Place {
                outputs: target.outputs,
                inputs: target.inputs,
                weight: entry.offset + target.range().start,
                frozen: frozen.push(target.module.clone(), &[target.outputs, target.inputs]),
                a: layout.push(format!("{}.lora_A", target.module), &[target.inputs, padded]),
                b: layout.push(format!("{}.lora_B", target.module), &[target.outputs, padded]),
            })
        });
        let places: Vec<Place> = places.collect::<Result<_>>()?;
        let largest = places.iter().map(Place::len).max().unwrap_or_default();
        let scaled = (plan.scale != 1.0).then(|| Ok::<_, DeviceError>((b.alloc_stat(layout.len())?, b.alloc_data(layout.len())?)));
        let mut adapters = Self {
            zeros: zeros..zeros + widest,
            params: b.alloc_data(layout.len())?,
            scaled: scaled.transpose()?,
            grads: b.alloc_stat(layout.len())?,
            frozen: b.alloc_data(frozen.len())?,
            gradient: [b.alloc_data(largest)?, b.alloc_data(largest)?],
            plan,
            places,
            layout,
            weights,
        };
        for place in &adapters.places {
            let matrix = &adapters.weights[place.weight..place.weight + place.len()];
            b.upload_data(matrix, adapters.frozen.part_mut(place.frozen..place.frozen + place.len()));
        }
        Ok(adapters)
    }

    /// Length of the arena of `A` and `B`.
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The network's weights before, on the host.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// What a training begins with: `A` normal with variance `1 / (3 inputs)`, as wide as PEFT's uniform draw, and `B` zero.
    pub fn initial(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        let (rank, padded) = (self.plan.rank, self.padded());
        let mut drawn = Vec::new();
        for (i, place) in self.places.iter().enumerate() {
            drawn.resize(place.inputs * rank, 0.0);
            fill_normals(self.plan.seed, 0, stream::ADAPTERS + i as u32, 0, &mut drawn);
            let scale = (1.0 / (3.0 * place.inputs as f32)).sqrt();
            let rows = values[place.a..place.a + place.inputs * padded].chunks_exact_mut(padded);
            for (row, drawn) in rows.zip(drawn.chunks_exact(rank)) {
                row.iter_mut().zip(drawn).for_each(|(value, drawn)| *value = drawn * scale);
            }
        }
        values
    }

    /// The host arena that holds `lora`, to go on with adapters that are there already.
    ///
    /// # Errors
    /// When it is not of these matrices, this rank and this scale.
    pub fn arena(&self, lora: &Lora) -> Result<Vec<f32>> {
        let (padded, rank) = (self.padded(), self.plan.rank);
        let mut values = vec![0.0; self.len()];
        for (target, place) in self.plan.targets.iter().zip(&self.places) {
            let adapter = lora.adapters.get(&target.module).filter(|a| (a.rank, a.scale) == (rank, self.plan.scale));
            let fits =
                adapter.filter(|a| a.inputs == place.inputs && a.outputs == place.outputs && lora.adapters.len() == self.places.len());
            let Some(adapter) = fits else {
                return Err(Error::Usage(format!("the adapters do not fit: `{}` is missing, or of another shape or scale", target.module)));
            };
            let mut b = adapter.b.clone();
            if target.swapped {
                let half = b.len() / 2;
                b.rotate_left(half);
            }
            for (i, row) in values[place.a..place.a + place.inputs * padded].chunks_exact_mut(padded).enumerate() {
                row.iter_mut().zip(adapter.a.iter().skip(i).step_by(place.inputs)).for_each(|(value, a)| *value = *a);
            }
            for (row, b) in values[place.b..place.b + place.outputs * padded].chunks_exact_mut(padded).zip(b.chunks_exact(rank)) {
                row[..rank].copy_from_slice(b);
            }
        }
        Ok(values)
    }

    /// Queues the gradients of `A` and `B` from that of the whole network.
    pub fn gradients(&mut self, b: &B, whole: &B::Stat) {
        let padded = self.padded();
        b.fill(self.grads.all_mut(), 0.0);
        let scaled = self.scaled.as_ref().map_or(&self.params, |(_, scaled)| scaled);
        let [straight, transposed] = &mut self.gradient;
        for place in &self.places {
            let Place { outputs, inputs, weight, .. } = *place;
            let len = place.len();
            b.cast(whole.part(weight..weight + len), straight.part_mut(0..len));
            // A picture one pixel high, with the matrix's rows as channels: its tokens are the matrix's columns.
            let columns = PatchShape { batch: 1, channels: outputs, height: 1, width: inputs, patch: 1, order: PatchOrder::ChannelFirst };
            b.patchify(&columns, whole.part(weight..weight + len), transposed.part_mut(0..len));
            let layer = |weight: usize, outputs: usize| Linear { weight, bias: self.zeros.start, inputs: padded, outputs };
            let (a, up) = (place.a..place.a + inputs * padded, place.b..place.b + outputs * padded);
            b.linear_backward_weight(&mut self.grads, &layer(place.a, inputs), outputs, scaled.part(up), straight.part(0..len));
            b.linear_backward_weight(&mut self.grads, &layer(place.b, outputs), inputs, scaled.part(a), transposed.part(0..len));
        }
        b.fill(self.grads.part_mut(self.zeros.clone()), 0.0);
    }

    /// Queues `W = W0 + s B A` into the network's arena, from `params` and the fp32 adapters `master` that it is rounded from.
    pub fn rebuild(&mut self, b: &B, master: &B::Stat, whole: &mut B::Data) {
        let padded = self.padded();
        if let Some((product, scaled)) = &mut self.scaled {
            // An Euler step from nothing.
            b.fill(product.all_mut(), 0.0);
            b.euler_cfg(product.all_mut(), master.all(), None, 1.0, self.plan.scale);
            b.cast(product.all(), scaled.all_mut());
        }
        let scaled = self.scaled.as_ref().map_or(&self.params, |(_, scaled)| scaled);
        for place in &self.places {
            let (weight, frozen) = (place.weight..place.weight + place.len(), place.frozen..place.frozen + place.len());
            b.copy_data(self.frozen.part(frozen), whole.part_mut(weight.clone()));
            let layer = Linear { weight: place.a, bias: self.zeros.start, inputs: padded, outputs: place.inputs };
            let up = scaled.part(place.b..place.b + place.outputs * padded);
            b.linear(&self.params, &layer, place.outputs, up, whole.part_mut(weight), true);
        }
    }

    /// The adapters of a host arena, by diffusers' names.
    pub fn named(&self, arena: &[f32]) -> Lora {
        let named = self.plan.targets.iter().zip(&self.places).map(|(target, place)| {
            let part = |first: usize, rows: usize| &arena[first..first + rows * self.padded()];
            (target.module.clone(), self.adapter(target, part(place.a, place.inputs), part(place.b, place.outputs)))
        });
        Lora { adapters: named.collect(), role: Some(Role::Student), notes: BTreeMap::new() }
    }

    fn adapter(&self, target: &Target, a: &[f32], b: &[f32]) -> Adapter {
        let (rank, padded) = (self.plan.rank, self.padded());
        let transposed = (0..rank).flat_map(|r| a.iter().skip(r).step_by(padded).copied()).collect();
        let mut rows: Vec<f32> = b.chunks_exact(padded).flat_map(|row| row[..rank].iter().copied()).collect();
        if target.swapped {
            let half = rows.len() / 2;
            rows.rotate_left(half);
        }
        Adapter { rank, inputs: target.inputs, outputs: target.outputs, a: transposed, b: rows, scale: self.plan.scale }
    }

    /// The whole network with the adapters of a host arena: bit for bit what merging their file into it gives.
    pub fn merged(&self, arena: &[f32]) -> Vec<f32> {
        let mut weights = self.weights.to_vec();
        let lora = self.named(arena);
        for (target, place) in self.plan.targets.iter().zip(&self.places) {
            let Some(adapter) = lora.adapters.get(&target.module) else { continue };
            let mut change = adapter.unscaled().change(1.0);
            if target.swapped {
                let half = change.len() / 2;
                change.rotate_left(half);
            }
            weights[place.weight..place.weight + place.len()].iter_mut().zip(&change).for_each(|(weight, change)| *weight += change);
        }
        weights
    }

    fn padded(&self) -> usize {
        self.plan.rank.next_multiple_of(GRANULE)
    }
}
