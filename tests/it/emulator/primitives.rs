//! Each primitive against its definition, under every schedule.

use half::bf16;
use ladd_fast::device::cuda::driver::{Driver, Element, TensorMap, TensorSpec};
use ladd_fast::device::cuda::emulated::Schedule;

use super::{Rig, bytes, grid, small, with_variable};

#[test]
fn warp_operations() {
    for rig in Rig::every() {
        let out = rig.blank::<i32>(13 * 32);
        rig.launch("test_warp", grid(1, 32, 0), &[bytes(&out)]).unwrap();
        let out = rig.download::<i32>(out, 13 * 32);
        for lane in 0..32_i32 {
            let got: Vec<i32> = (0..13).map(|row| out[row * 32 + lane as usize]).collect();
            let third: u32 = (0..32).filter(|lane| lane % 3 == 0).map(|lane| 1 << lane).sum();
            let expected = [
                50,
                (lane ^ 3) * 10,
                if lane + 7 < 32 { (lane + 7) * 10 } else { lane * 10 },
                if lane >= 7 { (lane - 7) * 10 } else { lane * 10 },
                (lane ^ 4) * 10,
                (lane / 8 * 8 + 1) * 10,
                third as i32,
                1,
                0,
                31 * 32 / 2,
                31 * 31,
                if lane < 16 { 15 * 16 / 2 } else { 31 * 32 / 2 - 15 * 16 / 2 },
                (lane == 0).into(),
            ];
            assert_eq!(got, expected, "lane {lane}");
        }
    }
}

#[test]
fn ldmatrix() {
    let values: Vec<u16> = (0..32 * 8).map(|i| (i * 37) as u16).collect();
    for rig in Rig::every() {
        let (input, out) = (rig.upload(&values), rig.blank::<u32>(6 * 128));
        rig.launch("test_ldmatrix", grid(1, 32, 0), &[bytes(&input), bytes(&out)]).unwrap();
        let out = rig.download::<u32>(out, 6 * 128);
        for (variant, (count, transposed)) in [(1, false), (2, false), (4, false), (1, true), (2, true), (4, true)].into_iter().enumerate()
        {
            for (lane, matrix) in (0..32).flat_map(|lane| (0..count).map(move |matrix| (lane, matrix))) {
                let element = |i: usize| {
                    let (row, column) = (lane / 4, lane % 4 * 2 + i);
                    let (row, column) = if transposed { (column, row) } else { (row, column) };
                    u32::from(values[(matrix * 8 + row) * 8 + column])
                };
                let got = out[variant * 128 + lane * 4 + matrix];
                assert_eq!(got, element(0) | element(1) << 16, "variant {variant}, lane {lane}, matrix {matrix}");
            }
        }
    }
}

/// `start + a b` of row-major matrices.
fn product(a: &[bf16], b: &[bf16], depth: usize, columns: usize, start: &[f32]) -> Vec<f32> {
    let element = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        (0..depth).map(|k| a[row * depth + k].to_f32() * b[k * columns + column].to_f32()).sum::<f32>()
    };
    start.iter().enumerate().map(|(i, start)| start + element(i)).collect()
}

fn transposed(values: &[bf16], rows: usize) -> Vec<bf16> {
    let columns = values.len() / rows;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

#[test]
fn mma_m16n8k16() {
    let (a, b) = (small(16 * 16, 1), small(16 * 8, 2));
    let start: Vec<f32> = (0..16 * 8).map(|i| i as f32).collect();
    for rig in Rig::every() {
        let out = rig.upload(&start);
        rig.launch("test_mma", grid(1, 32, 0), &[bytes(&rig.upload(&a)), bytes(&rig.upload(&b)), bytes(&out)]).unwrap();
        assert_eq!(rig.download::<f32>(out, start.len()), product(&a, &b, 16, 8, &start));
    }
}

/// A matrix as tiles of 64 x 64 with the 128-byte swizzle.
fn tiles_of_64(rig: &Rig, values: &[bf16], rows: usize) -> TensorMap {
    let columns = (values.len() / rows) as u64;
    let address = rig.upload(values);
    let spec = TensorSpec {
        address,
        element: Element::Bf16,
        dims: vec![columns, rows as u64],
        strides: vec![columns * 2],
        tile: vec![64, 64],
        swizzle: 128,
    };
    rig.driver.tensor_map(&spec).unwrap()
}

#[test]
fn wgmma() {
    let variants = [
        ("test_wgmma_64", 64, false, false),
        ("test_wgmma_128", 128, false, false),
        ("test_wgmma_64_trans_a", 64, true, false),
        ("test_wgmma_64_trans_b", 64, false, true),
        ("test_wgmma_128_trans_b", 128, false, true),
        ("test_wgmma_64_registers", 64, false, false),
        ("test_wgmma_128_registers_trans_b", 128, false, true),
    ];
    for rig in Rig::every() {
        for (name, n, rows_along_m, rows_along_n) in variants {
            let (a, b) = (small(64 * 64, 3), small(64 * n, 4));
            let stored_a = if rows_along_m { transposed(&a, 64) } else { a.clone() };
            let stored_b = if rows_along_n { b.clone() } else { transposed(&b, 64) };
            let map_a = tiles_of_64(&rig, &stored_a, 64);
            let map_b = tiles_of_64(&rig, &stored_b, if rows_along_n { 64 } else { n });
            let (a_address, out) = (rig.upload(&a), rig.blank::<f32>(64 * n));
            let shared = 8192 * (1 + n as u32 / 64);
            rig.launch(name, grid(1, 128, shared), &[bytes(&map_a), bytes(&map_b), bytes(&a_address), bytes(&out)]).unwrap();
            assert_eq!(rig.download::<f32>(out, 64 * n), product(&a, &b, 64, n, &vec![0.0; 64 * n]), "{name}");
        }
    }
}

#[test]
fn cp_async_fills_with_zeros() {
    for rig in Rig::every() {
        for len in [0_usize, 1, 6, 128, 201, 255, 256] {
            let values: Vec<f32> = (0..len.max(1)).map(|i| i as f32 + 1.0).collect();
            let (input, out) = (rig.upload(&values), rig.blank::<f32>(256));
            rig.launch("test_cp_async", grid(1, 32, 0), &[bytes(&input), bytes(&out), bytes(&(len as u64))]).unwrap();
            let expected: Vec<f32> = (0..256).map(|i| if i < len { 2.0 * values[i] } else { 0.0 }).collect();
            assert_eq!(rig.download::<f32>(out, 256), expected, "{len} values");
        }
    }
}

#[test]
fn bulk_copies() {
    let values: Vec<f32> = (0..300).map(|i| i as f32 * 0.5).collect();
    for rig in Rig::every() {
        let (input, copy, sums) = (rig.upload(&values), rig.blank::<f32>(300), rig.upload(&vec![1.0_f32; 300]));
        rig.launch("test_bulk", grid(1, 32, 1200), &[bytes(&input), bytes(&copy), bytes(&sums), bytes(&1200_u64)]).unwrap();
        assert_eq!(rig.download::<f32>(copy, 300), values);
        let expected: Vec<f32> = values.iter().map(|v| v + 1.0).collect();
        assert_eq!(rig.download::<f32>(sums, 300), expected);
    }
}

/// Where the copy engine puts the 16-byte piece `piece` of row `row`, rows of `row_bytes` bytes one after the other.
fn swizzled(offset: usize, swizzle: u32) -> usize {
    let bits = match swizzle {
        128 => 7,
        64 => 3,
        32 => 1,
        _ => 0,
    };
    offset ^ ((offset >> 7 & bits) << 4)
}

/// Tiles that reach over every edge: zeros come in, nothing goes out.
#[test]
fn tiles_are_clipped_and_swizzled() {
    let dims = [40_usize, 7, 3];
    let tensor: Vec<u16> = (0..dims.iter().product::<usize>()).map(|i| i as u16 + 1).collect();
    let spec = |address, tile: [u32; 3], swizzle| TensorSpec {
        address,
        element: Element::Bf16,
        dims: dims.map(|d| d as u64).to_vec(),
        strides: vec![80, 560],
        tile: tile.to_vec(),
        swizzle,
    };
    for rig in Rig::every() {
        for swizzle in [0, 32, 64, 128] {
            let tile = [if swizzle == 0 { 24 } else { swizzle / 2 }, 5, 2];
            for at in [[0, 0, 0], [8, 3, 1], [-5, -2, -1], [33, 6, 2], [40, 0, 0], [3, -5, 0]] {
                let count = tile.iter().product::<u32>() as usize;
                let (from, to) = (rig.upload(&tensor), rig.blank::<u16>(tensor.len()));
                let maps = [from, to].map(|address| rig.driver.tensor_map(&spec(address, tile, swizzle)).unwrap());
                let dump = rig.blank::<u16>(count);
                let [x, y, z]: [i32; 3] = at;
                let bytes_of_tile = (count * 2) as u64;
                let parameters = [bytes(&maps[0]), bytes(&maps[1]), bytes(&dump), bytes(&bytes_of_tile), bytes(&x), bytes(&y), bytes(&z)];
                rig.launch("test_tile_3d", grid(1, 32, bytes_of_tile as u32), &parameters).unwrap();
                let dump = rig.download::<u16>(dump, count);
                let mut stored = vec![0_u16; tensor.len()];
                for i in 0..count {
                    let index = [i % tile[0] as usize, i / tile[0] as usize % 5, i / tile[0] as usize / 5];
                    let place: Vec<i32> = index.iter().zip(at).map(|(index, at)| *index as i32 + at).collect();
                    let inside = place.iter().zip(dims).all(|(place, dim)| *place >= 0 && *place < dim as i32);
                    let element = place.iter().rev().zip(dims.iter().rev()).fold(0, |sum, (place, dim)| sum * *dim as i32 + place);
                    let expected = if inside { tensor[element as usize] } else { 0 };
                    assert_eq!(dump[swizzled(i * 2, swizzle) / 2], expected, "swizzle {swizzle}, tile at {at:?}, element {i}");
                    if inside {
                        stored[element as usize] = expected;
                    }
                }
                assert_eq!(rig.download::<u16>(to, tensor.len()), stored, "swizzle {swizzle}, tile at {at:?}");
            }
        }
    }
}

#[test]
fn tiles_are_added() {
    let values: Vec<f32> = (0..12 * 6).map(|i| i as f32).collect();
    for rig in Rig::every() {
        let (from, to) = (rig.upload(&values), rig.upload(&vec![1000.0_f32; 12 * 6]));
        let flat = TensorSpec { address: from, element: Element::F32, dims: vec![12, 6], strides: vec![48], tile: vec![8, 4], swizzle: 0 };
        let deep = TensorSpec { address: to, dims: vec![12, 6, 1], strides: vec![48, 288], tile: vec![8, 4, 1], ..flat.clone() };
        let maps = [flat, deep].map(|spec| rig.driver.tensor_map(&spec).unwrap());
        rig.launch("test_tile_add", grid(1, 32, 128), &[bytes(&maps[0]), bytes(&maps[1]), bytes(&128_u64), bytes(&6_i32), bytes(&3_i32)])
            .unwrap();
        let expected: Vec<f32> = (0..12 * 6).map(|i| 1000.0 + if i % 12 >= 6 && i / 12 >= 3 { i as f32 } else { 0.0 }).collect();
        assert_eq!(rig.download::<f32>(to, 12 * 6), expected);
    }
}

/// Shared memory begins every block as not-a-numbers; named barriers hand values over in order.
#[test]
fn blocks_begin_poisoned_and_hand_over() {
    for rig in Rig::every() {
        let out = rig.blank::<i32>(5 * 3);
        rig.launch("test_block", grid(5, 64, 256), &[bytes(&out)]).unwrap();
        // Thread 32 of a block sums what thread 31 put down: 31, 131 and 231.
        assert_eq!(rig.download::<i32>(out, 5 * 3), [64, 64, 393].repeat(5));
    }
}

/// Blocks that wait for those with lower tickets end in every order in which they are begun.
#[test]
fn flags_order_blocks() {
    for rig in Rig::every() {
        let (state, out) = (rig.upload(&[0_u32; 2]), rig.blank::<u32>(20));
        rig.launch("test_flags", grid(20, 32, 0), &[bytes(&state), bytes(&out)]).unwrap();
        let mut expected = vec![1_u32];
        (1..20).for_each(|ticket| expected.push(2 * expected[ticket - 1] + ticket as u32));
        assert_eq!(rig.download::<u32>(out, 20), expected);
    }
}

/// Launches whose blocks are over at once: OS threads that come to help may find nothing left to do. In a process of its own,
/// with far more such threads than processors.
#[test]
fn many_short_launches() {
    if !with_variable("emulator::primitives::many_short_launches", "LADD_EMULATOR_THREADS", "32") {
        return;
    }
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let rig = Rig::new(Schedule::default());
                let out = rig.blank::<i32>(13 * 32);
                for launch in 0..20_000 {
                    rig.launch("test_warp", grid(2 + launch % 3, 32, 0), &[bytes(&out)]).unwrap();
                }
            });
        }
    });
}
