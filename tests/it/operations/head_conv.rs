//! The discriminator heads' convolution and logits.

use ladd_fast::device::{Backend, ConvShape, HeadLogitsShape, Linear};
use ladd_fast::flow::philox::fill_normals;

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Arena, Lab, same_bits};

on_every_backend!(conv3x3, conv3x3_of_many_samples_and_large_grids, head_logits);

/// A convolution's operands.
struct Conv {
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
    let b = lab.b;
    let ConvShape { linear, batch, rows, columns } = conv.shape;
    let tokens = batch * rows * columns;
    let (cin, cout) = (linear.inputs / 9, linear.outputs);
    let (params, mut grads) = (conv.arena.upload(lab), conv.arena.gradients(lab));
    let (x, d_y) = (lab.data(&conv.x), lab.data(&conv.d_y));
    let (mut y, mut dx) = (lab.blank_data(tokens * cout), lab.blank_data(tokens * cin));
    b.conv3x3(&params, &conv.shape, (&x).into(), (&mut y).into());
    b.conv3x3_backward_input(&params, &conv.shape, (&d_y).into(), (&mut dx).into(), false);
    b.conv3x3_backward_weight(&mut grads, &conv.shape, (&x).into(), (&d_y).into());
    let once = lab.read(&dx, tokens * cin);
    b.conv3x3_backward_input(&params, &conv.shape, (&d_y).into(), (&mut dx).into(), true);
    let twice: Vec<f32> = once.iter().map(|v| 2.0 * v).collect();
    close("accumulated dx", &lab.read(&dx, tokens * cin), &twice, tolerance.relative());
    let mut added = conv.arena.added(lab, &grads).into_iter();
    [lab.read(&y, tokens * cout), once, added.next().unwrap(), added.next().unwrap()]
}

fn conv3x3<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("conv3x3") {
        let [x, weight, bias, d_y] = ["x", "weight", "bias", "d_y"].map(|name| case.input(name));
        let mut arena = Arena::default();
        let linear = arena.linear(&weight, &bias);
        assert_eq!((linear.inputs, linear.outputs), (9 * case.size("cin"), case.size("cout")));
        let shape = ConvShape { linear, batch: case.size("B"), rows: case.size("gh"), columns: case.size("gw") };
        let results = run(&lab, &Conv { arena, shape, x, d_y, weight, bias }, tolerance);
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

/// More samples than one task takes, grids larger than one task, and widths that differ.
fn conv3x3_of_many_samples_and_large_grids<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for (batch, rows, columns, cin, cout) in [(41, 2, 5, 3, 6), (3, 12, 13, 8, 4), (70, 1, 1, 4, 4), (9, 4, 4, 12, 20)] {
        let draw = |stream: u32, len: usize| {
            let mut values = vec![0.0; len];
            fill_normals(23, 0, stream, 0, &mut values);
            values
        };
        let tokens = batch * rows * columns;
        let (weight, bias) = (draw(1, cout * 9 * cin), draw(2, cout));
        let mut arena = Arena::default();
        let linear = arena.linear(&weight, &bias);
        let shape = ConvShape { linear, batch, rows, columns };
        let conv = Conv { arena, shape, x: draw(3, tokens * cin), d_y: draw(4, tokens * cout), weight, bias };
        for ((name, got), expected) in ["y", "dx", "dweight", "dbias"].into_iter().zip(run(&lab, &conv, tolerance)).zip(plain(&conv)) {
            close(&format!("{name} of {batch}x{rows}x{columns}, {cin} to {cout}"), &got, &expected, tolerance.relative());
        }
    }
}

fn head_logits<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("head_logits") {
        let (batch, positions, width) = (case.size("B"), case.size("N"), case.size("w"));
        let mut arena = Arena::default();
        let linear = Linear { weight: arena.add(&case.input("weight")), bias: arena.add(&case.input("bias")), inputs: width, outputs: 1 };
        let shape = HeadLogitsShape { linear, batch, positions };
        let (params, mut grads) = (arena.upload(&lab), arena.gradients(&lab));
        let (h, cm, d_logits) = (lab.data(&case.input("h3")), lab.data(&case.input("projection")), lab.stat(&case.input("d_logits")));
        let mut logits = lab.blank_stat(batch * positions);
        b.head_logits(&params, &shape, (&h).into(), (&cm).into(), (&mut logits).into());
        case.compare("out.logits", &lab.read_stat(&logits, batch * positions), tolerance);

        let (mut dh, mut d_cm) = (lab.blank_data(batch * positions * width), lab.blank_data(batch * width));
        let trained = Some((&mut grads, (&mut d_cm).into()));
        b.head_logits_backward(&params, &shape, (&h).into(), (&cm).into(), (&d_logits).into(), (&mut dh).into(), trained);
        let dh = lab.read(&dh, batch * positions * width);
        case.compare("grad.h3", &dh, tolerance);
        case.compare("grad.projection", &lab.read(&d_cm, batch * width), tolerance);
        let added = arena.added(&lab, &grads);
        case.compare("grad.weight", &added[0], tolerance);
        case.compare("grad.bias", &added[1], tolerance);
        frozen_and_smaller(&lab, &case, &shape, &params, &dh);
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
