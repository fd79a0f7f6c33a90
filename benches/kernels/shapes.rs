//! The shapes that are measured, under the names that `reference/bench_kernels.py` gives them too.

use super::catalogue::Sizes;

/// Models: name, heads of 64 channels.
const MODELS: [(&str, usize); 2] = [("sd3-medium", 24), ("sd3.5-large", 38)];
/// Pictures: name, token grid.
const PICTURES: [(&str, (usize, usize)); 3] = [("512x512", (32, 32)), ("1024x1024", (64, 64)), ("768x1344", (48, 84))];
const BATCHES: [usize; 3] = [1, 4, 16];
/// Text tokens: CLIP's and T5's, 77 each.
const TEXT: usize = 154;
/// Channels of a discriminator head.
const WIDTH: usize = 256;

/// What the sizes of an operation follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Model, picture and batch.
    Model,
    /// Picture and batch: the model's width plays no part.
    Picture,
    /// The model alone.
    Parameters,
}

fn kind(operation: &str) -> Kind {
    let model = ["linear", "quantize", "attention", "qk_norm", "adaln", "pos_embed"];
    match operation {
        "global_norm" | "adamw" => Kind::Parameters,
        _ if model.iter().any(|name| operation.starts_with(name)) => Kind::Model,
        _ => Kind::Picture,
    }
}

/// A shape of the network.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub sizes: Sizes,
    model: usize,
    picture: usize,
    batch: usize,
}

impl Shape {
    /// Its name for an operation; `None` where another shape has the same sizes and stands for it.
    pub fn name(&self, operation: &str) -> Option<String> {
        let Self { model, picture, batch, .. } = *self;
        let (model_name, picture_name, of) = (MODELS[model].0, PICTURES[picture].0, BATCHES[batch]);
        match kind(operation) {
            Kind::Model => Some(format!("{model_name} {picture_name} B={of}")),
            Kind::Picture => (model == 0).then(|| format!("{picture_name} B={of}")),
            Kind::Parameters => (picture == 0 && batch == 0).then(|| model_name.to_owned()),
        }
    }
}

/// All shapes; with `tiny`, as many under the same names, small enough for the emulated device.
pub fn all(tiny: bool) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (model, (name, heads)) in MODELS.into_iter().enumerate() {
        for (picture, (_, grid)) in PICTURES.into_iter().enumerate() {
            for (batch, of) in BATCHES.into_iter().enumerate() {
                let full = Sizes { name, batch: of, heads, head_dim: 64, grid, text: TEXT, width: WIDTH };
                let small = Sizes { batch: 1 + batch, heads: 1 + model, grid: (2 + picture, 3), text: 5, width: 24, ..full };
                shapes.push(Shape { sizes: if tiny { small } else { full }, model, picture, batch });
            }
        }
    }
    shapes
}
