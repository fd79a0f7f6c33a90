//! Dense layers with their epilogues and gradients.

use ladd_fast::device::{Backend, Linear};

use super::on_every_backend;
use crate::golden::{Tolerance, cases, close};
use crate::lab::{Arena, Lab, normals, same_bits};

on_every_backend!(linear, accumulates, without_bias, every_size_class, gelu_gradient_of_the_layer_above, nothing_behind_the_end);

fn linear<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("linear") {
        let [x, weight, bias, d_y] = ["x", "weight", "bias", "d_y"].map(|name| case.input(name));
        let mut arena = Arena::default();
        let layer = arena.linear(&weight, &bias);
        let rows = x.len() / layer.inputs;
        let (params, mut grads) = (arena.upload(&lab), arena.gradients(&lab));
        let (x, mut d_y) = (lab.data(&x), lab.data(&d_y));
        let (inputs, outputs) = (rows * layer.inputs, rows * layer.outputs);

        let mut pre = lab.blank_data(outputs);
        if case.config["epilogue"] == "gelu" {
            let mut y = lab.blank_data(outputs);
            b.linear_gelu(&params, &layer, rows, (&x).into(), (&mut pre).into(), (&mut y).into());
            case.compare("out.y", &lab.read(&y, outputs), tolerance);
            d_y = through_gelu(&lab, rows, layer.outputs, &d_y, &pre);
        } else {
            b.linear(&params, &layer, rows, (&x).into(), (&mut pre).into(), false);
            case.compare("out.y", &lab.read(&pre, outputs), tolerance);
        }
        case.compare("out.pre", &lab.read(&pre, outputs), tolerance);

        let mut d_x = lab.blank_data(inputs);
        b.linear_backward_input(&params, &layer, rows, (&d_y).into(), (&mut d_x).into(), false);
        case.compare("grad.x", &lab.read(&d_x, inputs), tolerance);
        b.linear_backward_weight(&mut grads, &layer, rows, (&x).into(), (&d_y).into());
        let added = arena.added(&lab, &grads);
        case.compare("grad.weight", &added[0], tolerance);
        case.compare("grad.bias", &added[1], tolerance);
    }
}

/// A layer without bias adds to what is there what one with a bias of zeros does, to the bit, and has a gradient of its weight
/// alone.
fn without_bias<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    for case in layers() {
        let Case { rows, inputs, outputs, linear, .. } = case;
        let mut arena = Arena::default();
        let (weight, bias) = (arena.add_aligned(&case.weight), arena.add_aligned(&vec![0.0; outputs]));
        let zero = Linear { weight, bias, ..linear };
        let none = Linear { bias: Linear::NO_BIAS, ..zero };
        let (params, x, d_y) = (arena.upload(&lab), lab.data(&case.x), lab.data(&case.d_y));
        let [with, without] = [zero, none].map(|layer| {
            let mut y = lab.data(&case.d_y);
            b.linear(&params, &layer, rows, (&x).into(), (&mut y).into(), true);
            let mut grads = arena.gradients(&lab);
            b.linear_backward_weight(&mut grads, &layer, rows, (&x).into(), (&d_y).into());
            (lab.read(&y, rows * outputs), arena.added(&lab, &grads))
        });
        same_bits(&case.name("sums"), &without.0, &with.0);
        same_bits(&case.name("gradient of the weight"), &without.1[0], &with.1[0]);
        assert!(without.1[1].iter().all(|g| *g == 0.0) && with.1[1].iter().any(|g| *g != 0.0), "{inputs}: the bias' place");
    }
}

/// The gradient of the layer's output before the GELU: `linear_backward_input_gelu` of a layer above that is the identity.
fn through_gelu<B: Backend>(lab: &Lab<'_, B>, rows: usize, width: usize, d_y: &B::Data, pre: &B::Data) -> B::Data {
    let identity: Vec<f32> = (0..width * width).map(|i| if i / width == i % width { 1.0 } else { 0.0 }).collect();
    let mut arena = Arena::default();
    let above = arena.linear(&identity, &vec![f32::NAN; width]);
    let mut d_pre = lab.blank_data(rows * width);
    let params = arena.upload(lab);
    lab.b.linear_backward_input_gelu(&params, &above, rows, d_y.into(), pre.into(), (&mut d_pre).into());
    d_pre
}

/// `linear_backward_input_gelu` of a whole layer is the plain product times the derivative, both in f64.
fn gelu_gradient_of_the_layer_above<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for layer in layers() {
        let Case { rows, inputs, outputs, .. } = layer;
        let (params, d_y, pre) = (layer.arena.upload(&lab), lab.data(&layer.d_y), lab.data(&layer.x));
        let d_act = product(rows, inputs, outputs, |i, p| layer.d_y[i * outputs + p], |p, j| layer.weight[p * inputs + j]);
        let slope = |x: f32| {
            let x = f64::from(x);
            let tanh = ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh();
            0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x)
        };
        let expected: Vec<f32> = d_act.iter().zip(&layer.x).map(|(d, x)| (d * slope(*x)) as f32).collect();
        let mut d_pre = lab.blank_data(rows * inputs);
        b.linear_backward_input_gelu(&params, &layer.linear, rows, (&d_y).into(), (&pre).into(), (&mut d_pre).into());
        close(&layer.name("gelu gradient"), &lab.read(&d_pre, rows * inputs), &expected, tolerance.relative());
    }
}

/// With `accumulate` the product is added to what is there.
fn accumulates<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for layer in layers() {
        let Case { rows, inputs, outputs, .. } = layer;
        let params = layer.arena.upload(&lab);
        let (x, d_y) = (lab.data(&layer.x), lab.data(&layer.d_y));
        let twice = |run: &dyn Fn(&mut B::Data, bool), len: usize| {
            let mut out = lab.blank_data(len);
            run(&mut out, false);
            let once = lab.read(&out, len);
            run(&mut out, true);
            let expected: Vec<f32> = once.iter().map(|v| 2.0 * v).collect();
            close("accumulated", &lab.read(&out, len), &expected, tolerance.relative());
        };
        twice(&|y, add| b.linear(&params, &layer.linear, rows, (&x).into(), y.into(), add), rows * outputs);
        twice(&|dx, add| b.linear_backward_input(&params, &layer.linear, rows, (&d_y).into(), dx.into(), add), rows * inputs);
    }
}

/// Rows, inputs, outputs: small, many rows, a weight beyond the cache with few and with many rows, one row, one output.
const SIZES: [(usize, usize, usize); 7] =
    [(3, 5, 7), (601, 24, 130), (9, 700, 760), (520, 700, 760), (1, 33, 65), (70, 19, 1), (1100, 68, 3)];
/// The same for layers laid out as in the networks, whose rows are whole groups of eight: one row, a real width, long sums.
const ALIGNED_SIZES: [(usize, usize, usize); 5] = [(3, 16, 8), (1, 72, 136), (5, 1536, 24), (1100, 8, 40), (130, 64, 200)];

fn layers() -> impl Iterator<Item = Case> {
    let odd = SIZES.iter().map(|size| Case::new(*size, false));
    odd.chain(ALIGNED_SIZES.iter().map(|size| Case::new(*size, true)))
}

/// A layer of random numbers that bf16 can represent, so that all backends read the same.
struct Case {
    rows: usize,
    inputs: usize,
    outputs: usize,
    arena: Arena,
    linear: Linear,
    x: Vec<f32>,
    d_y: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new((rows, inputs, outputs): (usize, usize, usize), aligned: bool) -> Self {
        let draw = |stream: u32, len: usize, scale: f32| normals(17, stream, len, scale, 0.0);
        let (x, d_y) = (draw(1, rows * inputs, 1.0), draw(2, rows * outputs, 1.0));
        let (weight, bias) = (draw(3, inputs * outputs, (inputs as f32).powf(-0.5)), draw(4, outputs, 1.0));
        let mut arena = Arena::default();
        let linear = if aligned {
            Linear { weight: arena.add_aligned(&weight), bias: arena.add_aligned(&bias), inputs, outputs }
        } else {
            arena.linear(&weight, &bias)
        };
        Self { rows, inputs, outputs, arena, linear, x, d_y, weight, bias }
    }

    fn name(&self, what: &str) -> String {
        format!("{what} of {}x{}x{}", self.rows, self.inputs, self.outputs)
    }
}

/// `a b` in f64; a `[m, k]` and b `[k, n]` by element.
fn product(m: usize, n: usize, k: usize, a: impl Fn(usize, usize) -> f32, b: impl Fn(usize, usize) -> f32) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for p in 0..k {
            let left = f64::from(a(i, p));
            for j in 0..n {
                out[i * n + j] += left * f64::from(b(p, j));
            }
        }
    }
    out
}

/// Backends choose other paths for other sizes: all against plain loops in f64.
fn every_size_class<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in layers() {
        let Case { rows, inputs, outputs, arena, linear, x, d_y, weight, bias } = &case;
        let (rows, inputs, outputs, linear) = (*rows, *inputs, *outputs, *linear);
        let what = |name: &str| case.name(name);
        let to_f32 = |values: Vec<f64>| -> Vec<f32> { values.into_iter().map(|v| v as f32).collect() };
        let (params, x_, d_y_) = (arena.upload(&lab), lab.data(x), lab.data(d_y));

        let plain = product(rows, outputs, inputs, |i, p| x[i * inputs + p], |p, j| weight[j * inputs + p]);
        let plain: Vec<f64> = plain.iter().enumerate().map(|(i, v)| v + f64::from(bias[i % outputs])).collect();
        let mut y = lab.blank_data(rows * outputs);
        b.linear(&params, &linear, rows, (&x_).into(), (&mut y).into(), false);
        close(&what("linear"), &lab.read(&y, rows * outputs), &to_f32(plain.clone()), tolerance.relative());

        let (mut pre, mut act) = (lab.blank_data(rows * outputs), lab.blank_data(rows * outputs));
        b.linear_gelu(&params, &linear, rows, (&x_).into(), (&mut pre).into(), (&mut act).into());
        let gelu = |x: &f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
        close(&what("gelu"), &lab.read(&act, rows * outputs), &to_f32(plain.iter().map(gelu).collect()), tolerance.relative());
        close(&what("linear_gelu"), &lab.read(&pre, rows * outputs), &to_f32(plain), tolerance.relative());

        let expected = product(rows, inputs, outputs, |i, p| d_y[i * outputs + p], |p, j| weight[p * inputs + j]);
        let mut d_x = lab.blank_data(rows * inputs);
        b.linear_backward_input(&params, &linear, rows, (&d_y_).into(), (&mut d_x).into(), false);
        close(&what("linear_backward_input"), &lab.read(&d_x, rows * inputs), &to_f32(expected), tolerance.relative());

        let mut grads = arena.gradients(&lab);
        b.linear_backward_weight(&mut grads, &linear, rows, (&x_).into(), (&d_y_).into());
        let added = arena.added(&lab, &grads);
        let expected = product(outputs, inputs, rows, |i, p| d_y[p * outputs + i], |p, j| x[p * inputs + j]);
        close(&what("linear_backward_weight"), &added[0], &to_f32(expected), tolerance.of_stat().relative());
        let expected = product(1, outputs, rows, |_, _| 1.0, |p, j| d_y[p * outputs + j]);
        close(&what("bias gradient"), &added[1], &to_f32(expected), tolerance.of_stat().relative());
        let mut again = arena.gradients(&lab);
        b.linear_backward_weight(&mut again, &linear, rows, (&x_).into(), (&d_y_).into());
        same_bits(&what("second run"), &arena.added(&lab, &again).concat(), &added.concat());
    }
}

/// Buffers that end with their last value give what roomier ones give.
fn nothing_behind_the_end<B: Backend>(b: &B, _: Tolerance) {
    for case in [Case::new((3, 16, 8), true), Case::new((601, 24, 130), false)] {
        let run = |lab: &Lab<'_, B>| {
            let mut grads = case.arena.gradients(lab);
            let (x, d_y) = (lab.data(&case.x), lab.data(&case.d_y));
            b.linear_backward_weight(&mut grads, &case.linear, case.rows, (&x).into(), (&d_y).into());
            case.arena.added(lab, &grads).concat()
        };
        same_bits(&case.name("gradients"), &run(&Lab::tight(b)), &run(&Lab::new(b)));
    }
}
