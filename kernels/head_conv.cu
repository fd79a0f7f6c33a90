// The discriminator heads' 3x3 convolution with zero padding on token grids, as three products without an im2col buffer.
// A tap is one of the nine places (ky, kx) of the window; shift(tap) is the distance in tokens to the neighbour there.
//
//   y[m, o]           = bias[o] + sum over tap, i of x[m + shift(tap), i] W[o, tap, i]
//   dx[m, i]         (+)=         sum over tap, o of dy[m - shift(tap), o] W[o, tap, i]
//   dW[o, tap, i]     += sum over m of dy[m, o] x[m + shift(tap), i]            db[o] += sum over m of dy[m, o]
//
// bf16 operands, fp32 sums on the tensor cores (mma.sync). y and dx are overwritten (dx is added to where asked); dW and db are
// added to, by way of one partial sum per chunk of tokens, added up in order. Called by src/device/cuda/ops/head_conv.rs.
//
// Floors. Each product has 18 tokens cin cout FLOPs. While an A100's tensor cores do 2048, operands read from shared memory and
// copied into it are 96 bytes with large tiles, 192 with small ones, where 128 can be; of these, 32 or 64 come from L2
//   conv3x3                   memory 2 (cin + cout) bytes a token: that below about 64 channels; tensor cores with large tiles,
//                             shared memory with small ones
//   conv3x3_backward_input    the same, 2 cin bytes more where it adds
//   conv3x3_backward_weight   the same, and 4 bytes a partial sum
//   conv3x3_finish            4 bytes a partial sum and 8 a gradient: memory
#include "abi.h"
#include "include/reduce.cuh"
#include "include/vector.cuh"

static constexpr int TAPS = 9;
static constexpr int CENTRE = 4;

// ---- tiles ----------------------------------------------------------------------------------------------------------
//
// A block of 2x2 warps makes a SIDE x SIDE square of the result, each warp a quarter. Per stage, DEPTH terms of the sums
// lie in shared memory as two tiles, either [SIDE][DEPTH] or, where memory has the depth outermost, [DEPTH][SIDE]. CONV_PAD
// elements behind each row shift its banks, so that the eight rows an ldmatrix reads at once do not collide.

static constexpr int DEPTH = CONV_DEPTH;
static constexpr int STAGES = CONV_STAGES;
static constexpr int STEP = 8;  // neighbouring elements that one thread copies: 16 bytes

template <int SIDE, bool DEPTH_OUTERMOST>
struct Tile {
    static constexpr int ROWS = DEPTH_OUTERMOST ? DEPTH : SIDE;
    static constexpr int COLUMNS = DEPTH_OUTERMOST ? SIDE : DEPTH;
    static constexpr int STRIDE = COLUMNS + CONV_PAD;
    // How the block's threads share the copying: each takes one column of steps, and every ROW_STEP-th row.
    static constexpr int STEPS_PER_ROW = COLUMNS / STEP;
    static constexpr int ROW_STEP = CONV_THREADS / STEPS_PER_ROW;
    static constexpr int ROWS_PER_THREAD = ROWS / ROW_STEP;

    static __device__ int column() { return threadIdx.x % STEPS_PER_ROW * STEP; }
    static __device__ int row(int i) { return threadIdx.x / STEPS_PER_ROW + i * ROW_STEP; }
};

// Elements between two tiles, whatever their kind.
template <int SIDE>
__host__ __device__ constexpr int tile_elements() { return SIDE * (DEPTH + CONV_PAD); }

// Where the tiles of a stage begin; the launch code asks for as much shared memory.
template <int SIDE>
__device__ __forceinline__ bf16* tile_at(uint8_t* shared, int stage, int operand) {
    return reinterpret_cast<bf16*>(shared) + (2 * stage + operand) * tile_elements<SIDE>();
}

// Copies one step, of which `valid` elements exist; the others become zero. The wide form returns before the data is there
// and has either all elements or none; `from` is not read where there are none.
template <bool WIDE>
__device__ __forceinline__ void copy_step(bf16* to, const bf16* from, int valid) {
    if constexpr (WIDE) {
        cp_async_16(to, from, valid > 0 ? 2 * STEP : 0);
    } else {
        for (int j = 0; j < STEP; j++) to[j] = j < valid ? from[j] : __float2bfloat16_rn(0.0f);
    }
}

// Elements of a step that begins `left` elements before the end of its row, if the row exists.
__device__ __forceinline__ int valid_elements(bool exists, uint32_t begin, uint32_t end) {
    return exists && begin < end ? (int)min(end - begin, (uint32_t)STEP) : 0;
}

// ---- products -------------------------------------------------------------------------------------------------------

// The fragments of one warp: QUARTER x QUARTER sums in mma.sync tiles of 16 x 8.
template <int SIDE>
struct Sums {
    static constexpr int QUARTER = SIDE / 2;
    static constexpr int M = QUARTER / 16;
    static constexpr int N = QUARTER / 8;
    float at[M][N][4];

    static __device__ int first_row() { return warp_index() / 2 * QUARTER; }
    static __device__ int first_column() { return warp_index() % 2 * QUARTER; }
};

// Four 8x8 matrices of a tile: the 16 rows (or columns) of the result from `first` on, 16 terms from `term` on.
// A's registers run over rows first, B's over terms first, which is what mma.sync wants of them.
template <int SIDE, bool DEPTH_OUTERMOST, bool ROWS_FIRST>
__device__ __forceinline__ void load_fragment(uint32_t (&fragment)[4], const bf16* tile, int first, int term) {
    const int lane = lane_index(), matrix = lane / 8;
    const int along = first + (ROWS_FIRST ? matrix % 2 : matrix / 2) * 8;
    const int terms = term + (ROWS_FIRST ? matrix / 2 : matrix % 2) * 8;
    constexpr int STRIDE = Tile<SIDE, DEPTH_OUTERMOST>::STRIDE;
    if constexpr (DEPTH_OUTERMOST) {
        ldmatrix_x4_trans(fragment, tile + (terms + lane % 8) * STRIDE + along);
    } else {
        ldmatrix_x4(fragment, tile + (along + lane % 8) * STRIDE + terms);
    }
}

// Adds the products of one stage's tiles to the sums.
template <int SIDE, bool A_DEPTH_OUTERMOST, bool B_DEPTH_OUTERMOST>
__device__ __forceinline__ void multiply(Sums<SIDE>& sums, const bf16* a_tile, const bf16* b_tile) {
    using S = Sums<SIDE>;
#pragma unroll
    for (int term = 0; term < DEPTH; term += 16) {
        uint32_t a[S::M][4], b[S::N / 2][4];
#pragma unroll
        for (int m = 0; m < S::M; m++) load_fragment<SIDE, A_DEPTH_OUTERMOST, true>(a[m], a_tile, S::first_row() + 16 * m, term);
#pragma unroll
        for (int n = 0; n < S::N / 2; n++) load_fragment<SIDE, B_DEPTH_OUTERMOST, false>(b[n], b_tile, S::first_column() + 16 * n, term);
#pragma unroll
        for (int m = 0; m < S::M; m++) {
#pragma unroll
            for (int n = 0; n < S::N; n++) {
                const uint32_t half[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
                mma_m16n8k16(sums.at[m][n], a[m], half);
            }
        }
    }
}

// The pipeline: `copy(stage)` begins to copy the next terms and is called `steps` times; each stage is multiplied when it
// has arrived, while the copies of the STAGES - 1 behind it are under way. `visit` sees the arrived tiles too.
template <int SIDE, bool A_DEPTH_OUTERMOST, bool B_DEPTH_OUTERMOST, class Copy, class Visit>
__device__ __forceinline__ void accumulate(Sums<SIDE>& sums, uint8_t* shared, uint32_t steps, Copy copy, Visit visit) {
#pragma unroll
    for (uint32_t ahead = 0; ahead < STAGES - 1; ahead++) {
        if (ahead < steps) copy(ahead);
        // A group for every step, an empty one too, keeps the count below right.
        cp_async_commit();
    }
    for (uint32_t step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        // Orders every thread's copies of this stage ahead of all reads, and all reads of the stage before it ahead of the
        // copies that overwrite it now.
        __syncthreads();
        if (step + STAGES - 1 < steps) copy((step + STAGES - 1) % STAGES);
        cp_async_commit();
        const int stage = step % STAGES;
        visit(tile_at<SIDE>(shared, stage, 0));
        multiply<SIDE, A_DEPTH_OUTERMOST, B_DEPTH_OUTERMOST>(sums, tile_at<SIDE>(shared, stage, 0), tile_at<SIDE>(shared, stage, 1));
    }
}

// ---- token grids ----------------------------------------------------------------------------------------------------

// Distance to the neighbour at a tap, in tokens.
__device__ __forceinline__ int shift(int tap, uint32_t columns) { return (tap / 3 - 1) * (int)columns + tap % 3 - 1; }

// Whether the neighbour at a tap lies on the grid.
__device__ __forceinline__ bool on_grid(int tap, uint32_t row, uint32_t column, uint32_t rows, uint32_t columns) {
    // Minus one wraps around and is too large as well.
    return row + tap / 3 - 1 < rows && column + tap % 3 - 1 < columns;
}

// One bit per tap: whether that neighbour of a token exists.
__device__ __forceinline__ uint32_t neighbours(const ConvParams& p, uint32_t token) {
    if (token >= p.tokens) return 0;
    const uint32_t column = token % p.columns, row = token / p.columns % p.rows;
    uint32_t bits = 0;
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) bits |= (uint32_t)on_grid(tap, row, column, p.rows, p.columns) << tap;
    return bits;
}

// ---- forward and gradient of the input ------------------------------------------------------------------------------

// Rows of the result are tokens, columns are channels. The sums run over the taps and, in blocks of DEPTH, over the channels
// of the source; the gradient looks at the opposite neighbour, and reads the weight with the depth outermost.
template <int SIDE, bool WIDE, bool BACKWARD>
__device__ __forceinline__ void convolve(const ConvParams& p) {
    using S = Sums<SIDE>;
    using Source = Tile<SIDE, false>;
    using Weight = Tile<SIDE, BACKWARD>;
    DYNAMIC_SHARED(shared);
    const uint32_t channels = BACKWARD ? p.cout : p.cin, outputs = BACKWARD ? p.cin : p.cout;
    const uint32_t first_output = blockIdx.x * SIDE, first_token = blockIdx.y * SIDE;
    const bf16* source = at<const bf16>(p.source);
    const bf16* weight = at<const bf16>(p.weight);

    uint32_t exists[Source::ROWS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < Source::ROWS_PER_THREAD; i++) exists[i] = neighbours(p, first_token + Source::row(i));

    int tap = 0;
    uint32_t first_channel = 0;
    auto copy = [&](int stage) {
        const int seen = BACKWARD ? TAPS - 1 - tap : tap;
        const int64_t distance = shift(seen, p.columns);
        const uint32_t channel = first_channel + Source::column();
        bf16* source_tile = tile_at<SIDE>(shared, stage, 0);
#pragma unroll
        for (int i = 0; i < Source::ROWS_PER_THREAD; i++) {
            const int row = Source::row(i);
            const int valid = valid_elements(exists[i] >> seen & 1, channel, channels);
            const bf16* from = source + (first_token + row + distance) * channels + channel;
            copy_step<WIDE>(source_tile + row * Source::STRIDE + Source::column(), valid > 0 ? from : source, valid);
        }
        bf16* weight_tile = tile_at<SIDE>(shared, stage, 1);
#pragma unroll
        for (int i = 0; i < Weight::ROWS_PER_THREAD; i++) {
            const int row = Weight::row(i);
            const uint32_t o = (BACKWARD ? first_channel : first_output) + row;
            const uint32_t c = (BACKWARD ? first_output : first_channel) + Weight::column();
            const int valid = valid_elements(o < p.cout, c, p.cin);
            const bf16* from = weight + ((uint64_t)o * TAPS + tap) * p.cin + c;
            copy_step<WIDE>(weight_tile + row * Weight::STRIDE + Weight::column(), valid > 0 ? from : weight, valid);
        }
        first_channel += DEPTH;
        if (first_channel >= channels) {
            first_channel = 0;
            tap++;
        }
    };

    S sums;
#pragma unroll
    for (int n = 0; n < S::N; n++) {
        const uint32_t o = first_output + S::first_column() + 8 * n + lane_index() % 4 * 2;
        const bf16* bias = at<const bf16>(p.bias);
        const float left = bias && o < outputs ? __bfloat162float(bias[o]) : 0.0f;
        const float right = bias && o + 1 < outputs ? __bfloat162float(bias[o + 1]) : 0.0f;
#pragma unroll
        for (int m = 0; m < S::M; m++) {
            sums.at[m][n][0] = sums.at[m][n][2] = left;
            sums.at[m][n][1] = sums.at[m][n][3] = right;
        }
    }
    const uint32_t steps = TAPS * ((channels + DEPTH - 1) / DEPTH);
    accumulate<SIDE, false, BACKWARD>(sums, shared, steps, copy, [](const bf16*) {});

    // Orders all reads of the tiles ahead of the writes below, which use the same memory.
    __syncthreads();
    // A warp writes 16 rows of its quarter at a time, by way of shared memory, so that a thread has neighbouring channels.
    constexpr int STRIDE = S::QUARTER + 8;
    constexpr int STEPS_PER_ROW = S::QUARTER / STEP;
    float* strip = reinterpret_cast<float*>(shared) + warp_index() * 16 * STRIDE;
#pragma unroll
    for (int m = 0; m < S::M; m++) {
        float* to = strip + lane_index() / 4 * STRIDE + lane_index() % 4 * 2;
#pragma unroll
        for (int n = 0; n < S::N; n++) {
            *reinterpret_cast<float2*>(to + 8 * n) = make_float2(sums.at[m][n][0], sums.at[m][n][1]);
            *reinterpret_cast<float2*>(to + 8 * STRIDE + 8 * n) = make_float2(sums.at[m][n][2], sums.at[m][n][3]);
        }
        // Orders the warp's writes of the strip ahead of its reads.
        __syncwarp();
#pragma unroll
        for (int i = lane_index(); i < 16 * STEPS_PER_ROW; i += 32) {
            const int row = i / STEPS_PER_ROW, column = i % STEPS_PER_ROW * STEP;
            const uint32_t token = first_token + S::first_row() + 16 * m + row;
            const uint32_t o = first_output + S::first_column() + column;
            bf16* out = at<bf16>(p.out) + (uint64_t)token * outputs + o;
            const int valid = valid_elements(token < p.tokens, o, outputs);
            float values[STEP];
            load<STEP>(strip + row * STRIDE + column, values);
            if (WIDE && valid > 0) {
                float before[STEP] = {};
                if (p.accumulate) load<STEP>(out, before);
#pragma unroll
                for (int j = 0; j < STEP; j++) values[j] += before[j];
                store<STEP>(out, values);
            } else {
                for (int j = 0; j < valid; j++) {
                    const float before = p.accumulate ? __bfloat162float(out[j]) : 0.0f;
                    out[j] = __float2bfloat16_rn(before + strip[row * STRIDE + column + j]);
                }
            }
        }
        // Orders these reads ahead of the next rows' writes.
        __syncwarp();
    }
}

// ---- gradients of the parameters ------------------------------------------------------------------------------------

// Rows of the result are output channels, columns are input channels of one tap; the sums run over a chunk of the tokens.
// Both operands have the depth, the tokens, outermost. A token's place on the grid is carried along, not divided out.
template <int SIDE, bool WIDE>
__device__ __forceinline__ void weight_gradient(const ConvWeightParams& p) {
    using S = Sums<SIDE>;
    using Tokens = Tile<SIDE, true>;
    DYNAMIC_SHARED(shared);
    const int tap = blockIdx.x % TAPS;
    const uint32_t first_in = blockIdx.x / TAPS * SIDE, first_out = blockIdx.y * SIDE;
    const uint32_t begin = blockIdx.z * p.chunk, end = min(p.tokens, begin + p.chunk);
    const bf16* x = at<const bf16>(p.x);
    const bf16* dy = at<const bf16>(p.dy);
    const int64_t distance = shift(tap, p.columns);
    const uint32_t row_step = DEPTH / p.columns % p.rows, column_step = DEPTH % p.columns;

    uint32_t first_token = begin, grid_row[Tokens::ROWS_PER_THREAD], grid_column[Tokens::ROWS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < Tokens::ROWS_PER_THREAD; i++) {
        const uint32_t token = begin + Tokens::row(i);
        grid_column[i] = token % p.columns;
        grid_row[i] = token / p.columns % p.rows;
    }
    auto copy = [&](int stage) {
        bf16* dy_tile = tile_at<SIDE>(shared, stage, 0);
        bf16* x_tile = tile_at<SIDE>(shared, stage, 1);
        const uint32_t o = first_out + Tokens::column(), c = first_in + Tokens::column();
#pragma unroll
        for (int i = 0; i < Tokens::ROWS_PER_THREAD; i++) {
            const int row = Tokens::row(i);
            const uint32_t token = first_token + row;
            const int place = row * Tokens::STRIDE + Tokens::column();
            const int dy_valid = valid_elements(token < end, o, p.cout);
            copy_step<WIDE>(dy_tile + place, dy_valid > 0 ? dy + (uint64_t)token * p.cout + o : dy, dy_valid);
            const bool exists = token < end && on_grid(tap, grid_row[i], grid_column[i], p.rows, p.columns);
            const int x_valid = valid_elements(exists, c, p.cin);
            copy_step<WIDE>(x_tile + place, x_valid > 0 ? x + (token + distance) * p.cin + c : x, x_valid);

            grid_column[i] += column_step;
            grid_row[i] += row_step;
            if (grid_column[i] >= p.columns) {
                grid_column[i] -= p.columns;
                grid_row[i]++;
            }
            if (grid_row[i] >= p.rows) grid_row[i] -= p.rows;
        }
        first_token += DEPTH;
    };

    // The blocks at the centre add dy up as well, one output channel a thread.
    const bool sums_bias = tap == CENTRE && first_in == 0 && threadIdx.x < SIDE;
    float d_bias = 0.0f;
    auto add_bias = [&](const bf16* dy_tile) {
        if (!sums_bias) return;
#pragma unroll
        for (int row = 0; row < DEPTH; row++) d_bias += __bfloat162float(dy_tile[row * Tokens::STRIDE + threadIdx.x]);
    };

    S sums = {};
    accumulate<SIDE, true, true>(sums, shared, (end - begin + DEPTH - 1) / DEPTH, copy, add_bias);

    const uint64_t weights = (uint64_t)p.cout * TAPS * p.cin;
    float* partial = at<float>(p.partial) + blockIdx.z * (weights + p.cout);
    if (sums_bias && first_out + threadIdx.x < p.cout) partial[weights + first_out + threadIdx.x] = d_bias;
#pragma unroll
    for (int m = 0; m < S::M; m++) {
#pragma unroll
        for (int n = 0; n < S::N; n++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t o = first_out + S::first_row() + 16 * m + 8 * half + lane_index() / 4;
                const uint32_t c = first_in + S::first_column() + 8 * n + lane_index() % 4 * 2;
                float* to = partial + ((uint64_t)o * TAPS + tap) * p.cin + c;
                const float left = sums.at[m][n][2 * half], right = sums.at[m][n][2 * half + 1];
                if (o >= p.cout || c >= p.cin) continue;
                if constexpr (WIDE) {
                    *reinterpret_cast<float2*>(to) = make_float2(left, right);
                } else {
                    to[0] = left;
                    if (c + 1 < p.cin) to[1] = right;
                }
            }
        }
    }
}

// Adds the chunks' partial sums to the gradients, in order.
template <int WIDTH>
__device__ __forceinline__ void finish(const ConvFinishParams& p) {
    const uint64_t len = p.weights + p.cout;
    const uint64_t i = ((uint64_t)blockIdx.x * CONV_FINISH_THREADS + threadIdx.x) * WIDTH;
    if (i >= len) return;
    float sum[WIDTH] = {}, gradient[WIDTH];
#pragma unroll 4
    for (uint32_t chunk = 0; chunk < p.chunks; chunk++) {
        float part[WIDTH];
        load<WIDTH>(at<const float>(p.partial) + chunk * len + i, part);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum[j] += part[j];
    }
    float* to = i < p.weights ? at<float>(p.d_weight) + i : at<float>(p.d_bias) + (i - p.weights);
    load<WIDTH>(to, gradient);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) gradient[j] += sum[j];
    store<WIDTH>(to, gradient);
}

// ---- kernels --------------------------------------------------------------------------------------------------------

#define CONV(name, Params, ...)                                                                                         \
    extern "C" __global__ void __launch_bounds__(CONV_THREADS, 2) name(Params p) { __VA_ARGS__(p); }                    \
    LADD_KERNEL(name)

CONV(conv3x3_large_x8, ConvParams, convolve<CONV_LARGE_TILE, true, false>)
CONV(conv3x3_small_x8, ConvParams, convolve<CONV_SMALL_TILE, true, false>)
CONV(conv3x3_small_x1, ConvParams, convolve<CONV_SMALL_TILE, false, false>)
CONV(conv3x3_backward_input_large_x8, ConvParams, convolve<CONV_LARGE_TILE, true, true>)
CONV(conv3x3_backward_input_small_x8, ConvParams, convolve<CONV_SMALL_TILE, true, true>)
CONV(conv3x3_backward_input_small_x1, ConvParams, convolve<CONV_SMALL_TILE, false, true>)
CONV(conv3x3_backward_weight_large_x8, ConvWeightParams, weight_gradient<CONV_LARGE_TILE, true>)
CONV(conv3x3_backward_weight_small_x8, ConvWeightParams, weight_gradient<CONV_SMALL_TILE, true>)
CONV(conv3x3_backward_weight_small_x1, ConvWeightParams, weight_gradient<CONV_SMALL_TILE, false>)

extern "C" __global__ void __launch_bounds__(CONV_FINISH_THREADS) conv3x3_finish_x4(ConvFinishParams p) { finish<4>(p); }
LADD_KERNEL(conv3x3_finish_x4)
extern "C" __global__ void __launch_bounds__(CONV_FINISH_THREADS) conv3x3_finish_x1(ConvFinishParams p) { finish<1>(p); }
LADD_KERNEL(conv3x3_finish_x1)
