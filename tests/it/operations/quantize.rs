//! Products in FP8: codes and scales to the bit on every device, and the dense layer over them.

use std::sync::Arc;

use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use ladd_fast::device::{Backend, Linear, QuantizeShape, Quantized, Storage, e4m3};

use super::on_every_backend;
use crate::golden::{Tolerance, cases, close};
use crate::lab::{Arena, Lab, behind, normals, representable, same_bits};

on_every_backend!(quantize_rows, linear_fp8, every_number_of_bf16, every_width, layers_of_every_size, what_is_no_number_stays_none);

/// Codes and scales of `x` that begins `offset` values behind the start of its buffer.
fn quantized<B: Backend>(b: &B, shape: &QuantizeShape, x: &[f32], offset: usize) -> (Vec<u8>, Vec<f32>) {
    const BEHIND: u8 = 0xa5;
    let lab = Lab::new(b);
    let x = lab.data(&behind(offset, x));
    let len = shape.rows * shape.width;
    let mut codes = b.alloc_bytes(offset + len + 3).unwrap();
    b.upload_bytes(&vec![BEHIND; offset + len + 3], codes.all_mut());
    let mut scales = lab.blank_stat(shape.rows);
    b.quantize_rows(shape, x.part(offset..offset + len), codes.part_mut(offset..offset + len), scales.part_mut(0..shape.rows));
    let all = b.download_bytes(codes.all()).unwrap();
    assert!(all[..offset].iter().chain(&all[offset + len..]).all(|code| *code == BEHIND), "codes were written outside");
    (all[offset..offset + len].to_vec(), lab.read_stat(&scales, shape.rows))
}

/// The same by the formula, in the order of its roundings.
fn expected(shape: &QuantizeShape, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let rows = x.chunks_exact(shape.width).map(|row| {
        let largest = row.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
        let (factor, scale) = e4m3::factor_and_scale(largest);
        (row.iter().map(|v| e4m3::encode(v * factor)).collect::<Vec<_>>(), scale)
    });
    let (codes, scales): (Vec<_>, Vec<_>) = rows.unzip();
    (codes.concat(), scales)
}

fn values(codes: &[u8], scales: &[f32]) -> Vec<f32> {
    let width = codes.len() / scales.len();
    codes.iter().enumerate().map(|(i, code)| e4m3::decode(*code) * scales[i / width]).collect()
}

fn quantize_rows<B: Backend>(b: &B, tolerance: Tolerance) {
    for case in cases("quantize_rows") {
        let [rows, width] = case.shape("in.x")[..] else { panic!("a matrix") };
        let shape = QuantizeShape { rows, width, gelu: case.config["gelu"] == true };
        let x = case.input("x");
        for offset in [0, 3] {
            let (codes, scales) = quantized(b, &shape, &x, offset);
            if shape.gelu {
                let (rounded, other) =
                    if tolerance.of_stat() == tolerance { ("out.values", "out.values_bf16") } else { ("out.values_bf16", "out.values") };
                case.compare(rounded, &values(&codes, &scales), tolerance);
                case.skip(other);
            } else {
                case.equal("out.scales", &scales);
                assert_eq!(codes.iter().map(|code| u64::from(*code)).collect::<Vec<_>>(), case.integers("out.codes"), "codes at {offset}");
            }
        }
    }
}

/// Whether the device has products in FP8; only GPUs may lack them.
fn possible<B: Backend>(b: &B, layer: &Linear, rows: usize) -> bool {
    let Err(error) = b.prepare_linear_fp8(layer, rows) else { return true };
    assert!(b.name().starts_with("cuda") && !b.name().contains("emulator"), "{error}");
    println!("skipped: {error}");
    false
}

/// `linear_fp8` of host values that are quantised first, with codes and scales at the places of a network's.
fn product<B: Backend>(b: &B, arena: &Arena, layer: &Linear, rows: usize, x: &[f32]) -> Option<Vec<f32>> {
    let Linear { weight, inputs, outputs, .. } = *layer;
    if !possible(b, layer, rows) {
        return None;
    }
    let lab = Lab::new(b);
    let (params, x) = (arena.upload(&lab), lab.data(x));
    let (left, right) = (rows * inputs, outputs * inputs);
    let (mut x_codes, mut w_codes) = (b.alloc_bytes(left).unwrap(), b.alloc_bytes(64 + right).unwrap());
    let (mut x_scales, mut w_scales) = (b.alloc_stat(rows).unwrap(), b.alloc_stat(64 + outputs).unwrap());
    b.quantize_rows(&QuantizeShape { rows, width: inputs, gelu: false }, x.part(0..left), x_codes.all_mut(), x_scales.all_mut());
    let (codes, scales) = (w_codes.part_mut(64..64 + right), w_scales.part_mut(64..64 + outputs));
    b.quantize_rows(&QuantizeShape { rows: outputs, width: inputs, gelu: false }, params.part(weight..weight + right), codes, scales);
    let x = Quantized { codes: x_codes.all(), scales: x_scales.all() };
    let w = Quantized { codes: w_codes.part(64..64 + right), scales: w_scales.part(64..64 + outputs) };
    let mut y = lab.blank_data(rows * outputs);
    b.linear_fp8(&params, layer, rows, x, w, y.part_mut(0..rows * outputs));
    Some(lab.read(&y, rows * outputs))
}

fn linear_fp8<B: Backend>(b: &B, tolerance: Tolerance) {
    for case in cases("linear_fp8") {
        let [x, weight, bias] = ["x", "weight", "bias"].map(|name| case.input(name));
        let (inputs, outputs) = (weight.len() / bias.len(), bias.len());
        for (name, matrix) in [("x", &x), ("weight", &weight)] {
            let (codes, scales) = quantized(b, &QuantizeShape { rows: matrix.len() / inputs, width: inputs, gelu: false }, matrix, 0);
            case.equal(&format!("out.{name}_scales"), &scales);
            let codes: Vec<u64> = codes.into_iter().map(u64::from).collect();
            assert_eq!(codes, case.integers(&format!("out.{name}_codes")), "{name}");
        }
        let mut arena = Arena::default();
        let layer = Linear { weight: arena.add_aligned(&weight), bias: arena.add_aligned(&bias), inputs, outputs };
        match product(b, &arena, &layer, x.len() / inputs, &x) {
            Some(y) => drop(case.compare("out.y", &y, tolerance)),
            None => case.skip("out.y"),
        }
    }
}

/// Rows whose largest number is 448 have scale 1: what stands beside it is encoded as it is. All numbers of bf16 up to it,
/// and what is no number.
fn every_number_of_bf16<B: Backend>(b: &B, _: Tolerance) {
    let all = (0..=u16::MAX).map(|bits| half::bf16::from_bits(bits).to_f32());
    let numbers: Vec<f32> = all.filter(|v| v.abs() <= 448.0 || (v.is_nan() && v.to_bits() == f32::NAN.to_bits())).collect();
    let x: Vec<f32> = numbers
        .chunks(15)
        .flat_map(|part| [448.0].iter().chain(part).chain(&vec![0.0; 15 - part.len()]).copied().collect::<Vec<_>>())
        .collect();
    let shape = QuantizeShape { rows: x.len() / 16, width: 16, gelu: false };
    let (codes, scales) = quantized(b, &shape, &x, 0);
    assert!(scales.iter().all(|scale| *scale == 1.0));
    for (x, code) in x.iter().zip(codes) {
        assert_eq!(code, e4m3::encode(*x), "{x:e}");
    }
}

fn every_width<B: Backend>(b: &B, _: Tolerance) {
    for (rows, width) in [(1, 1), (5, 7), (9, 16), (3, 80), (4, 528), (5, 1536), (2, 9728), (1, 10240), (2, 10256), (70, 24)] {
        let mut x = normals(5, width as u32, rows * width, 1.0, 0.0);
        for (i, row) in x.chunks_exact_mut(width).enumerate() {
            row.iter_mut().for_each(|v| *v *= 10_f32.powi(7 * i as i32 % 31 - 15));
        }
        let x = representable(x);
        for gelu in [false, true] {
            let shape = QuantizeShape { rows, width, gelu };
            let (codes, scales) = quantized(b, &shape, &x, 0);
            let (other_codes, other_scales) = quantized(b, &shape, &x, 5);
            assert_eq!(codes, other_codes, "{shape:?} from another place");
            same_bits("scales from another place", &scales, &other_scales);
            if !gelu {
                let (expected_codes, expected_scales) = expected(&shape, &x);
                assert_eq!(codes, expected_codes, "{shape:?}");
                same_bits("scales", &scales, &expected_scales);
            }
        }
    }
}

fn what_is_no_number_stays_none<B: Backend>(b: &B, _: Tolerance) {
    let mut x = vec![2.0; 3 * 32];
    (x[5], x[32 + 7]) = (f32::NAN, f32::INFINITY);
    x[64..].fill(f32::NAN);
    let shape = QuantizeShape { rows: 3, width: 32, gelu: false };
    for offset in [0, 1] {
        let (codes, scales) = quantized(b, &shape, &x, offset);
        let values = values(&codes, &scales);
        assert!(values[5].is_nan() && values[..5].iter().all(|v| *v == 2.0), "{values:?}");
        assert!(values[32..].iter().all(|v| v.is_nan()), "{values:?}");
    }
}

fn layers_of_every_size<B: Backend>(b: &B, tolerance: Tolerance) {
    for (rows, inputs, outputs) in [(1, 16, 16), (3, 64, 192), (130, 48, 80), (17, 1536, 32), (5, 128, 512)] {
        let x = normals(6, 1, rows * inputs, 1.0, 0.0);
        let (weight, bias) = (normals(6, 2, inputs * outputs, (inputs as f32).powf(-0.5), 0.0), normals(6, 3, outputs, 1.0, 0.0));
        let mut arena = Arena::default();
        let layer = Linear { weight: arena.add_aligned(&weight), bias: arena.add_aligned(&bias), inputs, outputs };
        let Some(y) = product(b, &arena, &layer, rows, &x) else { return };
        let [left, right] = [(rows, &x), (outputs, &weight)].map(|(rows, matrix)| {
            let (codes, scales) = expected(&QuantizeShape { rows, width: inputs, gelu: false }, matrix);
            values(&codes, &scales)
        });
        let sum =
            |i: usize, j: usize| -> f64 { (0..inputs).map(|k| f64::from(left[i * inputs + k]) * f64::from(right[j * inputs + k])).sum() };
        let expected: Vec<f32> =
            (0..rows * outputs).map(|at| (sum(at / outputs, at % outputs) + f64::from(bias[at % outputs])) as f32).collect();
        close(&format!("{rows}x{inputs}x{outputs}"), &y, &expected, tolerance.relative());
    }
}

#[test]
fn what_cannot_be_multiplied_in_fp8_is_refused_before_it_is() {
    let odd = Linear { weight: 0, bias: 0, inputs: 40, outputs: 64 };
    let even = Linear { inputs: 48, ..odd };
    let hopper = Cuda::new(Arc::new(Emulated::new(Schedule::default())));
    let ampere = Cuda::new(Arc::new(Emulated::ampere(Schedule::default())));
    let refused = |result: Result<(), ladd_fast::device::DeviceError>| result.unwrap_err().to_string();
    let cpu = ladd_fast::device::cpu::Cpu::<f32>::new();
    for error in [refused(cpu.prepare_linear_fp8(&odd, 4)), refused(hopper.prepare_linear_fp8(&odd, 4))] {
        assert!(error.contains("width of 40") && error.contains("ladd.teacher_precision to \"bf16\""), "{error}");
    }
    let error = refused(ampere.prepare_linear_fp8(&even, 4));
    assert!(error.contains("8.9 on, this is 8.0") && error.contains("ladd.teacher_precision to \"bf16\""), "{error}");
    assert!(hopper.prepare_linear_fp8(&even, 4).is_ok() && cpu.prepare_linear_fp8(&even, 4).is_ok());
}
