//! Random words, uniforms and normals, equal to the bit on every device, and the times drawn from them.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, StepValues, Storage};
use ladd_fast::flow::TimestepDistribution;
use ladd_fast::flow::philox::{block, fill_normals, uniform, uniform_at};

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases};
use crate::lab::{Lab, behind, from, same_bits};

on_every_backend!(
    normals,
    normals_at_every_offset,
    timesteps,
    times_of_many_samples,
    edges_of_probabilities,
    normals_do_not_depend_on_the_micro_batch
);

/// The rows of the case: seed, step, stream, first element.
fn rows(case: &Golden) -> Vec<(u64, u32, u32, u64)> {
    let [seed, step, stream, first] = ["in.seed", "in.step", "in.stream", "in.first"].map(|name| case.integers(name));
    (0..seed.len()).map(|i| (seed[i], step[i] as u32, stream[i] as u32, first[i])).collect()
}

#[test]
fn words_and_uniforms() {
    for case in cases("philox") {
        let (words, uniforms) = (case.integers("out.words"), case.result("out.uniforms"));
        case.skip("out.normals"); // compared by `normals`
        let per_row = words.len() / rows(&case).len();
        for (row, (seed, step, stream, first)) in rows(&case).into_iter().enumerate() {
            for i in 0..per_row {
                let (element, at) = (first + i as u64, row * per_row + i);
                let word = block(seed, step, stream, element / 4)[(element % 4) as usize];
                assert_eq!(u64::from(word), words[at], "word {i} of row {row}");
                assert_eq!(uniform(word).to_bits(), uniforms[at].to_bits(), "uniform {i} of row {row}");
                assert_eq!(uniform_at(seed, step, stream, element), uniforms[at]);
            }
        }
    }
}

/// A row begins in the middle of a sample of odd size, far into the sequence.
fn normals<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    let (numel, batch) = (10_001, 2);
    for case in cases("philox") {
        ["out.words", "out.uniforms"].into_iter().for_each(|name| case.skip(name)); // compared by `words_and_uniforms`
        let rows = rows(&case);
        let per_row = case.shape("out.normals")[1];
        let mut drawn = Vec::new();
        for (seed, step, stream, first) in rows {
            let first_sample = u32::try_from(first / numel as u64).unwrap();
            let mut values = b.alloc_step().unwrap();
            b.upload_step(&StepValues { seed, step, first_sample, lr: [f32::NAN; 2] }, &mut values);
            let mut out = lab.blank_stat(batch * numel);
            b.normal(&values, stream, numel, out.part_mut(0..batch * numel));
            let offset = (first % numel as u64) as usize;
            drawn.extend_from_slice(&lab.read_stat(&out, batch * numel)[offset..offset + per_row]);
        }
        case.equal("out.normals", &drawn);
    }
}

/// Samples that begin and end anywhere in a Philox block, in buffers of every alignment; some lie beyond 2^32 blocks.
fn normals_at_every_offset<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    for (numel, batch, first_sample) in
        [(1, 1, 0), (3, 3, 5), (4, 3, 1), (6, 3, 7), (1023, 2, 1), (4096, 2, u32::MAX - 2), (9999, 1, u32::MAX)]
    {
        let mut step = b.alloc_step().unwrap();
        b.upload_step(&StepValues { seed: u64::MAX - 3, step: 6, first_sample, lr: [0.0; 2] }, &mut step);
        let mut expected = vec![0.0; batch * numel];
        fill_normals(u64::MAX - 3, 6, 48, u64::from(first_sample) * numel as u64, &mut expected);
        for offset in 0..5 {
            let mut out = lab.stat(&behind(offset, &vec![f32::NAN; batch * numel]));
            b.normal(&step, 48, numel, out.part_mut(offset..offset + batch * numel));
            let out = from(offset, &lab.read_stat(&out, offset + batch * numel));
            same_bits(&format!("{batch} x {numel} from sample {first_sample}, offset {offset}"), &out, &expected);
        }
    }
}

fn normals_do_not_depend_on_the_micro_batch<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    let numel = 8195; // one task of the CPU backend and a little more
    let draw = |first_sample: u32, batch: usize| {
        let mut step = b.alloc_step().unwrap();
        b.upload_step(&StepValues { seed: 5, step: 2, first_sample, lr: [0.0; 2] }, &mut step);
        let mut out = lab.blank_stat(batch * numel);
        b.normal(&step, 7, numel, out.part_mut(0..batch * numel));
        lab.read_stat(&out, batch * numel)
    };
    let whole = draw(3, 4);
    let parts: Vec<f32> = [draw(3, 1), draw(4, 2), draw(6, 1)].concat();
    same_bits("micro-batches", &whole, &parts);
    assert_ne!(whole[..numel], whole[numel..2 * numel]);
}

fn timesteps<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("timesteps") {
        let distribution: TimestepDistribution = serde_json::from_value(case.config["distribution"].clone()).unwrap();
        distribution.validate("golden").unwrap();
        let batch = case.size("batch");
        let mut drawn = Vec::new();
        for step in case.integers("in.step") {
            let mut values = b.alloc_step().unwrap();
            let first_sample = case.size("first_sample") as u32;
            b.upload_step(&StepValues { seed: case.seed, step: step as u32, first_sample, lr: [0.0; 2] }, &mut values);
            let mut t = lab.blank_stat(batch);
            b.timesteps(&values, case.size("stream") as u32, &distribution, t.part_mut(0..batch));
            drawn.extend(lab.read_stat(&t, batch));
        }
        match distribution {
            TimestepDistribution::Discrete { .. } | TimestepDistribution::Uniform => case.equal("out.t", &drawn),
            _ => {
                case.compare("out.t", &drawn, tolerance.of_stat());
                let worst = drawn.iter().zip(case.result("out.t")).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-6, "{}: a time is off by {worst:e}", case.name);
            }
        }
    }
}

/// A time belongs to the draws below its cumulative probability, not to the one that meets it; and where no probability is
/// left above a draw, the last time that has one is taken, not a later one that cannot be drawn.
fn edges_of_probabilities<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    let mut step = b.alloc_step().unwrap();
    b.upload_step(&StepValues { seed: 3, step: 1, first_sample: 0, lr: [0.0; 2] }, &mut step);
    let draw = |distribution: &TimestepDistribution| {
        let mut t = lab.blank_stat(1);
        b.timesteps(&step, 2, distribution, t.part_mut(0..1));
        lab.read_stat(&t, 1)[0]
    };
    let u = draw(&TimestepDistribution::Uniform);
    let discrete = |probs: [f32; 2]| TimestepDistribution::Discrete {
        values: vec![0.25, 0.75],
        probs: probs.to_vec(),
        warmup_probs: Vec::new(),
        warmup_steps: 0,
    };
    assert_eq!(draw(&discrete([u, 1.0 - u])), 0.75, "a draw that meets the first probability");
    assert_eq!(draw(&discrete([u.next_up(), 1.0 - u])), 0.25, "a draw just below the first probability");
    assert_eq!(draw(&discrete([u, 0.0])), 0.25, "a draw above all probabilities");
}

/// More samples than a block of threads, before, at and after the end of the warm-up, with as many times as there may be.
fn times_of_many_samples<B: Backend>(b: &B, _: Tolerance) {
    let (lab, cpu) = (Lab::new(b), Cpu::<f32>::new());
    let values: Vec<f32> = (1..=16).map(|i| i as f32 / 16.0).collect();
    // The last time cannot be drawn, though rounding leaves the sum of the others below one.
    let probs: Vec<f32> = (0..16).map(|i| if i == 15 { 0.0 } else { 1.0 / 15.0 }).collect();
    let warmup_probs: Vec<f32> = (0..16).map(|i| if i % 4 == 1 { 0.25 } else { 0.0 }).collect();
    let discrete =
        |warmup_probs| TimestepDistribution::Discrete { values: values.clone(), probs: probs.clone(), warmup_probs, warmup_steps: 3 };
    let distributions = [
        discrete(warmup_probs),
        discrete(Vec::new()),
        TimestepDistribution::LogitNormal { mean: 1.0, std: 4.0 }, // both clamps are reached
        TimestepDistribution::Uniform,
        TimestepDistribution::Shifted { shift: 3.0 },
    ];
    for (distribution, step) in distributions.iter().flat_map(|d| [(d, 2), (d, 3), (d, 4)]) {
        let values = StepValues { seed: 12, step, first_sample: 1001, lr: [0.0; 2] };
        let batch = 1000;
        let mut expected = cpu.alloc_stat(batch).unwrap();
        cpu.timesteps(&values, 3, distribution, expected.all_mut());
        let mut on_device = b.alloc_step().unwrap();
        b.upload_step(&values, &mut on_device);
        let mut t = lab.blank_stat(batch);
        b.timesteps(&on_device, 3, distribution, t.part_mut(0..batch));
        let t = lab.read_stat(&t, batch);
        match distribution {
            TimestepDistribution::Discrete { .. } | TimestepDistribution::Uniform => same_bits("times", &t, &expected),
            // Computed in f64 and rounded once: another exponential may round the other way, by one unit in the last place.
            _ => assert!(t.iter().zip(expected.iter()).all(|(a, b)| (a - b).abs() <= 6e-8), "{distribution:?}"),
        }
    }
}
