// Joint attention for Hopper, backward, head_dim 64 and 128:
//
//   P = exp(q k^T / sqrt(D) - lse)
//   dV = P^T dO,  dS = P (dO V^T - rowsum(dO out)),  dQ = dS K / sqrt(D),  dK = dS^T Q / sqrt(D)
//
// Three kernels. `prepare` takes rowsum(dO out) and clears counters; the main one overwrites dk and dv and leaves the sum of
// dq in fp32; `finish` scales and rounds that. 10 S^2 D FLOPs a head, five products, where the portable form in attention.cu
// has seven; P is computed once, and of the forward pass only lse and out are read. Called by
// src/device/cuda/ops/attention_backward.rs.
//
// A block takes 128 keys of one head and walks over the queries, 64 a step. The scores are held transposed, keys by queries,
// 64 keys a consumer warpgroup: so P^T and dS^T are left operands of dV and dK as they lie in registers. dS also goes to
// shared memory, from where the warpgroups take it for dQ one step later, so that neither waits for the other in a step. At
// head_dim 64 they take turns with dQ, at 128 each takes 64 columns. dQ is added to its tile's sum in global memory by the
// copy engine.
//
// Floors
//   attention_backward_sm90           per score (D = 64; 128): 640; 1280 FLOPs, 5/32; 5/16 of a cycle of a multiprocessor's tensor
//                                     cores. One exponential, 1/16. Shared memory 20; 46 bytes, 5/32; 23/64: scores and dP 4; 16
//                                     (keys and values in registers; in shared memory as well), dV and dK 4; 8, dQ 4; 8, dS 2; 2,
//                                     dq 4; 8, copies in 2; 4. So tensor cores and shared memory are level at 64, and at 128 shared
//                                     memory comes first. Global memory takes dq's additions, 4 D / 128 = 2; 4 bytes, in L2.
//   attention_backward_sm90_prepare   4 D + 12 bytes a row, without an order 4 D more: memory
//   attention_backward_sm90_finish    6 bytes a value of dq: memory
//
// Order and progress. Floating-point additions do not commute, so with `ordered` a tile's sum takes the blocks of keys in
// order: the flag of a tile counts those that have added to it. Blocks take their work by a ticket, of all heads the first
// keys, then of all the second: a block waits only for such with lower tickets, which so have begun, and which in turn wait
// only for lower ones. The lowest of those that run waits for nobody; all end, whatever the order in which blocks are
// started or the number that run at a time. Heads first in the order of tickets also keeps the wait short: of one head, few
// blocks run at a time.
#include "include/attention.cuh"

namespace {

constexpr int WARPGROUP = 128;
constexpr int KEYS = ATTENTION_BACKWARD_SM90_KEYS;
constexpr int QUERIES = ATTENTION_BACKWARD_SM90_QUERIES;
constexpr int PANEL = 64;               // columns of one swizzle row of 128 bytes: a tile is D / 64 panels [rows, 64]
constexpr int GROUP_KEYS = 64;          // rows of one wgmma
constexpr int GROUPS = KEYS / GROUP_KEYS;
constexpr int SUM_VECTORS = QUERIES * PANEL / WARPGROUP / 4;    // 16-byte vectors of a thread in a panel of dq

// Where a tile of queries lies: `token` in its stream, `joint` in the sequence, `count` tokens.
struct QueryTile {
    bool text;
    int token, joint, count;

    __device__ QueryTile(const AttentionBackwardSm90Params& params, int tile) {
        const int image = params.of.image;
        text = tile >= (int)params.image_tiles;
        token = (tile - (text ? params.image_tiles : 0)) * QUERIES;
        joint = token + (text ? image : 0);
        count = min(QUERIES, (text ? (int)params.of.queries : image) - joint);
    }
};

struct Statistics {
    float lse[QUERIES];     // to base 2
    float delta[QUERIES];   // rowsum(dO out)
};

// ---- before and after -----------------------------------------------------------------------------------------------

// Statistics of every row of every tile; flags and ticket begin at 0, and so do sums without an order.
__device__ __forceinline__ void prepare(const AttentionBackwardSm90Params& params) {
    constexpr int LANES = ATTENTION_STATISTICS_LANES;
    const uint64_t index = ((uint64_t)blockIdx.x * ATTENTION_THREADS + threadIdx.x) / LANES;
    const int lane = threadIdx.x % LANES;
    const uint32_t head = index % params.of.heads;
    const uint64_t row_of_all = index / params.of.heads;
    const int row = row_of_all % QUERIES;
    const int tile = row_of_all / QUERIES % params.tiles;
    const uint64_t sample = row_of_all / QUERIES / params.tiles;
    const QueryTile queries(params, tile);
    const bool inside = sample < params.of.batch;
    const bool exists = inside && row < queries.count;
    const float sum = sum_of_d_out_out<8>(params.of, sample, head, queries.joint + row, lane, exists);
    if (!inside) return;
    const uint64_t joint = sample * params.of.heads + head;
    const uint64_t place = joint * params.tiles + tile;
    if (lane == 0) {
        // Infinite lse: P of a row that is not there is 0, whatever the scores.
        Statistics& of_tile = at<Statistics>(params.of.statistics)[place];
        const float* lse = at<const float>(params.of.lse) + joint * params.of.keys + queries.joint;
        of_tile.lse[row] = exists ? lse[row] * LOG2_E : INFINITY;
        of_tile.delta[row] = sum;
        if (row == 0) at<uint32_t>(params.flags)[place] = 0;
        if (index == 0) *at<uint32_t>(params.ticket) = 0;
    }
    if (params.ordered) return;
    const uint32_t head_dim = params.of.head_dim;
    float* sums = at<float>(params.dq_sums) + (place * QUERIES + row) * head_dim;
    for (uint32_t i = lane * 4; i < head_dim; i += LANES * 4) store_16_bytes(sums + i, make_uint4(0, 0, 0, 0));
}

// dq from its sums. A thread takes 8 columns of two rows, which four neighbouring threads of the warpgroup
// held: 4 D a tile, which whole blocks divide. Tiles without a gradient upstream get zeros.
__device__ __forceinline__ void finish(const AttentionBackwardSm90Params& params) {
    static_assert(4 * PANEL % ATTENTION_BACKWARD_SM90_FINISH_THREADS == 0, "no thread is behind the last tile");
    const uint32_t chunks = params.of.head_dim / 8;
    const uint64_t index = (uint64_t)blockIdx.x * ATTENTION_BACKWARD_SM90_FINISH_THREADS + threadIdx.x;
    const int chunk = index % chunks;
    const int pair = index / chunks % (QUERIES / 2);
    const uint64_t place = index / chunks / (QUERIES / 2);
    const int tile = place % params.tiles;
    const uint64_t joint = place / params.tiles;
    const bool given = tile >= (int)params.first_tile && tile < (int)params.last_tile;
    float rows[2][8] = {};
    if (given) {
        const float4* sums = at<const float4>(params.dq_sums) + (place * chunks + chunk) * WARPGROUP + pair * 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint4 raw = load_16_bytes(sums + i);
            rows[0][2 * i] = __uint_as_float(raw.x) * params.of.scale;
            rows[0][2 * i + 1] = __uint_as_float(raw.y) * params.of.scale;
            rows[1][2 * i] = __uint_as_float(raw.z) * params.of.scale;
            rows[1][2 * i + 1] = __uint_as_float(raw.w) * params.of.scale;
        }
    }
    const QueryTile queries(params, tile);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = pair / 8 * STRIP_ROWS + pair % 8 + 8 * half;
        if (row >= queries.count) continue;
        const uint64_t token = joint * params.of.keys + queries.joint + row;
        store<8>(at<bf16>(params.of.dq) + token * params.of.head_dim + chunk * 8, rows[half]);
    }
}

// ---- the products ---------------------------------------------------------------------------------------------------

// Other architectures have neither TMA nor wgmma; there the kernel is empty and never launched.
#if defined(LADD_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int STAGES = 2;               // of everything that passes by, a power of two
constexpr int CONSUMER_WARPS = GROUPS * WARPGROUP / 32;
constexpr int PRODUCER_REGISTERS = 24;
constexpr int CONSUMER_REGISTERS = 240;
constexpr int CONSUMER_BARRIER = 1;     // named barrier of the consumers; 0 is __syncthreads

// A warpgroup that wants more registers waits until the block has them: the block gets no more than it began with.
constexpr int FIRST_REGISTERS = 65536 / ATTENTION_BACKWARD_SM90_THREADS / 8 * 8;
static_assert(PRODUCER_REGISTERS + GROUPS * CONSUMER_REGISTERS <= (1 + GROUPS) * FIRST_REGISTERS, "or it waits for ever");

template <int D>
struct Shared {
    bf16 k[KEYS * D];
    bf16 v[KEYS * D];
    bf16 q[STAGES][QUERIES * D];
    bf16 d_out[STAGES][QUERIES * D];
    bf16 ds[STAGES][KEYS * QUERIES];    // transposed: [keys, queries]
    float dq[STAGES][QUERIES * D];      // as AttentionBackwardSm90Params says
    Statistics statistics[STAGES];
    uint64_t k_full, v_full;
    uint64_t q_full[STAGES], q_empty[STAGES];
    uint64_t d_out_full[STAGES], d_out_empty[STAGES];
    uint64_t ds_full[STAGES], ds_empty[STAGES];
    uint64_t dq_full[STAGES], dq_empty[STAGES];
    uint32_t ticket;
};

// Stage of step n, and the parity of its phase: of the first STAGES steps 0, of the next 1.
__device__ __forceinline__ int stage_of(uint32_t n) { return n % STAGES; }
__device__ __forceinline__ uint32_t phase_of(uint32_t n) { return n / STAGES % 2; }

// Whose dQ a step is: at head_dim 64 the warpgroups take turns, at 128 each takes a panel.
template <int D>
__device__ __forceinline__ bool takes_dq(int n, int group) {
    return D / PANEL == GROUPS || n % GROUPS == group;
}

// The maps of a block: q, k, v {D, tokens, B H}; the gradients of the outputs {D, tokens, H, B}.
struct Maps {
    const CUtensorMap *q, *k, *v, *d_out_image, *d_out_text;
};

// What a block works on.
struct Work {
    const AttentionBackwardSm90Params& params;
    int key_block, joint;   // of B H

    __device__ int first_key() const { return key_block * KEYS; }
    __device__ int steps() const { return params.last_tile - params.first_tile; }
    __device__ int tile(int n) const { return params.first_tile + n; }
    __device__ uint64_t place(int n) const { return (uint64_t)joint * params.tiles + tile(n); }
};

// Copies a tile of keys or values, panel by panel. Rows behind the end arrive as zeros and count as bytes.
template <int D>
__device__ __forceinline__ void copy_keys(bf16* to, const CUtensorMap* map, uint64_t* full, const Work& work) {
    mbar_arrive_expect_tx(full, KEYS * D * sizeof(bf16));
#pragma unroll
    for (int panel = 0; panel < D / PANEL; panel++) {
        tma_load_3d(to + panel * KEYS * PANEL, map, full, panel * PANEL, work.first_key(), work.joint);
    }
}

// One thread copies the keys and keeps the stages of queries full, another the values and those of upstream gradients.
template <int D>
__device__ __forceinline__ void produce_queries(Shared<D>& shared, const Maps& maps, const Work& work) {
    copy_keys<D>(shared.k, maps.k, &shared.k_full, work);
    const Statistics* statistics = at<const Statistics>(work.params.of.statistics) + work.place(0);
    for (int n = 0; n < work.steps(); n++, statistics++) {
        const int stage = stage_of(n);
        // A stage is free once all consumers left it; in the first round the other phase counts as completed.
        mbar_wait(&shared.q_empty[stage], phase_of(n) ^ 1);
        mbar_arrive_expect_tx(&shared.q_full[stage], QUERIES * D * sizeof(bf16) + sizeof(Statistics));
        const int joint = QueryTile(work.params, work.tile(n)).joint;
#pragma unroll
        for (int panel = 0; panel < D / PANEL; panel++) {
            bf16* to = shared.q[stage] + panel * QUERIES * PANEL;
            tma_load_3d(to, maps.q, &shared.q_full[stage], panel * PANEL, joint, work.joint);
        }
        bulk_load(&shared.statistics[stage], statistics, sizeof(Statistics), &shared.q_full[stage]);
    }
}

template <int D>
__device__ __forceinline__ void produce_upstream(Shared<D>& shared, const Maps& maps, const Work& work) {
    const int head = work.joint % work.params.of.heads;
    const int sample = work.joint / work.params.of.heads;
    copy_keys<D>(shared.v, maps.v, &shared.v_full, work);
    for (int n = 0; n < work.steps(); n++) {
        const int stage = stage_of(n);
        // As above.
        mbar_wait(&shared.d_out_empty[stage], phase_of(n) ^ 1);
        mbar_arrive_expect_tx(&shared.d_out_full[stage], QUERIES * D * sizeof(bf16));
        const QueryTile queries(work.params, work.tile(n));
        const CUtensorMap* map = queries.text ? maps.d_out_text : maps.d_out_image;
#pragma unroll
        for (int panel = 0; panel < D / PANEL; panel++) {
            bf16* to = shared.d_out[stage] + panel * QUERIES * PANEL;
            tma_load_4d(to, map, &shared.d_out_full[stage], panel * PANEL, queries.token, head, sample);
        }
    }
}

// One thread for each stage of dq adds it to the tile's sum. With two of them the wait for one sum to arrive is not in the
// way of the next.
template <int D>
__device__ __forceinline__ void add_dq(Shared<D>& shared, const Work& work, int stage) {
    constexpr int VALUES = QUERIES * D;
    const bool ordered = work.params.ordered;
    for (int n = stage; n < work.steps(); n += STAGES) {
        // The consumers have written this step's dq.
        mbar_wait(&shared.dq_full[stage], phase_of(n));
        float* sum = at<float>(work.params.dq_sums) + work.place(n) * VALUES;
        uint32_t* flag = at<uint32_t>(work.params.flags) + work.place(n);
        if (ordered) {
            // The sum holds what the blocks of all keys before these have added, and the copy engine finds it so.
            flag_wait(flag, work.key_block);
            fence_proxy_async_global();
        }
        if (ordered && work.key_block == 0) {
            bulk_store(sum, shared.dq[stage], VALUES * sizeof(float));
        } else {
            bulk_reduce_add_f32(sum, shared.dq[stage], VALUES * sizeof(float));
        }
        bulk_commit();
        // The stage has been read: the consumers may overwrite it, or the block end.
        bulk_wait_read<0>();
        mbar_arrive(&shared.dq_empty[stage]);
        if (ordered) {
            // The addition is complete, and the block of the next keys may follow.
            bulk_wait<0>();
            fence_proxy_async_global();
            flag_set(flag, work.key_block + 1);
        }
    }
}

// The 64 rows of keys or values that a warpgroup multiplies from the left in every step: at head_dim 64 in registers, which
// spares shared memory half of the reads for scores and dP; at 128 there is no room.
template <int D>
struct LeftRows {
    static constexpr bool IN_REGISTERS = D == 64;
    const bf16* rows;                                   // in panels [KEYS, 64]
    uint64_t descriptor;
    uint32_t words[IN_REGISTERS ? D / 16 : 1][4];

    __device__ explicit LeftRows(const bf16* rows) : rows(rows), descriptor(desc_sw128(rows, 16, 1024)) {}

    // The rows have arrived.
    __device__ __forceinline__ void load() {
        if constexpr (IN_REGISTERS) {
            const int row = threadIdx.x % WARPGROUP / 32 * STRIP_ROWS + lane_id() % 16;
#pragma unroll
            for (int d = 0; d < D; d += 16) ldmatrix_x4(words[d / 16], rows + swizzled<PANEL>(row, d / 8 + lane_id() / 16));
        }
    }

    // Queues scores = rows columns^T for a tile of QUERIES, both with D running along memory.
    __device__ __forceinline__ void queue(float (&scores)[QUERIES / 2], uint64_t columns) const {
        wgmma_fence();
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            const int panel = d / PANEL;
            const uint64_t right = desc_advance(columns, (panel * QUERIES * PANEL + d % PANEL) * sizeof(bf16));
            if constexpr (IN_REGISTERS) {
                wgmma_rs<0>(scores, words[d / 16], right, d > 0);
            } else {
                const uint64_t left = desc_advance(descriptor, (panel * KEYS * PANEL + d % PANEL) * sizeof(bf16));
                wgmma_ss<0, 0>(scores, left, right, d > 0);
            }
        }
        wgmma_commit();
    }
};

// Queues sums += strip rows for a tile of queries or upstream gradients, in which D runs along memory and the sum across it.
template <int D>
__device__ __forceinline__ void queue_sums(float (&sums)[D / 2], const uint32_t (&strip)[QUERIES / 4], uint64_t rows) {
    wgmma_fence();
#pragma unroll
    for (int query = 0; query < QUERIES; query += 16) {
        const uint32_t left[4] = {strip[query / 4], strip[query / 4 + 1], strip[query / 4 + 2], strip[query / 4 + 3]};
        wgmma_rs<1>(sums, left, desc_advance(rows, query * PANEL * sizeof(bf16)), true);
    }
    wgmma_commit();
}

// Queues a panel of dq = ds k: both operands' rows run across memory, queries along that of dS.
__device__ __forceinline__ void queue_dq(float (&dq)[PANEL / 2], uint64_t ds, uint64_t k_panel) {
    wgmma_fence();
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
        const uint64_t left = desc_advance(ds, key * QUERIES * sizeof(bf16));
        wgmma_ss<1, 1>(dq, left, desc_advance(k_panel, key * PANEL * sizeof(bf16)), key > 0);
    }
    wgmma_commit();
}

// This warp has arrived at a barrier: done with a stage, or with filling one.
__device__ __forceinline__ void arrive(uint64_t* barrier) {
    if (lane_id() == 0) mbar_arrive(barrier);
}

// The same after writes to shared memory that wgmma or the copy engine reads: every lane's are ordered before its arrival.
__device__ __forceinline__ void arrive_written(uint64_t* barrier) {
    fence_proxy_async();
    __syncwarp();
    arrive(barrier);
}

template <int D>
__device__ __forceinline__ void consume(Shared<D>& shared, const Work& work) {
    // Whether dV runs while dS is worked out. At head_dim 128 there are no registers for it.
    constexpr bool DV_BESIDE_DS = D == 64;
    const AttentionBackwardParams& params = work.params.of;
    // The same in all lanes, and the compiler knows it: only so may products depend on it.
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / WARPGROUP - 1, 0);
    const int warp = threadIdx.x % WARPGROUP / 32;
    const int group_row = group * GROUP_KEYS;               // of the block's keys
    const int strip_first = group_row + warp * STRIP_ROWS;
    const int dq_panel = D / PANEL == GROUPS ? group : 0;
    LeftRows<D> k(shared.k + group_row * PANEL), v(shared.v + group_row * PANEL);
    // Right operands of products over D, of products over queries, and both of those over keys.
    constexpr uint32_t TILE_BYTES = QUERIES * D * sizeof(bf16), PANEL_BYTES = QUERIES * PANEL * sizeof(bf16);
    constexpr uint32_t DS_BYTES = KEYS * QUERIES * sizeof(bf16);
    const uint64_t q_columns = desc_sw128(shared.q[0], 16, 1024);
    const uint64_t d_out_columns = desc_sw128(shared.d_out[0], 16, 1024);
    const uint64_t q_rows = desc_sw128(shared.q[0], PANEL_BYTES, 1024);
    const uint64_t d_out_rows = desc_sw128(shared.d_out[0], PANEL_BYTES, 1024);
    const uint64_t ds_tile = desc_sw128(shared.ds[0], 16, 1024);
    const uint64_t dq_k = desc_sw128(shared.k + dq_panel * KEYS * PANEL, 16, 1024);
    // Where the first of a thread's pairs of dS lies in its tile. By swizzled<QUERIES>, another chunk differs from it in bits
    // 4 to 6, by exclusive or, and the strip's other half is 8 rows further.
    const uint32_t ds_pair = (swizzled<QUERIES>(strip_first + strip_row(0), 0) + lane_id() % 4 * 2) * sizeof(bf16);
    const int steps = work.steps();
    const int left = (int)params.keys - work.first_key();   // keys of the block that exist
    const float scale = params.scale * LOG2_E;

    float dk[D / 2] = {}, dv[D / 2] = {};   // [64 keys, D] over the warpgroup
    float p[QUERIES / 2];                   // [64 keys, queries]: scores, then P^T
    float ds[QUERIES / 2];                  // [64 keys, queries]: dP^T, then dS^T
    uint32_t p_words[QUERIES / 4], ds_words[QUERIES / 4];   // in bf16
    float dq[PANEL / 2];                    // [queries, 64]

    // Hands the complete dQ of a step to the thread that adds it up.
    const auto store_dq_of = [&](int n) {
        if (!takes_dq<D>(n, group)) return;
        const int stage = stage_of(n);
        arrive(&shared.ds_empty[stage]);
        // The copy engine has read what was there before.
        mbar_wait(&shared.dq_empty[stage], phase_of(n) ^ 1);
        float4* to = reinterpret_cast<float4*>(shared.dq[stage] + dq_panel * QUERIES * PANEL) + threadIdx.x % WARPGROUP;
#pragma unroll
        for (int i = 0; i < SUM_VECTORS; i++) {
            to[i * WARPGROUP] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
        }
        arrive_written(&shared.dq_full[stage]);
    };

    mbar_wait(&shared.k_full, 0);
    mbar_wait(&shared.q_full[0], 0);
    k.load();
    k.queue(p, q_columns);
    mbar_wait(&shared.v_full, 0);
    v.load();
    wgmma_wait<0>();
    wgmma_done(p);
    for (int n = 0; n < steps; n++) {
        const int stage = stage_of(n);
        const Statistics& statistics = shared.statistics[stage];
        // Upstream gradients have arrived.
        mbar_wait(&shared.d_out_full[stage], phase_of(n));
        v.queue(ds, desc_advance(d_out_columns, stage * TILE_BYTES));
#pragma unroll
        for (int i = 0; i < QUERIES / 2; i += 4) {
            const float2 lse = *reinterpret_cast<const float2*>(&statistics.lse[strip_column(i)]);
            p[i] = ex2(fmaf(p[i], scale, -lse.x));
            p[i + 1] = ex2(fmaf(p[i + 1], scale, -lse.y));
            p[i + 2] = ex2(fmaf(p[i + 2], scale, -lse.x));
            p[i + 3] = ex2(fmaf(p[i + 3], scale, -lse.y));
        }
        pack_strip(p_words, p);
        queue_sums<D>(dv, p_words, desc_advance(d_out_rows, stage * TILE_BYTES));
        // dP is complete; dV may still run, or is complete.
        wgmma_wait<DV_BESIDE_DS>();
        wgmma_done(ds);
#pragma unroll
        for (int i = 0; i < QUERIES / 2; i += 4) {
            const float2 delta = *reinterpret_cast<const float2*>(&statistics.delta[strip_column(i)]);
            ds[i] = p[i] * (ds[i] - delta.x);
            ds[i + 1] = p[i + 1] * (ds[i + 1] - delta.y);
            ds[i + 2] = p[i + 2] * (ds[i + 2] - delta.x);
            ds[i + 3] = p[i + 3] * (ds[i + 3] - delta.y);
        }
        pack_strip(ds_words, ds);
        if (left < KEYS) {
            // Keys behind the end score 0, and P of that may overflow where lse is small: zero rows are no protection of dQ.
#pragma unroll
            for (int i = 0; i < QUERIES / 4; i++) {
                if (strip_first + strip_row(i % 2) >= left) ds_words[i] = 0;
            }
        }
        // All products with what was there before are complete.
        mbar_wait(&shared.ds_empty[stage], phase_of(n) ^ 1);
#pragma unroll
        for (int i = 0; i < QUERIES / 4; i++) {
            const uint32_t place = (ds_pair ^ i / 2 * 16) + i % 2 * 8 * QUERIES * sizeof(bf16);
            *reinterpret_cast<uint32_t*>(reinterpret_cast<uint8_t*>(shared.ds[stage]) + place) = ds_words[i];
        }
        arrive_written(&shared.ds_full[stage]);
        queue_sums<D>(dk, ds_words, desc_advance(q_rows, stage * TILE_BYTES));
        // dV is complete; dK may still run.
        wgmma_wait<1>();
        wgmma_done(dv);
        arrive(&shared.d_out_empty[stage]);
        // Both warpgroups have stored dS of the last step. The first has none before it, the last no queries behind it: what is
        // multiplied there in place of them goes nowhere, and no product needs a branch on n.
        if (n > 0) mbar_wait(&shared.ds_full[stage_of(n - 1)], phase_of(n - 1));
        if (takes_dq<D>(n + 1, group)) queue_dq(dq, desc_advance(ds_tile, stage_of(n + 1) * DS_BYTES), dq_k);
        // The next queries have arrived.
        if (n + 1 < steps) mbar_wait(&shared.q_full[stage_of(n + 1)], phase_of(n + 1));
        k.queue(p, desc_advance(q_columns, stage_of(n + 1) * TILE_BYTES));
        // dK and dQ are complete; the scores may still run.
        wgmma_wait<1>();
        wgmma_done(dk);
        wgmma_done(dq);
        arrive(&shared.q_empty[stage]);
        if (n > 0) store_dq_of(n - 1);
        // The scores are complete.
        wgmma_wait<0>();
        wgmma_done(p);
    }
    mbar_wait(&shared.ds_full[stage_of(steps - 1)], phase_of(steps - 1));
    queue_dq(dq, desc_advance(ds_tile, stage_of(steps - 1) * DS_BYTES), dq_k);
    // dQ is complete.
    wgmma_wait<0>();
    wgmma_done(dq);
    store_dq_of(steps - 1);

    // Keys and values make room for staging: the products of all consumers have read them.
    named_bar_sync(CONSUMER_BARRIER, GROUPS * WARPGROUP);
    scale_rows(dk, {params.scale, params.scale});
    const uint64_t head = (uint64_t)work.joint * params.keys * D;
    const auto row_of = [&](DevicePtr tensor) {
        return [=](int r) {
            const int row = strip_first + r;
            return row < left ? at<bf16>(tensor) + head + (uint64_t)(work.first_key() + row) * D : nullptr;
        };
    };
    store_strip<D, true>(shared.k + strip_first * D, dk, D, row_of(params.dk));
    store_strip<D, true>(shared.v + strip_first * D, dv, D, row_of(params.dv));
}

template <int D>
__device__ __forceinline__ void backward(const Maps& maps, const AttentionBackwardSm90Params& params) {
    constexpr int ROOM = D == 64 ? ATTENTION_BACKWARD_SM90_SHARED_D64 : ATTENTION_BACKWARD_SM90_SHARED_D128;
    constexpr int DQ_WARPS = D / PANEL * WARPGROUP / 32;    // that take part in a step's dQ
    static_assert(sizeof(Shared<D>) <= ROOM, "what the launcher asks for");
    DYNAMIC_SHARED(memory);
    Shared<D>& shared = *reinterpret_cast<Shared<D>*>(memory);
    if (threadIdx.x == 0) {
        shared.ticket = params.ordered ? atomicAdd(at<uint32_t>(params.ticket), 1u) : blockIdx.x;
        mbar_init(&shared.k_full, 1);
        mbar_init(&shared.v_full, 1);
        for (int stage = 0; stage < STAGES; stage++) {
            mbar_init(&shared.q_full[stage], 1);
            mbar_init(&shared.q_empty[stage], CONSUMER_WARPS);
            mbar_init(&shared.d_out_full[stage], 1);
            mbar_init(&shared.d_out_empty[stage], CONSUMER_WARPS);
            mbar_init(&shared.ds_full[stage], CONSUMER_WARPS);
            mbar_init(&shared.ds_empty[stage], DQ_WARPS);
            mbar_init(&shared.dq_full[stage], DQ_WARPS);
            mbar_init(&shared.dq_empty[stage], 1);
        }
        mbar_init_fence();
    }
    // The barriers are set up, and the ticket is there, before anyone uses them.
    __syncthreads();
    const uint32_t heads = params.of.batch * params.of.heads;
    const Work work{params, (int)(shared.ticket / heads), (int)(shared.ticket % heads)};
    const int warp = threadIdx.x / 32;
    if (warp < WARPGROUP / 32) {
        reg_dealloc<PRODUCER_REGISTERS>();
        if (warp == 0 && elect_one()) produce_queries<D>(shared, maps, work);
        if (warp == 1 && elect_one()) produce_upstream<D>(shared, maps, work);
        if (warp >= 2 && elect_one()) add_dq<D>(shared, work, warp - 2);
    } else {
        reg_alloc<CONSUMER_REGISTERS>();
        consume<D>(shared, work);
    }
}

#define BACKWARD_BODY(D) backward<D>({&q_map, &k_map, &v_map, &d_out_image_map, &d_out_text_map}, params)
#else
#define BACKWARD_BODY(D)
#endif

}  // namespace

// ---- entry points ---------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_backward_sm90_prepare(AttentionBackwardSm90Params params) {
    prepare(params);
}
LADD_KERNEL(attention_backward_sm90_prepare)

extern "C" __global__ void __launch_bounds__(ATTENTION_BACKWARD_SM90_FINISH_THREADS)
    attention_backward_sm90_finish(AttentionBackwardSm90Params params) {
    finish(params);
}
LADD_KERNEL(attention_backward_sm90_finish)

#define ATTENTION_BACKWARD(D)                                                                                         \
    extern "C" __global__ void __launch_bounds__(ATTENTION_BACKWARD_SM90_THREADS, 1) attention_backward_sm90_d##D(    \
        const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,                         \
        const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap d_out_image_map,               \
        const __grid_constant__ CUtensorMap d_out_text_map,                                                           \
        const __grid_constant__ AttentionBackwardSm90Params params) {                                                 \
        BACKWARD_BODY(D);                                                                                             \
    }                                                                                                                 \
    LADD_KERNEL(attention_backward_sm90_d##D)

ATTENTION_BACKWARD(64)
ATTENTION_BACKWARD(128)
