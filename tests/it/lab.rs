//! Buffers for tests: inputs end in not-a-numbers that no operation may read, outputs begin as not-a-numbers and keep
//! them behind their end. Whatever reads too much, writes too much or forgets to write shows.

use std::ops::Range;

use ladd_fast::device::{Backend, Linear, Storage};
use ladd_fast::flow::philox::fill_normals;

/// Elements behind every buffer's end.
const SPARE: usize = 37;
/// Elements between the tensors of an arena.
const GAP: usize = 5;
/// The tensors of a network begin at multiples of this many elements; those of an arena with gaps need not.
const ALIGNMENT: usize = 64;
/// What gradient arenas hold before an operation adds to them.
const START: f32 = 0.25;
/// What they hold between the tensors.
const BETWEEN_GRADIENTS: f32 = -3.0;

/// A backend and the buffers made on it.
#[derive(Debug)]
pub struct Lab<'a, B: Backend> {
    /// The backend.
    pub b: &'a B,
    /// Elements behind the end of its buffers.
    spare: usize,
}

/// Behind an input: a not-a-number with other bits than [`f32::NAN`], which stands behind an output and in it. An operation
/// that runs over both ends carries the one over to the other.
const BEHIND_INPUT: f32 = f32::from_bits(0x7fd0_0000);

fn without_spare(mut all: Vec<f32>, len: usize) -> Vec<f32> {
    let untouched = |v: &f32| v.is_nan() && v.to_bits() == all[all.len() - 1].to_bits();
    assert!(all[len..].iter().all(untouched), "something was written behind the end, at {len}");
    all.truncate(len);
    all
}

impl<'a, B: Backend> Lab<'a, B> {
    /// A lab on `b`.
    pub fn new(b: &'a B) -> Self {
        Self { b, spare: SPARE }
    }

    /// A lab whose buffers end where their values do: what reads behind them leaves its allocation, which the emulator
    /// refuses even where nothing comes of what was read.
    pub fn tight(b: &'a B) -> Self {
        Self { b, spare: 0 }
    }

    fn with_spare(&self, values: &[f32], spare: f32) -> Vec<f32> {
        let mut all = values.to_vec();
        all.resize(values.len() + self.spare, spare);
        all
    }

    /// An input in the compute type.
    pub fn data(&self, values: &[f32]) -> B::Data {
        self.data_before(values, BEHIND_INPUT)
    }

    fn data_before(&self, values: &[f32], spare: f32) -> B::Data {
        let mut buffer = self.b.alloc_data(values.len() + self.spare).unwrap();
        self.b.upload_data(&self.with_spare(values, spare), buffer.all_mut());
        buffer
    }

    /// An input in fp32.
    pub fn stat(&self, values: &[f32]) -> B::Stat {
        self.stat_before(values, BEHIND_INPUT)
    }

    fn stat_before(&self, values: &[f32], spare: f32) -> B::Stat {
        let mut buffer = self.b.alloc_stat(values.len() + self.spare).unwrap();
        self.b.upload_stat(&self.with_spare(values, spare), buffer.all_mut());
        buffer
    }

    /// Room for an output in the compute type.
    pub fn blank_data(&self, len: usize) -> B::Data {
        self.data_before(&vec![f32::NAN; len], f32::NAN)
    }

    /// Room for an output in fp32.
    pub fn blank_stat(&self, len: usize) -> B::Stat {
        self.stat_before(&vec![f32::NAN; len], f32::NAN)
    }

    /// The first `len` values; what follows must be untouched.
    pub fn read(&self, buffer: &B::Data, len: usize) -> Vec<f32> {
        without_spare(self.b.download_data(buffer.all()).unwrap(), len)
    }

    /// The first `len` values; what follows must be untouched.
    pub fn read_stat(&self, buffer: &B::Stat, len: usize) -> Vec<f32> {
        without_spare(self.b.download_stat(buffer.all()).unwrap(), len)
    }
}

/// A parameter arena built tensor by tensor, with gaps that nobody may touch.
#[derive(Debug, Default)]
pub struct Arena {
    values: Vec<f32>,
    tensors: Vec<Range<usize>>,
}

impl Arena {
    /// Adds a tensor at an odd place and returns its offset.
    pub fn add(&mut self, values: &[f32]) -> usize {
        self.place(self.values.len() + GAP, values)
    }

    /// Adds a tensor where a network's layout would have it, which allows wide accesses, and returns its offset.
    pub fn add_aligned(&mut self, values: &[f32]) -> usize {
        self.place((self.values.len() + GAP).next_multiple_of(ALIGNMENT), values)
    }

    fn place(&mut self, offset: usize, values: &[f32]) -> usize {
        self.values.resize(offset, f32::NAN);
        self.values.extend_from_slice(values);
        self.tensors.push(offset..self.values.len());
        offset
    }

    /// Adds a dense layer.
    pub fn linear(&mut self, weight: &[f32], bias: &[f32]) -> Linear {
        let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
        Linear { weight: self.add(weight), bias: self.add(bias), inputs, outputs }
    }

    /// The arena on the device.
    pub fn upload<B: Backend>(&self, lab: &Lab<'_, B>) -> B::Data {
        lab.data(&self.values)
    }

    /// A gradient arena that holds something already, as after a micro-batch.
    pub fn gradients<B: Backend>(&self, lab: &Lab<'_, B>) -> B::Stat {
        lab.stat(&self.starting_gradients())
    }

    /// A number between the tensors and behind the last: what is added to a not-a-number would not show.
    fn starting_gradients(&self) -> Vec<f32> {
        let mut values = vec![BETWEEN_GRADIENTS; self.values.len() + GAP];
        self.tensors.iter().for_each(|range| values[range.clone()].fill(START));
        values
    }

    /// What was added to each tensor of a gradient arena, in the order of `add`; the gaps must be untouched.
    pub fn added<B: Backend>(&self, lab: &Lab<'_, B>, gradients: &B::Stat) -> Vec<Vec<f32>> {
        let mut values = lab.read_stat(gradients, self.values.len() + GAP);
        let added = self.tensors.iter().map(|range| values[range.clone()].iter().map(|v| v - START).collect()).collect();
        self.tensors.iter().for_each(|range| values[range.clone()].fill(BETWEEN_GRADIENTS));
        assert!(values.iter().all(|v| *v == BETWEEN_GRADIENTS), "a gradient was written between two tensors");
        added
    }
}

/// `values` behind `offset` elements that nobody may touch: a tensor that does not begin where its buffer does.
pub fn behind(offset: usize, values: &[f32]) -> Vec<f32> {
    let mut all = vec![f32::NAN; offset];
    all.extend_from_slice(values);
    all
}

/// What lies behind the first `offset` elements, which must be untouched.
pub fn from(offset: usize, all: &[f32]) -> Vec<f32> {
    assert!(all[..offset].iter().all(|v| v.is_nan()), "something was written before the beginning, at {offset}");
    all[offset..].to_vec()
}

/// The values rounded to bf16: every backend then reads the same.
pub fn representable(mut values: Vec<f32>) -> Vec<f32> {
    values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    values
}

/// Normal numbers that bf16 can represent.
pub fn normals(seed: u64, stream: u32, len: usize, scale: f32, offset: f32) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_normals(seed, 0, stream, 0, &mut values);
    representable(values.into_iter().map(|v| v * scale + offset).collect())
}

/// Fails unless both hold the same bits.
pub fn same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: length");
    if let Some(i) = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()) {
        panic!("{what}: element {i} is {:e} in one and {:e} in the other", a[i], b[i]);
    }
}
