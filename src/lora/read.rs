//! From a file to adapters of a given network: every module is found, fused matrices are taken apart, shapes are checked.

use super::file::LoraFile;
use super::names::{Modules, Part, Places};
use super::{Adapter, Lora, Target, targets};
use crate::model::ModelConfig;
use crate::{Error, Result};

/// Modules that are listed in a message before the rest are counted.
const SHOWN: usize = 4;

impl LoraFile {
    /// The adapters for the network of `model`.
    ///
    /// # Errors
    /// Names the module that the network does not have, and the tensor that does not fit it or holds something else than finite
    /// numbers.
    pub fn read(&self, model: &ModelConfig) -> Result<Lora> {
        let targets = targets(model);
        let modules = Modules::new(&targets);
        let unknown: Vec<&str> = self.modules().filter(|module| modules.find(module).is_none()).collect();
        if !unknown.is_empty() {
            let more = if unknown.len() > SHOWN { format!(" and {} more", unknown.len() - SHOWN) } else { String::new() };
            let names = unknown[..unknown.len().min(SHOWN)].join(", ");
            return Err(Error::file(self.path(), format!("adapts modules that this network does not have: {names}{more}")));
        }
        let mut lora = Lora { role: self.role(), notes: self.notes().clone(), ..Lora::default() };
        for module in self.modules() {
            let Some(places) = modules.find(module) else { continue };
            for (target, adapter) in self.adapters(module, places)? {
                if lora.adapters.insert(target.module.clone(), adapter).is_some() {
                    return Err(Error::file(self.path(), format!("adapts `{}` twice, under two names", target.module)));
                }
            }
        }
        Ok(lora)
    }

    /// The adapters that a module's tensors are: one, or three for fused queries, keys and values, which share `A`.
    fn adapters<'a>(&self, module: &str, places: &Places<'a>) -> Result<Vec<(&'a Target, Adapter)>> {
        let rank = self.rank(module)?;
        let inputs = places.parts.first().map_or(0, |(_, target)| target.inputs);
        let outputs = places.parts.iter().map(|(_, target)| target.outputs).sum();
        let a = self.matrix(module, Part::A, [rank, inputs])?;
        let b = self.matrix(module, Part::B, [outputs, rank])?;
        let scale = self.scale(module, rank)?;
        let adapters = places.parts.iter().map(|(row, target)| {
            let mut b = b[row * rank..(row + target.outputs) * rank].to_vec();
            if places.original && target.swapped {
                let half = b.len() / 2;
                b.rotate_left(half);
            }
            (*target, Adapter { rank, inputs, outputs: target.outputs, a: a.clone(), b, scale })
        });
        Ok(adapters.collect())
    }

    /// A tensor as a matrix; a convolution's has more sides.
    fn matrix(&self, module: &str, part: Part, [rows, columns]: [usize; 2]) -> Result<Vec<f32>> {
        let (name, shape) = self.shape(module, part)?;
        let fits = shape.first() == Some(&rows) && shape.len() > 1 && shape.iter().skip(1).product::<usize>() == columns;
        if !fits {
            return Err(Error::file(self.path(), format!("`{name}` has the shape {shape:?} where [{rows}, {columns}] is needed")));
        }
        let values = self.file.f32(name)?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::file(self.path(), format!("`{name}` holds {value}: it is damaged"))),
            None => Ok(values),
        }
    }
}
