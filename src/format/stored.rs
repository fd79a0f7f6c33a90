//! A network's tensors in their files: mapped, and read tensor by tensor into the one place where they are needed.
//!
//! Loading never holds a second copy: [`StoredTensors::gather`] fills an arena on all cores, [`StoredTensors::stream`] hands out
//! chunks of a few megabytes for a device. Opened by [`super::NetworkFile`], [`super::diffusers`] and [`super::original`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::checkpoint::hex;
use super::names::differences;
use super::values::{TensorView, Values};
use super::{SafetensorsFile, Tensor, Tensors, parameter_shapes};
use crate::model::{Layout, ModelConfig};
use crate::{Error, Result};

/// The tensors of a network under their original names, by view.
pub type TensorViews<'a> = BTreeMap<String, TensorView<'a>>;

/// The tensors of a network under their original Stable Diffusion 3 names, wherever they are.
#[derive(Clone, Debug, Default)]
pub struct StoredTensors {
    places: BTreeMap<String, Place>,
    /// SHA-256 of each tensor, taken once: that reads everything.
    digests: OnceLock<Vec<[u8; 32]>>,
}

#[derive(Clone, Debug)]
struct Place {
    shape: Vec<usize>,
    pieces: Vec<Piece>,
}

/// A run of numbers of a file or in memory.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    source: Source,
    range: Range<usize>,
    scale: f32,
}

#[derive(Clone, Debug)]
enum Source {
    File(Arc<SafetensorsFile>, String),
    Memory(Arc<Vec<f32>>),
}

impl Piece {
    /// Elements of a tensor of a file, times `scale`.
    pub fn of_file(file: &Arc<SafetensorsFile>, name: &str, range: Range<usize>, scale: f32) -> Self {
        Self { source: Source::File(file.clone(), name.to_owned()), range, scale }
    }

    fn values(&self) -> Values<'_> {
        match &self.source {
            Source::File(file, name) => Values::File { file, name, range: self.range.clone(), scale: self.scale },
            Source::Memory(values) => Values::Memory(values),
        }
    }
}

impl From<Tensors> for StoredTensors {
    fn from(tensors: Tensors) -> Self {
        let mut stored = Self::default();
        tensors.into_iter().for_each(|(name, tensor)| stored.replace(name, tensor));
        stored
    }
}

impl StoredTensors {
    /// Places the tensor `name` where `pieces` are, one after the other.
    pub(crate) fn place(&mut self, name: String, shape: Vec<usize>, pieces: Vec<Piece>) {
        self.digests = OnceLock::new();
        self.places.insert(name, Place { shape, pieces });
    }

    /// Puts a tensor in memory in the place of the one of this name, if there was one.
    pub fn replace(&mut self, name: String, Tensor { shape, data }: Tensor) {
        let range = 0..data.len();
        self.place(name, shape, vec![Piece { source: Source::Memory(Arc::new(data)), range, scale: 1.0 }]);
    }

    /// Names and shapes.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.places.iter().map(|(name, place)| (name.clone(), place.shape.clone())).collect()
    }

    /// Number of elements of all tensors.
    pub fn elements(&self) -> usize {
        self.places.values().map(|place| place.shape.iter().product::<usize>()).sum()
    }

    /// All tensors, to be written elsewhere.
    pub fn views(&self) -> TensorViews<'_> {
        self.places.iter().map(|(name, place)| (name.clone(), place.view())).collect()
    }

    /// Fails unless these are the tensors of `model`, all of them and no others; the message names no file.
    pub(crate) fn check(&self, model: &ModelConfig) -> Result<(), String> {
        let wrong = differences(&parameter_shapes(model), &self.shapes());
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// When there is no such tensor, or it does not hold floats.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let place = self.places.get(name).ok_or_else(|| Error::Usage(format!("the network has no tensor `{name}`")))?;
        place.view().read()
    }

    /// Reads all tensors, each into memory of its own.
    ///
    /// # Errors
    /// As [`StoredTensors::read`].
    pub fn load(&self) -> Result<Tensors> {
        self.places.keys().map(|name| Ok((name.clone(), self.read(name)?))).collect()
    }

    /// Reads the tensors of a layout into one arena, which is all the memory it takes.
    ///
    /// # Errors
    /// Names every tensor that is missing or has another shape.
    pub fn gather(&self, layout: &Layout) -> Result<Vec<f32>> {
        self.check_layout(layout)?;
        let mut arena = vec![0.0; layout.len()];
        let mut parts = Vec::new();
        let (mut rest, mut at) = (arena.as_mut_slice(), 0);
        for entry in layout.entries() {
            let (_, behind) = rest.split_at_mut(entry.offset - at);
            let (part, behind) = behind.split_at_mut(entry.len());
            parts.push((entry.name.as_str(), part));
            (rest, at) = (behind, entry.offset + entry.len());
        }
        let fill = |(name, part): (&str, &mut [f32])| self.places.get(name).map_or(Ok(()), |place| place.view().read_into(part));
        parts.into_par_iter().try_for_each(fill)?;
        Ok(arena)
    }

    /// Hands out the tensors of a layout chunk by chunk: the first element's place in the arena, and the values.
    ///
    /// # Errors
    /// Names every tensor that is missing or has another shape; what `f` returns.
    pub fn stream(&self, layout: &Layout, mut f: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        const CHUNK: usize = 1 << 22;
        self.check_layout(layout)?;
        let mut buffer = Vec::new();
        for entry in layout.entries() {
            let Some(place) = self.places.get(&entry.name) else { continue };
            let view = place.view();
            for start in (0..entry.len()).step_by(CHUNK) {
                let part = start..entry.len().min(start + CHUNK);
                buffer.resize(part.len(), 0.0);
                TensorView { shape: vec![part.len()], runs: view.part(part) }.read_into(&mut buffer)?;
                f(entry.offset + start, &buffer)?;
            }
        }
        Ok(())
    }

    fn check_layout(&self, layout: &Layout) -> Result<()> {
        let needed = layout.entries().iter().map(|entry| (entry.name.clone(), entry.shape.clone())).collect::<BTreeMap<_, _>>();
        let mut found = self.shapes();
        found.retain(|name, _| needed.contains_key(name));
        match differences(&needed, &found) {
            wrong if wrong.is_empty() => Ok(()),
            wrong => Err(Error::Usage(format!("the weights do not fit the model's configuration: {wrong}"))),
        }
    }

    /// SHA-256 over the architecture and all tensors, as [`super::Checkpoint::fingerprint`] takes it.
    ///
    /// # Errors
    /// When a tensor does not hold floats.
    pub fn fingerprint(&self, model: &ModelConfig) -> Result<String> {
        let digests = match self.digests.get() {
            Some(known) => known,
            None => {
                let found = self.places.par_iter().map(|(name, place)| digest(name, &place.view())).collect::<Result<_>>()?;
                self.digests.get_or_init(|| found)
            }
        };
        let mut all = Sha256::new();
        // Networks without conditioning keep the fingerprints that they had before there was any.
        all.update(format!("{model:?}").replace(", conditioning_channels: 0", ""));
        digests.iter().for_each(|digest| all.update(digest));
        Ok(hex(&all.finalize()))
    }
}

impl Place {
    fn view(&self) -> TensorView<'_> {
        TensorView { shape: self.shape.clone(), runs: self.pieces.iter().map(Piece::values).collect() }
    }
}

fn digest(name: &str, tensor: &TensorView<'_>) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(format!("{name} {:?}", tensor.shape));
    let mut buffer = Vec::new();
    for run in &tensor.runs {
        run.for_each_chunk(&mut buffer, |values| {
            match cfg!(target_endian = "little") {
                true => hash.update(bytemuck::cast_slice::<f32, u8>(values)),
                false => values.iter().for_each(|value| hash.update(value.to_le_bytes())),
            }
            Ok::<(), Error>(())
        })?;
    }
    Ok(hash.finalize().into())
}

/// Views of tensors in memory.
pub(crate) fn views(tensors: &Tensors) -> TensorViews<'_> {
    tensors.iter().map(|(name, tensor)| (name.clone(), TensorView::new(&tensor.shape, &tensor.data))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checkpoint::tests::example;
    use crate::format::{Dtype, NetworkFile};
    use crate::model::mmdit::MmditLayout;

    #[test]
    fn what_is_in_a_file_is_what_is_in_memory() {
        let checkpoint = example(true, 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        checkpoint.save(&path, Dtype::BF16).unwrap();
        let (model, layout) = (&checkpoint.pipeline.model, MmditLayout::new(&checkpoint.pipeline.model).arena);
        for stored in [NetworkFile::open(&path).unwrap().tensors, checkpoint.tensors.clone().into()] {
            assert!(stored.load().unwrap() == checkpoint.tensors);
            assert_eq!(stored.fingerprint(model).unwrap(), checkpoint.fingerprint());
            let find = |name: &str| checkpoint.tensors.get(name).map(|t| (t.shape.as_slice(), t.data.as_slice()));
            let expected = layout.gather(find).unwrap();
            assert!(stored.gather(&layout).unwrap() == expected);
            let mut streamed = vec![0.0; layout.len()];
            let put = |at: usize, values: &[f32]| {
                streamed[at..at + values.len()].copy_from_slice(values);
                Ok(())
            };
            stored.stream(&layout, put).unwrap();
            assert!(streamed == expected);
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_named() {
        let checkpoint = example(false, 0);
        let mut stored = StoredTensors::from(checkpoint.tensors);
        stored.replace("final_layer.linear.bias".into(), Tensor::zeros(&[3]));
        let layout = MmditLayout::new(&checkpoint.pipeline.model).arena;
        let error = stored.gather(&layout).unwrap_err().to_string();
        assert!(error.contains("final_layer.linear.bias [3] instead of [16]"), "{error}");
        assert!(stored.check(&checkpoint.pipeline.model).unwrap_err().contains("[3] instead of [16]"));
        assert!(stored.read("none").unwrap_err().to_string().contains("`none`"));
    }
}
