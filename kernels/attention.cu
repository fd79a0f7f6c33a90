// Joint attention for every GPU from sm_80, forward and backward, any head_dim up to 128 (padded to 64 or 128 in shared
// memory):
//
//   P = exp(q k^T / sqrt(D) - lse),  out = P v
//   dV = P^T dO,  dS = P (dO V^T - rowsum(dO out)),  dQ = dS K / sqrt(D),  dK = dS^T Q / sqrt(D)
//
// Reads bf16, multiplies in bf16 with fp32 sums (P and dS are rounded), overwrites its outputs. P is computed once for dK and
// dV, once for dQ, so that no sum needs atomics and the bits do not depend on the schedule. Called by
// src/device/cuda/ops/attention.rs and attention_backward.rs.
//
// Floors, per score at D = 64; 128, in cycles of an A100's multiprocessor: 2048 FLOPs, 128 bytes of shared memory (operands read,
// tiles copied in), 16 exponentials. 8 S D bytes of memory a head forward; what blocks copy again comes from L2, 4 D bytes a
// score over the block's rows.
//   attention              4 D FLOPs 1/8; 1/4, 12; 44 bytes 3/32; 11/32, one exponential 1/16: tensor cores; shared memory
//   attention_keys         8 D FLOPs 1/4; 1/2, 40; 88 bytes 5/16; 11/16, one exponential 1/16: shared memory
//   attention_queries      6 D FLOPs 3/16; 3/8, 32; 72 bytes 1/4; 9/16, one exponential 1/16: shared memory
//   attention_statistics   4 D + 12 bytes a row: memory
#include "include/attention.cuh"

constexpr int WARPS = ATTENTION_THREADS / 32;

// Tiles by head width. Two strips of queries a warp halve what is read from shared memory for each product; at head_dim
// 128 their results alone would take 128 registers. The backward pass keeps two results of 16 rows a warp: at head_dim 128
// it takes 32 columns a step, so that two blocks fit the 164 KB of an A100.
struct ForwardTiles {
    int queries;
    int keys;
    int shared;
};
__host__ __device__ constexpr ForwardTiles forward_tiles(int head_dim) {
    return head_dim == 64 ? ForwardTiles{ATTENTION_QUERIES_D64, ATTENTION_KEYS, ATTENTION_SHARED_D64}
                          : ForwardTiles{ATTENTION_QUERIES_D128, ATTENTION_KEYS, ATTENTION_SHARED_D128};
}
struct BackwardTiles {
    int rows;
    int columns;
    int shared;
};
__host__ __device__ constexpr BackwardTiles backward_tiles(int head_dim) {
    const BackwardTiles d64{ATTENTION_BACKWARD_ROWS, ATTENTION_BACKWARD_COLUMNS_D64, ATTENTION_BACKWARD_SHARED_D64};
    const BackwardTiles d128{ATTENTION_BACKWARD_ROWS, ATTENTION_BACKWARD_COLUMNS_D128, ATTENTION_BACKWARD_SHARED_D128};
    return head_dim == 64 ? d64 : d128;
}

// ---- tiles --------------------------------------------------------------------------------------------------------

// The rows [first, tokens) of one head of a joint tensor.
template <class T>
struct JointRows {
    T* head;
    uint32_t first;
    uint32_t tokens;
    uint32_t head_dim;

    __device__ T* operator()(int r) const { return first + r < tokens ? head + (uint64_t)(first + r) * head_dim : nullptr; }
};

// Starts the copy of the rows that `row_of(r)` names for r = 0..ROWS-1 to shared memory; absent rows and columns from
// head_dim on become zeros. Complete after cp_async_wait and __syncthreads.
template <int ROWS, int D, bool WIDE, class RowOf>
__device__ __forceinline__ void copy_tile(bf16* tile, int head_dim, RowOf row_of) {
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += ATTENTION_THREADS) {
        const int row = i / CHUNKS;
        const int column = i % CHUNKS * 8;
        const bf16* from = row_of(row);
        bf16* to = tile + swizzled<D>(row, i % CHUNKS);
        if constexpr (WIDE) {
            cp_async_16(to, from + column, from && column < head_dim ? 16 : 0);
        } else {
            for (int j = 0; j < 8; j++) to[j] = from && column + j < head_dim ? from[column + j] : __float2bfloat16_rn(0.0f);
        }
    }
}

// 16 x 16 values from (row, 16 step): a left operand.
template <int D>
__device__ __forceinline__ void load_left(uint32_t (&words)[4], const bf16* tile, int row, int step) {
    const int matrix = lane_id() / 8;
    ldmatrix_x4(words, tile + swizzled<D>(row + matrix % 2 * 8 + lane_id() % 8, 2 * step + matrix / 2));
}

// The same place as two right operands of 8 columns, words 0-1 and 2-3, that are the tile's rows: for products with its
// transpose.
template <int D>
__device__ __forceinline__ void load_right_transposed(uint32_t (&words)[4], const bf16* tile, int row, int step) {
    const int matrix = lane_id() / 8;
    ldmatrix_x4(words, tile + swizzled<D>(row + matrix / 2 * 8 + lane_id() % 8, 2 * step + matrix % 2));
}

// The same place as two right operands of 8 columns that are the tile's columns.
template <int D>
__device__ __forceinline__ void load_right(uint32_t (&words)[4], const bf16* tile, int row, int step) {
    const int matrix = lane_id() / 8;
    ldmatrix_x4_trans(words, tile + swizzled<D>(row + matrix % 2 * 8 + lane_id() % 8, 2 * step + matrix / 2));
}

// 16 columns of a strip, from 16 `step`: += left right.
template <int N>
__device__ __forceinline__ void multiply_step(float (&strip)[N], int step, const uint32_t (&left)[4],
                                              const uint32_t (&right)[4]) {
    mma_m16n8k16(*reinterpret_cast<float (*)[4]>(strip + 8 * step), left, {right[0], right[1]});
    mma_m16n8k16(*reinterpret_cast<float (*)[4]>(strip + 8 * step + 4), left, {right[2], right[3]});
}

// strips = left right^T, of rows from `row` of the left tile and all of the right one; both tiles have D columns.
template <int D, int STRIPS, int N>
__device__ __forceinline__ void multiply_transposed(float (&strips)[STRIPS][N], const bf16* left, int row, const bf16* right) {
    constexpr int COLUMNS = 2 * N;
#pragma unroll
    for (int strip = 0; strip < STRIPS; strip++) {
#pragma unroll
        for (int i = 0; i < N; i++) strips[strip][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t left_words[STRIPS][4];
#pragma unroll
        for (int strip = 0; strip < STRIPS; strip++) load_left<D>(left_words[strip], left, row + strip * STRIP_ROWS, step);
#pragma unroll
        for (int column = 0; column < COLUMNS; column += 16) {
            uint32_t right_words[4];
            load_right_transposed<D>(right_words, right, column, step);
#pragma unroll
            for (int strip = 0; strip < STRIPS; strip++) {
                multiply_step(strips[strip], column / 16, left_words[strip], right_words);
            }
        }
    }
}

// sums += left right, of strips in registers, rounded, and a tile of as many rows as they have columns.
template <int D, int STRIPS, int N>
__device__ __forceinline__ void multiply_add(float (&sums)[STRIPS][D / 2], const float (&left)[STRIPS][N], const bf16* right) {
    constexpr int ROWS = 2 * N;
#pragma unroll
    for (int row = 0; row < ROWS; row += 16) {
        uint32_t left_words[STRIPS][4];
#pragma unroll
        for (int strip = 0; strip < STRIPS; strip++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* pair = left[strip] + row / 2 + 2 * i;
                left_words[strip][i] = pack_bf16(pair[0], pair[1]);
            }
        }
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            uint32_t right_words[4];
            load_right<D>(right_words, right, row, step);
#pragma unroll
            for (int strip = 0; strip < STRIPS; strip++) multiply_step(sums[strip], step, left_words[strip], right_words);
        }
    }
}

// ---- forward ------------------------------------------------------------------------------------------------------

template <int D, bool WIDE>
__device__ __forceinline__ void attention(const AttentionParams& params) {
    constexpr ForwardTiles TILES = forward_tiles(D);
    constexpr int STRIPS = TILES.queries / WARPS / STRIP_ROWS;
    DYNAMIC_SHARED(memory);
    bf16* q_tile = reinterpret_cast<bf16*>(memory);         // [queries, D]
    bf16* k_tiles = q_tile + TILES.queries * D;             // [2][keys, D]
    bf16* v_tiles = k_tiles + 2 * TILES.keys * D;           // [2][keys, D]
    const uint32_t head = blockIdx.y, sample = blockIdx.z;
    const uint64_t joint = (uint64_t)sample * params.heads + head;
    const uint64_t offset = joint * params.keys * params.head_dim;
    const int first_query = blockIdx.x * TILES.queries;
    const int warp_row = threadIdx.x / 32 * STRIPS * STRIP_ROWS;
    const int tiles = (params.keys + TILES.keys - 1) / TILES.keys;

    auto copy_keys = [&](int tile) {
        const uint32_t first = tile * TILES.keys;
        const int place = tile % 2 * TILES.keys * D;
        const JointRows<const bf16> k{at<const bf16>(params.k) + offset, first, params.keys, params.head_dim};
        const JointRows<const bf16> v{at<const bf16>(params.v) + offset, first, params.keys, params.head_dim};
        copy_tile<TILES.keys, D, WIDE>(k_tiles + place, params.head_dim, k);
        copy_tile<TILES.keys, D, WIDE>(v_tiles + place, params.head_dim, v);
        cp_async_commit();
    };
    const JointRows<const bf16> q{at<const bf16>(params.q) + offset, (uint32_t)first_query, params.queries, params.head_dim};
    copy_tile<TILES.queries, D, WIDE>(q_tile, params.head_dim, q);
    copy_keys(0);

    float out[STRIPS][D / 2] = {};
    OnlineSoftmax softmax[STRIPS];
    for (int tile = 0; tile < tiles; tile++) {
        // This tile has arrived, and everyone has left the one before, whose place the next may take.
        cp_async_wait<0>();
        __syncthreads();
        if (tile + 1 < tiles) copy_keys(tile + 1);
        const bf16* k_tile = k_tiles + tile % 2 * TILES.keys * D;
        const bf16* v_tile = v_tiles + tile % 2 * TILES.keys * D;

        float scores[STRIPS][TILES.keys / 2];
        multiply_transposed<D>(scores, q_tile, warp_row, k_tile);
        const int left = params.keys - tile * TILES.keys;
#pragma unroll
        for (int strip = 0; strip < STRIPS; strip++) {
            if (left < TILES.keys) mask_columns(scores[strip], left, -INFINITY);
            float rescale[2];
            softmax[strip].update(scores[strip], params.scale * LOG2_E, rescale);
            scale_rows(out[strip], rescale);
        }
        multiply_add<D>(out, scores, v_tile);
    }

    const StreamRows<bf16> outs(params.out_image, params.out_text, params.image, params.keys, params.heads, params.head_dim,
                                sample, head);
    float* lse = at<float>(params.lse) + joint * params.keys;
#pragma unroll
    for (int strip = 0; strip < STRIPS; strip++) {
        const int strip_first = warp_row + strip * STRIP_ROWS;
        softmax[strip].finish();
        scale_rows(out[strip], {1.0f / softmax[strip].sum[0], 1.0f / softmax[strip].sum[1]});
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = first_query + strip_first + strip_row(half);
            if (lane_id() % 4 == 0 && query < (int)params.queries) lse[query] = softmax[strip].lse(half, params.scale * LOG2_E);
        }
        // Of the queries, a warp reads its own rows only: they serve it as staging.
        const SplitRows<bf16> rows{outs, (uint32_t)(first_query + strip_first), params.queries};
        store_strip<D, WIDE>(q_tile + strip_first * D, out[strip], params.head_dim, rows);
    }
}

// ---- backward -----------------------------------------------------------------------------------------------------

constexpr int STATISTICS_LANES = ATTENTION_STATISTICS_LANES;    // of a row

// lse to base 2 and rowsum(dO out) of every asking token and head.
template <int WIDTH>
__device__ __forceinline__ void statistics(const AttentionBackwardParams& params) {
    const uint64_t index = ((uint64_t)blockIdx.x * ATTENTION_THREADS + threadIdx.x) / STATISTICS_LANES;
    const int lane = threadIdx.x % STATISTICS_LANES;
    const uint32_t head = index % params.heads;
    const uint64_t row = index / params.heads;
    const uint32_t token = row % params.queries;
    const uint64_t sample = row / params.queries;
    const bool inside = sample < params.batch;
    const float sum = sum_of_d_out_out<WIDTH>(params, sample, head, token, lane, inside);
    if (inside && lane == 0) {
        const uint64_t place = (sample * params.heads + head) * params.keys + token;
        at<float2>(params.statistics)[place] = make_float2(at<const float>(params.lse)[place] * LOG2_E, sum);
    }
}

// What both backward kernels walk over: the tensors of one head, by joint token.
template <int D, bool WIDE>
struct BackwardHead {
    static constexpr BackwardTiles TILES = backward_tiles(D);
    const AttentionBackwardParams& params;
    uint32_t sample, head;
    uint64_t joint;     // of B H

    __device__ explicit BackwardHead(const AttentionBackwardParams& params)
        : params(params), sample(blockIdx.z), head(blockIdx.y), joint((uint64_t)blockIdx.z * params.heads + blockIdx.y) {}

    template <class T>
    __device__ JointRows<T> rows(DevicePtr tensor, uint32_t first, uint32_t tokens) const {
        return {at<T>(tensor) + joint * params.keys * params.head_dim, first, tokens, params.head_dim};
    }
    // Keys and values, or queries and upstream gradients, of COUNT tokens.
    template <int COUNT>
    __device__ __forceinline__ void copy_keys(bf16* k_tile, bf16* v_tile, uint32_t first) const {
        copy_tile<COUNT, D, WIDE>(k_tile, params.head_dim, rows<const bf16>(params.k, first, params.keys));
        copy_tile<COUNT, D, WIDE>(v_tile, params.head_dim, rows<const bf16>(params.v, first, params.keys));
    }
    template <int COUNT>
    __device__ __forceinline__ void copy_queries(bf16* q_tile, bf16* d_out_tile, uint32_t first) const {
        const StreamRows<const bf16> d_out(params.d_out_image, params.d_out_text, params.image, params.keys, params.heads,
                                           params.head_dim, sample, head);
        copy_tile<COUNT, D, WIDE>(q_tile, params.head_dim, rows<const bf16>(params.q, first, params.queries));
        copy_tile<COUNT, D, WIDE>(d_out_tile, params.head_dim, SplitRows<const bf16>{d_out, first, params.queries});
    }
    __device__ const float2* statistics() const { return at<const float2>(params.statistics) + joint * params.keys; }
};

// dK and dV of 64 keys, 16 a warp, over all queries. Works on the transposes of P and dS, whose strips so are the left
// operands of both results.
template <int D, bool WIDE>
__device__ __forceinline__ void backward_keys(const AttentionBackwardParams& params) {
    constexpr BackwardTiles TILES = backward_tiles(D);
    DYNAMIC_SHARED(memory);
    bf16* k_tile = reinterpret_cast<bf16*>(memory);                                                     // [rows, D]
    bf16* v_tile = k_tile + TILES.rows * D;                                                             // [rows, D]
    bf16* q_tiles = v_tile + TILES.rows * D;                                                            // [2][columns, D]
    bf16* d_out_tiles = q_tiles + 2 * TILES.columns * D;                                                // [2][columns, D]
    float2* statistics_tiles = reinterpret_cast<float2*>(d_out_tiles + 2 * TILES.columns * D);          // [2][columns]
    const BackwardHead<D, WIDE> head(params);
    const uint32_t first_key = blockIdx.x * TILES.rows;
    const int warp_row = threadIdx.x / 32 * STRIP_ROWS;
    const int tiles = (params.queries + TILES.columns - 1) / TILES.columns;

    // Queries behind the end are zero, and so are their statistics: their P is 1 and meets rows of zeros, their dS is 0.
    auto copy_queries = [&](int tile) {
        const uint32_t first = tile * TILES.columns;
        const int place = tile % 2 * TILES.columns;
        head.template copy_queries<TILES.columns>(q_tiles + place * D, d_out_tiles + place * D, first);
        if (threadIdx.x < TILES.columns) {
            const uint32_t query = first + threadIdx.x;
            cp_async_8(statistics_tiles + place + threadIdx.x, head.statistics() + query, query < params.queries ? 8 : 0);
        }
        cp_async_commit();
    };
    head.template copy_keys<TILES.rows>(k_tile, v_tile, first_key);
    if (tiles > 0) copy_queries(0);

    float dk[1][D / 2] = {};
    float dv[1][D / 2] = {};
    for (int tile = 0; tile < tiles; tile++) {
        // This tile has arrived, and everyone has left the one before, whose place the next may take.
        cp_async_wait<0>();
        __syncthreads();
        if (tile + 1 < tiles) copy_queries(tile + 1);
        const int place = tile % 2 * TILES.columns;
        const bf16* q_tile = q_tiles + place * D;
        const bf16* d_out_tile = d_out_tiles + place * D;
        const float2* statistics = statistics_tiles + place;

        float p[1][TILES.columns / 2], ds[1][TILES.columns / 2];
        multiply_transposed<D>(p, k_tile, warp_row, q_tile);
        multiply_transposed<D>(ds, v_tile, warp_row, d_out_tile);
#pragma unroll
        for (int i = 0; i < TILES.columns / 2; i++) {
            const float2 of_query = statistics[strip_column(i)];
            p[0][i] = ex2(fmaf(p[0][i], params.scale * LOG2_E, -of_query.x));
            ds[0][i] = p[0][i] * (ds[0][i] - of_query.y);
        }
        multiply_add<D>(dv, p, d_out_tile);
        multiply_add<D>(dk, ds, q_tile);
    }
    // Of keys and values, a warp reads its own rows only: they serve it as staging, once what was copied there has arrived
    // (with no queries nobody has waited for it).
    cp_async_wait<0>();
    __syncthreads();
    scale_rows(dk[0], {params.scale, params.scale});
    const JointRows<bf16> dk_rows = head.template rows<bf16>(params.dk, first_key + warp_row, params.keys);
    const JointRows<bf16> dv_rows = head.template rows<bf16>(params.dv, first_key + warp_row, params.keys);
    store_strip<D, WIDE>(k_tile + warp_row * D, dk[0], params.head_dim, dk_rows);
    store_strip<D, WIDE>(v_tile + warp_row * D, dv[0], params.head_dim, dv_rows);
}

// dQ of 64 queries, 16 a warp, over all keys.
template <int D, bool WIDE>
__device__ __forceinline__ void backward_queries(const AttentionBackwardParams& params) {
    constexpr BackwardTiles TILES = backward_tiles(D);
    DYNAMIC_SHARED(memory);
    bf16* q_tile = reinterpret_cast<bf16*>(memory);             // [rows, D]
    bf16* d_out_tile = q_tile + TILES.rows * D;                 // [rows, D]
    bf16* k_tiles = d_out_tile + TILES.rows * D;                // [2][columns, D]
    bf16* v_tiles = k_tiles + 2 * TILES.columns * D;            // [2][columns, D]
    const BackwardHead<D, WIDE> head(params);
    const uint32_t first_query = blockIdx.x * TILES.rows;
    const int warp_row = threadIdx.x / 32 * STRIP_ROWS;
    const int tiles = (params.keys + TILES.columns - 1) / TILES.columns;

    auto copy_keys = [&](int tile) {
        const int place = tile % 2 * TILES.columns * D;
        head.template copy_keys<TILES.columns>(k_tiles + place, v_tiles + place, tile * TILES.columns);
        cp_async_commit();
    };
    head.template copy_queries<TILES.rows>(q_tile, d_out_tile, first_query);
    copy_keys(0);
    float2 statistics[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t query = first_query + warp_row + strip_row(half);
        statistics[half] = query < params.queries ? head.statistics()[query] : make_float2(0.0f, 0.0f);
    }

    float dq[1][D / 2] = {};
    for (int tile = 0; tile < tiles; tile++) {
        // This tile has arrived, and everyone has left the one before, whose place the next may take.
        cp_async_wait<0>();
        __syncthreads();
        if (tile + 1 < tiles) copy_keys(tile + 1);
        const bf16* k_tile = k_tiles + tile % 2 * TILES.columns * D;
        const bf16* v_tile = v_tiles + tile % 2 * TILES.columns * D;

        float scores[1][TILES.columns / 2], ds[1][TILES.columns / 2];
        multiply_transposed<D>(scores, q_tile, warp_row, k_tile);
        multiply_transposed<D>(ds, d_out_tile, warp_row, v_tile);
#pragma unroll
        for (int i = 0; i < TILES.columns / 2; i++) {
            const float2 of_query = statistics[strip_half(i)];
            const float p = ex2(fmaf(scores[0][i], params.scale * LOG2_E, -of_query.x));
            ds[0][i] = p * (ds[0][i] - of_query.y);
        }
        // Keys behind the end score 0, and P of that may overflow where lse is small: their zero rows are no protection.
        const int left = params.keys - tile * TILES.columns;
        if (left < TILES.columns) mask_columns(ds[0], left, 0.0f);
        multiply_add<D>(dq, ds, k_tile);
    }
    // A warp's own rows of the queries serve it as staging.
    scale_rows(dq[0], {params.scale, params.scale});
    const JointRows<bf16> dq_rows = head.template rows<bf16>(params.dq, first_query + warp_row, params.queries);
    store_strip<D, WIDE>(q_tile + warp_row * D, dq[0], params.head_dim, dq_rows);
}

// ---- entry points -------------------------------------------------------------------------------------------------

#define KERNEL(name, Params, body)                                                              \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2) name(Params p) { body(p); } \
    LADD_KERNEL(name)

#define ATTENTION(D, form, WIDE)                                                                            \
    KERNEL(attention_d##D##_##form, AttentionParams, (attention<D, WIDE>))                                  \
    KERNEL(attention_keys_d##D##_##form, AttentionBackwardParams, (backward_keys<D, WIDE>))                 \
    KERNEL(attention_queries_d##D##_##form, AttentionBackwardParams, (backward_queries<D, WIDE>))

ATTENTION(64, wide, true)
ATTENTION(64, narrow, false)
ATTENTION(128, wide, true)
ATTENTION(128, narrow, false)
KERNEL(attention_statistics_x8, AttentionBackwardParams, statistics<8>)
KERNEL(attention_statistics_x1, AttentionBackwardParams, statistics<1>)
