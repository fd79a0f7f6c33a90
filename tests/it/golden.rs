//! Golden tensors: reads `tests/golden/*.safetensors`, regenerates what is not stored, and compares. The format is
//! described in `tests/golden/README.md`.
//!
//! A case remembers what it was asked to compare and fails when it is dropped with a result nobody looked at.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ladd_fast::flow::philox::{fill_normals, stream};
use ladd_fast::model::{Layout, ModelConfig};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Stream of the golden positional grid.
const POSITIONS: u32 = 999;

/// How far a result may be from its golden value (stored in float32, computed in float64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// For a backend that computes in float32.
    F32,
    /// For a backend that computes in float64: what is left is the rounding of the golden file.
    F64,
    /// For a backend with bf16 weights and activations and float32 sums, given inputs rounded to bf16.
    Bf16,
    /// The same for whole passes: a rounding to bf16 errs by up to 2^-9, and those of the operations in a row add up.
    Bf16Chain,
}

impl Tolerance {
    /// Largest relative L2 error.
    pub fn relative(self) -> f64 {
        match self {
            Self::F32 => 1e-5,
            Self::F64 => 1e-6,
            Self::Bf16 => 4e-3,
            Self::Bf16Chain => 3e-2,
        }
    }

    /// The bound for an fp32 result of fp32 values (times, noise, losses, moments), or of values that the compute type
    /// holds exactly: no rounding to bf16 plays a part in it.
    pub fn of_stat(self) -> Self {
        if matches!(self, Self::Bf16 | Self::Bf16Chain) { Self::F32 } else { self }
    }

    /// `values` as the backend's compute type holds them.
    pub fn held(self, values: &[f32]) -> Vec<f32> {
        match self {
            Self::F32 | Self::F64 => values.to_vec(),
            Self::Bf16 | Self::Bf16Chain => values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect(),
        }
    }
}

/// A tensor of a golden file, widened to a common type.
#[derive(Debug)]
struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Real(Vec<f32>),
    Integer(Vec<u64>),
}

/// One golden case.
#[derive(Debug)]
pub struct Golden {
    /// Name of the case.
    pub name: String,
    /// Philox seed of its inputs.
    pub seed: u64,
    /// Sizes and constants.
    pub config: Value,
    inputs: Value,
    sampled: Value,
    tensors: BTreeMap<String, Tensor>,
    unseen: RefCell<BTreeSet<String>>,
}

fn folder() -> PathBuf {
    crate::root().join("tests/golden")
}

/// Names of all golden files.
pub fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).expect("the folder of golden files");
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".safetensors")?.to_owned())).collect();
    names.sort();
    names
}

/// Every case of one operation, at least one.
pub fn cases(op: &str) -> Vec<Golden> {
    let cases: Vec<Golden> = names().iter().filter_map(|name| Golden::read(name, Some(op))).collect();
    assert!(!cases.is_empty(), "there is no golden file of `{op}`");
    cases
}

impl Golden {
    /// Reads one case.
    pub fn open(name: &str) -> Self {
        Self::read(name, None).unwrap()
    }

    /// The operation of a file, without judging its tensors.
    pub fn operation(name: &str) -> String {
        metadata(&std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap())["op"].as_str().unwrap().to_owned()
    }

    fn read(name: &str, op: Option<&str>) -> Option<Self> {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut case = metadata(&bytes);
        if op.is_some_and(|op| case["op"] != op) {
            return None;
        }
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors: BTreeMap<String, Tensor> = file.iter().map(|(name, view)| (name.to_owned(), tensor(&view))).collect();
        let unseen = tensors.keys().filter(|name| !name.starts_with("in.")).cloned().collect();
        Some(Self {
            name: case["name"].as_str().unwrap().to_owned(),
            seed: case["seed"].as_u64().unwrap(),
            config: case["config"].take(),
            inputs: case["inputs"].take(),
            sampled: case["sampled"].take(),
            tensors,
            unseen: RefCell::new(unseen),
        })
    }

    /// A size of the configuration.
    pub fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap_or_else(|| panic!("{}: no size `{key}`", self.name)) as usize
    }

    /// A number of the configuration.
    pub fn number(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("{}: no number `{key}`", self.name))
    }

    /// The architecture in the configuration (or in a part of it).
    pub fn model(&self, part: Option<&str>) -> ModelConfig {
        let config = part.map_or(&self.config, |part| &self.config[part]);
        let size = |key: &str| config[key].as_u64().unwrap() as usize;
        ModelConfig {
            depth: size("depth"),
            heads: size("heads"),
            head_dim: size("head_dim"),
            in_channels: size("in_channels"),
            patch: size("patch"),
            context_dim: size("context_dim"),
            pooled_dim: size("pooled_dim"),
            pos_embed_max: size("pos_embed_max"),
            qk_norm: config["qk_norm"].as_bool().unwrap(),
            dual_attention_blocks: size("dual_attention_blocks"),
            conditioning_channels: config["conditioning_channels"].as_u64().unwrap_or(0) as usize,
        }
    }

    /// Whether the case has an input of this name.
    pub fn has_input(&self, name: &str) -> bool {
        self.inputs.get(name).is_some() || self.tensors.contains_key(&format!("in.{name}"))
    }

    /// Whether a result is stored.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of the stored results that begin with `prefix`, without it.
    pub fn results(&self, prefix: &str) -> Vec<String> {
        self.tensors.keys().filter_map(|name| Some(name.strip_prefix(prefix)?.to_owned())).collect()
    }

    /// An input: drawn again from Philox, and equal to what is stored where it is stored.
    pub fn input(&self, name: &str) -> Vec<f32> {
        let stored = self.tensors.get(&format!("in.{name}"));
        let Some(input) = self.inputs.get(name) else {
            return reals(stored.unwrap_or_else(|| panic!("{}: no input `{name}`", self.name))).to_vec();
        };
        let len: usize = input["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).product();
        let (scale, offset) = (input["scale"].as_f64().unwrap() as f32, input["offset"].as_f64().unwrap() as f32);
        let mut values = vec![0.0; len];
        fill_normals(self.seed, 0, input["stream"].as_u64().unwrap() as u32, 0, &mut values);
        values.iter_mut().for_each(|v| *v *= scale);
        if offset != 0.0 {
            values.iter_mut().for_each(|v| *v += offset);
        }
        if let Some(stored) = stored {
            assert_eq!(values, reals(stored), "{}: regenerated input `{name}`", self.name);
        }
        values
    }

    /// A stored tensor of whole numbers, `in.*` or `out.*`.
    pub fn integers(&self, name: &str) -> Vec<u64> {
        self.unseen.borrow_mut().remove(name);
        match &self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.name)).values {
            Values::Integer(values) => values.clone(),
            Values::Real(_) => panic!("{}: `{name}` holds real numbers", self.name),
        }
    }

    /// A stored result, whole.
    pub fn result(&self, name: &str) -> Vec<f32> {
        assert!(self.sampled.get(name).is_none(), "{}: `{name}` is only sampled", self.name);
        self.unseen.borrow_mut().remove(name);
        reals(self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.name))).to_vec()
    }

    /// Leaves a result to another test, which compares it.
    pub fn skip(&self, name: &str) {
        assert!(self.unseen.borrow_mut().remove(name) || self.tensors.contains_key(name), "{}: no tensor `{name}`", self.name);
    }

    /// Shape of a stored result.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        match self.sampled.get(name) {
            Some(sampled) => sampled["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect(),
            None => self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.name)).shape.clone(),
        }
    }

    /// Fails unless `got` is the stored result within a relative L2 error; a sampled tensor is compared at its samples
    /// and by its norm. Returns the error.
    pub fn compare(&self, name: &str, got: &[f32], tolerance: Tolerance) -> f64 {
        // Where PyTorch's own bf16 is known to err more, a backend may err twice as much as that.
        let yardstick = if tolerance == Tolerance::Bf16Chain { 2.0 * bf16_error_of_pytorch(&self.name, name) } else { 0.0 };
        let bound = tolerance.relative().max(yardstick);
        let what = format!("{} `{name}`", self.name);
        let numel: usize = self.shape(name).iter().product();
        assert_eq!(got.len(), numel, "{what}: {} values instead of {:?}", got.len(), self.shape(name));
        self.unseen.borrow_mut().remove(name);
        let expected = reals(&self.tensors[name]);
        let Some(sampled) = self.sampled.get(name) else { return close(&what, got, expected, bound) };
        let stride = sampled["stride"].as_u64().unwrap() as usize;
        let samples: Vec<f32> = got.iter().copied().step_by(stride).collect();
        let error = close(&what, &samples, expected, bound);
        let (norm, expected) = (norm(got), sampled["norm"].as_f64().unwrap());
        // Nine digits of the norm are stored.
        assert!((norm - expected).abs() <= (bound + 1e-8) * expected, "{what}: L2 norm {norm} instead of {expected}");
        error
    }

    /// Fails unless `got` has the very bits of the stored result.
    pub fn equal(&self, name: &str, got: &[f32]) {
        let expected = self.result(name);
        assert_eq!(got.len(), expected.len(), "{} `{name}`: length", self.name);
        let wrong = got.iter().zip(&expected).position(|(g, e)| g.to_bits() != e.to_bits());
        if let Some(i) = wrong {
            panic!("{} `{name}`: element {i} is {:e} instead of {:e}, to the bit", self.name, got[i], expected[i]);
        }
    }
}

impl Drop for Golden {
    fn drop(&mut self) {
        let unseen = self.unseen.borrow();
        if !std::thread::panicking() {
            assert!(unseen.is_empty(), "{}: nobody compared {unseen:?}", self.name);
        }
    }
}

/// The largest relative error of PyTorch in bfloat16 (`reference/bf16_errors.py`) among the results of the same kind, such as
/// all gradients of the student: one input that is rounded across a kink changes all of them. 0 where it was not measured.
fn bf16_error_of_pytorch(case: &str, name: &str) -> f64 {
    static ERRORS: std::sync::LazyLock<Value> =
        std::sync::LazyLock::new(|| serde_json::from_slice(&std::fs::read(folder().join("bf16_errors.json")).unwrap()).unwrap());
    let kind = |name: &str| name.splitn(3, '.').take(2).map(str::to_owned).collect::<Vec<_>>();
    let same_kind = ERRORS[case].as_object().into_iter().flatten().filter(|(other, _)| kind(other) == kind(name));
    same_kind.filter_map(|(_, error)| error.as_f64()).fold(0.0, f64::max)
}

fn metadata(bytes: &[u8]) -> Value {
    let (_, header) = SafeTensors::read_metadata(bytes).expect("a safetensors header");
    serde_json::from_str(&header.metadata().as_ref().expect("metadata")["case"]).expect("the case in JSON")
}

fn tensor(view: &safetensors::tensor::TensorView<'_>) -> Tensor {
    let data = view.data();
    let values = match view.dtype() {
        Dtype::F32 => Values::Real(data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()),
        Dtype::U8 => Values::Integer(data.iter().map(|b| u64::from(*b)).collect()),
        Dtype::U32 | Dtype::I32 => {
            Values::Integer(data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()).into()).collect())
        }
        Dtype::U64 => Values::Integer(data.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()),
        other => panic!("a golden tensor of type {other:?}"),
    };
    Tensor { shape: view.shape().to_vec(), values }
}

fn reals(tensor: &Tensor) -> &[f32] {
    match &tensor.values {
        Values::Real(values) => values,
        Values::Integer(_) => panic!("a tensor of whole numbers"),
    }
}

/// L2 norm in f64.
pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// Relative L2 error of `got`; absolute where everything expected is zero.
pub fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    let difference = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - f64::from(*e)).powi(2)).sum::<f64>().sqrt();
    let scale = norm(expected);
    if scale > 0.0 { difference / scale } else { difference }
}

/// Fails unless the relative L2 error is within `bound`, naming the worst element. Returns the error.
pub fn close(what: &str, got: &[f32], expected: &[f32], bound: f64) -> f64 {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let error = relative_error(got, expected);
    println!("{what}: relative error {error:.1e}");
    if error <= bound {
        return error;
    }
    let bad = got.iter().filter(|v| !v.is_finite()).count();
    let distance = |i: &usize| (got[*i] - expected[*i]).abs();
    let key = |i: &usize| if distance(i).is_nan() { f32::INFINITY } else { distance(i) };
    let worst = (0..got.len()).max_by(|a, b| key(a).total_cmp(&key(b))).unwrap();
    panic!(
        "{what}: relative L2 error {error:.2e} exceeds {bound:.0e}; {bad} of {} values are not finite; the worst is element {worst}: \
         {:e} instead of {:e}",
        got.len(),
        got[worst],
        expected[worst]
    );
}

/// Golden parameters of a network as a host arena: the tensors in alphabetical order draw from one stream each.
pub fn parameters(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut entries: Vec<_> = layout.entries().iter().collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut arena = vec![0.0; layout.len()];
    for (i, entry) in entries.into_iter().enumerate() {
        let values = &mut arena[entry.range()];
        fill_normals(seed, 0, stream::PARAMETERS + i as u32, 0, values);
        let fan_in: usize = entry.shape[1..].iter().product();
        let norm_weight = entry.name.ends_with("ln_q.weight") || entry.name.ends_with("ln_k.weight");
        let scale = if entry.shape.len() >= 2 { (1.0 / (fan_in as f64).sqrt()) as f32 } else { 0.1 };
        values.iter_mut().for_each(|v| *v = if norm_weight { *v * scale + 1.0 } else { *v * scale });
    }
    arena
}

/// The golden positional grid of a configuration.
pub fn positions(config: &ModelConfig, seed: u64) -> Vec<f32> {
    let mut grid = vec![0.0; config.pos_embed_max * config.pos_embed_max * config.hidden()];
    fill_normals(seed, 0, POSITIONS, 0, &mut grid);
    grid.iter_mut().for_each(|v| *v *= 0.5);
    grid
}
