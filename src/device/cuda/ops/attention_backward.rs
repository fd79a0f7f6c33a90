//! Launches the backward kernels of `kernels/attention.cu` and, on Hopper, `kernels/attention_backward_sm90.cu`.

use half::bf16;

use super::attention::{PANEL, Variant, checked, grid, joint_len, scale, stream_lens, takes_head};
use crate::device::AttentionShape;
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{
    ATTENTION_BACKWARD_ROWS, ATTENTION_BACKWARD_SHARED_D64, ATTENTION_BACKWARD_SHARED_D128, ATTENTION_BACKWARD_SM90_FINISH_THREADS,
    ATTENTION_BACKWARD_SM90_KEYS, ATTENTION_BACKWARD_SM90_QUERIES, ATTENTION_BACKWARD_SM90_SHARED_D64, ATTENTION_BACKWARD_SM90_SHARED_D128,
    ATTENTION_BACKWARD_SM90_THREADS, ATTENTION_STATISTICS_LANES, ATTENTION_THREADS, AttentionBackwardParams, AttentionBackwardSm90Params,
};
use crate::device::cuda::driver::{Address, Element, Grid, Kernel, TensorSpec};
use crate::device::cuda::memory::Buffer;

const HOPPER: &str = "attention_backward_sm90";

pub fn attention_backward(
    cuda: &Cuda,
    shape: &AttentionShape,
    qkv: [&Buffer<bf16>; 3],
    out: [Option<&Buffer<bf16>>; 2],
    lse: &Buffer<f32>,
    d_out: [Option<&Buffer<bf16>>; 2],
    d_qkv: [&mut Buffer<bf16>; 3],
) {
    if !takes_head(cuda, shape) {
        return;
    }
    let joint = joint_len(shape);
    let rows = shape.batch * shape.heads * shape.keys();
    let lens = stream_lens(shape);
    let [q, k, v] = qkv.map(|tensor| checked("attention_backward, q, k or v", tensor, joint));
    let [dq, dk, dv] = d_qkv.map(|tensor| checked("attention_backward, dq, dk or dv", tensor, joint));
    let streams = |what: &str, tensors: [Option<&Buffer<bf16>>; 2]| {
        [0, 1].map(|stream| tensors[stream].map_or(0, |tensor| checked(what, tensor, lens[stream])))
    };
    let [out_image, out_text] = streams("attention_backward, output of a stream", out);
    let [d_out_image, d_out_text] = streams("attention_backward, gradient of a stream's output", d_out);
    let variant = Variant::of(shape, &[q, k, v, dq, dk, dv, out_image, out_text, d_out_image, d_out_text]);
    let lse = checked("attention_backward, lse", lse, rows);
    if rows == 0 {
        return;
    }
    let params = AttentionBackwardParams {
        q,
        k,
        v,
        out_image,
        out_text,
        d_out_image,
        d_out_text,
        lse,
        statistics: 0,
        dq,
        dk,
        dv,
        batch: shape.batch as u32,
        heads: shape.heads as u32,
        head_dim: shape.head_dim as u32,
        keys: shape.keys() as u32,
        queries: shape.queries() as u32,
        image: shape.image as u32,
        scale: scale(shape),
        unused: 0,
    };
    let tiles = QueryTiles::of(shape, [d_out_image, d_out_text]);
    let fits = cuda.properties().hopper() && variant.wide_access && [64, 128].contains(&shape.head_dim);
    if fits && tiles.first < tiles.last {
        hopper(cuda, shape, variant, &tiles, params);
    } else {
        portable(cuda, shape, variant, params);
    }
}

fn portable(cuda: &Cuda, shape: &AttentionShape, variant: Variant, params: AttentionBackwardParams) {
    let rows = shape.batch * shape.heads * shape.keys();
    let Some(statistics) = cuda.scratch(rows * 2 * size_of::<f32>()) else { return };
    let params = AttentionBackwardParams { statistics, ..params };
    let shared = variant.pick(ATTENTION_BACKWARD_SHARED_D64, ATTENTION_BACKWARD_SHARED_D128);
    let tiles = |tokens: usize| grid(shape, tokens, ATTENTION_BACKWARD_ROWS, ATTENTION_THREADS, shared);
    if shape.queries() > 0 {
        let name = if variant.wide_access { "attention_statistics_x8" } else { "attention_statistics_x1" };
        cuda.launch(Kernel { file: "attention", name }, statistics_grid(shape.batch * shape.heads * shape.queries()), &params);
        let names =
            ["attention_queries_d64_wide", "attention_queries_d64_narrow", "attention_queries_d128_wide", "attention_queries_d128_narrow"];
        cuda.launch(variant.kernel(names), tiles(shape.queries()), &params);
    }
    let names = ["attention_keys_d64_wide", "attention_keys_d64_narrow", "attention_keys_d128_wide", "attention_keys_d128_narrow"];
    cuda.launch(variant.kernel(names), tiles(shape.keys()), &params);
}

/// One group of lanes for each row.
fn statistics_grid(rows: usize) -> Grid {
    blocks_of(rows as u64 * u64::from(ATTENTION_STATISTICS_LANES), ATTENTION_THREADS)
}

fn blocks_of(all: u64, threads: u32) -> Grid {
    Grid { blocks: [all.div_ceil(threads.into()) as u32, 1, 1], threads, shared: 0 }
}

/// The asking tokens in tiles, of which none has tokens of both streams: the image's first, then the text's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct QueryTiles {
    image: usize,
    all: usize,
    /// Tiles `first..last` have a gradient upstream.
    first: usize,
    last: usize,
}

impl QueryTiles {
    fn of(shape: &AttentionShape, [d_out_image, d_out_text]: [Address; 2]) -> Self {
        let tiles = |tokens: usize| tokens.div_ceil(ATTENTION_BACKWARD_SM90_QUERIES as usize);
        let image = tiles(shape.image);
        let all = image + tiles(shape.queries() - shape.image);
        Self { image, all, first: if d_out_image == 0 { image } else { 0 }, last: if d_out_text == 0 { image } else { all } }
    }
}

/// The parts of the scratch memory: their addresses, and the bytes of all.
fn divided(sizes: [usize; 4], start: Address) -> ([Address; 4], usize) {
    let mut end = 0;
    let parts = sizes.map(|bytes| {
        let part = start + end as u64;
        end += bytes.next_multiple_of(super::ALIGNMENT as usize);
        part
    });
    (parts, end)
}

fn hopper(cuda: &Cuda, shape: &AttentionShape, variant: Variant, tiles: &QueryTiles, of: AttentionBackwardParams) {
    let AttentionShape { batch, heads, head_dim, image, text, .. } = *shape;
    let joint = batch * heads;
    let tile = ATTENTION_BACKWARD_SM90_QUERIES as usize;
    let key_blocks = shape.keys().div_ceil(ATTENTION_BACKWARD_SM90_KEYS as usize);
    let blocks = joint * key_blocks;
    assert!(i32::try_from(blocks).is_ok(), "attention_backward of {joint} heads in {key_blocks} blocks of keys; a grid takes 2^31");
    let statistics = joint * tiles.all * 2 * tile * size_of::<f32>();
    let sums = joint * tiles.all * tile * head_dim * size_of::<f32>();
    let sizes = [statistics, sums, joint * tiles.all * size_of::<u32>(), size_of::<u32>()];
    let Some(scratch) = cuda.scratch(divided(sizes, 0).1) else { return };
    let ([statistics, dq_sums, flags, ticket], _) = divided(sizes, scratch);

    let panel = |address: Address, tokens: usize, rows: u32| -> TensorSpec {
        let row = (head_dim * size_of::<bf16>()) as u64;
        TensorSpec {
            address,
            element: Element::Bf16,
            dims: vec![head_dim as u64, tokens as u64, joint as u64],
            strides: vec![row, row * shape.keys() as u64],
            tile: vec![PANEL, rows, 1],
            swizzle: 128,
        }
    };
    let q = panel(of.q, shape.queries(), ATTENTION_BACKWARD_SM90_QUERIES);
    let [k, v] = [of.k, of.v].map(|address| panel(address, shape.keys(), ATTENTION_BACKWARD_SM90_KEYS));
    // Tokens of a stream are a dimension of their own: what lies behind the last is zero, not the next sample. A stream
    // without a gradient is never read, but the kernel takes a map of it.
    let stream = |address: Address, tokens: usize| {
        let token = (heads * head_dim * size_of::<bf16>()) as u64;
        let spec = TensorSpec {
            address,
            element: Element::Bf16,
            dims: vec![head_dim as u64, tokens as u64, heads as u64, batch as u64],
            strides: vec![token, (head_dim * size_of::<bf16>()) as u64, token * tokens as u64],
            tile: vec![PANEL, ATTENTION_BACKWARD_SM90_QUERIES, 1, 1],
            swizzle: 128,
        };
        if address == 0 || tokens == 0 { q.clone() } else { spec }
    };
    let specs = [q.clone(), k, v, stream(of.d_out_image, image), stream(of.d_out_text, text)];
    let Some(maps) = specs.iter().map(|spec| cuda.tensor_map(spec)).collect::<Option<Vec<_>>>() else { return };

    let params = AttentionBackwardSm90Params {
        of: AttentionBackwardParams { statistics, ..of },
        dq_sums,
        flags,
        ticket,
        tiles: tiles.all as u32,
        image_tiles: tiles.image as u32,
        first_tile: tiles.first as u32,
        last_tile: tiles.last as u32,
        key_blocks: key_blocks as u32,
        ordered: cuda.ordered.into(),
    };
    let rows = joint * tiles.all * tile;
    cuda.launch(Kernel { file: HOPPER, name: "attention_backward_sm90_prepare" }, statistics_grid(rows), &params);
    let name = variant.pick("attention_backward_sm90_d64", "attention_backward_sm90_d128");
    let shared = variant.pick(ATTENTION_BACKWARD_SM90_SHARED_D64, ATTENTION_BACKWARD_SM90_SHARED_D128);
    let grid = Grid { blocks: [blocks as u32, 1, 1], threads: ATTENTION_BACKWARD_SM90_THREADS, shared };
    let mut parameters: Vec<&[u8]> = maps.iter().map(bytemuck::bytes_of).collect();
    parameters.push(bytemuck::bytes_of(&params));
    cuda.launch_with(Kernel { file: HOPPER, name }, grid, &parameters);
    // A thread takes 8 columns of two rows.
    let threads = (rows / 2 * head_dim / 8) as u64;
    let grid = blocks_of(threads, ATTENTION_BACKWARD_SM90_FINISH_THREADS);
    cuda.launch(Kernel { file: HOPPER, name: "attention_backward_sm90_finish" }, grid, &params);
}
