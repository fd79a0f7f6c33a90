//! Every operation on the CPU, forward and backward, at the demo's size and at a larger one, and the model's passes.
//!
//! `cargo bench --bench operations [FILTER]`. Throughput counts floating-point operations for products and attention
//! (forward `4 B H S^2 D`, backward 2.5 times that) and values read and written for everything else.

#[path = "../tests/it/catalogue.rs"]
mod catalogue;

use std::time::Duration;

use catalogue::{DEMO, LARGE, Sizes, catalogue};
use criterion::{Criterion, Throughput};
use ladd_fast::device::cpu::{Buffer, Cpu};
use ladd_fast::device::{Backend, Storage};
use ladd_fast::flow::philox::fill_normals;
use ladd_fast::model::mmdit::sinusoidal_grid;
use ladd_fast::model::{Backward, Image, ImageMut, Inputs, Keep, Mmdit, ModelConfig, Plan, Shape};

/// The demo's depth.
const DEPTH: usize = 4;

fn operations(c: &mut Criterion, b: &Cpu<f32>, sizes: Sizes) {
    let mut group = c.benchmark_group(sizes.name);
    for mut operation in catalogue(b, sizes) {
        group.throughput(Throughput::Elements(operation.work.amount()));
        group.bench_function(operation.name, |bencher| bencher.iter(|| (operation.run)(false)));
    }
    group.finish();
}

fn normals(b: &Cpu<f32>, stream: u32, len: usize, scale: f32) -> Buffer<f32> {
    let mut values = vec![0.0; len];
    fill_normals(1, 0, stream, 0, &mut values);
    values.iter_mut().for_each(|v| *v *= scale);
    let mut buffer = b.alloc_stat(len).unwrap();
    b.upload_stat(&values, buffer.all_mut());
    buffer
}

/// Forward, and forward with backward to the weights.
fn model(c: &mut Criterion, b: &Cpu<f32>, sizes: Sizes) {
    let config = ModelConfig {
        depth: DEPTH,
        heads: sizes.heads,
        head_dim: sizes.head_dim,
        in_channels: 16,
        patch: 2,
        context_dim: 64,
        pooled_dim: 64,
        pos_embed_max: sizes.grid.0,
        qk_norm: true,
        dual_attention_blocks: 0,
        conditioning_channels: 0,
    };
    let shape = Shape { batch: sizes.batch, height: 2 * sizes.grid.0, width: 2 * sizes.grid.1, text: sizes.text };
    let network = Mmdit::new(b, config.clone(), &sinusoidal_grid(&config)).unwrap();
    let plan = Plan { shape, blocks: DEPTH, velocity: true, keep: Keep::Everything, checkpointed: 0 };
    let (mut acts, mut room) = (network.activations(b, plan).unwrap(), network.gradients(b, &plan).unwrap());
    let numel = shape.batch * config.in_channels * shape.height * shape.width;
    let params = normals(b, 1, network.layout().arena.len(), 0.05);
    let (latent, mut t) = (normals(b, 2, numel, 1.0), normals(b, 3, shape.batch, 1.0));
    t.iter_mut().for_each(|t| *t = 1.0 / (1.0 + t.exp()));
    let (context, pooled) = (normals(b, 4, shape.batch * shape.text * 64, 1.0), normals(b, 5, shape.batch * 64, 1.0));
    let (mut velocity, d_velocity, mut grads) = (normals(b, 6, numel, 1.0), normals(b, 7, numel, 1.0), normals(b, 8, params.len(), 0.0));
    let inputs = Inputs {
        batch: shape.batch,
        image: Image::Latent(latent.all()),
        conditioning: None,
        t: t.all(),
        context: context.all(),
        pooled: pooled.all(),
    };

    let mut group = c.benchmark_group(format!("{}/model", sizes.name));
    group.throughput(Throughput::Elements(shape.batch as u64));
    group.bench_function("forward", |bencher| {
        bencher.iter(|| network.forward(b, &params, &inputs, &mut acts, Some(ImageMut::Latent(velocity.all_mut()))));
    });
    group.bench_function("forward_backward", |bencher| {
        bencher.iter(|| {
            network.forward(b, &params, &inputs, &mut acts, Some(ImageMut::Latent(velocity.all_mut())));
            let (d_velocity, grads) = (Some(Image::Latent(d_velocity.all())), Some(&mut grads));
            let pass = Backward { batch: shape.batch, d_velocity, d_features: &[], grads, d_image: None };
            network.backward(b, &params, &inputs, &mut acts, &mut room, pass);
        });
    });
    group.finish();
}

fn main() {
    let quick = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let mut criterion = quick.configure_from_args();
    let b = Cpu::<f32>::new();
    for sizes in [DEMO, LARGE] {
        operations(&mut criterion, &b, sizes);
        model(&mut criterion, &b, sizes);
    }
    criterion.final_summary();
}
