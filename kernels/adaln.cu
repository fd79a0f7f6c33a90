// Gated residuals, LayerNorm without affine and modulation in one pass, and the backward of all three:
//
//   forward    x_out = x + sum_i gate_i y_i      x^ = (x_out - mean) rstd      out_j = x^ (1 + scale_j) + shift_j
//   backward   g = sum_j d_out_j (1 + scale_j)   dx = dx_out + extra + rstd (g - mean(g) - x^ mean(g x^))
//              d_y_i = gate_i dx   dgate_i = sum_rows dx y_i   dshift_j = sum_rows d_out_j   dscale_j = sum_rows d_out_j x^
//
// Every row is read once and held in registers; everything written is overwritten, dx in place. Statistics are fp32 and
// taken of x_out as rounded to bf16, which is what the backward reads. Called by src/device/cuda/ops/adaln.rs.
//
// Floors, per value, with r branches and m norms; 8 bytes of statistics a row beside
//   adaln                 2 (1 + r + m) bytes, 2 more where r > 0: memory
//   adaln_backward        2 (2 + r + m) bytes, 2 less where m = 0, 2 more each for dx_out and extra: memory
//   adaln_backward_sums   2 r bytes more for y, and a block's partial sums, 4 (2 m + r) a column: memory
//   adaln_any             as adaln, x_out twice again from L1; two bytes an access: the number of accesses
//   adaln_backward_any    as its two namesakes, x and d_out again from L1, partial sums in L1 or L2: the number of accesses
//   adaln_finalize        4 bytes a partial sum, 2 a value of the table: memory
#include "abi.h"
#include "include/reduce.cuh"
#include "include/vector.cuh"

static constexpr int WIDTH = ADALN_WIDTH;

struct Rows {
    uint32_t first;
    uint32_t last;
};

// The tokens of this block, all of one sample.
__device__ __forceinline__ Rows rows_of_block(const AdalnParams& p) {
    const uint32_t first = blockIdx.x * p.rows_per_block;
    return {first, min(first + p.rows_per_block, p.tokens)};
}

// This thread's columns of one of the sample's vectors; zeros where there is none.
__device__ __forceinline__ Packed load_modulation(const AdalnParams& p, uint64_t vector, bool mine) {
    if (!vector || !mine) return make_uint4(0, 0, 0, 0);
    const bf16* from = at<const bf16>(vector) + (uint64_t)blockIdx.y * p.stride + threadIdx.x * WIDTH;
    return p.table_aligned ? load_packed(from) : gather_packed(from);
}

// This thread's columns of one row; zeros outside.
__device__ __forceinline__ Packed load_row(uint64_t matrix, uint64_t offset, bool mine) {
    return mine ? load_packed(at<const bf16>(matrix) + offset) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void store_row(uint64_t matrix, uint64_t offset, Packed packed) {
    store_packed(at<bf16>(matrix) + offset, packed);
}

__device__ __forceinline__ float rounded(float value) { return __bfloat162float(__float2bfloat16_rn(value)); }

// ---- wide: a thread owns eight neighbouring columns, a block the whole width; ROWS rows are in flight at a time ----------

template <int BRANCHES, int NORMS>
__device__ __forceinline__ void forward(const AdalnParams& p) {
    constexpr int ROWS = BRANCHES + NORMS > 1 ? 2 : 4;
    __shared__ float rooms[2][MAX_WARPS][ROWS];
    int turn = 0;
    const bool mine = threadIdx.x * WIDTH < p.hidden;
    const uint64_t sample = (uint64_t)blockIdx.y * p.tokens;
    const Rows rows = rows_of_block(p);
    Packed gates[BRANCHES + 1], shifts[NORMS + 1], scales[NORMS + 1];
#pragma unroll
    for (int i = 0; i < BRANCHES; i++) gates[i] = load_modulation(p, p.branches[i].gate, mine);
#pragma unroll
    for (int i = 0; i < NORMS; i++) {
        shifts[i] = load_modulation(p, p.norms[i].shift, mine);
        scales[i] = load_modulation(p, p.norms[i].scale, mine);
    }

    for (uint32_t row = rows.first; row < rows.last; row += ROWS) {
        const uint64_t offset = (sample + row) * p.hidden + threadIdx.x * WIDTH;
        keep_packed(gates);
        keep_packed(shifts);
        keep_packed(scales);
        Packed xs[ROWS], ys[BRANCHES + 1][ROWS];
        bool valid[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            valid[r] = mine && row + r < rows.last;
            xs[r] = load_row(p.x, offset + (uint64_t)r * p.hidden, valid[r]);
#pragma unroll
            for (int i = 0; i < BRANCHES; i++) ys[i][r] = load_row(p.branches[i].y, offset + (uint64_t)r * p.hidden, valid[r]);
        }
        if constexpr (BRANCHES > 0) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float x[WIDTH];
                unpack(xs[r], x);
#pragma unroll
                for (int i = 0; i < BRANCHES; i++) {
                    float gate[WIDTH], y[WIDTH];
                    unpack(gates[i], gate);
                    unpack(ys[i][r], y);
#pragma unroll
                    for (int j = 0; j < WIDTH; j++) x[j] += gate[j] * y[j];
                }
                xs[r] = pack(x);
                if (valid[r]) store_row(p.out, offset + (uint64_t)r * p.hidden, xs[r]);
            }
        }
        if constexpr (NORMS > 0) {
            const float share = 1.0f / p.hidden;
            float sums[ROWS], mean[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float x[WIDTH];
                unpack(xs[r], x);
                sums[r] = 0.0f;
#pragma unroll
                for (int j = 0; j < WIDTH; j++) sums[r] += x[j];
            }
            block_sum(sums, rooms, turn);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float x[WIDTH];
                keep_packed(xs[r]);
                unpack(xs[r], x);
                mean[r] = sums[r] * share;
                sums[r] = 0.0f;
                if (mine) {
#pragma unroll
                    for (int j = 0; j < WIDTH; j++) sums[r] += (x[j] - mean[r]) * (x[j] - mean[r]);
                }
            }
            block_sum(sums, rooms, turn);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (!valid[r]) continue;
                const float rstd = rsqrtf(sums[r] * share + p.eps);
                if (threadIdx.x == 0) {
                    float* stats = at<float>(p.stats) + 2 * (sample + row + r);
                    stats[0] = mean[r];
                    stats[1] = rstd;
                }
                float x_hat[WIDTH];
                keep_packed(xs[r]);
                unpack(xs[r], x_hat);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) x_hat[j] = (x_hat[j] - mean[r]) * rstd;
#pragma unroll
                for (int i = 0; i < NORMS; i++) {
                    float scale[WIDTH], shift[WIDTH], out[WIDTH];
                    unpack(scales[i], scale);
                    unpack(shifts[i], shift);
#pragma unroll
                    for (int j = 0; j < WIDTH; j++) out[j] = x_hat[j] * (1.0f + scale[j]) + shift[j];
                    store_row(p.norms[i].out, offset + (uint64_t)r * p.hidden, pack(out));
                }
            }
        }
    }
}

// One row of a backward, in flight.
template <int BRANCHES, int NORMS>
struct BackwardRow {
    Packed dx;
    Packed extra;
    Packed x;
    Packed d_out[NORMS + 1];
    Packed y[BRANCHES + 1];
    float mean;
    float rstd;
    bool valid;
};

// This thread's x^ and g of a row.
template <int BRANCHES, int NORMS>
__device__ __forceinline__ void x_hat_and_g(const BackwardRow<BRANCHES, NORMS>& row, const Packed (&scales)[NORMS + 1],
                                            float (&x_hat)[WIDTH], float (&g)[WIDTH]) {
    unpack(row.x, x_hat);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        x_hat[j] = (x_hat[j] - row.mean) * row.rstd;
        g[j] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < NORMS; i++) {
        float d_out[WIDTH], scale[WIDTH];
        unpack(row.d_out[i], d_out);
        unpack(scales[i], scale);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) g[j] += d_out[j] * (1.0f + scale[j]);
    }
}

// Writes this thread's columns of one of the block's column sums.
__device__ __forceinline__ void store_partial(const AdalnParams& p, uint32_t sums, uint32_t sum, const float (&values)[WIDTH]) {
    const uint64_t block = (uint64_t)blockIdx.y * gridDim.x + blockIdx.x;
    store<WIDTH>(at<float>(p.partials) + (block * sums + sum) * p.hidden + threadIdx.x * WIDTH, values);
}

// SUMS: whether the gradients of shift, scale and gate are wanted; without them no y is read.
template <int BRANCHES, int NORMS, bool SUMS>
__device__ __forceinline__ void backward(const AdalnParams& p) {
    constexpr int ROWS = NORMS > 1 || SUMS ? 1 : 2;
    __shared__ float rooms[2][MAX_WARPS][2 * ROWS];
    int turn = 0;
    const bool mine = threadIdx.x * WIDTH < p.hidden;
    const uint64_t sample = (uint64_t)blockIdx.y * p.tokens;
    const Rows rows = rows_of_block(p);
    Packed gates[BRANCHES + 1], scales[NORMS + 1];
    float d_gate[BRANCHES + 1][WIDTH] = {}, d_shift[NORMS + 1][WIDTH] = {}, d_scale[NORMS + 1][WIDTH] = {};
#pragma unroll
    for (int i = 0; i < BRANCHES; i++) gates[i] = load_modulation(p, p.branches[i].gate, mine);
#pragma unroll
    for (int i = 0; i < NORMS; i++) scales[i] = load_modulation(p, p.norms[i].scale, mine);

    for (uint32_t first = rows.first; first < rows.last; first += ROWS) {
        const uint64_t offset = (sample + first) * p.hidden + threadIdx.x * WIDTH;
        keep_packed(gates);
        keep_packed(scales);
        BackwardRow<BRANCHES, NORMS> in[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const uint64_t here = offset + (uint64_t)r * p.hidden;
            const bool valid = mine && first + r < rows.last;
            in[r].valid = valid;
            in[r].dx = load_row(p.out, here, valid && p.accumulate);
            in[r].extra = load_row(p.extra, here, valid && p.extra);
            if constexpr (NORMS > 0) {
                const float* stats = at<const float>(p.stats) + 2 * (sample + first + r);
                in[r].mean = valid ? stats[0] : 0.0f;
                in[r].rstd = valid ? stats[1] : 0.0f;
                in[r].x = load_row(p.x, here, valid);
            }
#pragma unroll
            for (int i = 0; i < NORMS; i++) in[r].d_out[i] = load_row(p.norms[i].out, here, valid);
            if constexpr (SUMS) {
#pragma unroll
                for (int i = 0; i < BRANCHES; i++) in[r].y[i] = load_row(p.branches[i].y, here, valid);
            }
        }
        float sums[2 * ROWS] = {};
        if constexpr (NORMS > 0) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float x_hat[WIDTH], g[WIDTH];
                x_hat_and_g(in[r], scales, x_hat, g);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) {
                    sums[2 * r] += g[j];
                    sums[2 * r + 1] += g[j] * x_hat[j];
                }
                if constexpr (SUMS) {
#pragma unroll
                    for (int i = 0; i < NORMS; i++) {
                        float d_out[WIDTH];
                        unpack(in[r].d_out[i], d_out);
#pragma unroll
                        for (int j = 0; j < WIDTH; j++) {
                            d_shift[i][j] += d_out[j];
                            d_scale[i][j] += d_out[j] * x_hat[j];
                        }
                    }
                }
            }
            block_sum(sums, rooms, turn);
        }
        const float share = 1.0f / p.hidden;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const uint64_t here = offset + (uint64_t)r * p.hidden;
            float dx[WIDTH], extra[WIDTH];
            unpack(in[r].dx, dx);
            unpack(in[r].extra, extra);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) dx[j] += extra[j];
            if constexpr (NORMS > 0) {
                float x_hat[WIDTH], g[WIDTH];
                keep_packed(in[r].x);
#pragma unroll
                for (int i = 0; i < NORMS; i++) keep_packed(in[r].d_out[i]);
                x_hat_and_g(in[r], scales, x_hat, g);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) {
                    dx[j] += in[r].rstd * (g[j] - sums[2 * r] * share - x_hat[j] * (sums[2 * r + 1] * share));
                }
            }
            if (in[r].valid) store_row(p.out, here, pack(dx));
#pragma unroll
            for (int i = 0; i < BRANCHES; i++) {
                float gate[WIDTH], d_y[WIDTH];
                unpack(gates[i], gate);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) d_y[j] = dx[j] * gate[j];
                if (in[r].valid) store_row(p.branches[i].d_y, here, pack(d_y));
                if constexpr (SUMS) {
                    float y[WIDTH];
                    unpack(in[r].y[i], y);
#pragma unroll
                    for (int j = 0; j < WIDTH; j++) d_gate[i][j] += dx[j] * y[j];
                }
            }
        }
    }
    if constexpr (SUMS) {
        if (!mine) return;
#pragma unroll
        for (int i = 0; i < NORMS; i++) {
            store_partial(p, 2 * NORMS + BRANCHES, 2 * i, d_shift[i]);
            store_partial(p, 2 * NORMS + BRANCHES, 2 * i + 1, d_scale[i]);
        }
#pragma unroll
        for (int i = 0; i < BRANCHES; i++) store_partial(p, 2 * NORMS + BRANCHES, 2 * NORMS + i, d_gate[i]);
    }
}

#define ADALN_KERNEL(name, blocks, body)                                                                        \
    extern "C" __global__ void __launch_bounds__(ADALN_MAX_THREADS, blocks) name(AdalnParams p) { body(p); }    \
    LADD_KERNEL(name)
// Registers for two blocks of the widest rows on a multiprocessor, three of 192 threads. The accumulators of three and more
// branches and norms leave room for one of the widest, two of 192 threads.
#define ADALN(r, m)                                                                                     \
    ADALN_KERNEL(adaln_r##r##_m##m, 2, (forward<r, m>))                                                 \
    ADALN_KERNEL(adaln_backward_r##r##_m##m, 2, (backward<r, m, false>))                                \
    ADALN_KERNEL(adaln_backward_sums_r##r##_m##m, (r + m > 2 ? 1 : 2), (backward<r, m, true>))

ADALN(0, 1)
ADALN(0, 2)
ADALN(1, 0)
ADALN(1, 1)
ADALN(1, 2)
ADALN(2, 0)
ADALN(2, 1)
ADALN(2, 2)

// ---- any width and alignment: the slow path, which reads each row again for every pass ------------------------------------

__device__ __forceinline__ float value_of(uint64_t matrix, uint64_t i) { return __bfloat162float(at<const bf16>(matrix)[i]); }

__device__ __forceinline__ void set(uint64_t matrix, uint64_t i, float value) {
    at<bf16>(matrix)[i] = __float2bfloat16_rn(value);
}

__device__ __forceinline__ float modulation(uint64_t vector, uint64_t column) {
    return vector ? value_of(vector, column) : 0.0f;
}

extern "C" __global__ void __launch_bounds__(ADALN_ANY_THREADS) adaln_any(const __grid_constant__ AdalnParams p) {
    __shared__ float room[MAX_WARPS][1];
    const uint64_t in_table = (uint64_t)blockIdx.y * p.stride;
    const float share = 1.0f / p.hidden;
    const Rows rows = rows_of_block(p);
    for (uint32_t row = rows.first; row < rows.last; row++) {
        const uint64_t token = (uint64_t)blockIdx.y * p.tokens + row;
        const uint64_t offset = token * p.hidden;
        const uint64_t x_out = p.branch_count > 0 ? p.out : p.x;
        float sum = 0.0f;
        for (uint32_t c = threadIdx.x; c < p.hidden; c += blockDim.x) {
            float x = value_of(p.x, offset + c);
            for (uint32_t i = 0; i < p.branch_count; i++) {
                x += modulation(p.branches[i].gate, in_table + c) * value_of(p.branches[i].y, offset + c);
            }
            if (p.branch_count > 0) set(p.out, offset + c, x);
            sum += rounded(x);
        }
        if (p.norm_count == 0) continue;
        const float mean = block_sum(sum, room) * share;
        sum = 0.0f;
        for (uint32_t c = threadIdx.x; c < p.hidden; c += blockDim.x) {
            const float distance = value_of(x_out, offset + c) - mean;
            sum += distance * distance;
        }
        const float rstd = rsqrtf(block_sum(sum, room) * share + p.eps);
        if (threadIdx.x == 0) {
            at<float>(p.stats)[2 * token] = mean;
            at<float>(p.stats)[2 * token + 1] = rstd;
        }
        for (uint32_t c = threadIdx.x; c < p.hidden; c += blockDim.x) {
            const float x_hat = (value_of(x_out, offset + c) - mean) * rstd;
            for (uint32_t i = 0; i < p.norm_count; i++) {
                const float scale = modulation(p.norms[i].scale, in_table + c);
                const float shift = modulation(p.norms[i].shift, in_table + c);
                set(p.norms[i].out, offset + c, x_hat * (1.0f + scale) + shift);
            }
        }
    }
}
LADD_KERNEL(adaln_any)

// Adds one row's share of a column sum to the block's partial sum, of which this thread is the only writer.
__device__ __forceinline__ void add_partial(const AdalnParams& p, uint32_t sum, uint32_t column, bool first, float value) {
    const uint64_t block = (uint64_t)blockIdx.y * gridDim.x + blockIdx.x;
    const uint32_t sums = 2 * p.norm_count + p.branch_count;
    float* partial = at<float>(p.partials) + (block * sums + sum) * p.hidden + column;
    *partial = first ? value : *partial + value;
}

extern "C" __global__ void __launch_bounds__(ADALN_ANY_THREADS) adaln_backward_any(const __grid_constant__ AdalnParams p) {
    __shared__ float room[MAX_WARPS][2];
    const uint64_t in_table = (uint64_t)blockIdx.y * p.stride;
    const float share = 1.0f / p.hidden;
    const Rows rows = rows_of_block(p);
    for (uint32_t row = rows.first; row < rows.last; row++) {
        const uint64_t token = (uint64_t)blockIdx.y * p.tokens + row;
        const uint64_t offset = token * p.hidden;
        const bool first = row == rows.first;
        const float mean = p.norm_count > 0 ? at<const float>(p.stats)[2 * token] : 0.0f;
        const float rstd = p.norm_count > 0 ? at<const float>(p.stats)[2 * token + 1] : 0.0f;
        auto upstream = [&](uint32_t c) {
            float g = 0.0f;
            for (uint32_t i = 0; i < p.norm_count; i++) {
                g += value_of(p.norms[i].out, offset + c) * (1.0f + modulation(p.norms[i].scale, in_table + c));
            }
            return g;
        };
        auto normalised = [&](uint32_t c) { return p.norm_count > 0 ? (value_of(p.x, offset + c) - mean) * rstd : 0.0f; };
        float sums[2] = {0.0f, 0.0f};
        for (uint32_t c = threadIdx.x; c < p.hidden; c += blockDim.x) {
            const float g = upstream(c);
            sums[0] += g;
            sums[1] += g * normalised(c);
        }
        block_sum(sums, room);
        for (uint32_t c = threadIdx.x; c < p.hidden; c += blockDim.x) {
            const float x_hat = normalised(c);
            float dx = p.accumulate ? value_of(p.out, offset + c) : 0.0f;
            if (p.extra) dx += value_of(p.extra, offset + c);
            dx += rstd * (upstream(c) - sums[0] * share - x_hat * (sums[1] * share));
            set(p.out, offset + c, dx);
            for (uint32_t i = 0; i < p.norm_count && p.partials; i++) {
                const float d_out = value_of(p.norms[i].out, offset + c);
                add_partial(p, 2 * i, c, first, d_out);
                add_partial(p, 2 * i + 1, c, first, d_out * x_hat);
            }
            for (uint32_t i = 0; i < p.branch_count; i++) {
                const AdalnBranch& branch = p.branches[i];
                if (p.partials) add_partial(p, 2 * p.norm_count + i, c, first, dx * value_of(branch.y, offset + c));
                set(branch.d_y, offset + c, dx * modulation(branch.gate, in_table + c));
            }
        }
    }
}
LADD_KERNEL(adaln_backward_any)

// ---- the table's gradient from the blocks' partial sums ---------------------------------------------------------------------

static constexpr int SLICES = ADALN_FINALIZE_THREADS / 32;

extern "C" __global__ void __launch_bounds__(ADALN_FINALIZE_THREADS)
adaln_finalize(const __grid_constant__ AdalnFinalizeParams p) {
    const uint32_t sample = blockIdx.y;
    const uint64_t columns = (uint64_t)p.sums * p.hidden;
    const float* partials = at<const float>(p.partials) + sample * p.parts * columns;
    const float total = column_total<SLICES>(partials, p.parts, columns, (uint64_t)blockIdx.x * 32);
    const uint64_t column = (uint64_t)blockIdx.x * 32 + lane_index();
    if (warp_index() > 0 || column >= columns) return;
    const uint32_t first = p.columns[column / p.hidden];
    if (first == ADALN_NO_COLUMN) return;
    set(p.d_table, (uint64_t)sample * p.stride + first + column % p.hidden, total);
}
LADD_KERNEL(adaln_finalize)
