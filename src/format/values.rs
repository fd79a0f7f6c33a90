//! Numbers of a tensor where they are: in memory, or in a mapped file from which they are read a chunk at a time.
//!
//! `value = stored * scale`. A tensor is a list of such runs one after the other: so a fused qkv is three tensors of a file,
//! a third of it is a part of one, and nothing is copied to say so. Read by [`super::StoredTensors`], written by `super::writer`.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{SafetensorsFile, Tensor};
use crate::Result;

/// Elements that are read at once.
pub(crate) const CHUNK: usize = 1 << 18;

/// A run of numbers.
#[derive(Clone, Debug)]
pub(crate) enum Values<'a> {
    /// In memory, of the caller or shared.
    Memory(&'a [f32]),
    /// Elements of a tensor of a file, times `scale`.
    File { file: &'a Arc<SafetensorsFile>, name: &'a str, range: Range<usize>, scale: f32 },
}

impl<'a> Values<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(values) => values.len(),
            Self::File { range, .. } => range.len(),
        }
    }

    /// A part of them. What lies beyond the end is left out.
    pub fn part(&self, part: Range<usize>) -> Self {
        let part = part.start.min(self.len())..part.end.min(self.len());
        match self {
            Self::Memory(values) => Self::Memory(values.get(part).unwrap_or_default()),
            Self::File { file, name, range, scale } => {
                Self::File { file, name, range: range.start + part.start..range.start + part.end, scale: *scale }
            }
        }
    }

    /// Reads them into `out`, which has their length, on all cores.
    pub fn read_into(&self, out: &mut [f32]) -> Result<()> {
        out.par_chunks_mut(CHUNK).enumerate().try_for_each(|(i, out)| self.read_part(i * CHUNK, out))
    }

    /// Hands them out in order, a chunk at a time, through memory that is used again.
    pub fn for_each_chunk<E: From<crate::Error>>(
        &self,
        buffer: &mut Vec<f32>,
        mut f: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Self::Memory(values) = self {
            return values.chunks(CHUNK).try_for_each(f);
        }
        for start in (0..self.len()).step_by(CHUNK) {
            buffer.resize(CHUNK.min(self.len() - start), 0.0);
            self.read_part(start, buffer)?;
            f(buffer)?;
        }
        Ok(())
    }

    fn read_part(&self, start: usize, out: &mut [f32]) -> Result<()> {
        match self.part(start..start + out.len()) {
            Values::Memory(values) => out.copy_from_slice(values),
            Values::File { file, name, range, scale } => {
                file.f32_into(name, range.start, out)?;
                if scale != 1.0 {
                    out.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        Ok(())
    }
}

/// A tensor as runs of numbers, row-major.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    pub(crate) shape: Vec<usize>,
    pub(crate) runs: Vec<Values<'a>>,
}

impl<'a> TensorView<'a> {
    /// A tensor in memory: `values` has as many elements as the product of `shape`.
    pub fn new(shape: &[usize], values: &'a [f32]) -> Self {
        Self { shape: shape.to_vec(), runs: vec![Values::Memory(values)] }
    }

    /// Sizes of the axes, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// When a file does not hold the floats it listed.
    pub fn read(&self) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(&self.shape);
        self.read_into(&mut tensor.data)?;
        Ok(tensor)
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.runs.iter().map(Values::len).sum()
    }

    /// The runs of a part of its elements.
    pub(crate) fn part(&self, part: Range<usize>) -> Vec<Values<'a>> {
        let mut first = 0;
        let mut runs = Vec::new();
        for run in &self.runs {
            let (start, end) = (part.start.max(first), part.end.min(first + run.len()));
            if start < end {
                runs.push(run.part(start - first..end - first));
            }
            first += run.len();
        }
        runs
    }

    /// Reads all of it into `out`, which has its length.
    pub(crate) fn read_into(&self, mut out: &mut [f32]) -> Result<()> {
        for run in &self.runs {
            let (now, rest) = out.split_at_mut(run.len());
            run.read_into(now)?;
            out = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cross_the_borders_of_runs() {
        let (a, b) = ([0.0, 1.0, 2.0], [3.0, 4.0]);
        let view = TensorView { shape: vec![5], runs: vec![Values::Memory(&a), Values::Memory(&b)] };
        let read = |part: Range<usize>| {
            let mut out = vec![0.0; part.len()];
            TensorView { shape: vec![part.len()], runs: view.part(part) }.read_into(&mut out).unwrap();
            out
        };
        assert_eq!(read(0..5), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(read(2..4), [2.0, 3.0]);
        assert_eq!(read(3..3), [0.0; 0]);
        assert_eq!(view.part(4..9).iter().map(Values::len).sum::<usize>(), 1);
    }
}
