// Filling and casting of buffers: `fill` sets fp32 values, `cast` rounds fp32 to bf16. Overwrites its output. Called by
// src/device/cuda/ops/memory.rs.
//
// Floors
//   fill   4 bytes a value: memory
//   cast   6 bytes a value: memory
#include "abi.h"
#include "include/vector.cuh"

template <int WIDTH>
__device__ __forceinline__ void fill(const FillParams& p) {
    float* out = at<float>(p.out);
    float value[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; j++) value[j] = p.value;
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x * WIDTH;
    for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < p.len; i += stride) store<WIDTH>(out + i, value);
}

template <int WIDTH>
__device__ __forceinline__ void cast(const CastParams& p) {
    const float* x = at<const float>(p.x);
    bf16* out = at<bf16>(p.out);
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x * WIDTH;
    for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < p.len; i += stride) {
        float value[WIDTH];
        load<WIDTH>(x + i, value);
        store<WIDTH>(out + i, value);
    }
}

extern "C" __global__ void __launch_bounds__(MEMORY_THREADS) fill_x4(FillParams p) { fill<4>(p); }
LADD_KERNEL(fill_x4)
extern "C" __global__ void __launch_bounds__(MEMORY_THREADS) fill_x1(FillParams p) { fill<1>(p); }
LADD_KERNEL(fill_x1)
extern "C" __global__ void __launch_bounds__(MEMORY_THREADS) cast_x8(CastParams p) { cast<8>(p); }
LADD_KERNEL(cast_x8)
extern "C" __global__ void __launch_bounds__(MEMORY_THREADS) cast_x1(CastParams p) { cast<1>(p); }
LADD_KERNEL(cast_x1)
