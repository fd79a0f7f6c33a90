//! Each kind of mistake must end the launch with a report that names it.

use ladd_fast::device::cuda::driver::{Driver, Element, Epilogue, Gemm, Operand, TensorSpec};
use ladd_fast::device::cuda::emulated::Schedule;

use super::{Rig, bytes, grid, small, with_variable};

const LATE: Schedule = Schedule::ALL[1];

#[track_caller]
fn contains(report: &str, parts: &[&str]) {
    for part in parts {
        assert!(report.contains(part), "{report:?} does not say {part:?}");
    }
}

#[test]
fn accesses_outside_an_allocation() {
    // Two schedules: finding the line of the source takes a second each time.
    for rig in [Schedule::ALL[0], Schedule::ALL[3]].map(Rig::new) {
        let (data, sink) = (rig.blank::<f32>(100), rig.blank::<f32>(1));
        let read = |offset: i64| rig.failure("mistake_read", grid(2, 32, 0), &[bytes(&data), bytes(&sink), bytes(&offset)]);
        contains(&read(400), &["thread 3: reads inaccessible memory", "at offset 400 of an allocation of 400 bytes", "__syncthreads at"]);
        contains(&read(400), &["mistakes.cu:", "mistake_read failed on emulator"]);
        contains(&read(-8192), &["8192 bytes before an allocation of 400 bytes"]);
        let write = |offset: i64| rig.failure("mistake_write", grid(2, 32, 0), &[bytes(&data), bytes(&offset)]);
        contains(&write(405), &["writes inaccessible memory", "at offset 405 of an allocation of 400 bytes"]);
        contains(&write(-3), &["memory just before an allocation of 400 bytes was written"]);
        // The end of an allocation is rounded up to 16 bytes; what lies in between is checked after the launch.
        let odd = rig.blank::<u8>(401);
        let report = rig.failure("mistake_write", grid(1, 32, 0), &[bytes(&odd), bytes(&401_i64)]);
        contains(&report, &["memory just behind an allocation of 401 bytes was written"]);
        rig.driver.free(data);
        contains(&read(0), &["is in an allocation of 400 bytes that was given back"]);
    }
}

#[test]
fn what_the_compiler_checks() {
    for rig in Rig::every() {
        let (data, sink) = (rig.blank::<f32>(100), rig.blank::<f32>(4));
        let report = rig.failure("mistake_misaligned", grid(1, 32, 0), &[bytes(&data), bytes(&sink)]);
        contains(&report, &["mistakes.cu:", "uint4", "misaligned address", "it needs 16 bytes"]);
        let report = rig.failure("mistake_null", grid(1, 32, 0), &[bytes(&0_u64)]);
        contains(&report, &["mistakes.cu:", "at address 0"]);
        let report = rig.failure("mistake_static_shared", grid(1, 32, 0), &[bytes(&sink), bytes(&16_i64)]);
        contains(&report, &["mistakes.cu:", "index 16 is out of bounds", "float [16]"]);
    }
}

#[test]
fn shared_memory_overrun() {
    for rig in Rig::every() {
        let write = |offset: i64| rig.failure("mistake_dynamic_shared", grid(1, 1, 1000), &[bytes(&offset)]);
        contains(&write(1000), &["memory around its 1000 bytes of shared memory was written"]);
        contains(&write(-1), &["memory around its 1000 bytes of shared memory was written"]);
        contains(&write(1024), &["writes inaccessible memory"]);
    }
}

#[test]
fn stack_overflow() {
    let rig = Rig::new(Schedule::default());
    contains(&rig.failure("mistake_stack", grid(1, 1, 0), &[bytes(&rig.blank::<i32>(1))]), &["stack of 128 KB overflows"]);
}

#[test]
fn threads_that_do_not_meet() {
    for rig in Rig::every() {
        let sink = rig.blank::<i32>(1);
        let fail = |name| rig.failure(name, grid(1, 64, 0), &[bytes(&sink)]);
        contains(&fail("mistake_barrier_diverged"), &["threads diverged", "__syncthreads at", "mistakes.cu:"]);
        contains(
            &fail("mistake_barrier_missed"),
            &["deadlock in block (0,0,0)", "40 of 64 threads have returned", "24 wait in __syncthreads"],
        );
        contains(&fail("mistake_shuffle_diverged"), &["threads diverged", "__shfl_xor_sync"]);
        contains(&fail("mistake_shuffle_missed"), &["deadlock", "22 wait in __shfl_down_sync"]);
        contains(&fail("mistake_shuffle_mask"), &["__shfl_sync reads lane 9, which is not in mask 000000ff"]);
        contains(&fail("mistake_named_barrier"), &["deadlock", "32 of 64 threads have returned", "32 wait in named_bar_sync"]);
    }
}

/// In a process of its own, whose budget is short.
#[test]
fn loops_that_do_not_end() {
    if !with_variable("emulator::mistakes::loops_that_do_not_end", "LADD_EMULATOR_SECONDS", "0.2") {
        return;
    }
    let rig = Rig::new(Schedule::default());
    let flag = rig.blank::<i32>(1);
    contains(&rig.failure("mistake_spin", grid(1, 32, 0), &[bytes(&flag)]), &["runs too long"]);
    contains(&rig.failure("mistake_spin_meeting", grid(1, 32, 0), &[bytes(&flag)]), &["runs too long"]);
}

#[test]
fn bytes_announced_to_a_barrier() {
    for rig in Rig::every() {
        let data = rig.blank::<f32>(16);
        let fail = |announced: u32, fenced: u32| {
            let parameters = [bytes(&data), bytes(&announced), bytes(&fenced)];
            rig.failure("mistake_announced", grid(1, 32, 64), &parameters)
        };
        contains(&fail(128, 1), &["deadlock", "32 wait in mbar_wait", "0 of 1 arrivals and 64 bytes missing"]);
        // Fewer bytes: the barrier opens before they have all come, or has some left over.
        contains(&fail(48, 1), &["bytes missing"]);
        contains(&fail(64, 0), &["the thread that initialised its mbarrier has not called mbar_init_fence"]);
    }
}

#[test]
fn work_that_nobody_waits_for() {
    let rig = Rig::new(LATE);
    let (data, out) = (rig.upload(&[1.0_f32; 16]), rig.blank::<f32>(1));
    let report = rig.failure("mistake_store_not_waited", grid(1, 1, 64), &[bytes(&data)]);
    contains(&report, &["it ended before its bulk stores had read shared memory"]);
    rig.launch("mistake_copy_not_waited", grid(1, 1, 0), &[bytes(&data), bytes(&out)]).unwrap();
    assert!(rig.download::<f32>(out, 1)[0].is_nan());
    let wgmma = |name| rig.failure(name, grid(1, 128, 8192), &[bytes(&data)]);
    contains(&wgmma("mistake_wgmma_touched"), &["wrote an accumulator while a wgmma on it was in flight"]);
    contains(&wgmma("mistake_wgmma_not_waited"), &["ended with wgmma products that nobody waited for"]);
    contains(&wgmma("mistake_wgmma_not_fenced"), &["wgmma without wgmma_fence"]);
}

/// A missing barrier shows in some schedule, whichever way the values travel.
#[test]
fn races() {
    for distance in [1, 40, 255] {
        let lucky: Vec<f32> = (0..256).map(|i| ((i + distance) % 256) as f32).collect();
        let unlucky = Rig::every().filter(|rig| {
            let out = rig.blank::<f32>(256);
            rig.launch("mistake_race", grid(1, 256, 0), &[bytes(&out), bytes(&distance)]).unwrap();
            rig.download::<f32>(out, 256) != lucky
        });
        assert!(unlucky.count() > 0, "distance {distance}");
    }
}

#[test]
fn launches_that_a_driver_refuses() {
    let rig = Rig::new(Schedule::default());
    let fail = |grid, parameters: &[&[u8]]| rig.failure("mistake_parameters", grid, parameters);
    let fitting: [&[u8]; 3] = [bytes(&1_u64), bytes(&2_u32), bytes(&3_i32)];
    rig.launch("mistake_parameters", grid(1, 1, 0), &fitting).unwrap();
    contains(&fail(grid(1, 1, 0), &fitting[..2]), &["2 parameters for a kernel that takes 3"]);
    contains(&fail(grid(1, 1, 0), &[fitting[0], fitting[0], fitting[2]]), &["parameter 1 has 8 bytes, the kernel takes 4"]);
    contains(&fail(grid(0, 1, 0), &fitting), &["a grid of 0 x 1 x 1 blocks"]);
    contains(&fail(grid(1, 1025, 0), &fitting), &["a block of 1025 threads"]);
    contains(&fail(grid(1, 1, 232_449), &fitting), &["232449 bytes of shared memory, 232448 at most"]);
    let sink: [&[u8]; 1] = [bytes(&1_u64)];
    rig.launch("mistake_bounds", grid(1, 96, 0), &sink).unwrap();
    rig.launch("mistake_no_bounds", grid(1, 1024, 0), &sink).unwrap();
    let report = rig.failure("mistake_bounds", grid(1, 97, 0), &sink);
    contains(&report, &["a block of 97 threads, its __launch_bounds__ allow 96"]);
    contains(&rig.failure("no_such_kernel", grid(1, 1, 0), &fitting), &["has no kernel of this name"]);
}

#[test]
fn tensor_maps_that_break_the_rules() {
    let rig = Rig::new(Schedule::default());
    let address = rig.blank::<u16>(64 * 64);
    let good = TensorSpec { address, element: Element::Bf16, dims: vec![64, 64], strides: vec![128], tile: vec![64, 8], swizzle: 128 };
    rig.driver.tensor_map(&good).unwrap();
    let refused = |spec: TensorSpec, why: &str| contains(&rig.driver.tensor_map(&spec).unwrap_err().to_string(), &[why]);
    refused(TensorSpec { address: address + 8, ..good.clone() }, "its address is no multiple of 16");
    refused(TensorSpec { strides: vec![120], ..good.clone() }, "a stride is no multiple of 16");
    refused(TensorSpec { swizzle: 64, ..good.clone() }, "the tile's rows are longer than the swizzle");
    refused(TensorSpec { tile: vec![60, 8], ..good.clone() }, "the tile's rows are no multiple of 16 bytes");
    refused(TensorSpec { tile: vec![64, 257], ..good.clone() }, "above 256");
    refused(TensorSpec { dims: vec![64, 65], ..good.clone() }, "it reaches beyond the allocation");
    refused(TensorSpec { strides: vec![], ..good }, "its arrays do not fit its rank");
}

#[test]
fn recordings() {
    let rig = Rig::new(Schedule::default());
    let (from, to) = (rig.upload(&[7_u32; 4]), rig.blank::<u32>(4));
    rig.driver.begin_recording().unwrap();
    rig.driver.copy(from, to, 16).unwrap();
    let recorded = rig.driver.end_recording().unwrap();
    assert_eq!(rig.download::<u32>(to, 4), [0; 4], "a recording runs nothing");
    rig.driver.replay(&*recorded).unwrap();
    assert_eq!(rig.download::<u32>(to, 4), [7; 4]);
    // What waits for the host or allocates cannot be recorded.
    type Step = fn(&Rig, u64) -> bool;
    let unrecordable: [Step; 5] = [
        |rig, _| rig.driver.allocate(16).is_err(),
        |rig, at| rig.driver.write(at, &[0; 4]).is_err(),
        |rig, at| rig.driver.read(at, &mut [0; 4]).is_err(),
        |rig, _| rig.driver.synchronize().is_err(),
        |rig, at| {
            rig.driver.free(at);
            true
        },
    ];
    for step in unrecordable {
        rig.driver.begin_recording().unwrap();
        assert!(step(&rig, to));
        contains(&rig.driver.end_recording().unwrap_err().to_string(), &["cannot be part of"]);
    }
}

#[test]
fn copies_and_products_outside_an_allocation() {
    let rig = Rig::new(Schedule::default());
    let (a, b) = (rig.upload(&small(16 * 16, 5)), rig.upload(&small(16 * 16, 6)));
    contains(&rig.driver.copy(a, b, 513).unwrap_err().to_string(), &["a copy's source", "513 bytes"]);
    contains(&rig.driver.write(a + 8, &[0; 512]).unwrap_err().to_string(), &["at offset 8 of an allocation of 512 bytes"]);
    let operand = |address| Operand { address, ld: 16, transposed: false };
    let good = Gemm {
        rows: 16,
        columns: 16,
        depth: 16,
        a: operand(a),
        b: operand(b),
        out: rig.blank::<f32>(256),
        element: Element::F32,
        accumulate: false,
        epilogue: Epilogue::None,
    };
    rig.driver.gemm(&good).unwrap();
    let refused = |gemm: Gemm, why: &str| contains(&rig.driver.gemm(&gemm).unwrap_err().to_string(), &[why]);
    refused(Gemm { rows: 17, ..good }, "bytes of device memory are not there");
    refused(Gemm { a: operand(a + 2), ..good }, "an address is no multiple of 16");
    refused(Gemm { a: Operand { ld: 20, ..good.a }, ..good }, "a leading dimension is no multiple of 8");
    refused(Gemm { b: Operand { ld: 8, ..good.b }, ..good }, "a leading dimension is shorter than a row");
    refused(Gemm { epilogue: Epilogue::Bias(b + 2), ..good }, "an address is no multiple of 16");
}
