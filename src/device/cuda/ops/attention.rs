//! Launches the forward kernels of `kernels/attention.cu` and, on Hopper, `kernels/attention_sm90.cu`.

use half::bf16;

use super::aligned;
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{
    ATTENTION_QUERIES_D64, ATTENTION_QUERIES_D128, ATTENTION_SHARED_D64, ATTENTION_SHARED_D128, ATTENTION_SM90_COMBINE_THREADS,
    ATTENTION_SM90_GROUP_QUERIES, ATTENTION_THREADS, AttentionParams, AttentionSm90Params,
};
use crate::device::cuda::driver::{Address, Element, Grid, Kernel, TensorMap, TensorSpec};
use crate::device::cuda::memory::Buffer;
use crate::device::cuda::policy::AttentionForward;
use crate::device::{AttentionShape, Storage};

const WIDEST_HEAD: usize = 128;
/// Columns of a swizzle row of 128 bytes: what one copy of a tensor map moves.
pub(super) const PANEL: u32 = 64;

/// Whether the kernels take this head width; fails the operation where they do not.
pub(super) fn takes_head(cuda: &Cuda, shape: &AttentionShape) -> bool {
    let fits = (1..=WIDEST_HEAD).contains(&shape.head_dim);
    if !fits {
        let cause = format!("head_dim {} is too wide: the kernels take 1 to {WIDEST_HEAD}; use --device cpu", shape.head_dim);
        cuda.refuse("attention", cause);
    }
    fits
}

/// Which variants of the kernels fit a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Whether the head width is padded to 64 in shared memory, or to 128.
    pub narrow_head: bool,
    /// Whether all rows allow 16-byte accesses.
    pub wide_access: bool,
}

impl Variant {
    pub fn of(shape: &AttentionShape, addresses: &[Address]) -> Self {
        let AttentionShape { batch, heads, head_dim, image, text, .. } = *shape;
        assert!(shape.keys() <= i32::MAX as usize, "attention over {image} + {text} tokens; the kernels count them in 31 bits");
        let largest = usize::from(u16::MAX);
        assert!(batch <= largest && heads <= largest, "attention of {batch} samples with {heads} heads; a grid takes {largest} of each");
        Self { narrow_head: head_dim <= 64, wide_access: head_dim % 8 == 0 && aligned(addresses) }
    }

    /// One of `[64 wide, 64 narrow, 128 wide, 128 narrow]`.
    pub fn kernel(self, [d64_wide, d64_narrow, d128_wide, d128_narrow]: [&'static str; 4]) -> Kernel {
        let name = match (self.narrow_head, self.wide_access) {
            (true, true) => d64_wide,
            (true, false) => d64_narrow,
            (false, true) => d128_wide,
            (false, false) => d128_narrow,
        };
        Kernel { file: "attention", name }
    }

    pub fn pick<T>(self, d64: T, d128: T) -> T {
        if self.narrow_head { d64 } else { d128 }
    }
}

/// Address of a buffer that holds at least `len` elements.
pub(super) fn checked<E: bytemuck::Pod>(what: &str, buffer: &Buffer<E>, len: usize) -> Address {
    assert!(buffer.len() >= len, "{what}: {} elements instead of {len}", buffer.len());
    buffer.address()
}

pub(super) fn joint_len(shape: &AttentionShape) -> usize {
    shape.batch * shape.heads * shape.keys() * shape.head_dim
}

/// Elements of the outputs: of the image, of the text.
pub(super) fn stream_lens(shape: &AttentionShape) -> [usize; 2] {
    [shape.image, shape.text].map(|tokens| shape.batch * tokens * shape.heads * shape.head_dim)
}

pub(super) fn scale(shape: &AttentionShape) -> f32 {
    (1.0 / (shape.head_dim as f64).sqrt()) as f32
}

/// One block for every `rows` of `tokens` tokens, of each head, of each sample.
pub(super) fn grid(shape: &AttentionShape, tokens: usize, rows: u32, threads: u32, shared: u32) -> Grid {
    let blocks = [tokens.div_ceil(rows as usize) as u32, shape.heads as u32, shape.batch as u32];
    Grid { blocks, threads, shared }
}

pub fn attention(
    cuda: &Cuda,
    shape: &AttentionShape,
    qkv: [&Buffer<bf16>; 3],
    out_image: &mut Buffer<bf16>,
    out_text: Option<&mut Buffer<bf16>>,
    lse: &mut Buffer<f32>,
) {
    if !takes_head(cuda, shape) {
        return;
    }
    let joint = joint_len(shape);
    let [image_len, text_len] = stream_lens(shape);
    let [q, k, v] = qkv.map(|tensor| checked("attention, q, k or v", tensor, joint));
    let out_text = out_text.filter(|_| shape.text_queries).map_or(0, |out| checked("attention, output of the text", out, text_len));
    let params = AttentionParams {
        q,
        k,
        v,
        out_image: checked("attention, output of the image", out_image, image_len),
        out_text,
        lse: checked("attention, lse", lse, shape.batch * shape.heads * shape.keys()),
        heads: shape.heads as u32,
        head_dim: shape.head_dim as u32,
        keys: shape.keys() as u32,
        queries: shape.queries() as u32,
        image: shape.image as u32,
        scale: scale(shape),
    };
    let variant = Variant::of(shape, &[q, k, v, params.out_image, out_text]);
    if shape.batch * shape.heads * shape.queries() == 0 {
        return;
    }
    if cuda.properties().hopper() && variant.wide_access && [64, 128].contains(&shape.head_dim) {
        match cuda.choices.attention(shape, cuda.properties().multiprocessors) {
            Ok(Some(forward)) => return hopper(cuda, shape, forward, &params),
            Ok(None) => {}
            Err(cause) => return cuda.refuse("attention", cause),
        }
    }
    let kernel = variant.kernel(["attention_d64_wide", "attention_d64_narrow", "attention_d128_wide", "attention_d128_narrow"]);
    let rows = variant.pick(ATTENTION_QUERIES_D64, ATTENTION_QUERIES_D128);
    let shared = variant.pick(ATTENTION_SHARED_D64, ATTENTION_SHARED_D128);
    cuda.launch(kernel, grid(shape, shape.queries(), rows, ATTENTION_THREADS, shared), &params);
}

/// Bytes of a cut tile's part: of each of a warpgroup's threads its results, two maxima and two sums, in fp32.
fn part_bytes(forward: AttentionForward) -> u64 {
    u64::from(forward.tile.groups * 128 * (forward.tile.head_dim / 2 + 4)) * size_of::<f32>() as u64
}

fn hopper(cuda: &Cuda, shape: &AttentionShape, forward: AttentionForward, params: &AttentionParams) {
    let tile = forward.tile;
    let plan = forward.plan(shape, cuda.properties().multiprocessors);
    // The kernels count tiles, and steps of cut ones, in 31 bits.
    if plan.tiles.saturating_mul(plan.key_tiles) > i32::MAX as u64 {
        let AttentionShape { batch, heads, .. } = *shape;
        let cause = format!("{batch} samples of {heads} heads of {} tokens are too many for one call", shape.keys());
        return cuda.refuse("attention", cause);
    }
    // Tokens are a dimension of their own: what lies behind the last is zero, not the next head. Of the queries only the
    // asking ones are read.
    let map = |address: Address, tokens: u32, rows: u32| -> Option<TensorMap> {
        let row = (shape.head_dim * size_of::<bf16>()) as u64;
        cuda.tensor_map(&TensorSpec {
            address,
            element: Element::Bf16,
            dims: vec![shape.head_dim as u64, tokens.into(), (shape.batch * shape.heads) as u64],
            strides: vec![row, row * u64::from(params.keys)],
            tile: vec![PANEL, rows, 1],
            swizzle: 128,
        })
    };
    let maps = (
        map(params.q, params.queries, ATTENTION_SM90_GROUP_QUERIES),
        map(params.k, params.keys, tile.keys),
        map(params.v, params.keys, tile.keys),
    );
    let (Some(q), Some(k), Some(v)) = maps else { return };
    let cut = plan.tiles - plan.whole;
    let parts = match cut {
        0 => Some(0),
        _ => cuda.scratch((2 * plan.blocks * part_bytes(forward)) as usize),
    };
    let Some(parts) = parts else { return };
    let params = AttentionSm90Params {
        out_image: params.out_image,
        out_text: params.out_text,
        lse: params.lse,
        parts,
        heads: params.heads,
        keys: params.keys,
        queries: params.queries,
        image: params.image,
        query_tiles: plan.query_tiles as u32,
        key_tiles: plan.key_tiles as u32,
        tiles: plan.tiles as u32,
        whole: plan.whole as u32,
        blocks: plan.blocks as u32,
        scale: params.scale,
    };
    let kernel = Kernel { file: "attention_sm90", name: tile.kernel };
    let grid = Grid { blocks: [plan.blocks as u32, 1, 1], threads: tile.threads(), shared: tile.shared() };
    let bytes = bytemuck::bytes_of;
    cuda.launch_with(kernel, grid, &[bytes(&q), bytes(&k), bytes(&v), bytemuck::bytes_of(&params)]);
    if cut > 0 {
        let name = if tile.head_dim == 64 { "attention_combine_d64" } else { "attention_combine_d128" };
        // Results leave through shared memory, the rows of a warpgroup at a time.
        let shared = ATTENTION_SM90_GROUP_QUERIES * tile.head_dim * size_of::<bf16>() as u32;
        let grid = Grid { blocks: [cut as u32, tile.groups, 1], threads: ATTENTION_SM90_COMBINE_THREADS, shared };
        cuda.launch(Kernel { file: "attention_sm90", name }, grid, &params);
    }
}
