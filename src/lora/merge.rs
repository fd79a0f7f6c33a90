//! Adding adapters to the weights of a network, `W += strength s B A`, and taking them away again with the negative strength.

use super::{Lora, targets};
use crate::format::Tensors;
use crate::model::ModelConfig;
use crate::{Error, Result};

/// Adds the adapters to a network's tensors, in f32. A negative `strength` takes away what the positive added, up to rounding.
///
/// # Errors
/// When a tensor is missing or has another shape than the network of `model`, or `strength` is no finite number.
pub fn merge(model: &ModelConfig, tensors: &mut Tensors, lora: &Lora, strength: f32) -> Result<()> {
    if !strength.is_finite() {
        return Err(Error::Usage(format!("a scale of {strength} is no finite number")));
    }
    let targets = targets(model);
    for (module, adapter) in &lora.adapters {
        let target = targets.iter().find(|target| target.module == *module);
        let target = target.filter(|t| (t.inputs, t.outputs) == (adapter.inputs, adapter.outputs));
        let target = target.ok_or_else(|| {
            Error::Usage(format!("the adapter of `{module}` {}x{} does not fit this network", adapter.outputs, adapter.inputs))
        })?;
        let weight = tensors.get_mut(&target.tensor).and_then(|tensor| tensor.data.get_mut(target.range()));
        let weight = weight.ok_or_else(|| Error::Usage(format!("the network's `{}` is missing or too small", target.tensor)))?;
        let mut change = adapter.change(strength);
        if target.swapped {
            let half = change.len() / 2;
            change.rotate_left(half);
        }
        weight.iter_mut().zip(&change).for_each(|(weight, change)| *weight += change);
    }
    Ok(())
}

/// How far two networks are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    /// Values compared.
    pub values: usize,
    /// Values that differ.
    pub differ: usize,
    /// Largest difference.
    pub largest: f64,
    /// Root of the summed squares of the differences, over that of the first network's values.
    pub relative: f64,
}

/// Compares two networks, tensor by tensor.
///
/// # Errors
/// Names a tensor that one of them lacks or that has another size.
pub fn distance(a: &Tensors, b: &Tensors) -> Result<Distance> {
    let (mut distance, mut squares, mut norm) = (Distance::default(), 0.0, 0.0);
    for (name, first) in a {
        let second = b.get(name).filter(|second| second.shape == first.shape);
        let second = second.ok_or_else(|| Error::Usage(format!("the networks differ in more than weights: `{name}` does not match")))?;
        distance.values += first.data.len();
        for (a, b) in first.data.iter().zip(&second.data) {
            let difference = (f64::from(*a) - f64::from(*b)).abs();
            distance.differ += usize::from(difference > 0.0);
            distance.largest = distance.largest.max(difference);
            squares += difference * difference;
            norm += f64::from(*a) * f64::from(*a);
        }
    }
    distance.relative = if norm > 0.0 { (squares / norm).sqrt() } else { squares.sqrt() };
    Ok(distance)
}
