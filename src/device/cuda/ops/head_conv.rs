//! Launches `kernels/head_conv.cu` and `kernels/head_logits.cu`.

use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{
    CONV_DEPTH, CONV_FINISH_THREADS, CONV_LARGE_TILE, CONV_PAD, CONV_SMALL_TILE, CONV_STAGES, CONV_THREADS, ConvFinishParams, ConvParams,
    ConvWeightParams, HEAD_LOGITS_SLICES, HEAD_LOGITS_WARPS, HeadLogitsBackwardParams, HeadLogitsFinishParams, HeadLogitsParams,
};
use crate::device::cuda::driver::{Address, Grid, Kernel};
use crate::device::cuda::memory::{Buffer, Located};
use crate::device::{ConvShape, HeadLogitsShape, Storage};

const TAPS: usize = 9;
const WARP: u32 = 32;
/// Blocks per multiprocessor that run side by side: a sum over tokens is cut into chunks until there are as many.
const CONV_BLOCKS: u32 = 2;
const LOGITS_BLOCKS: u32 = 4;
/// Fewest tokens of a chunk: with fewer, the partial sums cost more than the chunks gain.
const LEAST_CONV_CHUNK: u32 = 8 * CONV_DEPTH;
const LEAST_LOGITS_CHUNK: u32 = 8 * HEAD_LOGITS_WARPS;

fn conv(name: &'static str) -> Kernel {
    Kernel { file: "head_conv", name }
}

fn of_logits(name: &'static str) -> Kernel {
    Kernel { file: "head_logits", name }
}

/// A size as the kernels take it.
fn size(what: &str, value: usize) -> u32 {
    assert!(value > 0 && i32::try_from(value).is_ok(), "head_conv: {value} {what}");
    value as u32
}

/// Sizes of a convolution, checked.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: u32,
    rows: u32,
    columns: u32,
    cin: u32,
    cout: u32,
}

impl Sizes {
    fn new(shape: &ConvShape) -> Self {
        let ConvShape { linear, batch, rows, columns } = *shape;
        assert!(linear.inputs.is_multiple_of(TAPS), "conv3x3: a layer of {} inputs, no multiple of {TAPS}", linear.inputs);
        Self {
            tokens: size("tokens", batch * rows * columns),
            rows: size("rows", rows),
            columns: size("columns", columns),
            cin: size("input channels", linear.inputs / TAPS),
            cout: size("output channels", linear.outputs),
        }
    }

    /// Whether 16-byte copies keep to whole rows of channels.
    fn wide(&self, addresses: &[Address]) -> bool {
        aligned(addresses) && self.cin.is_multiple_of(8) && self.cout.is_multiple_of(8)
    }
}

/// Asserts that a view holds `tokens` rows of `channels`.
fn covers(what: &str, len: usize, tokens: u32, channels: u32) {
    let needed = tokens as usize * channels as usize;
    assert!(len >= needed, "{what} holds {len} values, fewer than {tokens} x {channels}");
}

/// Address of a tensor in an arena; it must lie inside.
fn tensor<E: bytemuck::Pod>(arena: &Buffer<E>, offset: usize, len: usize) -> Address {
    arena.part(offset..offset + len).address()
}

/// A kernel's variants: large tiles, small tiles, small tiles with narrow copies.
type Variants = [&'static str; 3];

/// The side of a block's square of the result, and the variant. Large tiles do more products per value read; small ones
/// fill the device where there are few, and waste less of a narrow result.
fn tile(wide: bool, large: bool, [large_x8, small_x8, small_x1]: Variants) -> (u32, &'static str) {
    match (wide, large) {
        (true, true) => (CONV_LARGE_TILE, large_x8),
        (true, false) => (CONV_SMALL_TILE, small_x8),
        (false, _) => (CONV_SMALL_TILE, small_x1),
    }
}

/// A grid for tiles of this side; shared memory for both operands in every stage.
fn tile_grid(blocks: [u32; 3], side: u32) -> Grid {
    grid_fits(blocks);
    let bytes_per_tile = side * (CONV_DEPTH + CONV_PAD) * size_of::<bf16>() as u32;
    Grid { blocks, threads: CONV_THREADS, shared: CONV_STAGES * 2 * bytes_per_tile }
}

fn grid_fits(blocks: [u32; 3]) {
    assert!(blocks[1] <= 65_535 && blocks[2] <= 65_535, "head_conv: a grid of {blocks:?} blocks");
}

/// Cuts `len` into chunks of a multiple of `step`, at least `least`, so that there are about `wanted`. Their length and
/// number.
fn chunks(len: u32, wanted: u32, least: u32, step: u32) -> (u32, u32) {
    let chunk = len.div_ceil(wanted.max(1)).max(least).next_multiple_of(step);
    (chunk, len.div_ceil(chunk))
}

pub fn conv3x3(cuda: &Cuda, params: &Buffer<bf16>, shape: &ConvShape, x: In<'_>, y: Out<'_>) {
    let (sizes, layer) = (Sizes::new(shape), &shape.linear);
    covers("conv3x3: x", x.len, sizes.tokens, sizes.cin);
    covers("conv3x3: y", y.len, sizes.tokens, sizes.cout);
    let bias = tensor(params, layer.bias, layer.outputs);
    let operands = ConvParams { source: x.address(), out: y.address(), bias, ..Default::default() };
    let names = ["conv3x3_large_x8", "conv3x3_small_x8", "conv3x3_small_x1"];
    convolve(cuda, params, shape, sizes.cout, names, operands);
}

pub fn conv3x3_backward_input(cuda: &Cuda, params: &Buffer<bf16>, shape: &ConvShape, dy: In<'_>, dx: Out<'_>, accumulate: bool) {
    let sizes = Sizes::new(shape);
    covers("conv3x3_backward_input: dy", dy.len, sizes.tokens, sizes.cout);
    covers("conv3x3_backward_input: dx", dx.len, sizes.tokens, sizes.cin);
    let operands = ConvParams { source: dy.address(), out: dx.address(), accumulate: accumulate.into(), ..Default::default() };
    let names = ["conv3x3_backward_input_large_x8", "conv3x3_backward_input_small_x8", "conv3x3_backward_input_small_x1"];
    convolve(cuda, params, shape, sizes.cin, names, operands);
}

/// Fills in what the forward and the gradient of the input have in common, and launches.
fn convolve(cuda: &Cuda, params: &Buffer<bf16>, shape: &ConvShape, outputs: u32, names: Variants, operands: ConvParams) {
    let (sizes, layer) = (Sizes::new(shape), &shape.linear);
    let Sizes { tokens, rows, columns, cin, cout } = sizes;
    let weight = tensor(params, layer.weight, layer.inputs * layer.outputs);
    let params = ConvParams { weight, tokens, rows, columns, cin, cout, ..operands };
    let wide = sizes.wide(&[params.source, params.weight, params.out]);
    let squares = u64::from(tokens.div_ceil(CONV_LARGE_TILE)) * u64::from(outputs.div_ceil(CONV_LARGE_TILE));
    let large = tokens.min(outputs) > CONV_SMALL_TILE && squares >= cuda.properties().multiprocessors.into();
    let (side, name) = tile(wide, large, names);
    // Blocks with the same tokens are neighbours: what one reads, the next finds in the cache.
    cuda.launch(conv(name), tile_grid([outputs.div_ceil(side), tokens.div_ceil(side), 1], side), &params);
}

pub fn conv3x3_backward_weight(cuda: &Cuda, grads: &mut Buffer<f32>, shape: &ConvShape, x: In<'_>, dy: In<'_>) {
    let (sizes, layer) = (Sizes::new(shape), &shape.linear);
    let Sizes { tokens, rows, columns, cin, cout } = sizes;
    covers("conv3x3_backward_weight: x", x.len, tokens, cin);
    covers("conv3x3_backward_weight: dy", dy.len, tokens, cout);
    let weights = layer.inputs * layer.outputs;
    let d_weight = tensor(grads, layer.weight, weights);
    let d_bias = tensor(grads, layer.bias, layer.outputs);

    let wide = sizes.wide(&[x.address(), dy.address()]);
    let names = ["conv3x3_backward_weight_large_x8", "conv3x3_backward_weight_small_x8", "conv3x3_backward_weight_small_x1"];
    let (side, name) = tile(wide, cin.min(cout) > CONV_SMALL_TILE, names);
    let tiles = [TAPS as u32 * cin.div_ceil(side), cout.div_ceil(side)];
    let wanted = CONV_BLOCKS * cuda.properties().multiprocessors / (tiles[0] * tiles[1]);
    let (chunk, chunks) = chunks(tokens, wanted, LEAST_CONV_CHUNK, CONV_DEPTH);
    let sums = weights + layer.outputs;
    let Some(partial) = cuda.scratch(chunks as usize * sums * size_of::<f32>()) else { return };
    let params = ConvWeightParams { x: x.address(), dy: dy.address(), partial, tokens, chunk, rows, columns, cin, cout };
    cuda.launch(conv(name), tile_grid([tiles[0], tiles[1], chunks], side), &params);

    let params = ConvFinishParams { weights: weights as u64, partial, d_weight, d_bias, chunks, cout };
    let wide = aligned(&[d_weight, d_bias]) && weights.is_multiple_of(4) && cout.is_multiple_of(4);
    let (name, width) = kernel_of_width(wide, [("conv3x3_finish_x4", 4), ("conv3x3_finish_x1", 1)]);
    let blocks = size("blocks", (sums as u64).div_ceil(width).div_ceil(CONV_FINISH_THREADS.into()) as usize);
    cuda.launch(conv(name), Grid { blocks: [blocks, 1, 1], threads: CONV_FINISH_THREADS, shared: 0 }, &params);
}

pub fn head_logits(cuda: &Cuda, params: &Buffer<bf16>, shape: &HeadLogitsShape, h: In<'_>, cm: In<'_>, logits: StatOut<'_>) {
    let HeadLogitsShape { linear, batch, positions } = *shape;
    let (tokens, width) = (size("tokens", batch * positions), size("channels", linear.inputs));
    covers("head_logits: h", h.len, tokens, width);
    covers("head_logits: cm", cm.len, batch as u32, width);
    covers("head_logits: logits", logits.len, tokens, 1);
    let params = HeadLogitsParams {
        h: h.address(),
        cm: cm.address(),
        weight: tensor(params, linear.weight, linear.inputs),
        bias: tensor(params, linear.bias, 1),
        logits: logits.address(),
        tokens,
        positions: positions as u32,
        width,
        unused: 0,
    };
    let wide = aligned(&[params.h, params.cm, params.weight]) && width.is_multiple_of(8);
    let (name, _) = kernel_of_width(wide, [("head_logits_x8", 8), ("head_logits_x1", 1)]);
    cuda.launch(of_logits(name), cuda.strided_grid(u64::from(tokens) * u64::from(WARP), WARP * HEAD_LOGITS_WARPS), &params);
}

pub fn head_logits_backward(
    cuda: &Cuda,
    params: &Buffer<bf16>,
    shape: &HeadLogitsShape,
    h: In<'_>,
    cm: In<'_>,
    d_logits: StatIn<'_>,
    dh: Out<'_>,
    grads: Option<(&mut Buffer<f32>, Out<'_>)>,
) {
    let HeadLogitsShape { linear, batch, positions } = *shape;
    let (tokens, width) = (size("tokens", batch * positions), size("channels", linear.inputs));
    covers("head_logits_backward: h", h.len, tokens, width);
    covers("head_logits_backward: cm", cm.len, batch as u32, width);
    covers("head_logits_backward: d_logits", d_logits.len, tokens, 1);
    covers("head_logits_backward: dh", dh.len, tokens, width);
    let (samples, positions) = (batch as u32, positions as u32);
    let weight = tensor(params, linear.weight, linear.inputs);

    let wide = aligned(&[h.address(), cm.address(), weight, dh.address()]) && width.is_multiple_of(8);
    let slabs = width.div_ceil(if wide { 8 * WARP } else { WARP });
    let wanted = LOGITS_BLOCKS * cuda.properties().multiprocessors / (samples * slabs);
    let (chunk, chunks) = chunks(positions, wanted, LEAST_LOGITS_CHUNK, HEAD_LOGITS_WARPS);
    let partial = if grads.is_some() {
        let sums = batch * chunks as usize * (2 * linear.inputs + 1);
        let Some(partial) = cuda.scratch(sums * size_of::<f32>()) else { return };
        partial
    } else {
        0
    };
    let params = HeadLogitsBackwardParams {
        h: h.address(),
        cm: cm.address(),
        weight,
        d_logits: d_logits.address(),
        dh: dh.address(),
        partial,
        positions,
        chunk,
        width,
        unused: 0,
    };
    let name = match (wide, grads.is_some()) {
        (true, true) => "head_logits_backward_x8",
        (false, true) => "head_logits_backward_x1",
        (true, false) => "head_logits_backward_frozen_x8",
        (false, false) => "head_logits_backward_frozen_x1",
    };
    let blocks = [chunks, samples, slabs];
    grid_fits(blocks);
    cuda.launch(of_logits(name), Grid { blocks, threads: WARP * HEAD_LOGITS_WARPS, shared: 0 }, &params);

    let Some((grads, d_cm)) = grads else { return };
    covers("head_logits_backward: d_cm", d_cm.len, samples, width);
    let params = HeadLogitsFinishParams {
        partial,
        d_weight: tensor(grads, linear.weight, linear.inputs),
        d_bias: tensor(grads, linear.bias, 1),
        d_cm: d_cm.address(),
        samples,
        chunks,
        width,
        unused: 0,
    };
    // One row of blocks per sample, for its gradient of cm, and one for weight and bias.
    let blocks = [width.div_ceil(WARP) + 1, samples + 1, 1];
    grid_fits(blocks);
    cuda.launch(of_logits("head_logits_finish"), Grid { blocks, threads: WARP * HEAD_LOGITS_SLICES, shared: 0 }, &params);
}
