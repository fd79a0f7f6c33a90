//! SiLU and leaky ReLU.

use ladd_fast::device::{Backend, Storage};

use super::on_every_backend;
use crate::golden::{Tolerance, cases, close};
use crate::lab::Lab;

on_every_backend!(silu, leaky_relu, longer_than_one_task);

fn silu<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("silu") {
        let (x, d_y) = (case.input("x"), case.input("d_y"));
        let n = x.len();
        let (x, d_y, mut y, mut d_x) = (lab.data(&x), lab.data(&d_y), lab.blank_data(n), lab.blank_data(n));
        b.silu(x.part(0..n), y.part_mut(0..n));
        b.silu_backward(x.part(0..n), d_y.part(0..n), d_x.part_mut(0..n));
        case.compare("out.y", &lab.read(&y, n), tolerance);
        case.compare("grad.x", &lab.read(&d_x, n), tolerance);
    }
}

fn leaky_relu<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("leaky_relu") {
        let (x, d_y) = (case.input("x"), case.input("d_y"));
        let residual = case.has_input("residual").then(|| lab.data(&case.input("residual")));
        let n = x.len();
        let (x, mut y, mut d_x) = (lab.data(&x), lab.blank_data(n), lab.blank_data(n));
        b.leaky_relu(x.part(0..n), residual.as_ref().map(|r| r.part(0..n)), y.part_mut(0..n));
        b.leaky_relu_backward(x.part(0..n), lab.data(&d_y).part(0..n), d_x.part_mut(0..n));
        case.compare("out.y", &lab.read(&y, n), tolerance);
        case.compare("grad.x", &lab.read(&d_x, n), tolerance);
        if residual.is_some() {
            case.compare("grad.residual", &d_y, tolerance);
        }
    }
}

/// The golden tensors fit one task of the CPU backend, one block of a GPU.
fn longer_than_one_task<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    let n = 3 * 8192 + 777;
    let value = |i: usize| ((i * 7919) % 1009) as f32 / 100.0 - 5.0;
    // Rounded before both sides see them: the slope jumps at zero, where rounding an input would decide it.
    let x = tolerance.held(&(0..n).map(value).collect::<Vec<_>>());
    let d_y = tolerance.held(&(0..n).map(|i| value(i + 500)).collect::<Vec<_>>());
    let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
    let leaky = |x: f32| f64::from(x) * if x > 0.0 { 1.0 } else { 0.2 };
    let expect = |f: &dyn Fn(f32, f32) -> f64| -> Vec<f32> { x.iter().zip(&d_y).map(|(x, d)| f(*x, *d) as f32).collect() };
    let (x_, d_) = (lab.data(&x), lab.data(&d_y));
    let (x_, d_) = (x_.part(0..n), d_.part(0..n));
    let mut out = lab.blank_data(n);
    let mut check = |what: &str, run: &mut dyn FnMut(&mut B::Data), expected: Vec<f32>| {
        out = lab.blank_data(n);
        run(&mut out);
        close(what, &lab.read(&out, n), &expected, tolerance.relative());
    };
    check("silu", &mut |y| b.silu(x_, y.part_mut(0..n)), expect(&|x, _| f64::from(x) * sigmoid(x)));
    let slope = |x: f32| sigmoid(x) * (1.0 + f64::from(x) * (1.0 - sigmoid(x)));
    check("silu backward", &mut |y| b.silu_backward(x_, d_, y.part_mut(0..n)), expect(&|x, d| f64::from(d) * slope(x)));
    check("leaky", &mut |y| b.leaky_relu(x_, None, y.part_mut(0..n)), expect(&|x, _| leaky(x)));
    check("leaky + residual", &mut |y| b.leaky_relu(x_, Some(d_), y.part_mut(0..n)), expect(&|x, d| f64::from(d) + leaky(x)));
    let slope = |x: f32| if x > 0.0 { 1.0 } else { 0.2 };
    check("leaky backward", &mut |y| b.leaky_relu_backward(x_, d_, y.part_mut(0..n)), expect(&|x, d| f64::from(d) * slope(x)));
}
