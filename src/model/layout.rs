//! Flat parameter arenas: every network's weights lie in one buffer, and a [`Layout`] maps names to offsets and shapes.
//! Gradients, master weights, moments and averages are buffers of the same layout.

use crate::device::Linear;
use crate::error::{Error, Result};

/// Every tensor begins at a multiple of this many elements, so that 16-byte vector accesses are aligned in bf16 too.
const ALIGNMENT: usize = 64;

/// One tensor of an arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Its first element in the arena.
    pub offset: usize,
}

impl Entry {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its elements in the arena.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Where every tensor of a network lies in its arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    entries: Vec<Entry>,
    len: usize,
}

impl Layout {
    /// The tensors in the order of their offsets.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Length of the arena, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of parameters, padding excluded.
    pub fn parameters(&self) -> usize {
        self.entries.iter().map(Entry::len).sum()
    }

    /// Adds a tensor and returns its offset.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize]) -> usize {
        self.len = self.len.next_multiple_of(ALIGNMENT);
        self.push_packed(name, shape)
    }

    /// Adds a tensor right behind the last one, without padding.
    pub(super) fn push_packed(&mut self, name: impl Into<String>, shape: &[usize]) -> usize {
        let entry = Entry { name: name.into(), shape: shape.to_vec(), offset: self.len };
        self.len += entry.len();
        self.entries.push(entry);
        self.entries[self.entries.len() - 1].offset
    }

    /// Adds `name.weight` `[outputs, inputs]` and `name.bias` `[outputs]`.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Linear {
        self.shaped_linear(name, &[outputs, inputs])
    }

    /// Adds a layer whose weight has more than two dimensions, such as a convolution.
    pub fn shaped_linear(&mut self, name: &str, shape: &[usize]) -> Linear {
        let weight = self.push(format!("{name}.weight"), shape);
        let bias = self.push(format!("{name}.bias"), &shape[..1]);
        Linear { weight, bias, inputs: shape[1..].iter().product(), outputs: shape[0] }
    }

    /// Gathers a checkpoint's tensors into one host arena. `find` gives shape and values of a name.
    ///
    /// # Errors
    /// Names every tensor that is missing or has another shape.
    pub fn gather<'a>(&self, find: impl Fn(&str) -> Option<(&'a [usize], &'a [f32])>) -> Result<Vec<f32>> {
        let mut arena = vec![0.0; self.len];
        let mut wrong = Vec::new();
        for entry in &self.entries {
            match find(&entry.name) {
                Some((shape, values)) if shape == entry.shape => arena[entry.range()].copy_from_slice(values),
                Some((shape, _)) => wrong.push(format!("`{}` is {shape:?} instead of {:?}", entry.name, entry.shape)),
                None => wrong.push(format!("`{}` {:?} is missing", entry.name, entry.shape)),
            }
        }
        if wrong.is_empty() {
            return Ok(arena);
        }
        let (shown, more) = wrong.split_at(wrong.len().min(4));
        let rest = if more.is_empty() { String::new() } else { format!(", and {} more", more.len()) };
        Err(Error::Usage(format!("the weights do not fit the model's configuration: {}{rest}", shown.join(", "))))
    }

    /// Takes a host arena apart into named tensors.
    pub fn scatter<'a>(&'a self, arena: &'a [f32]) -> impl Iterator<Item = (&'a Entry, &'a [f32])> {
        self.entries.iter().map(|entry| (entry, &arena[entry.range()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_aligned_and_survive_the_round_trip() {
        let mut layout = Layout::default();
        let linear = layout.linear("a", 3, 5);
        layout.push("b", &[7]);
        assert_eq!((linear.weight, linear.bias, layout.len(), layout.parameters()), (0, 64, 135, 25));
        let arena: Vec<f32> = (0..layout.len()).map(|i| i as f32).collect();
        let parts: Vec<(String, Vec<usize>, Vec<f32>)> =
            layout.scatter(&arena).map(|(e, v)| (e.name.clone(), e.shape.clone(), v.to_vec())).collect();
        let find = |name: &str| parts.iter().find(|p| p.0 == name).map(|p| (&p.1[..], &p.2[..]));
        let again = layout.gather(find).unwrap();
        assert_eq!(again[64..67], arena[64..67]);
        let error = layout.gather(|name| find(name).filter(|_| name != "b")).unwrap_err().to_string();
        assert!(error.contains("`b` [7] is missing"), "{error}");
    }
}
