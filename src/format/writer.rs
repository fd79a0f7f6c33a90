//! Writing safetensors, streamed: 8 bytes of header length, a JSON header, then the tensors one after the other.
//!
//! Floats are converted a chunk at a time, so a checkpoint is never held in memory twice. The same content gives the
//! same bytes: keys are sorted, and tensors lie in the order of their names (wider types first, which aligns them).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::values::{CHUNK, TensorView, Values};
use crate::device::e4m3;
use crate::{Error, Result};

/// Floating-point type of the tensors in a file; in memory they are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE single precision: what training continues from.
    #[default]
    F32,
    /// IEEE half precision: values up to 65504.
    F16,
    /// bfloat16: the range of f32, 8 bits of mantissa.
    BF16,
    /// FP8 e4m3, up to 448, for weights with two axes and more; the rest is bfloat16. Half the size, for drawing only.
    #[serde(rename = "f8_e4m3")]
    F8E4M3,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 => 1,
        }
    }

    /// What a tensor of this name and shape is stored in.
    pub(crate) fn for_tensor(self, name: &str, shape: &[usize]) -> Self {
        match self {
            Self::F8E4M3 if shape.len() < 2 || name.contains("pos_embed") && !name.contains("proj") => Self::BF16,
            other => other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
        }
    }
}

/// A tensor in memory, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    /// Sizes of the axes, slowest first.
    pub shape: Vec<usize>,
    /// Elements; as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// The tensors of a network under their original Stable Diffusion 3 names, see [`crate::format::parameter_shapes`].
pub type Tensors = BTreeMap<String, Tensor>;

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), data: vec![0.0; shape.iter().product()] }
    }
}

/// What a tensor of a file is made from.
pub(crate) enum Data<'a> {
    /// Floats, the concatenation of `parts`, converted to `dtype` while they are written.
    Floats { parts: Vec<Values<'a>>, dtype: Dtype },
    /// Unsigned 32-bit integers.
    U32(&'a [u32]),
    /// Signed 64-bit integers.
    I64(&'a [i64]),
    /// `len` floats from elsewhere, such as a device, as f32.
    FetchedF32 { len: usize, fetch: Fetch<'a, f32> },
    /// `len` bytes from elsewhere.
    FetchedU8 { len: usize, fetch: Fetch<'a, u8> },
}

/// Hands out a range of a tensor's elements; asked for a chunk at a time, in order.
pub(crate) type Fetch<'a, T> = Box<dyn Fn(Range<usize>) -> Result<Vec<T>> + 'a>;

/// One tensor to write.
pub(crate) struct Entry<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Data<'a>,
}

impl<'a> Entry<'a> {
    pub fn floats(name: impl Into<String>, shape: &[usize], parts: Vec<&'a [f32]>, dtype: Dtype) -> Self {
        Self::runs(name, shape, parts.into_iter().map(Values::Memory).collect(), dtype)
    }

    /// A tensor made of `parts`, one after the other.
    pub fn runs(name: impl Into<String>, shape: &[usize], parts: Vec<Values<'a>>, dtype: Dtype) -> Self {
        let name = name.into();
        let dtype = dtype.for_tensor(&name, shape);
        Self { name, shape: shape.to_vec(), data: Data::Floats { parts, dtype } }
    }

    /// A tensor as it is.
    pub fn view(name: impl Into<String>, tensor: &TensorView<'a>, dtype: Dtype) -> Self {
        Self::runs(name, tensor.shape(), tensor.runs.clone(), dtype)
    }

    /// A tensor with one axis of floats that are fetched while they are written.
    pub fn fetched_f32(name: impl Into<String>, len: usize, fetch: impl Fn(Range<usize>) -> Result<Vec<f32>> + 'a) -> Self {
        Self { name: name.into(), shape: vec![len], data: Data::FetchedF32 { len, fetch: Box::new(fetch) } }
    }

    /// A tensor with one axis of bytes that are fetched while they are written.
    pub fn fetched_u8(name: impl Into<String>, len: usize, fetch: impl Fn(Range<usize>) -> Result<Vec<u8>> + 'a) -> Self {
        Self { name: name.into(), shape: vec![len], data: Data::FetchedU8 { len, fetch: Box::new(fetch) } }
    }

    /// Bytes it takes in a file.
    pub fn bytes(&self) -> usize {
        self.len() * self.element().1
    }

    fn element(&self) -> (&'static str, usize) {
        match &self.data {
            Data::Floats { dtype, .. } => (dtype.name(), dtype.size()),
            Data::U32(_) => ("U32", 4),
            Data::I64(_) => ("I64", 8),
            Data::FetchedF32 { .. } => ("F32", 4),
            Data::FetchedU8 { .. } => ("U8", 1),
        }
    }

    fn len(&self) -> usize {
        match &self.data {
            Data::Floats { parts, .. } => parts.iter().map(|part| part.len()).sum(),
            Data::U32(values) => values.len(),
            Data::I64(values) => values.len(),
            Data::FetchedF32 { len, .. } | Data::FetchedU8 { len, .. } => *len,
        }
    }

    /// Refuses what would be read back as something else.
    fn check(&self) -> Result<()> {
        let expected: usize = self.shape.iter().product();
        if self.len() != expected {
            return Err(Error::Usage(format!(
                "tensor `{}` has {} elements, but its shape {:?} asks for {expected}",
                self.name,
                self.len(),
                self.shape
            )));
        }
        let Data::Floats { parts, dtype } = &self.data else { return Ok(()) };
        let largest = match dtype {
            Dtype::F16 => 65504.0,
            Dtype::F8E4M3 => e4m3::LARGEST,
            Dtype::F32 | Dtype::BF16 => return Ok(()),
        };
        let fits = |value: f32| match dtype {
            Dtype::F16 => half::f16::from_f32(value).is_finite() || !value.is_finite(),
            _ => value.abs() <= largest || value.is_nan(),
        };
        let mut buffer = Vec::new();
        parts.iter().try_for_each(|part| {
            part.for_each_chunk(&mut buffer, |values| match values.iter().find(|value| !fits(**value)) {
                Some(value) => Err(Error::Usage(format!(
                    "tensor `{}` holds {value}, beyond {}'s largest value {largest}: save it as bf16 or f32",
                    self.name,
                    if *dtype == Dtype::F16 { "float16" } else { "float8" }
                ))),
                None => Ok(()),
            })
        })
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.data {
            Data::Floats { parts, dtype } => {
                let mut buffer = Vec::new();
                let write = |part: &Values<'_>| part.for_each_chunk(&mut buffer, |values| Ok(write_floats(out, values, *dtype)?));
                parts.iter().try_for_each(write).map_err(Unwritten::into_io)
            }
            Data::U32(values) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes())),
            Data::I64(values) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes())),
            Data::FetchedF32 { len, fetch } => {
                chunks(*len).try_for_each(|part| write_floats(out, &fetch(part).map_err(elsewhere)?, Dtype::F32))
            }
            Data::FetchedU8 { len, fetch } => chunks(*len).try_for_each(|part| out.write_all(&fetch(part).map_err(elsewhere)?)),
        }
    }
}

/// What ended the writing: the disk, or the file that is read.
enum Unwritten {
    Disk(io::Error),
    Source(Error),
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<Error> for Unwritten {
    fn from(error: Error) -> Self {
        Self::Source(error)
    }
}

impl Unwritten {
    fn into_io(self) -> io::Error {
        match self {
            Self::Disk(error) => error,
            Self::Source(error) => elsewhere(error),
        }
    }
}

/// An error of what is read while a file is written.
fn elsewhere(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}

/// `0..len` in parts that are moved at once.
pub(crate) fn chunks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(CHUNK).map(move |start| start..len.min(start + CHUNK))
}

fn write_floats(out: &mut dyn Write, values: &[f32], dtype: Dtype) -> io::Result<()> {
    const CHUNK: usize = 1 << 14;
    let mut bytes = Vec::with_capacity(CHUNK * dtype.size());
    for chunk in values.chunks(CHUNK) {
        bytes.clear();
        match dtype {
            Dtype::F32 => bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes())),
            Dtype::F16 => bytes.extend(chunk.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes())),
            Dtype::BF16 => bytes.extend(chunk.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())),
            Dtype::F8E4M3 => bytes.extend(chunk.iter().map(|v| e4m3::encode(*v))),
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// A safetensors file ready to be written: everything that can be wrong with it has been checked.
pub(crate) struct Prepared<'a> {
    header: Vec<u8>,
    entries: Vec<Entry<'a>>,
}

impl Prepared<'_> {
    /// Writes the whole file.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        self.entries.iter().try_for_each(|entry| entry.write(out))
    }
}

/// Checks the tensors and lays the file out.
pub(crate) fn prepare_safetensors<'a>(metadata: &BTreeMap<String, String>, mut entries: Vec<Entry<'a>>) -> Result<Prepared<'a>> {
    entries.sort_by(|a, b| b.element().1.cmp(&a.element().1).then_with(|| a.name.cmp(&b.name)));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for entry in &entries {
        entry.check()?;
        let (dtype, _) = entry.element();
        let end = offset + entry.bytes();
        header.insert(entry.name.clone(), json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(Prepared { header, entries })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entries: Vec<Entry<'_>>) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        prepare_safetensors(&BTreeMap::from([("format".into(), "pt".into())]), entries)?.write(&mut out).unwrap();
        Ok(out)
    }

    #[test]
    fn the_reference_implementation_reads_what_is_written() {
        let floats = [1.0, -2.5, 3.25, 65504.0];
        let entries = vec![
            Entry::floats("b", &[2, 2], vec![&floats[2..], &floats[..2]], Dtype::F16),
            Entry::floats("a", &[4], vec![&floats], Dtype::F32),
            Entry { name: "i".into(), shape: vec![2], data: Data::I64(&[-1, 7]) },
            Entry { name: "u".into(), shape: vec![1], data: Data::U32(&[9]) },
        ];
        let file = bytes(entries).unwrap();
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("a").unwrap().data(), floats.map(f32::to_le_bytes).concat());
        assert_eq!(read.tensor("b").unwrap().data(), [3.25, 65504.0, 1.0, -2.5].map(|v| half::f16::from_f32(v).to_le_bytes()).concat());
        assert_eq!(read.tensor("i").unwrap().data(), [-1i64, 7].map(i64::to_le_bytes).concat());
        assert_eq!(read.tensor("u").unwrap().shape(), [1]);
    }

    #[test]
    fn what_lies_elsewhere_is_fetched_a_chunk_at_a_time() {
        let values: Vec<f32> = (0..2 * CHUNK + 3).map(|i| i as f32).collect();
        let asked = std::cell::RefCell::new(Vec::new());
        let floats = Entry::fetched_f32("f", values.len(), |part| {
            asked.borrow_mut().push(part.clone());
            Ok(values[part].to_vec())
        });
        let file = bytes(vec![floats, Entry::fetched_u8("u", 3, |part| Ok(part.map(|i| i as u8 + 7).collect()))]).unwrap();
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("f").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&values));
        assert_eq!(read.tensor("u").unwrap().data(), [7, 8, 9]);
        assert_eq!(asked.into_inner(), [0..CHUNK, CHUNK..2 * CHUNK, 2 * CHUNK..2 * CHUNK + 3]);

        let lost = Entry::fetched_f32("f", 1, |_| Err(Error::Usage("the device is lost".into())));
        let error = prepare_safetensors(&BTreeMap::new(), vec![lost]).unwrap().write(&mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "the device is lost");
    }

    #[test]
    fn what_cannot_be_read_back_is_refused() {
        let large = [1e5];
        let error = bytes(vec![Entry::floats("w", &[1], vec![&large], Dtype::F16)]).err().unwrap().to_string();
        assert!(error.contains("`w` holds 100000") && error.contains("bf16"), "{error}");
        assert!(bytes(vec![Entry::floats("w", &[1], vec![&large], Dtype::BF16)]).is_ok());
        let error = bytes(vec![Entry::floats("w", &[3], vec![&large], Dtype::F32)]).err().unwrap().to_string();
        assert!(error.contains("[3] asks for 3"), "{error}");
    }
}
