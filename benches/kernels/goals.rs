//! The cases of docs/performance-goals.md: attention at the lengths it names, and what memory bounds, on tensors of more
//! than 64 MB. `reference/bench_kernels.py --goals` measures attention under the same names.

use super::catalogue::Sizes;

const ATTENTION: &[&str] = &["attention", "attention_backward"];
const ROWS: &[&str] = &["adaln", "adaln_backward", "qk_norm", "qk_norm_backward", "pos_embed", "adamw", "global_norm"];
const LATENTS: &[&str] = &[
    "silu",
    "silu_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "patchify",
    "unpatchify",
    "normal",
    "flow_noise",
    "predict_x0_renoise",
    "predict_x0_renoise_backward",
    "euler_cfg",
    "mse",
    "hinge",
    "head_logits",
    "head_logits_backward",
];

/// Some operations at one size.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub sizes: Sizes,
    operations: &'static [&'static str],
}

impl Goal {
    /// The name of its size for an operation that is measured at it.
    pub fn name(&self, operation: &str) -> Option<String> {
        self.operations.contains(&operation).then(|| self.sizes.name.to_owned())
    }
}

/// All of them; with `tiny`, small enough for the emulated device.
pub fn all(tiny: bool) -> Vec<Goal> {
    let attention = |name, batch, side, text, head_dim| Goal {
        sizes: Sizes { name, batch, heads: 1536 / head_dim, head_dim, grid: (side, side), text, width: 256 },
        operations: ATTENTION,
    };
    let rows = attention("B=8 N=4096 h=1536", 8, 64, 154, 64);
    let latents = attention("B=256 128x128", 256, 64, 154, 64);
    let mut goals = vec![
        attention("B=4 S=4250 D=64", 4, 64, 154, 64),
        attention("B=1 S=4250 D=64", 1, 64, 154, 64),
        attention("B=1 S=1178 D=64", 1, 32, 154, 64),
        attention("B=1 S=1357 D=64", 1, 32, 333, 64),
        attention("B=4 S=4250 D=128", 4, 64, 154, 128),
        Goal { operations: ROWS, ..rows },
        Goal { operations: LATENTS, ..latents },
    ];
    if tiny {
        for goal in &mut goals {
            goal.sizes = Sizes { batch: 1, heads: 1, grid: (2, 3), text: 5, width: 24, ..goal.sizes };
        }
    }
    goals
}
