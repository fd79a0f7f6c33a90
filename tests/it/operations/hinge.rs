//! The adversarial losses with their gradients and statistics, and the mean squared error.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, Groups, HINGE_STATS, HingeShape, HingeStat, Storage};
use ladd_fast::flow::philox::fill_normals;
use ladd_fast::ladd::AdversarialLoss;

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, behind, from, same_bits};

on_every_backend!(hinge, only_fakes, every_shape, mse, mse_of_any_length);

fn shape(case: &Golden) -> HingeShape {
    let groups: Vec<&str> = case.config["groups"].as_array().unwrap().iter().map(|g| g.as_str().unwrap()).collect();
    let shape = HingeShape {
        loss: serde_json::from_value::<AdversarialLoss>(case.config["loss"].clone()).unwrap(),
        heads: case.size("heads"),
        groups: Groups { real: true, mismatch: groups.contains(&"mismatch"), perturbed: groups.contains(&"perturbed") },
        batch: case.size("B"),
        positions: case.size("positions"),
        mismatch_weight: case.number("mismatch_weight") as f32,
        r1_weight: case.number("r1_weight") as f32,
        generator_weight: 1.0,
        share: 1.0,
    };
    assert_eq!(shape.groups.count(), groups.len());
    assert_eq!(groups.iter().position(|g| *g == "mismatch"), shape.groups.mismatch_index());
    assert_eq!(groups.iter().position(|g| *g == "perturbed"), shape.groups.perturbed_index());
    shape
}

/// Gradients of both losses, and the statistics added to what was there.
struct Results {
    d_d: Vec<f32>,
    d_g: Vec<f32>,
    stats: Vec<f32>,
}

fn run<B: Backend>(lab: &Lab<'_, B>, shape: &HingeShape, logits: &[f32]) -> Results {
    let per_group = shape.heads * shape.batch * shape.positions;
    let all = per_group * shape.groups.count();
    let logits = lab.stat(logits);
    let (mut d_d, mut d_g) = (lab.blank_stat(all), lab.blank_stat(per_group));
    let mut stats = lab.stat(&vec![1.0; shape.heads * HINGE_STATS]);
    lab.b.hinge(shape, (&logits).into(), Some((&mut d_d).into()), Some((&mut d_g).into()), (&mut stats).into());
    let stats = lab.read_stat(&stats, shape.heads * HINGE_STATS);
    Results { d_d: lab.read_stat(&d_d, all), d_g: lab.read_stat(&d_g, per_group), stats: stats.iter().map(|v| v - 1.0).collect() }
}

fn column(stats: &[f32], stat: HingeStat) -> Vec<f32> {
    stats.chunks_exact(HINGE_STATS).map(|row| row[stat as usize]).collect()
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

fn hinge<B: Backend>(b: &B, tolerance: Tolerance) {
    // Logits and losses are fp32 everywhere.
    let (lab, tolerance) = (Lab::new(b), tolerance.of_stat());
    for case in cases("hinge") {
        let (shape, logits) = (shape(&case), case.input("logits"));
        let got = run(&lab, &shape, &logits);
        let [loss_d, loss_g] = [HingeStat::LossD, HingeStat::LossG].map(|stat| column(&got.stats, stat));
        case.compare("out.d_loss_per_head", &loss_d, tolerance);
        case.compare("out.g_loss_per_head", &loss_g, tolerance);
        case.compare("out.d_loss", &[mean(&loss_d)], tolerance);
        case.compare("out.g_loss", &[mean(&loss_g)], tolerance);
        let four = [HingeStat::MeanReal, HingeStat::MeanFake, HingeStat::AccuracyReal, HingeStat::AccuracyFake];
        let four: Vec<Vec<f32>> = four.into_iter().map(|stat| column(&got.stats, stat)).collect();
        let statistics: Vec<f32> = (0..shape.heads).flat_map(|head| four.iter().map(move |s| s[head])).collect();
        case.compare("out.statistics", &statistics, tolerance);
        close("penalty", &column(&got.stats, HingeStat::PenaltyR1), &penalty(&shape, &logits), tolerance.relative());
        case.compare("grad.d.logits", &got.d_d, tolerance);
        case.compare("grad.g.fake_logits", &got.d_g, tolerance);
        shares_and_weights(&lab, &shape, &logits, &got, tolerance);
    }
}

/// `mean (real - perturbed)^2` of every head.
fn penalty(shape: &HingeShape, logits: &[f32]) -> Vec<f32> {
    let Some(index) = shape.groups.perturbed_index() else { return vec![0.0; shape.heads] };
    let n = shape.batch * shape.positions;
    let head = |logits: &[f32]| {
        let pairs = logits[n..2 * n].iter().zip(&logits[index * n..(index + 1) * n]);
        (pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / n as f64) as f32
    };
    logits.chunks_exact(shape.groups.count() * n).map(head).collect()
}

/// A micro-batch scales everything by its share; the generator's weight scales its gradient only. What is not asked for
/// changes nothing else.
fn shares_and_weights<B: Backend>(lab: &Lab<'_, B>, shape: &HingeShape, logits: &[f32], whole: &Results, tolerance: Tolerance) {
    let part = run(lab, &HingeShape { share: 0.25, generator_weight: 3.0, ..*shape }, logits);
    let scaled = |values: &[f32], factor: f32| -> Vec<f32> { values.iter().map(|v| factor * v).collect() };
    close("share of L_D's gradient", &part.d_d, &scaled(&whole.d_d, 0.25), tolerance.relative());
    close("weighted share of L_G's gradient", &part.d_g, &scaled(&whole.d_g, 0.75), tolerance.relative());
    close("share of the statistics", &part.stats, &scaled(&whole.stats, 0.25), tolerance.relative());
    let mut stats = lab.stat(&vec![1.0; shape.heads * HINGE_STATS]);
    lab.b.hinge(shape, (&lab.stat(logits)).into(), None, None, (&mut stats).into());
    let stats: Vec<f32> = lab.read_stat(&stats, shape.heads * HINGE_STATS).iter().map(|v| v - 1.0).collect();
    same_bits("statistics alone", &stats, &whole.stats);
}

/// The student's phase of alternating updates sees one group.
fn only_fakes<B: Backend>(b: &B, tolerance: Tolerance) {
    // Logits and losses are fp32 everywhere.
    let (lab, tolerance) = (Lab::new(b), tolerance.of_stat());
    for name in ["hinge_2", "non_saturating_2"] {
        let case = Golden::open(name);
        let both = shape(&case);
        let n = both.batch * both.positions;
        let fakes: Vec<f32> = case.input("logits").chunks_exact(2 * n).flat_map(|head| head[..n].to_vec()).collect();
        let shape = HingeShape { groups: Groups::FAKE, ..both };
        let mut stats = lab.stat(&vec![0.0; shape.heads * HINGE_STATS]);
        let mut d_g = lab.blank_stat(fakes.len());
        b.hinge(&shape, (&lab.stat(&fakes)).into(), None, Some((&mut d_g).into()), (&mut stats).into());
        case.compare("grad.g.fake_logits", &lab.read_stat(&d_g, fakes.len()), tolerance);
        let stats = lab.read_stat(&stats, shape.heads * HINGE_STATS);
        case.compare("out.g_loss_per_head", &column(&stats, HingeStat::LossG), tolerance);
        case.compare("out.g_loss", &[mean(&column(&stats, HingeStat::LossG))], tolerance);
        let all: Vec<f32> = case.result("out.statistics");
        let expected = |which: usize| -> Vec<f32> { all.chunks_exact(4).map(|row| row[which]).collect() };
        close("mean fake", &column(&stats, HingeStat::MeanFake), &expected(1), tolerance.relative());
        close("accuracy fake", &column(&stats, HingeStat::AccuracyFake), &expected(3), tolerance.relative());
        // L_D's own results are `hinge`'s to compare.
        ["out.d_loss", "out.d_loss_per_head", "grad.d.logits"].into_iter().for_each(|name| case.skip(name));
    }
}

/// Everything `hinge` computes, with logits and gradients that begin `offset` values into their buffers.
fn all_results<B: Backend>(b: &B, shape: &HingeShape, logits: &[f32], offset: usize) -> Results {
    let lab = Lab::new(b);
    let per_group = shape.heads * shape.batch * shape.positions;
    let [all, fakes] = [shape.groups.count() * per_group, per_group].map(|n| offset..offset + n);
    let blank = |n: usize| lab.stat(&behind(offset, &vec![f32::NAN; n]));
    let (mut d_d, mut d_g, input) = (blank(all.len()), blank(fakes.len()), lab.stat(&behind(offset, logits)));
    let mut stats = lab.stat(&vec![0.0; shape.heads * HINGE_STATS]);
    let gradients = (Some(d_d.part_mut(all.clone())), Some(d_g.part_mut(fakes.clone())));
    b.hinge(shape, input.part(all.clone()), gradients.0, gradients.1, stats.part_mut(0..shape.heads * HINGE_STATS));
    let read = |buffer: &B::Stat, end: usize| from(offset, &lab.read_stat(buffer, end));
    Results { d_d: read(&d_d, all.end), d_g: read(&d_g, fakes.end), stats: lab.read_stat(&stats, shape.heads * HINGE_STATS) }
}

/// All groups and both losses at sizes of one and several blocks, with and without 16-byte accesses, for logits from the
/// kink of the hinge to where an exponential overflows, against the f64 backend.
fn every_shape<B: Backend>(b: &B, tolerance: Tolerance) {
    let tolerance = tolerance.of_stat();
    let sizes = [(1, 1, 1), (3, 3, 1000), (2, 3, 777), (38, 1, 64), (1, 3, 22_001)];
    let choices = [(false, false, false), (true, false, false), (true, true, false), (true, false, true), (true, true, true)];
    for (((heads, batch, positions), (real, mismatch, perturbed)), loss) in sizes
        .into_iter()
        .flat_map(|size| choices.map(|choice| (size, choice)))
        .flat_map(|case| [(case, AdversarialLoss::Hinge), (case, AdversarialLoss::NonSaturating)])
    {
        if positions > 20_000 && !(mismatch && perturbed) {
            continue; // More blocks than a warp has lanes: once will do.
        }
        let groups = Groups { real, mismatch, perturbed };
        let weights = (0.5, 20.0, 0.75, 0.3);
        let (mismatch_weight, r1_weight, generator_weight, share) = weights;
        let shape = HingeShape { loss, heads, groups, batch, positions, mismatch_weight, r1_weight, generator_weight, share };
        let mut logits = vec![0.0; heads * groups.count() * batch * positions];
        fill_normals(3, 0, 12, 0, &mut logits);
        // Sums of many signs would cancel to anything: the mean of each head is kept away from zero.
        logits.iter_mut().for_each(|l| *l = 2.0 * *l + 0.75);
        for (i, special) in [-1.0, 1.0, 0.0, -95.0, 95.0].into_iter().enumerate() {
            logits.iter_mut().skip(i).step_by(97).for_each(|l| *l = special);
        }
        let expected = all_results(&Cpu::<f64>::new(), &shape, &logits, 0);
        for offset in [0, 1, 4] {
            let got = all_results(b, &shape, &logits, offset);
            let what = format!("{shape:?} at {offset}");
            close(&format!("{what}, d_d"), &got.d_d, &expected.d_d, tolerance.relative());
            close(&format!("{what}, d_g"), &got.d_g, &expected.d_g, tolerance.relative());
            for stat in 0..HINGE_STATS {
                let column = |results: &Results| -> Vec<f32> { results.stats.iter().skip(stat).step_by(HINGE_STATS).copied().collect() };
                close(&format!("{what}, statistic {stat}"), &column(&got), &column(&expected), tolerance.relative());
            }
        }
    }
}

/// One value, one block, more values than all blocks hold at once; anywhere in its buffer.
fn mse_of_any_length<B: Backend>(b: &B, tolerance: Tolerance) {
    let (lab, tolerance) = (Lab::new(b), tolerance.of_stat());
    for (n, offset) in [(1, 0), (1024, 0), (1024, 3), (70_001, 4), (70_004, 4), (1_300_003, 0)] {
        let draw = |stream: u32| {
            let mut values = vec![0.0; n];
            fill_normals(8, 0, stream, 0, &mut values);
            values
        };
        let (a, target) = (draw(1), draw(2));
        let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
        let mean = a.iter().zip(&target).map(square).sum::<f64>() / n as f64;
        let gradient: Vec<f32> =
            a.iter().zip(&target).map(|(a, b)| (2.0 * 0.7 * 0.5 / n as f64 * (f64::from(*a) - f64::from(*b))) as f32).collect();
        let part = offset..offset + n;
        let (a, target) = (lab.stat(&behind(offset, &a)), lab.stat(&behind(offset, &target)));
        let (mut loss, mut d_a) = (lab.stat(&[0.0]), lab.stat(&behind(offset, &vec![f32::NAN; n])));
        let views = (a.part(part.clone()), target.part(part.clone()));
        b.mse(views.0, views.1, 0.5, 0.7, Some(d_a.part_mut(part)), loss.part_mut(0..1));
        close(&format!("loss of {n}"), &lab.read_stat(&loss, 1), &[(0.5 * mean) as f32], tolerance.relative());
        let d_a = from(offset, &lab.read_stat(&d_a, offset + n));
        close(&format!("gradient of {n} at {offset}"), &d_a, &gradient, tolerance.relative());
    }
}

fn mse<B: Backend>(b: &B, tolerance: Tolerance) {
    // Logits and losses are fp32 everywhere.
    let (lab, tolerance) = (Lab::new(b), tolerance.of_stat());
    for case in cases("mse") {
        let (prediction, target) = (case.input("prediction"), case.input("target"));
        let n = prediction.len();
        let (a, t) = (lab.stat(&prediction), lab.stat(&target));
        let (mut loss, mut d_a) = (lab.stat(&[1.0]), lab.blank_stat(n));
        b.mse(a.part(0..n), t.part(0..n), 1.0, 1.0, Some(d_a.part_mut(0..n)), loss.part_mut(0..1));
        case.compare("out.loss", &[lab.read_stat(&loss, 1)[0] - 1.0], tolerance);
        let gradient = lab.read_stat(&d_a, n);
        case.compare("grad.prediction", &gradient, tolerance);

        let (mut loss, mut d_a) = (lab.stat(&[0.0]), lab.blank_stat(n));
        b.mse(a.part(0..n), t.part(0..n), 0.5, 3.0, Some(d_a.part_mut(0..n)), loss.part_mut(0..1));
        b.mse(a.part(0..n), t.part(0..n), 0.5, 3.0, None, loss.part_mut(0..1));
        case.compare("out.loss", &lab.read_stat(&loss, 1), tolerance);
        let expected: Vec<f32> = gradient.iter().map(|d| 1.5 * d).collect();
        close("weighted share", &lab.read_stat(&d_a, n), &expected, tolerance.relative());
    }
}
