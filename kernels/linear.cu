// What dense layers need beside cuBLASLt: bias gradients, and matrix products that cuBLASLt may refuse.
//
//   column_sum    db += sum over rows of dy
//   gemm_any      out = [out +] a b, then [+ bias], [gelu, keeping its input] or [times gelu'(pre)]
//
// Column sums are added to fp32 gradients, through partial sums of row chunks in a fixed order where there are several.
// gemm_any is the slow path, for pointers off 16 bytes and rows that are no multiple of eight values: any shape, alignment and
// transposition, bf16 operands, fp32 FMA from shared memory in place of tensor cores; it overwrites or adds to a bf16 or fp32
// result. Layers of the real models never take it. Called by src/device/cuda/ops/linear.rs.
//
// Floors
//   column_sum            2 bytes and 1 FLOP a value of dy, 4 bytes a partial sum or 8 a column: memory
//   column_sum_finalize   4 bytes a partial sum, 8 a column: memory
//   gemm_any              2 FLOPs a product, and for each 16 products of a warp 8 of its loads from shared memory, which does one
//                         a cycle: these, 8 cycles where fp32 FMA takes 8 on an A100 and 4 on an H100
#include "abi.h"
#include "include/gelu.cuh"
#include "include/reduce.cuh"
#include "include/vector.cuh"

// ---- column sums ------------------------------------------------------------------------------------------------------------

static constexpr int SLICES = COLUMN_SUM_THREADS / 32;

// A block sums 32 x WIDTH columns over one chunk of rows: each lane WIDTH neighbouring columns, each warp every SLICES-th row.
template <int WIDTH>
__device__ __forceinline__ void column_sum(const ColumnSumParams& p) {
    __shared__ float room[SLICES][32 * WIDTH];
    const uint64_t block_column = (uint64_t)blockIdx.x * 32 * WIDTH;
    const uint64_t column = block_column + lane_index() * WIDTH;
    const uint32_t last = min((blockIdx.y + 1) * p.rows_per_part, p.rows);
    float sums[WIDTH] = {};
    if (column < p.columns) {
#pragma unroll 4
        for (uint32_t row = blockIdx.y * p.rows_per_part + warp_index(); row < last; row += SLICES) {
            float values[WIDTH];
            load<WIDTH>(at<const bf16>(p.x) + row * p.columns + column, values);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) sums[j] += values[j];
        }
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) room[warp_index()][lane_index() * WIDTH + j] = sums[j];
    // Orders the warps' sums ahead of their reads.
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < 32 * WIDTH; c += blockDim.x) {
        if (block_column + c >= p.columns) return;
        float sum = room[0][c];
#pragma unroll
        for (int slice = 1; slice < SLICES; slice++) sum += room[slice][c];
        if (p.partials) {
            at<float>(p.partials)[blockIdx.y * p.columns + block_column + c] = sum;
        } else {
            at<float>(p.sums)[block_column + c] += sum;
        }
    }
}

extern "C" __global__ void __launch_bounds__(COLUMN_SUM_THREADS) column_sum_x8(ColumnSumParams p) { column_sum<8>(p); }
LADD_KERNEL(column_sum_x8)
extern "C" __global__ void __launch_bounds__(COLUMN_SUM_THREADS) column_sum_x1(ColumnSumParams p) { column_sum<1>(p); }
LADD_KERNEL(column_sum_x1)

extern "C" __global__ void __launch_bounds__(COLUMN_SUM_THREADS) column_sum_finalize(ColumnSumParams p) {
    const uint64_t first = (uint64_t)blockIdx.x * 32;
    const float total = column_total<SLICES>(at<const float>(p.partials), p.parts, p.columns, first);
    if (warp_index() == 0 && first + lane_index() < p.columns) at<float>(p.sums)[first + lane_index()] += total;
}
LADD_KERNEL(column_sum_finalize)

// ---- matrix products of any shape -------------------------------------------------------------------------------------------

static constexpr int TILE = GEMM_ANY_TILE; // rows and columns of the result of a block
static constexpr int STEP = 16;            // depth in shared memory at a time
static constexpr int SIDE = 16;            // threads along each side; each computes every SIDE-th row and column
static constexpr int PER_THREAD = TILE / SIDE;
static_assert(GEMM_ANY_THREADS == SIDE * SIDE, "a thread for every corner");

// Brings TILE rows by STEP columns of an operand to shared memory, depth first, zeros outside. Neighbouring threads read
// along the rows as stored.
__device__ __forceinline__ void load_tile(const GemmOperand& operand, uint32_t first, uint32_t end, uint32_t depth,
                                          uint32_t depth_end, bool depth_contiguous, float (&tile)[STEP][TILE + 1]) {
    const bf16* matrix = at<const bf16>(operand.address);
    for (int i = threadIdx.x; i < TILE * STEP; i += GEMM_ANY_THREADS) {
        const int k = depth_contiguous ? i % STEP : i / TILE;
        const int line = depth_contiguous ? i / STEP : i % TILE;
        const uint64_t at_line = first + line;
        const uint64_t at_depth = depth + k;
        const bool inside = at_line < end && at_depth < depth_end;
        const uint64_t offset = depth_contiguous ? at_line * operand.ld + at_depth : at_depth * operand.ld + at_line;
        tile[k][line] = inside ? __bfloat162float(matrix[offset]) : 0.0f;
    }
}

__device__ __forceinline__ void finish(const GemmAnyParams& p, uint32_t row, uint32_t column, float value) {
    const uint64_t i = (uint64_t)row * p.columns + column;
    if (p.accumulate) value += p.fp32 ? at<const float>(p.out)[i] : __bfloat162float(at<const bf16>(p.out)[i]);
    if (p.bias) value += __bfloat162float(at<const bf16>(p.bias)[column]);
    if (p.kept) {
        at<bf16>(p.kept)[i] = __float2bfloat16_rn(value);
        value *= gelu_gate(value);
    }
    if (p.pre) value *= gelu_derivative(__bfloat162float(at<const bf16>(p.pre)[i]));
    if (p.fp32) {
        at<float>(p.out)[i] = value;
    } else {
        at<bf16>(p.out)[i] = __float2bfloat16_rn(value);
    }
}

extern "C" __global__ void __launch_bounds__(GEMM_ANY_THREADS) gemm_any(GemmAnyParams p) {
    __shared__ float a[STEP][TILE + 1];
    __shared__ float b[STEP][TILE + 1];
    const uint32_t first_row = blockIdx.y * TILE;
    const uint32_t first_column = blockIdx.x * TILE;
    const int x = threadIdx.x % SIDE;
    const int y = threadIdx.x / SIDE;
    float sums[PER_THREAD][PER_THREAD] = {};
    for (uint32_t depth = 0; depth < p.depth; depth += STEP) {
        load_tile(p.a, first_row, p.rows, depth, p.depth, !p.a.transposed, a);
        load_tile(p.b, first_column, p.columns, depth, p.depth, p.b.transposed, b);
        // Orders the tiles ahead of their reads.
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            float left[PER_THREAD], right[PER_THREAD];
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++) {
                left[i] = a[k][y + SIDE * i];
                right[i] = b[k][x + SIDE * i];
            }
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++) {
#pragma unroll
                for (int j = 0; j < PER_THREAD; j++) sums[i][j] += left[i] * right[j];
            }
        }
        // Orders these reads ahead of the next tiles.
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        const uint32_t row = first_row + y + SIDE * i;
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++) {
            const uint32_t column = first_column + x + SIDE * j;
            if (row < p.rows && column < p.columns) finish(p, row, column, sums[i][j]);
        }
    }
}
LADD_KERNEL(gemm_any)
