//! Which of cuBLASLt's algorithms computes a product. Its heuristic proposes several, and the first is not always the
//! fastest. Measured choices differ from run to run by noise, and another algorithm may give other bits: so choices are
//! kept in a file beside the run, and a run that is gone on with takes them from there.
//!
//! An algorithm is known by the 64 bytes that cuBLASLt lets programs keep and hand back to a library of the same version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::driver::{Address, Element, Epilogue, Gemm, Operand};
use crate::format::write_atomically;
use crate::{Error, Result};

/// The file in a run's folder.
pub const FILE: &str = "gemm_algorithms.json";
/// How many of the heuristic's proposals are measured.
pub const CANDIDATES: usize = 8;
/// Alignments beyond this change nothing.
const WIDEST_ALIGNMENT: u64 = 256;

/// An algorithm, as cuBLASLt writes it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm(pub [u64; 8]);

impl Algorithm {
    fn to_hex(self) -> String {
        self.0.iter().map(|word| format!("{word:016x}")).collect()
    }

    fn from_hex(text: &str) -> Option<Self> {
        let mut words = [0; 8];
        if text.len() != 16 * words.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (word, digits) in words.iter_mut().zip(text.as_bytes().chunks(16)) {
            *word = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(words))
    }
}

/// How far an address is aligned.
pub fn alignment(address: Address) -> u32 {
    if address == 0 { WIDEST_ALIGNMENT as u32 } else { (address & address.wrapping_neg()).min(WIDEST_ALIGNMENT) as u32 }
}

/// A product without its addresses, but with their alignments, in words.
fn key(gemm: &Gemm) -> String {
    let Gemm { rows, columns, depth, a, b, out, element, accumulate, epilogue } = *gemm;
    let operand = |Operand { address, ld, transposed }: Operand| {
        format!("ld {ld}{} at {}", if transposed { " transposed" } else { "" }, alignment(address))
    };
    let element = match element {
        Element::Bf16 => "bf16",
        Element::F32 => "fp32",
    };
    let epilogue = match epilogue {
        Epilogue::None => "",
        Epilogue::Bias(_) => ", bias",
        Epilogue::BiasGelu { .. } => ", bias and gelu",
        Epilogue::GeluBackward { .. } => ", gelu backward",
    };
    let sum = if accumulate { "added to " } else { "" };
    let (a, b, at) = (operand(a), operand(b), alignment(out));
    format!("{rows} x {columns} x {depth}, a {a}, b {b}, {sum}{element} at {at}{epilogue}")
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choices {
    /// Name of the GPU.
    device: String,
    /// Version of cuBLASLt, as it tells it.
    cublaslt: u64,
    /// Algorithm of each kind of product, in hexadecimal digits.
    algorithms: BTreeMap<String, String>,
}

/// The choices of a run.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    choices: Choices,
}

impl Kept {
    /// The choices in the file at `path`, or none where there is no file yet. A file of another GPU or version of the library
    /// is left aside, and a warning says so: its algorithms mean nothing here.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn open(path: &Path, device: &str, cublaslt: u64) -> Result<(Self, Option<String>)> {
        let fresh = Choices { device: device.to_owned(), cublaslt, algorithms: BTreeMap::new() };
        let kept = |choices: Choices| Self { path: path.to_owned(), choices };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((kept(fresh), None)),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        let damaged = |cause: String| {
            let advice = "delete the file to measure anew, after which the run's bits may be others";
            Error::file(path, format!("this is no list of cuBLASLt's algorithms: {cause}; {advice}"))
        };
        let choices: Choices = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if let Some((key, _)) = choices.algorithms.iter().find(|(_, hex)| Algorithm::from_hex(hex).is_none()) {
            return Err(damaged(format!("the algorithm of `{key}` has not 128 hexadecimal digits")));
        }
        if (&choices.device, choices.cublaslt) == (&fresh.device, cublaslt) {
            return Ok((kept(choices), None));
        }
        let warning = format!(
            "{}: measured on {} with cuBLASLt {}, this is {device} with {cublaslt}: algorithms are measured anew, and the run's bits may be \
             others than they would have been there",
            path.display(),
            choices.device,
            choices.cublaslt
        );
        Ok((kept(fresh), Some(warning)))
    }

    /// The algorithm of a product, if one was chosen.
    pub fn get(&self, gemm: &Gemm) -> Option<Algorithm> {
        self.choices.algorithms.get(&key(gemm)).and_then(|hex| Algorithm::from_hex(hex))
    }

    /// Keeps a choice, in the file as well.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&mut self, gemm: &Gemm, algorithm: Algorithm) -> Result<()> {
        self.choices.algorithms.insert(key(gemm), algorithm.to_hex());
        let text = serde_json::to_string_pretty(&self.choices).map_err(|error| Error::file(&self.path, error.to_string()))? + "\n";
        write_atomically(&self.path, |file| file.write_all(text.as_bytes()))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Which candidate is the fastest, by the median of its times; the first of equals. A candidate without times does not
/// count: it did not run.
pub fn fastest(times: &[Vec<f32>]) -> Option<usize> {
    let median = |times: &Vec<f32>| {
        let mut sorted = times.clone();
        sorted.sort_by(f32::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    };
    let medians = times.iter().enumerate().filter_map(|(i, times)| Some((i, median(times)?)));
    medians.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gemm() -> Gemm {
        let a = Operand { address: 0x1000, ld: 64, transposed: false };
        let b = Operand { address: 0x2010, ld: 64, transposed: true };
        Gemm { rows: 8, columns: 16, depth: 64, a, b, out: 0x3000, element: Element::Bf16, accumulate: false, epilogue: Epilogue::None }
    }

    #[test]
    fn the_median_decides_and_the_first_of_equals() {
        assert_eq!(fastest(&[vec![3.0, 3.0, 3.0], vec![1.0, 2.0, 90.0], vec![2.0, 2.0, 2.0]]), Some(1));
        assert_eq!(fastest(&[vec![], vec![5.0]]), Some(1));
        assert_eq!(fastest(&[vec![], vec![]]), None);
        assert_eq!(fastest(&[]), None);
    }

    #[test]
    fn everything_but_addresses_decides_about_the_algorithm() {
        let same = Gemm { a: Operand { address: 0x5000, ..gemm().a }, out: 0x100, ..gemm() };
        assert_eq!(key(&gemm()), key(&same));
        let others = [
            Gemm { rows: 9, ..gemm() },
            Gemm { columns: 17, ..gemm() },
            Gemm { depth: 65, ..gemm() },
            Gemm { a: Operand { ld: 72, ..gemm().a }, ..gemm() },
            Gemm { b: Operand { transposed: false, ..gemm().b }, ..gemm() },
            Gemm { b: Operand { address: 0x2000, ..gemm().b }, ..gemm() },
            Gemm { out: 0x3020, ..gemm() },
            Gemm { element: Element::F32, ..gemm() },
            Gemm { accumulate: true, ..gemm() },
            Gemm { epilogue: Epilogue::Bias(256), ..gemm() },
        ];
        let mut keys: Vec<_> = others.iter().chain([&gemm()]).map(key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), others.len() + 1);
    }

    #[test]
    fn choices_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let algorithm = Algorithm([1, u64::MAX, 0xabc, 4, 5, 6, 7, 8]);
        let (mut kept, warning) = Kept::open(&path, "GPU", 130_200).unwrap();
        assert!(warning.is_none() && kept.get(&gemm()).is_none());
        kept.keep(&gemm(), algorithm).unwrap();
        let (again, warning) = Kept::open(&path, "GPU", 130_200).unwrap();
        assert!(warning.is_none());
        assert_eq!(again.get(&gemm()), Some(algorithm));
        assert_eq!(again.get(&Gemm { rows: 9, ..gemm() }), None);
        for (device, version) in [("other GPU", 130_200), ("GPU", 130_300)] {
            let (other, warning) = Kept::open(&path, device, version).unwrap();
            let warning = warning.unwrap();
            assert!(warning.contains("measured on GPU with cuBLASLt 130200") && warning.contains("anew"), "{warning}");
            assert_eq!(other.get(&gemm()), None);
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let short = r#"{"device": "GPU", "cublaslt": 1, "algorithms": {"8 x 8 x 8": "00ff"}}"#;
        let letters = short.replace("00ff", &"g".repeat(128));
        for text in ["", "{\"device\": \"GPU\"", "[]", r#"{"device": "GPU", "cublaslt": 1}"#, short, letters.as_str()] {
            std::fs::write(&path, text).unwrap();
            let error = Kept::open(&path, "GPU", 1).unwrap_err().to_string();
            assert!(error.contains(FILE) && error.contains("delete the file"), "{text}: {error}");
        }
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(Kept::open(&path, "GPU", 1).unwrap_err().to_string().contains(FILE));
    }
}
