// Rows quantised to FP8 for products of a frozen network:
//
//   codes = e4m3(f(x) 448 / m)   scales = m / 448   m the row's largest |f(x)|, f nothing or GELU (`_gelu`)
//
// bf16 in, one byte a value and one fp32 scale a row out, all overwritten. GELU is rounded to bf16, as where it is stored. A row
// of zeros has scale 1; what is no number stays none. Called by src/device/cuda/ops/quantize.rs.
//
// Floors
//   quantize_rows*   3 bytes a value, 8 FLOPs; with GELU 18 and two special functions: memory
#include "abi.h"
#include "include/e4m3.cuh"
#include "include/gelu.cuh"
#include "include/reduce.cuh"
#include "include/vector.cuh"

static constexpr int WIDTH = QUANTIZE_WIDTH;
static constexpr int ROWS = QUANTIZE_ROWS;

namespace {

template <bool GELU>
__device__ __forceinline__ float before_quantizing(float x) {
    return GELU ? __bfloat162float(__float2bfloat16_rn(gelu_fast(x))) : x;
}

// A thread owns 16 neighbouring columns, a block the whole width; ROWS rows are in flight at a time.
template <bool GELU>
__device__ __forceinline__ void quantize(const QuantizeRowsParams& p) {
    __shared__ float rooms[2][MAX_WARPS][ROWS];
    int turn = 0;
    const uint32_t column = threadIdx.x * WIDTH;
    const bool mine = column < p.width;
    for (uint64_t row = (uint64_t)blockIdx.x * ROWS; row < p.rows; row += (uint64_t)gridDim.x * ROWS) {
        const uint64_t offset = row * p.width + column;
        Packed values[ROWS][2];
        float largest[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const bool valid = mine && row + r < p.rows;
            const bf16* from = at<const bf16>(p.x) + offset + (uint64_t)r * p.width;
#pragma unroll
            for (int half = 0; half < 2; half++) values[r][half] = valid ? load_packed(from + 8 * half) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            largest[r] = 0.0f;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float v[8];
                unpack(values[r][half], v);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    v[j] = before_quantizing<GELU>(v[j]);
                    largest[r] = fmaxf(largest[r], fabsf(v[j]));
                }
                if (GELU) values[r][half] = pack(v);
            }
        }
        block_max(largest, rooms, turn);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (!mine || row + r >= p.rows) continue;
            keep_packed(values[r]);
            const RowScale scale = row_scale(largest[r]);
            uint32_t words[4];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float v[8];
                unpack(values[r][half], v);
#pragma unroll
                for (int j = 0; j < 8; j++) v[j] = (Exact(v[j]) * scale.factor).value;
                words[2 * half] = pack_e4m3(v[0], v[1], v[2], v[3]);
                words[2 * half + 1] = pack_e4m3(v[4], v[5], v[6], v[7]);
            }
            store_16_bytes(at<uint8_t>(p.codes) + offset + (uint64_t)r * p.width, make_uint4(words[0], words[1], words[2], words[3]));
            if (threadIdx.x == 0) at<float>(p.scales)[row + r] = scale.scale;
        }
    }
}

// Any width and alignment: a block a row, read twice.
template <bool GELU>
__device__ __forceinline__ void quantize_any(const QuantizeRowsParams& p) {
    __shared__ float rooms[2][MAX_WARPS][1];
    int turn = 0;
    for (uint64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const bf16* x = at<const bf16>(p.x) + row * p.width;
        uint8_t* codes = at<uint8_t>(p.codes) + row * p.width;
        float largest[1] = {0.0f};
        for (uint32_t i = threadIdx.x; i < p.width; i += QUANTIZE_ANY_THREADS) {
            largest[0] = fmaxf(largest[0], fabsf(before_quantizing<GELU>(__bfloat162float(x[i]))));
        }
        block_max(largest, rooms, turn);
        const RowScale scale = row_scale(largest[0]);
        for (uint32_t i = threadIdx.x; i < p.width; i += QUANTIZE_ANY_THREADS) {
            const float value = (Exact(before_quantizing<GELU>(__bfloat162float(x[i]))) * scale.factor).value;
            codes[i] = (uint8_t)pack_e4m3(value, 0.0f, 0.0f, 0.0f);
        }
        if (threadIdx.x == 0) at<float>(p.scales)[row] = scale.scale;
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(QUANTIZE_MAX_THREADS) quantize_rows_x16(QuantizeRowsParams p) { quantize<false>(p); }
LADD_KERNEL(quantize_rows_x16)
extern "C" __global__ void __launch_bounds__(QUANTIZE_MAX_THREADS) quantize_rows_gelu_x16(QuantizeRowsParams p) { quantize<true>(p); }
LADD_KERNEL(quantize_rows_gelu_x16)
extern "C" __global__ void __launch_bounds__(QUANTIZE_ANY_THREADS) quantize_rows_any(QuantizeRowsParams p) { quantize_any<false>(p); }
LADD_KERNEL(quantize_rows_any)
extern "C" __global__ void __launch_bounds__(QUANTIZE_ANY_THREADS) quantize_rows_gelu_any(QuantizeRowsParams p) { quantize_any<true>(p); }
LADD_KERNEL(quantize_rows_gelu_any)
