//! One adapter, and a set of them by diffusers' module names.

use std::collections::BTreeMap;

use crate::device::cpu::{Mat, MatMut, Threads, matmul};
use crate::format::Role;

/// The low-rank change of one matrix: `scale B A`.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Rank, at least 1.
    pub rank: usize,
    /// Width of the layer's input.
    pub inputs: usize,
    /// Width of the layer's output.
    pub outputs: usize,
    /// `A` `[rank, inputs]`.
    pub a: Vec<f32>,
    /// `B` `[outputs, rank]`, rows in diffusers' order.
    pub b: Vec<f32>,
    /// What the product is multiplied by, `alpha / rank`.
    pub scale: f32,
}

impl Adapter {
    /// `scale strength B A` `[outputs, inputs]`, rows in diffusers' order.
    pub fn change(&self, strength: f32) -> Vec<f32> {
        let Self { rank, inputs, outputs, .. } = *self;
        let mut change = vec![0.0; outputs * inputs];
        let (b, a) = (Mat::new(&self.b, outputs, rank, rank), Mat::new(&self.a, rank, inputs, inputs));
        matmul(MatMut::new(&mut change, outputs, inputs, inputs), false, self.scale * strength, b, a, Threads::All);
        change
    }

    /// The same change with the scale inside `B`: what files hold, for not every program that reads them knows of a scale.
    pub fn unscaled(&self) -> Self {
        Self { b: self.b.iter().map(|value| value * self.scale).collect(), scale: 1.0, ..self.clone() }
    }
}

/// Adapters of one network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lora {
    /// By diffusers' module.
    pub adapters: BTreeMap<String, Adapter>,
    /// What the network is with them, where that is known: a student's adapters make a teacher a student.
    pub role: Option<Role>,
    /// Where they come from: free text for people.
    pub notes: BTreeMap<String, String>,
}

impl Lora {
    /// Number of values in all adapters.
    pub fn parameters(&self) -> usize {
        self.adapters.values().map(|adapter| adapter.a.len() + adapter.b.len()).sum()
    }
}
