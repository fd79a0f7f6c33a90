// Kernels with one mistake each: tests/it/emulator.rs checks that the emulator reports it, and how.
#include "include/ptx.cuh"
#include "include/vector.cuh"

// ---- memory -----------------------------------------------------------------------------------------------------

// data: floats. `offset` in bytes from its beginning.
extern "C" __global__ void mistake_read(uint64_t data, uint64_t sink, int64_t offset) {
    __syncthreads();
    if (threadIdx.x == 3) at<float>(sink)[0] = at<float>(data)[offset / 4];
}
LADD_KERNEL(mistake_read)

extern "C" __global__ void mistake_write(uint64_t data, int64_t offset) {
    __syncthreads();
    if (threadIdx.x == 3) at<uint8_t>(data)[offset] = 1;
}
LADD_KERNEL(mistake_write)

extern "C" __global__ void mistake_misaligned(uint64_t data, uint64_t sink) {
    at<uint4>(sink)[0] = *reinterpret_cast<const uint4*>(at<uint8_t>(data) + 4);
}
LADD_KERNEL(mistake_misaligned)

extern "C" __global__ void mistake_null(uint64_t sink) { at<float>(sink)[0] = 1.0f; }
LADD_KERNEL(mistake_null)

extern "C" __global__ void mistake_dynamic_shared(int64_t offset) {
    DYNAMIC_SHARED(shared);
    shared[offset] = 1;
}
LADD_KERNEL(mistake_dynamic_shared)

extern "C" __global__ void mistake_static_shared(uint64_t sink, int64_t index) {
    __shared__ float values[16];
    values[index] = 1;
    __syncthreads();
    at<float>(sink)[0] = values[0];
}
LADD_KERNEL(mistake_static_shared)

__device__ int recursion(int depth, volatile char* above) {
    volatile char frame[4096];
    frame[0] = above[0];
    return frame[0] == 0 ? depth : recursion(depth + 1, frame) + frame[0];
}
extern "C" __global__ void mistake_stack(uint64_t sink) {
    volatile char frame[1] = {1};
    at<int>(sink)[0] = recursion(0, frame);
}
LADD_KERNEL(mistake_stack)

// ---- meeting ----------------------------------------------------------------------------------------------------

extern "C" __global__ void mistake_barrier_diverged(uint64_t) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
LADD_KERNEL(mistake_barrier_diverged)

extern "C" __global__ void mistake_barrier_missed(uint64_t) {
    if (threadIdx.x < 40) return;
    __syncthreads();
}
LADD_KERNEL(mistake_barrier_missed)

extern "C" __global__ void mistake_shuffle_diverged(uint64_t sink) {
    int value;
    if (threadIdx.x % 2 == 0) {
        value = __shfl_xor_sync(0xffffffffu, 1, 1);
    } else {
        value = __shfl_xor_sync(0xffffffffu, 2, 1);
    }
    at<int>(sink)[0] = value;
}
LADD_KERNEL(mistake_shuffle_diverged)

extern "C" __global__ void mistake_shuffle_missed(uint64_t sink) {
    if (threadIdx.x < 10) return;
    at<int>(sink)[0] = __shfl_down_sync(0xffffffffu, 1, 1);
}
LADD_KERNEL(mistake_shuffle_missed)

extern "C" __global__ void mistake_shuffle_mask(uint64_t sink) {
    if (threadIdx.x >= 8) return;
    at<int>(sink)[0] = __shfl_sync(0x000000ffu, 1, 9);
}
LADD_KERNEL(mistake_shuffle_mask)

extern "C" __global__ void mistake_named_barrier(uint64_t) {
    if (threadIdx.x < 32) named_bar_sync(1, 64);
}
LADD_KERNEL(mistake_named_barrier)

// ---- loops that do not end --------------------------------------------------------------------------------------

extern "C" __global__ void mistake_spin(uint64_t flag) {
    while (*at<volatile int>(flag) == 0) {
    }
}
LADD_KERNEL(mistake_spin)

extern "C" __global__ void mistake_spin_meeting(uint64_t flag) {
    while (*at<volatile int>(flag) == 0) __syncwarp();
}
LADD_KERNEL(mistake_spin_meeting)

// ---- asynchronous work ------------------------------------------------------------------------------------------

// Announces `announced` bytes and copies 64.
extern "C" __global__ void mistake_announced(uint64_t data, uint32_t announced, uint32_t fenced) {
    DYNAMIC_SHARED(shared);
    __shared__ uint64_t arrived;
    if (threadIdx.x == 0) {
        mbar_init(&arrived, 1);
        if (fenced) mbar_init_fence();
        mbar_arrive_expect_tx(&arrived, announced);
        bulk_load(shared, at<void>(data), 64, &arrived);
    }
    __syncthreads();
    mbar_wait(&arrived, 0);
}
LADD_KERNEL(mistake_announced)

extern "C" __global__ void mistake_store_not_waited(uint64_t data) {
    DYNAMIC_SHARED(shared);
    bulk_store(at<void>(data), shared, 64);
    bulk_commit();
}
LADD_KERNEL(mistake_store_not_waited)

// Reads what cp.async brings without waiting for it.
extern "C" __global__ void mistake_copy_not_waited(uint64_t data, uint64_t out) {
    __shared__ __align__(16) float tile[4];
    cp_async_16(tile, at<void>(data));
    cp_async_commit();
    at<float>(out)[0] = tile[0];
}
LADD_KERNEL(mistake_copy_not_waited)

enum class Wgmma { TOUCHED, NOT_WAITED, NOT_FENCED };

template <Wgmma MISTAKE>
__device__ void wgmma_mistake() {
    DYNAMIC_SHARED(shared);
    float d[32] = {};
    if (MISTAKE != Wgmma::NOT_FENCED) wgmma_fence();
    wgmma_ss<0, 0>(d, desc_sw128(shared, 0, 1024), desc_sw128(shared, 0, 1024), true);
    wgmma_commit();
    if (MISTAKE == Wgmma::TOUCHED) d[7] *= 2.0f;
    if (MISTAKE != Wgmma::NOT_WAITED) wgmma_wait<0>();
}

extern "C" __global__ void mistake_wgmma_touched(uint64_t) { wgmma_mistake<Wgmma::TOUCHED>(); }
LADD_KERNEL(mistake_wgmma_touched)
extern "C" __global__ void mistake_wgmma_not_waited(uint64_t) { wgmma_mistake<Wgmma::NOT_WAITED>(); }
LADD_KERNEL(mistake_wgmma_not_waited)
extern "C" __global__ void mistake_wgmma_not_fenced(uint64_t) { wgmma_mistake<Wgmma::NOT_FENCED>(); }
LADD_KERNEL(mistake_wgmma_not_fenced)

// ---- races ------------------------------------------------------------------------------------------------------

// 256 threads write, and read each other's values with no barrier in between: out[i] = (i + distance) % 256 if they were lucky.
extern "C" __global__ void mistake_race(uint64_t out, int distance) {
    __shared__ float values[256];
    values[threadIdx.x] = float(threadIdx.x);
    at<float>(out)[threadIdx.x] = values[(int(threadIdx.x) + distance) % 256];
}
LADD_KERNEL(mistake_race)

// Fine in itself: launched with the wrong parameters.
extern "C" __global__ void mistake_parameters(uint64_t, uint32_t, int) {}
LADD_KERNEL(mistake_parameters)

// Fine in itself: launched with more threads than it allows.
extern "C" __global__ void __launch_bounds__(32 * 3, 2) mistake_bounds(uint64_t) {}
LADD_KERNEL(mistake_bounds)

// Registered behind one with bounds, whose bounds are not its own.
extern "C" __global__ void mistake_no_bounds(uint64_t) {}
LADD_KERNEL(mistake_no_bounds)
