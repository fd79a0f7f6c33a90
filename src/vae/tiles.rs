//! Work on a large picture in overlapping tiles, blended linearly where they overlap.

use candle_core::{Result, Tensor};

/// One axis cut into tiles: where they begin, in latent positions. Each covers `tile` positions, the last perhaps fewer.
fn starts(size: usize, tile: usize) -> Vec<usize> {
    let step = tile - tile / 4;
    let mut starts = vec![0];
    while let Some(last) = starts.last()
        && last + tile < size
    {
        starts.push(last + step);
    }
    starts
}

/// How much a tile counts at each of its `len` positions: a ramp up where one lies before it, down where one lies behind.
fn weights(len: usize, overlap: usize, before: bool, behind: bool) -> Vec<f32> {
    let ramp = |i: usize| if i < overlap { i as f32 / overlap as f32 } else { 1.0 };
    let fall = |i: usize| if i + overlap >= len { 1.0 - (i + overlap - len) as f32 / overlap as f32 } else { 1.0 };
    (0..len).map(|i| (if before { ramp(i) } else { 1.0 }) * (if behind { fall(i) } else { 1.0 })).collect()
}

/// Applies `work` to `input` `[1, C, H, W]`, tile by tile, and blends what comes out, `[channels, H', W']`. A latent
/// position is `scale.0` positions of the input and `scale.1` of the output, on both axes; `tile` counts latent positions.
pub(super) fn tiled(
    input: &Tensor,
    scale: (usize, usize),
    tile: usize,
    channels: usize,
    work: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Vec<f32>> {
    let (_, _, h, w) = input.dims4()?;
    let (rows, columns) = (h / scale.0, w / scale.0);
    if rows <= tile && columns <= tile {
        return work(input)?.flatten_all()?.to_vec1();
    }
    let (out_h, out_w) = (rows * scale.1, columns * scale.1);
    let overlap = tile / 4 * scale.1;
    let mut out = vec![0.0; channels * out_h * out_w];
    let (tops, lefts) = (starts(rows, tile), starts(columns, tile));
    for top in &tops {
        let height = tile.min(rows - top);
        let vertical = weights(height * scale.1, overlap, *top > 0, top + height < rows);
        for left in &lefts {
            let width = tile.min(columns - left);
            let horizontal = weights(width * scale.1, overlap, *left > 0, left + width < columns);
            let part = input.narrow(2, top * scale.0, height * scale.0)?.narrow(3, left * scale.0, width * scale.0)?;
            let part: Vec<f32> = work(&part.contiguous()?)?.flatten_all()?.to_vec1()?;
            for (line, values) in part.chunks_exact(width * scale.1).enumerate() {
                let (channel, y) = (line / (height * scale.1), line % (height * scale.1));
                let at = (channel * out_h + top * scale.1 + y) * out_w + left * scale.1;
                for ((sum, value), weight) in out[at..].iter_mut().zip(values).zip(&horizontal) {
                    *sum += value * weight * vertical[y];
                }
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn tiles_cover_and_their_weights_add_up_to_one() {
        for size in 1..60 {
            let mut sum = vec![0.0; size * 2];
            let starts = starts(size, 8);
            for start in &starts {
                let len = 8.min(size - start);
                let part = weights(len * 2, 4, *start > 0, start + len < size);
                part.iter().enumerate().for_each(|(i, weight)| sum[start * 2 + i] += weight);
            }
            assert!(sum.iter().all(|total| (total - 1.0_f32).abs() < 1e-6), "{size}: {starts:?} {sum:?}");
        }
    }

    #[test]
    fn what_needs_no_neighbours_is_the_same_in_tiles() {
        let values: Vec<f32> = (0..2 * 21 * 13).map(|i| i as f32).collect();
        let input = Tensor::from_vec(values.clone(), (1, 2, 21, 13), &Device::Cpu).unwrap();
        let out = tiled(&input, (1, 1), 8, 2, |tile| tile * 2.0).unwrap();
        assert!(out.iter().zip(values).all(|(out, value)| (out - 2.0 * value).abs() < 1e-3));
        let doubled = tiled(&input, (1, 2), 8, 2, |tile| tile.upsample_nearest2d(tile.dim(2)? * 2, tile.dim(3)? * 2)).unwrap();
        let whole: Vec<f32> = input.upsample_nearest2d(42, 26).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(doubled.iter().zip(whole).all(|(tiled, whole)| (tiled - whole).abs() < 1e-3));
    }
}
