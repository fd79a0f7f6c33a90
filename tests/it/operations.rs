//! Every operation of [`Backend`](ladd_fast::device::Backend) against its golden cases, forward and backward.
//!
//! Each test is a function over the backend; [`on_every_backend!`] names the backends it runs on.

mod activation;
mod adaln;
mod adamw;
mod attention;
mod embed;
mod flow_noise;
mod head_conv;
mod hinge;
mod linear;
mod patchify;
mod philox;
mod qk_norm;
mod quantize;

use crate::golden;

/// Makes a test on every backend of each function `fn(&impl Backend, Tolerance)`: the CPU in f32 and f64, the emulated CUDA
/// device under every schedule, and the GPU, whose tests are ignored where there is none. `chains:` is for many operations
/// in a row, whose roundings to bf16 add up.
macro_rules! on_every_backend {
    (chains: $($test:ident),+ $(,)?) => {
        crate::operations::on_every_backend!(@ crate::golden::Tolerance::Bf16Chain, crate::devices::emulated_twice(), $($test),+);
    };
    (@ $bf16:expr, $emulated:expr, $($test:ident),+) => {
        mod cpu_f32 {
            $(#[test]
            fn $test() {
                super::$test(&ladd_fast::device::cpu::Cpu::<f32>::new(), crate::golden::Tolerance::F32);
            })+
        }
        mod cpu_f64 {
            $(#[test]
            fn $test() {
                super::$test(&ladd_fast::device::cpu::Cpu::<f64>::new(), crate::golden::Tolerance::F64);
            })+
        }
        mod cuda_emulated {
            $(#[test]
            fn $test() {
                $emulated.for_each(|cuda| super::$test(&cuda, $bf16));
            })+
        }
        #[cfg(feature = "cuda")]
        mod cuda_gpu {
            $(#[test]
            #[cfg_attr(not(gpu), ignore = "needs a GPU")]
            fn $test() {
                super::$test(&crate::devices::gpu(), $bf16);
            })+
        }
    };
    ($($test:ident),+ $(,)?) => {
        crate::operations::on_every_backend!(@ crate::golden::Tolerance::Bf16, crate::devices::emulated(), $($test),+);
    };
}
pub(crate) use on_every_backend;

/// Operations whose golden cases have a test; the test looks its cases up by operation and so runs all of them.
const TESTED: [&str; 22] = [
    "adaln",
    "adamw",
    "attention",
    "conv3x3",
    "euler_cfg",
    "flow_noise",
    "global_norm",
    "head_logits",
    "hinge",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_fp8",
    "mse",
    "patchify",
    "philox",
    "pos_embed",
    "predict_x0_renoise",
    "qk_norm",
    "quantize_rows",
    "silu",
    "timestep_embedding",
];

#[test]
fn every_golden_operation_has_a_test() {
    let elsewhere =
        ["unpatchify", "timesteps", "model", "heads", "sampler_euler", "sampler_renoise", "classifier", "ladd_step", "baseline_step"];
    for name in golden::names() {
        let op = golden::Golden::operation(&name);
        assert!(TESTED.contains(&&*op) || elsewhere.contains(&&*op), "nothing tests `{op}` of {name}");
    }
}
