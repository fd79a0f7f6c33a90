//! Launches `kernels/patchify.cu`.

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{PATCH_THREADS, PatchParams};
use crate::device::cuda::driver::{Address, Kernel};
use crate::device::cuda::memory::Located;
use crate::device::{PatchOrder, PatchShape};

pub fn patchify(cuda: &Cuda, shape: &PatchShape, latent: StatIn<'_>, tokens: Out<'_>) {
    let variants = match shape.order {
        PatchOrder::ChannelFirst => [("patchify_channel_first_x8", 8), ("patchify_channel_first_x1", 1)],
        PatchOrder::ChannelLast => [("patchify_channel_last_x8", 8), ("patchify_channel_last_x1", 1)],
    };
    launch(cuda, shape, variants, [latent.len, tokens.len], [latent.address(), tokens.address()]);
}

pub fn unpatchify(cuda: &Cuda, shape: &PatchShape, tokens: In<'_>, latent: StatOut<'_>) {
    let variants = match shape.order {
        PatchOrder::ChannelFirst => [("unpatchify_channel_first_x8", 8), ("unpatchify_channel_first_x1", 1)],
        PatchOrder::ChannelLast => [("unpatchify_channel_last_x8", 8), ("unpatchify_channel_last_x1", 1)],
    };
    launch(cuda, shape, variants, [latent.len, tokens.len], [latent.address(), tokens.address()]);
}

fn launch(cuda: &Cuda, shape: &PatchShape, variants: [(&'static str, u64); 2], lens: [usize; 2], [latent, tokens]: [Address; 2]) {
    let PatchShape { batch, channels, height, width, patch, .. } = *shape;
    let whole = patch > 0 && height % patch == 0 && width % patch == 0;
    let len = batch * channels * height * width;
    assert!(whole && lens.iter().all(|have| *have >= len), "{shape:?} with {} values of latents, {} of tokens", lens[0], lens[1]);
    let [channels, height, width, patch] = [channels, height, width, patch].map(|size| size as u32);
    let params = PatchParams { len: len as u64, latent, tokens, channels, height, width, patch };
    // The latent is touched value by value: only tokens move in wide pieces, which may not straddle two of them.
    let wide = aligned(&[tokens]) && channels * patch * patch % 8 == 0;
    let (name, step) = kernel_of_width(wide, variants);
    cuda.launch(Kernel { file: "patchify", name }, cuda.strided_grid(params.len.div_ceil(step), PATCH_THREADS), &params);
}
