//! Gated residuals, LayerNorm and modulation.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{AdalnShape, Backend, Branch, BranchGrad, Modulation, NormGrad, NormOut, Storage};

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, normals, same_bits};

on_every_backend!(
    adaln,
    layer_norm,
    more_tokens_than_one_task,
    every_width_and_mixture,
    rows_that_begin_anywhere,
    sums_in_a_fixed_order,
    nothing_behind_the_end,
);

/// Columns of the modulation table that no chunk uses.
const PADDING: usize = 3;
const SUFFIXES: [&str; 2] = ["", "2"];

/// A case with its modulation table: chunks in reverse order, with padding between them.
#[derive(Clone)]
struct Problem {
    shape: AdalnShape,
    x: Vec<f32>,
    table: Vec<f32>,
    /// Name of each chunk and its first column.
    columns: Vec<(String, usize)>,
    branches: Vec<(Vec<f32>, usize)>,
    modulations: Vec<Modulation>,
    d_x_out: Option<Vec<f32>>,
    d_outs: Vec<Vec<f32>>,
}

impl Problem {
    fn new(case: &Golden) -> Self {
        let (batch, tokens, hidden) = (case.size("B"), case.size("N"), case.size("hidden"));
        let (residuals, outputs) = (case.size("residuals"), case.size("outputs"));
        let mut names: Vec<String> = SUFFIXES[..residuals].iter().map(|s| format!("gate{s}")).collect();
        names.extend(SUFFIXES[..outputs].iter().flat_map(|s| [format!("shift{s}"), format!("scale{s}")]));
        names.reverse();
        let stride = names.len() * (hidden + PADDING) + PADDING;
        let mut table = vec![f32::NAN; batch * stride];
        let mut columns = Vec::new();
        for (i, name) in names.into_iter().enumerate() {
            let column = PADDING + i * (hidden + PADDING);
            let values = case.input(&name);
            for b in 0..batch {
                table[b * stride + column..][..hidden].copy_from_slice(&values[b * hidden..(b + 1) * hidden]);
            }
            columns.push((name, column));
        }
        let column = |name: String| columns.iter().find(|(n, _)| *n == name).unwrap().1;
        let modulations =
            SUFFIXES[..outputs].iter().map(|s| Modulation { shift: column(format!("shift{s}")), scale: column(format!("scale{s}")) });
        let branches = SUFFIXES[..residuals].iter().map(|s| (case.input(&format!("y{s}")), column(format!("gate{s}"))));
        Self {
            shape: AdalnShape { batch, tokens, hidden, stride },
            x: case.input("x"),
            modulations: modulations.collect(),
            branches: branches.collect(),
            table,
            d_x_out: (residuals > 0).then(|| case.input("d_x_out")),
            d_outs: SUFFIXES[..outputs].iter().map(|s| case.input(&format!("d_out{s}"))).collect(),
            columns,
        }
    }

    /// Numbers that bf16 can represent: rows with a mean and a table whose chunks lie `padding` columns apart.
    fn random([batch, tokens, hidden]: [usize; 3], residuals: usize, outputs: usize, padding: usize) -> Self {
        let len = batch * tokens * hidden;
        let chunks = residuals + 2 * outputs;
        let stride = padding + chunks * (hidden + padding);
        let mut table = vec![f32::NAN; batch * stride];
        let mut columns = Vec::new();
        for chunk in 0..chunks {
            let column = padding + chunk * (hidden + padding);
            let values = normals(23, chunk as u32, batch * hidden, 0.5, 0.25);
            for b in 0..batch {
                table[b * stride + column..][..hidden].copy_from_slice(&values[b * hidden..(b + 1) * hidden]);
            }
            columns.push((format!("chunk {chunk}"), column));
        }
        let norm = |i: usize| Modulation { shift: columns[residuals + 2 * i].1, scale: columns[residuals + 2 * i + 1].1 };
        let draw = |stream: usize| normals(23, 10 + stream as u32, len, 1.0, 0.0);
        Self {
            shape: AdalnShape { batch, tokens, hidden, stride },
            x: normals(23, 9, len, 2.0, 0.75),
            branches: (0..residuals).map(|i| (draw(i), columns[i].1)).collect(),
            modulations: (0..outputs).map(norm).collect(),
            d_x_out: Some(draw(2)),
            d_outs: (0..outputs).map(|i| draw(3 + i)).collect(),
            table,
            columns,
        }
    }

    fn rows(&self) -> usize {
        self.shape.batch * self.shape.tokens
    }

    fn len(&self) -> usize {
        self.rows() * self.shape.hidden
    }
}

/// What the forward gives; kept on the device for the backward.
struct Forward<B: Backend> {
    x_out: B::Data,
    outs: Vec<B::Data>,
    stats: B::Stat,
    ys: Vec<B::Data>,
    table: B::Data,
}

fn forward<B: Backend>(lab: &Lab<'_, B>, p: &Problem) -> Forward<B> {
    let x = lab.data(&p.x);
    let table = lab.data(&p.table);
    let ys: Vec<B::Data> = p.branches.iter().map(|(y, _)| lab.data(y)).collect();
    let mut outs: Vec<B::Data> = p.modulations.iter().map(|_| lab.blank_data(p.len())).collect();
    let mut stats = lab.blank_stat(p.rows() * 2);
    let mut x_out = lab.blank_data(p.len());
    let branches: Vec<Branch<'_, B>> = ys.iter().zip(&p.branches).map(|(y, (_, gate))| Branch { y: y.all(), gate: *gate }).collect();
    let outputs = outs.iter_mut().zip(&p.modulations);
    let mut norms: Vec<NormOut<'_, B>> = outputs.map(|(out, m)| NormOut { out: out.all_mut(), modulation: Some(*m) }).collect();
    let written = (!branches.is_empty()).then(|| x_out.all_mut());
    let kept = (!norms.is_empty()).then_some(&mut stats);
    lab.b.adaln(&p.shape, (&x).into(), &branches, Some((&table).into()), written, &mut norms, kept);
    drop((branches, norms));
    if p.branches.is_empty() {
        x_out = x;
    }
    Forward { x_out, outs, stats, ys, table }
}

/// Where the upstream of `x_out` comes from.
#[derive(Clone, Copy, Debug)]
enum Upstream {
    /// Along the residual stream.
    Residual,
    /// From a tapped feature.
    Tap,
    /// Half from each.
    Both,
}

/// Gradients: of x, of each branch, of the table.
struct Backward {
    dx: Vec<f32>,
    d_ys: Vec<Vec<f32>>,
    d_table: Vec<f32>,
}

fn backward<B: Backend>(lab: &Lab<'_, B>, p: &Problem, kept: &Forward<B>, upstream: Upstream, frozen: bool) -> Backward {
    let half = |factor: f32| p.d_x_out.as_ref().map(|d| d.iter().map(|d| factor * d).collect::<Vec<f32>>());
    let (residual, tap) = match upstream {
        Upstream::Residual => (half(1.0), None),
        Upstream::Tap => (None, half(1.0)),
        Upstream::Both => (half(0.5), half(0.5)),
    };
    let mut dx = residual.as_ref().map_or_else(|| lab.blank_data(p.len()), |d| lab.data(d));
    let extra = tap.as_ref().map(|d| lab.data(d));
    let d_outs: Vec<B::Data> = p.d_outs.iter().map(|d| lab.data(d)).collect();
    let mut d_ys: Vec<B::Data> = p.branches.iter().map(|_| lab.blank_data(p.len())).collect();
    let mut d_table = lab.blank_data(p.table.len());
    let upstreams = d_outs.iter().zip(&p.modulations);
    let norms: Vec<NormGrad<'_, B>> = upstreams.map(|(d, m)| NormGrad { d_out: d.all(), modulation: Some(*m) }).collect();
    let branches = kept.ys.iter().zip(&p.branches).zip(&mut d_ys);
    let mut branches: Vec<BranchGrad<'_, B>> =
        branches.map(|((y, (_, gate)), d_y)| BranchGrad { y: y.all(), gate: *gate, d_y: d_y.all_mut() }).collect();
    lab.b.adaln_backward(
        &p.shape,
        (&kept.x_out).into(),
        (!norms.is_empty()).then_some(&kept.stats),
        Some((&kept.table).into()),
        (&mut dx).into(),
        residual.is_some(),
        extra.as_ref().map(Into::into),
        &norms,
        &mut branches,
        (!frozen).then_some(&mut d_table),
    );
    drop(branches);
    Backward {
        dx: lab.read(&dx, p.len()),
        d_ys: d_ys.iter().map(|d| lab.read(d, p.len())).collect(),
        d_table: lab.read(&d_table, p.table.len()),
    }
}

fn adaln<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("adaln") {
        let p = Problem::new(&case);
        let kept = forward(&lab, &p);
        if !p.branches.is_empty() {
            case.compare("out.x_out", &lab.read(&kept.x_out, p.len()), tolerance);
        }
        for (out, suffix) in kept.outs.iter().zip(SUFFIXES) {
            case.compare(&format!("out.out{suffix}"), &lab.read(out, p.len()), tolerance);
        }
        let ways: &[Upstream] =
            if p.d_x_out.is_some() { &[Upstream::Residual, Upstream::Tap, Upstream::Both] } else { &[Upstream::Residual] };
        for way in ways {
            let got = backward(&lab, &p, &kept, *way, false);
            case.compare("grad.x", &got.dx, tolerance);
            for (d_y, suffix) in got.d_ys.iter().zip(SUFFIXES) {
                case.compare(&format!("grad.y{suffix}"), d_y, tolerance);
            }
            check_table(&case, &p, &got.d_table, tolerance);

            let frozen = backward(&lab, &p, &kept, *way, true);
            same_bits("frozen dx", &frozen.dx, &got.dx);
            same_bits("frozen dy", &frozen.d_ys.concat(), &got.d_ys.concat());
            assert!(frozen.d_table.iter().all(|v| v.is_nan()));
        }
    }
}

/// Batch, tokens, hidden: real widths, one sample and three, more tokens than a block takes, widths of no whole warp and no
/// whole group of eight, and wider than a block holds in registers.
const SHAPES: [[usize; 3]; 7] = [[1, 11, 1536], [3, 9, 2432], [1, 1, 64], [3, 61, 72], [2, 13, 250], [1, 3, 2568], [1, 2, 4096]];
/// Distances of the table's chunks: they begin anywhere, or at multiples of 16 bytes.
const PADDINGS: [usize; 2] = [3, 8];

/// Every number of branches and norms at every width, against the CPU in f64. From the kept `x_out` on, which bf16 rounds,
/// that one starts at what was kept: so what is left of the error is the operation's own.
fn every_width_and_mixture<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    let exact = Cpu::<f64>::new();
    let exact = Lab::new(&exact);
    let bound = tolerance.relative();
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for (residuals, outputs) in [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)] {
            let p = Problem::random(shape, residuals, outputs, PADDINGS[(i + residuals + outputs) % 2]);
            let what = |name: &str| format!("{name} of {:?}, {residuals} branches, {outputs} norms", p.shape);
            let kept = forward(&lab, &p);
            let x_out = lab.read(&kept.x_out, p.len());
            let wanted = forward(&exact, &p);
            close(&what("x_out"), &x_out, &exact.read(&wanted.x_out, p.len()), bound);

            let from_x_out = forward(&exact, &Problem { x: x_out.clone(), branches: Vec::new(), ..p.clone() });
            for (out, wanted) in kept.outs.iter().zip(&from_x_out.outs) {
                close(&what("out"), &lab.read(out, p.len()), &exact.read(wanted, p.len()), bound);
            }
            let mut same = Forward { x_out: exact.data(&x_out), ..wanted };
            if outputs > 0 {
                // fp32 statistics of values that both sides hold exactly.
                let stats = lab.read_stat(&kept.stats, 2 * p.rows());
                let wanted = exact.read_stat(&from_x_out.stats, 2 * p.rows());
                close(&what("stats"), &stats, &wanted, tolerance.of_stat().relative());
                same.stats = exact.stat(&stats);
            }
            for way in [Upstream::Residual, Upstream::Tap, Upstream::Both] {
                let got = backward(&lab, &p, &kept, way, false);
                let wanted = backward(&exact, &p, &same, way, false);
                close(&what("dx"), &got.dx, &wanted.dx, bound);
                for (got, wanted) in got.d_ys.iter().zip(&wanted.d_ys) {
                    close(&what("dy"), got, wanted, bound);
                }
                let untouched = |table: &[f32]| table.iter().map(|v| v.is_nan()).collect::<Vec<bool>>();
                assert_eq!(untouched(&got.d_table), untouched(&wanted.d_table), "{}", what("columns of the table"));
                for (name, column) in &p.columns {
                    let chunk = |table: &[f32]| -> Vec<f32> {
                        table.chunks(p.shape.stride).flat_map(|row| row[*column..*column + p.shape.hidden].to_vec()).collect()
                    };
                    close(&what(name), &chunk(&got.d_table), &chunk(&wanted.d_table), bound);
                }
            }
            let got = backward(&lab, &p, &kept, Upstream::Both, false);
            let frozen = backward(&lab, &p, &kept, Upstream::Both, true);
            same_bits(&what("frozen dx"), &frozen.dx, &got.dx);
            same_bits(&what("frozen dy"), &frozen.d_ys.concat(), &got.d_ys.concat());
        }
    }
}

/// Sums over many blocks come in a fixed order: the same bits twice.
fn sums_in_a_fixed_order<B: Backend>(b: &B, _: Tolerance) {
    let lab = Lab::new(b);
    for hidden in [72, 100] {
        let p = Problem::random([2, 150, hidden], 1, 2, 8);
        let kept = forward(&lab, &p);
        let [first, second] = [(); 2].map(|()| backward(&lab, &p, &kept, Upstream::Residual, false).d_table);
        let bits = |table: &[f32]| table.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&first), bits(&second), "hidden {hidden}");
    }
}

/// Buffers that end with their last value give what roomier ones give.
fn nothing_behind_the_end<B: Backend>(b: &B, _: Tolerance) {
    for (hidden, outputs, frozen) in [(72, 2, false), (72, 1, false), (72, 1, true), (100, 2, false)] {
        let p = Problem::random([2, 5, hidden], 1, outputs, 8);
        let run = |lab: &Lab<'_, B>| {
            let kept = forward(lab, &p);
            let given = backward(lab, &p, &kept, Upstream::Residual, frozen);
            (lab.read(&kept.x_out, p.len()), given.dx, given.d_table)
        };
        let (tight, roomy) = (run(&Lab::tight(b)), run(&Lab::new(b)));
        same_bits("x_out", &tight.0, &roomy.0);
        same_bits("dx", &tight.1, &roomy.1);
        same_bits("d_table", &tight.2, &roomy.2);
    }
}

/// Rows that begin off 16 bytes take another path to nearly the same numbers: plain LayerNorm of views.
fn rows_that_begin_anywhere<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    let (rows, hidden) = (11, 192);
    let n = rows * hidden;
    let shape = AdalnShape { batch: 1, tokens: rows, hidden, stride: 0 };
    let values = |stream: u32| normals(29, stream, n, 1.0, 0.5);
    let run = |skip: usize| {
        let after = |values: &[f32]| lab.data(&[&vec![f32::NAN; skip], values].concat());
        let (x, d_y) = (after(&values(0)), after(&values(1)));
        let (mut y, mut dx) = (lab.blank_data(skip + n), lab.blank_data(skip + n));
        let mut stats = lab.blank_stat(2 * rows);
        let view = skip..skip + n;
        let mut norms = [NormOut { out: y.part_mut(view.clone()), modulation: None }];
        b.adaln(&shape, x.part(view.clone()), &[], None, None, &mut norms, Some(&mut stats));
        let norms = [NormGrad { d_out: d_y.part(view.clone()), modulation: None }];
        b.adaln_backward(&shape, x.part(view.clone()), Some(&stats), None, dx.part_mut(view), false, None, &norms, &mut [], None);
        let rest = |buffer: &B::Data| {
            let all = lab.read(buffer, skip + n);
            assert!(all[..skip].iter().all(|v| v.is_nan()), "something was written before the first row");
            all[skip..].to_vec()
        };
        (rest(&y), rest(&dx))
    };
    let (y, dx) = run(0);
    for skip in [1, 3, 4] {
        let (y_here, dx_here) = run(skip);
        close(&format!("y from element {skip} on"), &y_here, &y, tolerance.relative());
        close(&format!("dx from element {skip} on"), &dx_here, &dx, tolerance.relative());
    }
}

/// Every chunk of the table's gradient; the padding between them must be untouched.
fn check_table(case: &Golden, p: &Problem, d_table: &[f32], tolerance: Tolerance) {
    let AdalnShape { hidden, stride, .. } = p.shape;
    let mut rest = d_table.to_vec();
    for (name, column) in &p.columns {
        let chunk = |row: &[f32]| row[*column..*column + hidden].to_vec();
        case.compare(&format!("grad.{name}"), &d_table.chunks(stride).flat_map(chunk).collect::<Vec<f32>>(), tolerance);
        rest.chunks_mut(stride).for_each(|row| row[*column..*column + hidden].fill(f32::NAN));
    }
    assert!(rest.iter().all(|v| v.is_nan()), "{}: a gradient was written between two chunks", case.name);
}

/// Without a modulation it is a LayerNorm: the discriminator heads' first step.
fn layer_norm<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("layer_norm") {
        let hidden = case.shape("out.y")[1];
        let (x, d_y) = (lab.data(&case.input("x")), lab.data(&case.input("d_y")));
        let rows = case.shape("out.y")[0];
        let (batch, tokens) = (3, rows / 3);
        let shape = AdalnShape { batch, tokens, hidden, stride: 0 };
        let (mut y, mut stats, mut dx) = (lab.blank_data(rows * hidden), lab.blank_stat(rows * 2), lab.blank_data(rows * hidden));
        b.adaln(&shape, (&x).into(), &[], None, None, &mut [NormOut { out: y.all_mut(), modulation: None }], Some(&mut stats));
        case.compare("out.y", &lab.read(&y, rows * hidden), tolerance);
        lab.read_stat(&stats, rows * 2);
        let norms = [NormGrad { d_out: d_y.all(), modulation: None }];
        b.adaln_backward(&shape, (&x).into(), Some(&stats), None, (&mut dx).into(), false, None, &norms, &mut [], None);
        case.compare("grad.x", &lab.read(&dx, rows * hidden), tolerance);
    }
}

/// A sample of many tokens is the same rows as many samples of few tokens with the same modulation; its column sums are
/// their sums.
fn more_tokens_than_one_task<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    let case = Golden::open("adaln_h36_r2_m1");
    case.results("out.").iter().for_each(|name| case.skip(&format!("out.{name}")));
    case.results("grad.").iter().for_each(|name| case.skip(&format!("grad.{name}")));
    let mut few = Problem::new(&case);
    let AdalnShape { tokens, hidden, stride, .. } = few.shape;
    // Eight copies of the first sample's modulation, each over tokens of its own.
    let copies = 8;
    few.shape.batch = copies;
    let row = few.table[..stride].to_vec();
    few.table = row.repeat(copies);
    let grow = |values: &mut Vec<f32>, salt: usize| {
        let first = values[..tokens * hidden].to_vec();
        *values =
            (0..copies).flat_map(|c| first.iter().enumerate().map(move |(i, v)| v + ((i * 31 + c * 17 + salt) % 7) as f32 * 0.1)).collect();
    };
    grow(&mut few.x, 0);
    few.branches.iter_mut().enumerate().for_each(|(i, (y, _))| grow(y, i + 1));
    few.d_outs.iter_mut().for_each(|d| grow(d, 5));
    few.d_x_out.iter_mut().for_each(|d| grow(d, 6));
    let many = Problem {
        shape: AdalnShape { batch: 1, tokens: copies * tokens, ..few.shape },
        table: row,
        x: few.x.clone(),
        columns: few.columns.clone(),
        branches: few.branches.clone(),
        modulations: few.modulations.clone(),
        d_x_out: few.d_x_out.clone(),
        d_outs: few.d_outs.clone(),
    };
    let [a, b] = [&few, &many].map(|p| forward(&lab, p));
    same_bits("x_out", &lab.read(&a.x_out, few.len()), &lab.read(&b.x_out, many.len()));
    same_bits("out", &lab.read(&a.outs[0], few.len()), &lab.read(&b.outs[0], many.len()));
    let a = backward(&lab, &few, &a, Upstream::Both, false);
    let b = backward(&lab, &many, &b, Upstream::Both, false);
    same_bits("dx", &a.dx, &b.dx);
    same_bits("dy", &a.d_ys.concat(), &b.d_ys.concat());
    for (name, column) in &few.columns {
        let sum = |c: usize| (0..copies).map(|r| f64::from(a.d_table[r * stride + c])).sum::<f64>() as f32;
        let sums: Vec<f32> = (*column..*column + hidden).map(sum).collect();
        close(&format!("d_{name}"), &b.d_table[*column..*column + hidden], &sums, tolerance.relative());
    }
}
