//! Launches `kernels/embed.cu`.

use half::bf16;

use super::{In, Out, StatIn, aligned, kernel_of_width};
use crate::device::Storage;
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{EMBED_THREADS, PosEmbedParams, TimestepEmbeddingParams};
use crate::device::cuda::driver::{Grid, Kernel};
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::model::FREQUENCIES;

pub fn pos_embed(cuda: &Cuda, batch: usize, grid: (usize, usize), max: usize, pos: &Buffer<bf16>, x: Out<'_>) {
    let (grid_rows, columns) = grid;
    let hidden = pos.len() / (max * max);
    let len = batch * grid_rows * columns * hidden;
    assert!(grid_rows <= max && columns <= max, "a grid of {grid_rows} x {columns} cut from {max} x {max}");
    assert!(x.len >= len, "{} values for {batch} grids of {grid_rows} x {columns} x {hidden}", x.len);
    if len == 0 {
        return;
    }
    let [rows, grid_rows, columns, hidden, max] = [batch * grid_rows, grid_rows, columns, hidden, max].map(|size| size as u32);
    let (top, left) = ((max - grid_rows) / 2, (max - columns) / 2);
    let params = PosEmbedParams { pos: pos.address(), x: x.address(), rows, grid_rows, columns, hidden, max, top, left, unused: 0 };
    let wide = aligned(&[params.pos, params.x]) && hidden % 8 == 0;
    let (name, width) = kernel_of_width(wide, [("pos_embed_x8", 8), ("pos_embed_x1", 1)]);
    let whole = cuda.strided_grid((len as u64).div_ceil(width), EMBED_THREADS);
    let blocks = [whole.blocks[0].div_ceil(rows), rows.min(u32::from(u16::MAX)), 1];
    cuda.launch(Kernel { file: "embed", name }, Grid { blocks, ..whole }, &params);
}

pub fn timestep_embedding(cuda: &Cuda, t: StatIn<'_>, pooled: Option<In<'_>>, out: Out<'_>) {
    let batch = t.len;
    if batch == 0 {
        return;
    }
    let pooled_width = pooled.as_ref().map_or(0, |pooled| pooled.len / batch);
    let len = batch * (FREQUENCIES + pooled_width);
    assert!(out.len >= len, "{} values for {batch} embeddings of {FREQUENCIES} + {pooled_width}", out.len);
    let params = TimestepEmbeddingParams {
        t: t.address(),
        pooled: address_or_null(pooled.as_ref()),
        out: out.address(),
        batch: batch as u32,
        half: FREQUENCIES as u32 / 2,
        pooled_width: pooled_width as u32,
        unused: 0,
    };
    let grid = Grid { blocks: [params.batch, 1, 1], threads: EMBED_THREADS, shared: 0 };
    cuda.launch(Kernel { file: "embed", name: "timestep_embedding" }, grid, &params);
}
