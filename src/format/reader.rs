//! Reading safetensors: the file is memory-mapped, and its header is validated before any number in it is used.
//!
//! Reads f32, f16, bf16, f64, fp8 (e4m3 and e5m2), u8, u32 and i64 tensors, also from bytes compiled into the program. Called by everything
//! that loads a network, a golden tensor, or latents.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype as Stored, Metadata, TensorInfo};

use crate::device::e4m3;
use crate::{Error, Result};

/// Length of the number that opens the file: the size of the header.
const PREFIX: usize = 8;
/// Bytes of the longest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// A validated safetensors file, mapped into memory.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    data_start: usize,
    header: Metadata,
    metadata: BTreeMap<String, String>,
    names: Vec<String>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

impl SafetensorsFile {
    /// Maps and validates a file. Reads nothing but the header; the tensors are read when they are asked for.
    ///
    /// # Errors
    /// When the file cannot be opened, is truncated, or its header contradicts itself or the file's size.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| Error::io("read", path, source))?;
        let about = file.metadata().map_err(|source| Error::io("read", path, source))?;
        if !about.is_file() {
            return Err(Error::file(path, "is not a file: name a .safetensors file"));
        }
        let map = map_read_only(&file).map_err(|source| Error::io("map", path, source))?;
        Self::validated(path.to_owned(), Bytes::Mapped(map))
    }

    /// Validates bytes compiled into the program; `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::validated(PathBuf::from(name), Bytes::Static(bytes))
    }

    fn validated(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let (header, data_start) = parse(bytes.get()).map_err(|cause| Error::file(&path, cause))?;
        let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut names = header.offset_keys();
        names.sort_unstable();
        Ok(Self { path, bytes, data_start, header, metadata, names })
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The free-form strings in the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Shape of a tensor.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    /// Name of a tensor's type as the header spells it, such as `BF16`; empty where there is no such tensor.
    pub fn type_name(&self, name: &str) -> &'static str {
        match self.header.info(name).map(|info| info.dtype) {
            Some(Stored::F64) => "F64",
            Some(Stored::F32) => "F32",
            Some(Stored::F16) => "F16",
            Some(Stored::BF16) => "BF16",
            Some(Stored::F8_E4M3) => "F8_E4M3",
            Some(Stored::F8_E5M2) => "F8_E5M2",
            Some(_) => "other",
            None => "",
        }
    }

    /// Fails unless the tensor is there with exactly this shape.
    ///
    /// # Errors
    /// Names the tensor, both shapes and the file.
    pub fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        let found = self.shape(name)?;
        if found == shape {
            return Ok(());
        }
        Err(Error::file(&self.path, format!("tensor `{name}` has the shape {found:?} where {shape:?} is needed")))
    }

    /// A floating-point tensor of any precision as f32.
    ///
    /// # Errors
    /// When there is no such tensor or it does not hold floats.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.info(name)?.shape.iter().product()];
        self.f32_into(name, 0, &mut out)?;
        Ok(out)
    }

    /// `out.len()` elements of a floating-point tensor from element `start` on, as f32.
    ///
    /// # Errors
    /// When there is no such tensor, it does not hold floats, or it has no such elements.
    pub fn f32_into(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let (dtype, bytes) = self.raw(name)?;
        let size = dtype.bitsize() / 8;
        let range = start.checked_mul(size).and_then(|first| Some(first..first.checked_add(out.len().checked_mul(size)?)?));
        let Some(bytes) = range.and_then(|range| bytes.get(range)) else {
            return Err(Error::file(&self.path, format!("tensor `{name}` has no elements {start} to {}", start.saturating_add(out.len()))));
        };
        match dtype {
            Stored::F32 => convert(bytes, out, f32::from_le_bytes),
            Stored::F64 => convert(bytes, out, |raw| f64::from_le_bytes(raw) as f32),
            Stored::F16 => half_precision(bytes, out, half::f16::from_le_bytes),
            Stored::BF16 => half_precision(bytes, out, half::bf16::from_le_bytes),
            Stored::F8_E4M3 => convert(bytes, out, |[code]| e4m3::decode(code)),
            // The upper byte of an f16.
            Stored::F8_E5M2 => convert(bytes, out, |[code]| half::f16::from_bits(u16::from(code) << 8).to_f32()),
            other => return Err(self.wrong_type(name, other, "floats (F32, F16, BF16, F64 or F8)")),
        }
        Ok(())
    }

    /// A floating-point tensor of any precision as f64.
    ///
    /// # Errors
    /// When there is no such tensor or it does not hold floats.
    pub fn f64(&self, name: &str) -> Result<Vec<f64>> {
        match self.raw(name)? {
            (Stored::F64, bytes) => {
                let mut out = vec![0.0; bytes.len() / 8];
                convert(bytes, &mut out, f64::from_le_bytes);
                Ok(out)
            }
            _ => Ok(self.f32(name)?.into_iter().map(f64::from).collect()),
        }
    }

    /// A tensor of bytes, where it lies.
    ///
    /// # Errors
    /// When there is no such tensor or it holds something else.
    pub fn u8(&self, name: &str) -> Result<&[u8]> {
        match self.raw(name)? {
            (Stored::U8, bytes) => Ok(bytes),
            (other, _) => Err(self.wrong_type(name, other, "bytes (U8)")),
        }
    }

    /// A tensor of whole numbers (U8, U32, I32, I64) as i64.
    ///
    /// # Errors
    /// When there is no such tensor or it holds something else.
    pub fn i64(&self, name: &str) -> Result<Vec<i64>> {
        let (dtype, bytes) = self.raw(name)?;
        let mut out = vec![0; bytes.len() * 8 / dtype.bitsize()];
        match dtype {
            Stored::U8 => convert(bytes, &mut out, |raw| i64::from(u8::from_le_bytes(raw))),
            Stored::I32 => convert(bytes, &mut out, |raw| i64::from(i32::from_le_bytes(raw))),
            Stored::U32 => convert(bytes, &mut out, |raw| i64::from(u32::from_le_bytes(raw))),
            Stored::I64 => convert(bytes, &mut out, i64::from_le_bytes),
            other => return Err(self.wrong_type(name, other, "whole numbers (U8, U32, I32 or I64)")),
        }
        Ok(out)
    }

    /// The value of a metadata key.
    ///
    /// # Errors
    /// When the key is missing.
    pub fn metadata_value(&self, key: &str) -> Result<&str> {
        let value = self.metadata.get(key).map(String::as_str);
        value.ok_or_else(|| Error::file(&self.path, format!("has no metadata `{key}`; it holds {:?}", self.metadata.keys())))
    }

    /// The whole file.
    pub(crate) fn file_bytes(&self) -> &[u8] {
        self.bytes.get()
    }

    fn raw(&self, name: &str) -> Result<(Stored, &[u8])> {
        let info = self.info(name)?;
        let (start, end) = info.data_offsets;
        Ok((info.dtype, &self.bytes.get()[self.data_start + start..self.data_start + end]))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| Error::file(&self.path, format!("has no tensor `{name}`{}", self.similar(name))))
    }

    /// Says what the file does hold, where that helps.
    fn similar(&self, name: &str) -> String {
        match self.names.iter().find(|other| other.ends_with(name)) {
            Some(other) => format!(" (but `{other}`)"),
            None => format!(" among its {}", self.names.len()),
        }
    }

    fn wrong_type(&self, name: &str, found: Stored, wanted: &str) -> Error {
        Error::file(&self.path, format!("tensor `{name}` holds {found:?} where {wanted} are needed"))
    }
}

/// Maps a whole file for reading.
#[allow(unsafe_code)]
fn map_read_only(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is private and read-only, and every byte pattern is valid for the u8 slices handed out. What the
    // caller has to accept is that the file must not be shortened while it is mapped: the crate itself only ever
    // replaces files by rename, which leaves the mapped ones whole.
    unsafe { memmap2::MmapOptions::new().map(file) }
}

/// Validates the header; returns it with the offset of the first tensor.
fn parse(bytes: &[u8]) -> Result<(Metadata, usize), String> {
    let advice = "it is truncated or no safetensors file: copy or download it again";
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Err(format!("has only {} bytes: {advice}", bytes.len()));
    };
    let length = u64::from_le_bytes(*prefix);
    if length > LONGEST_HEADER {
        return Err("is no safetensors file: it does not begin with the length of a header".into());
    }
    let data_start = usize::try_from(length).ok().and_then(|length| length.checked_add(PREFIX));
    let Some((data_start, header)) = data_start.and_then(|end| Some((end, bytes.get(PREFIX..end)?))) else {
        return Err(format!("announces a header of {length} bytes, but has only {} bytes in all: {advice}", bytes.len()));
    };
    let header: Metadata = serde_json::from_slice(header).map_err(|error| format!("has a bad safetensors header ({error}): {advice}"))?;
    let (expected, found) = (header.data_len(), bytes.len() - data_start);
    if expected != found {
        return Err(format!("describes {expected} bytes of tensors, but holds {found}: {advice}"));
    }
    Ok((header, data_start))
}

fn convert<T, const N: usize>(bytes: &[u8], out: &mut [T], read: impl Fn([u8; N]) -> T) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (value, raw) in out.iter_mut().zip(elements) {
        *value = read(*raw);
    }
}

/// As `convert`, through half's vectorised conversion where the bytes happen to be aligned.
fn half_precision<T>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; 2]) -> T)
where
    T: bytemuck::Pod + Into<f32>,
    [T]: half::slice::HalfFloatSliceExt,
{
    use half::slice::HalfFloatSliceExt;
    if cfg!(target_endian = "little")
        && let Ok(values) = bytemuck::try_cast_slice::<u8, T>(bytes)
    {
        return values.convert_to_f32_slice(out);
    }
    convert(bytes, out, |raw| read(raw).into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Data, Dtype, Entry, prepare_safetensors};
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let floats: Vec<f32> = (0..6).map(|i| i as f32 - 2.5).collect();
        let entries = vec![
            Entry::floats("f32", &[2, 3], vec![&floats], Dtype::F32),
            Entry::floats("f16", &[6], vec![&floats], Dtype::F16),
            Entry::floats("bf16", &[3, 2], vec![&floats], Dtype::BF16),
            Entry { name: "ids".into(), shape: vec![2], data: Data::U32(&[7, u32::MAX]) },
            Entry { name: "seeds".into(), shape: vec![2], data: Data::I64(&[-1, 3]) },
        ];
        let mut out = Vec::new();
        prepare_safetensors(&BTreeMap::from([("key".into(), "value".into())]), entries).unwrap().write(&mut out).unwrap();
        out
    }

    fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        SafetensorsFile::open(path)
    }

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn every_type_is_read() {
        let file = open(&sample()).unwrap();
        let expected: Vec<f32> = (0..6).map(|i| i as f32 - 2.5).collect();
        for name in ["f32", "f16", "bf16"] {
            assert_eq!(file.f32(name).unwrap(), expected, "{name}");
        }
        assert_eq!(file.f64("f16").unwrap()[1], -1.5);
        let mut some = [0.0; 2];
        file.f32_into("f16", 3, &mut some).unwrap();
        assert_eq!(some, [0.5, 1.5]);
        assert!(file.f32_into("f16", 5, &mut some).is_err());
        assert_eq!(file.i64("ids").unwrap(), [7, i64::from(u32::MAX)]);
        assert_eq!(file.i64("seeds").unwrap(), [-1, 3]);
        assert_eq!(file.metadata_value("key").unwrap(), "value");
        assert_eq!(file.names(), ["bf16", "f16", "f32", "ids", "seeds"]);
        assert_eq!(file.shape("bf16").unwrap(), [3, 2]);
    }

    #[test]
    fn f64_and_u8_are_read_and_unaligned_halves_too() {
        let header = r#"{"d":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]},"h":{"dtype":"F16","shape":[1],"data_offsets":[9,11]}}"#;
        let data = [&0.1f64.to_le_bytes()[..], &[200], &half::f16::from_f32(1.5).to_le_bytes()].concat();
        let file = open(&with_header(header, &data)).unwrap();
        assert_eq!(file.f64("d").unwrap(), [0.1]);
        assert_eq!(file.f32("d").unwrap(), [0.1f32]);
        assert_eq!(file.u8("b").unwrap(), [200]);
        assert_eq!(file.f32("h").unwrap(), [1.5]);
    }

    #[test]
    fn eight_bit_floats_are_read() {
        let header =
            r#"{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"F8_E5M2","shape":[2,2],"data_offsets":[4,8]}}"#;
        let file = open(&with_header(header, &[0x38, 0xc0, 0x7e, 0x01, 0x3c, 0xc0, 0x7b, 0x01])).unwrap();
        assert_eq!(file.f32("a").unwrap(), [1.0, -2.0, 448.0, 2.0_f32.powi(-9)]);
        assert_eq!(file.f32("b").unwrap(), [1.0, -2.0, 57344.0, 2.0_f32.powi(-16)]);
        let mut some = [0.0; 2];
        file.f32_into("a", 1, &mut some).unwrap();
        assert_eq!(some, [-2.0, 448.0]);
    }

    #[test]
    fn every_kind_of_damage_has_its_own_message() {
        let cases: [(Vec<u8>, &str); 9] = [
            (vec![1, 2, 3], "has only 3 bytes"),
            (Vec::new(), "has only 0 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "is no safetensors file"),
            (sample()[..40].to_vec(), "announces a header"),
            (with_header("{not json", &[]), "bad safetensors header"),
            (
                with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 7]),
                "describes 8 bytes of tensors, but holds 7",
            ),
            (with_header(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, &[0; 8]), "bad safetensors header"),
            (
                with_header(
                    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                    &[0; 12],
                ),
                "bad safetensors header",
            ),
            (with_header(r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]), "bad safetensors header"),
        ];
        for (bytes, cause) in cases {
            let error = open(&bytes).unwrap_err().to_string();
            assert!(error.contains(cause) && error.contains("x.safetensors") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn wrong_requests_name_the_tensor_and_the_file() {
        let file = SafetensorsFile::from_bytes("asset", Box::leak(sample().into_boxed_slice())).unwrap();
        let error = file.f32("ids").unwrap_err().to_string();
        assert!(error.contains("asset") && error.contains("`ids` holds U32"), "{error}");
        assert!(file.u8("f32").unwrap_err().to_string().contains("bytes (U8)"));
        assert!(file.i64("f32").unwrap_err().to_string().contains("whole numbers"));
        assert!(file.f32("none").unwrap_err().to_string().contains("no tensor `none`"));
        assert!(file.expect_shape("f32", &[6]).unwrap_err().to_string().contains("[2, 3] where [6]"));
        assert!(file.metadata_value("none").unwrap_err().to_string().contains("`none`"));
        assert!(SafetensorsFile::open("/nonexistent/x").unwrap_err().to_string().contains("/nonexistent/x"));
        assert!(SafetensorsFile::open(std::env::temp_dir()).unwrap_err().to_string().contains("is not a file"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_truncation_is_accepted(cut in 0usize..400) {
            let whole = sample();
            prop_assume!(cut < whole.len());
            prop_assert!(open(&whole[..cut]).is_err());
        }

        #[test]
        fn no_flipped_byte_panics(position in 0usize..400, value: u8) {
            let mut bytes = sample();
            let position = position % bytes.len();
            bytes[position] = value;
            if let Ok(file) = open(&bytes) {
                for name in file.names() {
                    let _ = file.f32(name);
                    let _ = file.i64(name);
                }
            }
        }
    }
}
