//! The hand-written backward against central differences in float64, along random directions.

use ladd_fast::device::cpu::{Buffer, Cpu};
use ladd_fast::device::{Backend, Storage};
use ladd_fast::model::{Backward, Image, ImageMut, Inputs, Keep, Mmdit, ModelConfig, Plan, Shape};

use crate::golden::{parameters, positions};
use crate::rig::{HostInputs, Upstream, data, normals, stat};

/// Distance of the two points on either side.
const H: f64 = 1e-5;
/// Largest relative error.
const BOUND: f64 = 1e-6;

/// Fails unless the slope that the gradient predicts along `direction` is the difference quotient of `value`.
pub fn check(what: &str, gradient: &[f64], direction: &[f64], h: f64, value: &mut dyn FnMut(f64) -> f64) {
    let predicted: f64 = gradient.iter().zip(direction).map(|(g, d)| g * d).sum();
    let measured = (value(h) - value(-h)) / (2.0 * h);
    // What a random direction picks up on average; a smaller slope is measured against this.
    let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    let scale = predicted.abs().max(norm(gradient) * norm(direction) / (direction.len() as f64).sqrt());
    let error = (predicted - measured).abs() / scale;
    println!("{what}: slope {predicted:.6e}, relative error {error:.1e}");
    assert!(
        scale > 0.0 && error <= BOUND,
        "{what}: the gradient predicts a slope of {predicted:.9e}, measured is {measured:.9e}: {error:.1e}"
    );
}

/// A direction in the space of `len` numbers.
pub fn direction(seed: u64, len: usize) -> Vec<f64> {
    normals(seed, 900, len).into_iter().map(f64::from).collect()
}

struct Problem {
    b: Cpu<f64>,
    model: Mmdit<Cpu<f64>>,
    plan: Plan,
    params: Buffer<f64>,
    latent: Buffer<f64>,
    conditioning: Option<Buffer<f64>>,
    t: Buffer<f64>,
    context: Buffer<f64>,
    pooled: Buffer<f64>,
    upstream: Upstream,
}

impl Problem {
    fn new(config: ModelConfig, shape: Shape, seed: u64) -> Self {
        let b = Cpu::<f64>::new();
        let model = Mmdit::new(&b, config.clone(), &positions(&config, seed)).unwrap();
        let inputs = HostInputs::random(&config, shape, seed);
        Self {
            params: data(&b, &parameters(&model.layout().arena, seed)),
            conditioning: inputs.conditioning_tokens(&b, &config),
            latent: stat(&b, &inputs.latent),
            t: stat(&b, &inputs.t),
            context: data(&b, &inputs.context),
            pooled: data(&b, &inputs.pooled),
            plan: Plan { shape, blocks: config.depth, velocity: true, keep: Keep::Everything, checkpointed: 0 },
            upstream: Upstream::random(&config, shape, seed),
            model,
            b,
        }
    }

    fn inputs(&self) -> Inputs<'_, Cpu<f64>> {
        Inputs {
            batch: self.plan.shape.batch,
            image: Image::Latent(self.latent.all()),
            conditioning: self.conditioning.as_ref().map(Storage::all),
            t: self.t.all(),
            context: self.context.all(),
            pooled: self.pooled.all(),
        }
    }

    /// `sum velocity upstream + sum features upstream`, and with `gradients` those of parameters and latent.
    fn value(&self, gradients: bool) -> (f64, Vec<f64>, Vec<f64>) {
        let b = &self.b;
        let mut acts = self.model.activations(b, self.plan).unwrap();
        let mut velocity = b.alloc_stat(self.latent.len()).unwrap();
        self.model.forward(b, &self.params, &self.inputs(), &mut acts, Some(ImageMut::Latent(velocity.all_mut())));
        let d_velocity = self.upstream.velocity.as_ref().unwrap();
        let dot = |values: &[f64], upstream: &[f32]| values.iter().zip(upstream).map(|(v, u)| v * f64::from(*u)).sum::<f64>();
        let mut value = dot(&velocity, d_velocity);
        for (i, upstream) in &self.upstream.taps {
            value += dot(acts.feature(*i), upstream);
        }
        if !gradients {
            return (value, Vec::new(), Vec::new());
        }
        let mut room = self.model.gradients(b, &self.plan).unwrap();
        let d_velocity = stat(b, d_velocity);
        let d_taps: Vec<_> = self.upstream.taps.iter().map(|(i, d)| (*i, data(b, d))).collect();
        let d_features: Vec<_> = d_taps.iter().map(|(i, d)| (*i, d.all())).collect();
        let (mut grads, mut d_latent) = (b.alloc_stat(self.params.len()).unwrap(), b.alloc_stat(self.latent.len()).unwrap());
        let pass = Backward {
            batch: self.plan.shape.batch,
            d_velocity: Some(Image::Latent(d_velocity.all())),
            d_features: &d_features,
            grads: Some(&mut grads),
            d_image: Some(ImageMut::Latent(d_latent.all_mut())),
        };
        self.model.backward(b, &self.params, &self.inputs(), &mut acts, &mut room, pass);
        (value, grads.to_vec(), d_latent.to_vec())
    }
}

/// Moves a buffer along a direction, asks, and puts it back to the bit.
fn moved(problem: &mut Problem, pick: fn(&mut Problem) -> &mut Buffer<f64>, direction: &[f64], by: f64) -> f64 {
    let kept = pick(problem).to_vec();
    pick(problem).iter_mut().zip(direction).for_each(|(p, d)| *p += by * d);
    let value = problem.value(false).0;
    pick(problem).copy_from_slice(&kept);
    value
}

fn check_model(what: &str, config: ModelConfig, shape: Shape, seed: u64) {
    let mut problem = Problem::new(config, shape, seed);
    let (_, grads, d_latent) = problem.value(true);
    let along = direction(seed, d_latent.len());
    check(&format!("{what}: latent"), &d_latent, &along, H, &mut |h| moved(&mut problem, |p| &mut p.latent, &along, h));
    let along = direction(seed + 1, grads.len());
    check(&format!("{what}: all parameters"), &grads, &along, H, &mut |h| moved(&mut problem, |p| &mut p.params, &along, h));
    let entries = problem.model.layout().arena.entries().to_vec();
    // The last block's text asks nothing.
    let unasked = format!("joint_blocks.{}.context_block.attn.ln_q.weight", problem.plan.blocks - 1);
    for (i, entry) in entries.iter().enumerate() {
        let mut along = vec![0.0; grads.len()];
        along[entry.range()].copy_from_slice(&direction(seed + 2 + i as u64, entry.len()));
        let part = along[entry.range()].to_vec();
        let (name, grads) = (format!("{what}: {}", entry.name), &grads[entry.range()]);
        let mut value = |h: f64| moved(&mut problem, |p| &mut p.params, &along, h);
        if entry.name == unasked {
            assert!(grads.iter().all(|g| *g == 0.0) && value(1.0) == value(-1.0), "{name} is not reached");
        } else {
            check(&name, grads, &part, H, &mut value);
        }
    }
}

fn config(depth: usize, heads: usize, qk_norm: bool, dual: usize) -> ModelConfig {
    ModelConfig {
        depth,
        heads,
        head_dim: 8,
        in_channels: 2,
        patch: 2,
        context_dim: 5,
        pooled_dim: 3,
        pos_embed_max: 12,
        qk_norm,
        dual_attention_blocks: dual,
        conditioning_channels: 0,
    }
}

#[test]
fn sd3() {
    check_model("SD3", config(2, 2, false, 0), Shape { batch: 2, height: 4, width: 6, text: 3 }, 51);
}

#[test]
fn sd35_medium() {
    check_model("SD3.5-medium", config(3, 2, true, 2), Shape { batch: 2, height: 6, width: 4, text: 1 }, 52);
}

#[test]
fn sd35_large() {
    check_model("SD3.5-large", config(2, 3, true, 0), Shape { batch: 1, height: 2, width: 10, text: 4 }, 53);
}

#[test]
fn edit_and_inpaint() {
    for extra in [0, 1] {
        let config = ModelConfig { conditioning_channels: 2 + extra, ..config(1, 2, true, 0) };
        check_model("conditioned", config, Shape { batch: 2, height: 4, width: 6, text: 3 }, 55);
    }
}

/// More tokens than one task of the CPU's adaLN and one block of its attention.
#[test]
fn many_tokens() {
    check_model("many tokens", config(1, 1, true, 1), Shape { batch: 1, height: 18, width: 16, text: 7 }, 54);
}
