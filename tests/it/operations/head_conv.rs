//! The discriminator heads' convolution and logits.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, ConvShape, HeadLogitsShape, Linear, Storage};
use ladd_fast::flow::philox::fill_normals;

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Arena, Lab, same_bits};

on_every_backend!(
    conv3x3,
    conv3x3_of_many_samples_and_large_grids,
    conv3x3_of_wide_heads,
    conv3x3_at_odd_addresses,
    head_logits,
    head_logits_of_all_sizes
);

fn normals(stream: u32, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_normals(23, 0, stream, 0, &mut values);
    values
}

/// Where tensors begin in their buffers: `Aligned` as in a network, so that a kernel may take 16 bytes at a time; `Odd`
/// at places where it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Aligned,
    Odd,
}

impl Memory {
    /// Elements in front of a tensor.
    fn lead(self) -> usize {
        match self {
            Self::Aligned => 0,
            Self::Odd => 3,
        }
    }

    fn linear(self, arena: &mut Arena, weight: &[f32], bias: &[f32]) -> Linear {
        let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
        let mut add = |values| if self == Self::Aligned { arena.add_aligned(values) } else { arena.add(values) };
        Linear { weight: add(weight), bias: add(bias), inputs, outputs }
    }

    fn data<B: Backend>(self, lab: &Lab<'_, B>, values: &[f32]) -> B::Data {
        lab.data(&[&vec![f32::NAN; self.lead()], values].concat())
    }

    /// The values behind the lead, which must be untouched.
    fn read<B: Backend>(self, lab: &Lab<'_, B>, buffer: &B::Data, len: usize) -> Vec<f32> {
        let mut all = lab.read(buffer, self.lead() + len);
        assert!(all.drain(..self.lead()).all(|v| v.is_nan()), "something was written in front of the tensor");
        all
    }
}

/// A convolution's operands.
struct Conv {
    memory: Memory,
    arena: Arena,
    shape: ConvShape,
    x: Vec<f32>,
    d_y: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// Results: y, dx, dweight, dbias.
type ConvResults = [Vec<f32>; 4];

fn run<B: Backend>(lab: &Lab<'_, B>, conv: &Conv, tolerance: Tolerance) -> ConvResults {
    let (b, memory) = (lab.b, conv.memory);
    let ConvShape { linear, batch, rows, columns } = conv.shape;
    let tokens = batch * rows * columns;
    let (inputs, outputs) = (tokens * linear.inputs / 9, tokens * linear.outputs);
    let (all_x, all_y) = (memory.lead()..memory.lead() + inputs, memory.lead()..memory.lead() + outputs);
    let params = conv.arena.upload(lab);
    let (x, d_y) = (memory.data(lab, &conv.x), memory.data(lab, &conv.d_y));
    let (x, d_y) = (x.part(all_x.clone()), d_y.part(all_y.clone()));
    let (mut y, mut dx) = (memory.data(lab, &vec![f32::NAN; outputs]), memory.data(lab, &vec![f32::NAN; inputs]));
    b.conv3x3(&params, &conv.shape, x, y.part_mut(all_y));
    b.conv3x3_backward_input(&params, &conv.shape, d_y, dx.part_mut(all_x.clone()), false);
    let once = memory.read(lab, &dx, inputs);
    b.conv3x3_backward_input(&params, &conv.shape, d_y, dx.part_mut(all_x), true);
    let twice: Vec<f32> = once.iter().map(|v| 2.0 * v).collect();
    close("accumulated dx", &memory.read(lab, &dx, inputs), &twice, tolerance.relative());

    let gradients = || {
        let mut grads = conv.arena.gradients(lab);
        b.conv3x3_backward_weight(&mut grads, &conv.shape, x, d_y);
        conv.arena.added(lab, &grads)
    };
    let [weight, bias] = gradients().try_into().unwrap();
    let again = gradients();
    same_bits("dweight of a second run", &again[0], &weight);
    same_bits("dbias of a second run", &again[1], &bias);
    [memory.read(lab, &y, outputs), once, weight, bias]
}

fn conv3x3<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for (case, memory) in cases("conv3x3").into_iter().zip([Memory::Odd, Memory::Aligned].into_iter().cycle()) {
        let [x, weight, bias, d_y] = ["x", "weight", "bias", "d_y"].map(|name| case.input(name));
        let mut arena = Arena::default();
        let linear = memory.linear(&mut arena, &weight, &bias);
        assert_eq!((linear.inputs, linear.outputs), (9 * case.size("cin"), case.size("cout")));
        let shape = ConvShape { linear, batch: case.size("B"), rows: case.size("gh"), columns: case.size("gw") };
        let results = run(&lab, &Conv { memory, arena, shape, x, d_y, weight, bias }, tolerance);
        for (name, got) in ["out.y", "grad.x", "grad.weight", "grad.bias"].into_iter().zip(&results) {
            case.compare(name, got, tolerance);
        }
    }
}

/// The sum as it stands, in f64.
fn plain(conv: &Conv) -> ConvResults {
    let ConvShape { linear, batch, rows, columns } = conv.shape;
    let (cin, cout) = (linear.inputs / 9, linear.outputs);
    let mut y: Vec<f64> = (0..batch * rows * columns * cout).map(|i| f64::from(conv.bias[i % cout])).collect();
    let (mut dx, mut dw, mut db) = (vec![0.0; conv.x.len()], vec![0.0; conv.weight.len()], vec![0.0; cout]);
    for (i, d) in conv.d_y.iter().enumerate() {
        db[i % cout] += f64::from(*d);
    }
    for (token, tap) in (0..batch * rows * columns).flat_map(|token| (0..9).map(move |tap| (token, tap))) {
        let (sample, row, column) = (token / (rows * columns), token / columns % rows, token % columns);
        let (from_row, from_column) = (row + tap / 3, column + tap % 3);
        if !(1..=rows).contains(&from_row) || !(1..=columns).contains(&from_column) {
            continue;
        }
        let from = (sample * rows + from_row - 1) * columns + from_column - 1;
        for (o, i) in (0..cout).flat_map(|o| (0..cin).map(move |i| (o, i))) {
            let w = (o * 9 + tap) * cin + i;
            let (x, weight, d) = (f64::from(conv.x[from * cin + i]), f64::from(conv.weight[w]), f64::from(conv.d_y[token * cout + o]));
            y[token * cout + o] += x * weight;
            dx[from * cin + i] += d * weight;
            dw[w] += d * x;
        }
    }
    [y, dx, dw, db].map(|values| values.into_iter().map(|v| v as f32).collect())
}

/// Samples, rows, columns, input channels, output channels.
type Sizes = (usize, usize, usize, usize, usize);

/// Compares with the plain sum. Operands are rounded to the compute type before both see them, so y and dx are off by the
/// rounding of the result, and the fp32 gradients by nothing but the order of their sums.
fn compare_with_plain<B: Backend>(b: &B, tolerance: Tolerance, memory: Memory, sizes: &[Sizes]) {
    let lab = Lab::new(b);
    for &(batch, rows, columns, cin, cout) in sizes {
        let tokens = batch * rows * columns;
        let [weight, bias, x, d_y] = [(1, cout * 9 * cin), (2, cout), (3, tokens * cin), (4, tokens * cout)]
            .map(|(stream, len)| tolerance.held(&normals(stream, len)));
        let mut arena = Arena::default();
        let linear = memory.linear(&mut arena, &weight, &bias);
        let shape = ConvShape { linear, batch, rows, columns };
        let conv = Conv { memory, arena, shape, x, d_y, weight, bias };
        let bounds = [tolerance.relative(), tolerance.relative(), tolerance.of_stat().relative(), tolerance.of_stat().relative()];
        let results = run(&lab, &conv, tolerance).into_iter().zip(plain(&conv)).zip(bounds);
        for (name, ((got, expected), bound)) in ["y", "dx", "dweight", "dbias"].into_iter().zip(results) {
            close(&format!("{name} of {batch}x{rows}x{columns}, {cin} to {cout}"), &got, &expected, bound);
        }
    }
}

/// More samples than one task takes, grids larger than one task, channels that differ and that no wide access fits.
fn conv3x3_of_many_samples_and_large_grids<B: Backend>(b: &B, tolerance: Tolerance) {
    let sizes = [(41, 2, 5, 3, 6), (3, 12, 13, 8, 4), (70, 1, 1, 4, 4), (9, 4, 4, 12, 20), (1, 5, 7, 28, 28)];
    compare_with_plain(b, tolerance, Memory::Odd, &sizes);
}

/// Channels in multiples of eight, as wide accesses want them: one token, columns narrower than a tile is deep, a grid of
/// many tiles and chunks, the default head's width, and a shape that the emulated device takes large tiles for.
fn conv3x3_of_wide_heads<B: Backend>(b: &B, tolerance: Tolerance) {
    let sizes = [(1, 1, 1, 8, 8), (3, 5, 7, 16, 24), (1, 64, 64, 8, 8), (1, 4, 4, 256, 256), (2, 14, 14, 72, 136)];
    compare_with_plain(b, tolerance, Memory::Aligned, &sizes);
}

/// The same channels where no wide access is allowed.
fn conv3x3_at_odd_addresses<B: Backend>(b: &B, tolerance: Tolerance) {
    compare_with_plain(b, tolerance, Memory::Odd, &[(3, 5, 7, 16, 24), (1, 9, 8, 64, 72)]);
}

fn head_logits<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("head_logits") {
        let (batch, positions, width) = (case.size("B"), case.size("N"), case.size("w"));
        let mut arena = Arena::default();
        let linear = Linear { weight: arena.add(&case.input("weight")), bias: arena.add(&case.input("bias")), inputs: width, outputs: 1 };
        let shape = HeadLogitsShape { linear, batch, positions };
        let logits = Logits { arena, shape, h: case.input("h3"), cm: case.input("projection"), d_logits: case.input("d_logits") };
        let results = run_logits(&lab, &logits);
        for (name, got) in ["out.logits", "grad.h3", "grad.projection", "grad.weight", "grad.bias"].into_iter().zip(&results) {
            case.compare(name, got, tolerance);
        }
        frozen_and_smaller(&lab, &case, &shape, &logits.arena.upload(&lab), &results[1]);
    }
}

/// Operands of the logits.
struct Logits {
    arena: Arena,
    shape: HeadLogitsShape,
    h: Vec<f32>,
    cm: Vec<f32>,
    d_logits: Vec<f32>,
}

/// Logits, dh, dcm, dweight, dbias.
fn run_logits<B: Backend>(lab: &Lab<'_, B>, operands: &Logits) -> [Vec<f32>; 5] {
    let Logits { arena, shape, .. } = operands;
    let (samples, width) = (shape.batch, shape.linear.inputs);
    let tokens = samples * shape.positions;
    let (params, mut grads) = (arena.upload(lab), arena.gradients(lab));
    let (h, cm, d_logits) = (lab.data(&operands.h), lab.data(&operands.cm), lab.stat(&operands.d_logits));
    let mut logits = lab.blank_stat(tokens);
    lab.b.head_logits(&params, shape, (&h).into(), (&cm).into(), (&mut logits).into());

    let (mut dh, mut d_cm) = (lab.blank_data(tokens * width), lab.blank_data(samples * width));
    let trained = Some((&mut grads, (&mut d_cm).into()));
    lab.b.head_logits_backward(&params, shape, (&h).into(), (&cm).into(), (&d_logits).into(), (&mut dh).into(), trained);
    let [weight, bias] = arena.added(lab, &grads).try_into().unwrap();
    [lab.read_stat(&logits, tokens), lab.read(&dh, tokens * width), lab.read(&d_cm, samples * width), weight, bias]
}

/// One channel and many, one sample and several, one chunk of positions and many, wide accesses and narrow ones; against
/// the f64 backend on the same rounded operands.
fn head_logits_of_all_sizes<B: Backend>(b: &B, tolerance: Tolerance) {
    for (batch, positions, width) in [(1, 1, 1), (3, 70, 256), (2, 5, 28), (1, 4096, 8), (4, 100, 320), (5, 33, 300), (1, 64, 2432)] {
        for memory in [Memory::Aligned, Memory::Odd] {
            let tokens = batch * positions;
            let [weight, bias, h, cm] =
                [(1, width), (2, 1), (3, tokens * width), (4, batch * width)].map(|(stream, len)| tolerance.held(&normals(stream, len)));
            let mut arena = Arena::default();
            let linear = memory.linear(&mut arena, &weight, &bias);
            let shape = HeadLogitsShape { linear, batch, positions };
            let operands = Logits { arena, shape, h, cm, d_logits: normals(5, tokens) };
            let expected = run_logits(&Lab::new(&Cpu::<f64>::new()), &operands);
            let got = run_logits(&Lab::new(b), &operands);
            let again = run_logits(&Lab::new(b), &operands);
            let (data, sums) = (tolerance.relative(), tolerance.of_stat().relative());
            let bounds = [("logits", sums), ("dh", data), ("dcm", data), ("dweight", sums), ("dbias", sums)];
            for (i, (name, bound)) in bounds.into_iter().enumerate() {
                let what = format!("{name} of {batch}x{positions}, {width} channels, {memory:?}");
                close(&what, &got[i], &expected[i], bound);
                same_bits(&what, &again[i], &got[i]);
            }
        }
    }
}

/// Without gradients of weights, and for the first samples only, `dh` has the same bits.
fn frozen_and_smaller<B: Backend>(lab: &Lab<'_, B>, case: &Golden, shape: &HeadLogitsShape, params: &B::Data, expected: &[f32]) {
    let (h, cm, d_logits) = (lab.data(&case.input("h3")), lab.data(&case.input("projection")), lab.stat(&case.input("d_logits")));
    for batch in [shape.batch, shape.batch - 1] {
        let shape = HeadLogitsShape { batch, ..*shape };
        let len = batch * shape.positions * shape.linear.inputs;
        let mut dh = lab.blank_data(len);
        lab.b.head_logits_backward(params, &shape, (&h).into(), (&cm).into(), (&d_logits).into(), (&mut dh).into(), None);
        same_bits("frozen dh", &lab.read(&dh, len), &expected[..len]);
    }
}
