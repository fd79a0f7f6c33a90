// Joint attention for Hopper, forward: out = softmax(q k^T / sqrt(D)) v and the row sums' logarithm, head_dim 64 and 128.
//
// Reads q, k, v through tensor maps {D, tokens, B H}, overwrites out_image, out_text and lse. 4 S^2 D FLOPs and S^2
// exponentials a head, bound by the tensor cores and, at head_dim 64, as much by the exponentials; 8 S D bytes a head, keys
// and values again from L2 for each block of queries. Called by src/device/cuda/ops/attention.rs; attention.cu holds the
// portable form, which this one equals but for the order of its sums.
//
// A block takes 128 queries of one head. The producer warp copies tiles of keys and values into two rings; two consumer
// warpgroups take 64 queries each and keep scores, probabilities and results in registers. The scores of the next tile are
// queued before the product with the values of this one, so that tensor cores work during the softmax.
#include "include/attention.cuh"

// Other architectures have neither TMA nor wgmma; there the kernels are empty and never launched.
#if defined(LADD_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int WARPGROUP = 128;
constexpr int QUERIES = ATTENTION_SM90_QUERIES;
constexpr int GROUP_QUERIES = ATTENTION_SM90_GROUP_QUERIES;     // rows of one wgmma
constexpr int PANEL = 64;               // columns of one swizzle row of 128 bytes: a tile is D / 64 panels [rows, 64]
constexpr int GROUPS = QUERIES / GROUP_QUERIES;
constexpr int CONSUMER_WARPS = GROUPS * WARPGROUP / 32;
constexpr int PRODUCER_REGISTERS = 24;
constexpr int CONSUMER_REGISTERS = 240; // 128 * 24 + 256 * 240 of 65536
constexpr int CONSUMER_BARRIER = 1;     // named barriers 1 and 2, one per consumer warpgroup; 0 is __syncthreads

// Tiles by head width. 128 queries: S = 1178 with 24 heads makes 240 blocks, which fill two rounds of 132 multiprocessors to
// 91 %; 192 queries would fill them to 64 %. 128 keys: with fewer, each product reads the queries from shared memory more
// often; 176 fit the registers too, and are for a GPU to judge. As many stages as fit 227 KB beside the queries, at most 3.
struct Tiles {
    int keys;
    int stages;
    int shared;
};
__host__ __device__ constexpr Tiles forward_tiles(int head_dim) {
    return head_dim == 64 ? Tiles{ATTENTION_SM90_KEYS, ATTENTION_SM90_STAGES_D64, ATTENTION_SM90_SHARED_D64}
                          : Tiles{ATTENTION_SM90_KEYS, ATTENTION_SM90_STAGES_D128, ATTENTION_SM90_SHARED_D128};
}

template <int D>
struct Shared {
    static constexpr Tiles TILES = forward_tiles(D);
    bf16 q[GROUPS][GROUP_QUERIES * D];
    bf16 k[TILES.stages][TILES.keys * D];
    bf16 v[TILES.stages][TILES.keys * D];
    uint64_t q_full[GROUPS];
    uint64_t k_full[TILES.stages];
    uint64_t k_empty[TILES.stages];
    uint64_t v_full[TILES.stages];
    uint64_t v_empty[TILES.stages];
};

// Where a walk through a ring of stages stands. The phase flips with each round.
template <int STAGES>
struct Cursor {
    int stage = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// Copies rows [first, first + ROWS) of one head, panel by panel; rows behind the end arrive as zeros and count as bytes.
template <int ROWS, int D>
__device__ __forceinline__ void copy_tile(bf16* to, const CUtensorMap* map, uint64_t* full, int first, int head) {
    mbar_arrive_expect_tx(full, ROWS * D * sizeof(bf16));
#pragma unroll
    for (int panel = 0; panel < D / PANEL; panel++) {
        tma_load_3d(to + panel * ROWS * PANEL, map, full, panel * PANEL, first, head);
    }
}

// One thread keeps the rings full.
template <int D>
__device__ __forceinline__ void produce(Shared<D>& shared, const CUtensorMap* q_map, const CUtensorMap* k_map,
                                        const CUtensorMap* v_map, int tiles, int first_query, int head) {
    constexpr Tiles TILES = forward_tiles(D);
    for (int group = 0; group < GROUPS; group++) {
        copy_tile<GROUP_QUERIES, D>(shared.q[group], q_map, &shared.q_full[group], first_query + group * GROUP_QUERIES, head);
    }
    Cursor<TILES.stages> at;
    for (int tile = 0; tile < tiles; tile++, at.advance()) {
        // A stage is free once all consumers left it; in the first round the other phase counts as completed.
        mbar_wait(&shared.k_empty[at.stage], at.phase ^ 1);
        copy_tile<TILES.keys, D>(shared.k[at.stage], k_map, &shared.k_full[at.stage], tile * TILES.keys, head);
        mbar_wait(&shared.v_empty[at.stage], at.phase ^ 1);
        copy_tile<TILES.keys, D>(shared.v[at.stage], v_map, &shared.v_full[at.stage], tile * TILES.keys, head);
    }
}

// Queues scores = q k^T for 64 queries and a tile of keys, both with D running along memory.
template <int D, int N>
__device__ __forceinline__ void queue_scores(float (&scores)[N], const bf16* q, const bf16* k) {
    constexpr int KEYS = 2 * N;
    wgmma_fence();
#pragma unroll
    for (int column = 0; column < D; column += 16) {
        const int panel = column / PANEL;
        const uint64_t left = desc_sw128(q + panel * GROUP_QUERIES * PANEL + column % PANEL, 16, 1024);
        const uint64_t right = desc_sw128(k + panel * KEYS * PANEL + column % PANEL, 16, 1024);
        wgmma_ss<0, 0>(scores, left, right, column > 0);
    }
    wgmma_commit();
}

// Queues out += p v for a tile of values, in which D runs along memory and the sum across it.
template <int D, int WORDS>
__device__ __forceinline__ void queue_output(float (&out)[D / 2], const uint32_t (&p)[WORDS], const bf16* v) {
    constexpr int KEYS = 4 * WORDS;
    wgmma_fence();
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
        const uint32_t left[4] = {p[key / 4], p[key / 4 + 1], p[key / 4 + 2], p[key / 4 + 3]};
        const uint64_t right = desc_sw128(v + key * PANEL, KEYS * PANEL * sizeof(bf16), 1024);
        wgmma_rs<1>(out, left, right, true);
    }
    wgmma_commit();
}

// This warp is done with a stage.
__device__ __forceinline__ void release(uint64_t* empty) {
    if (lane_id() == 0) mbar_arrive(empty);
}

template <int D>
__device__ __forceinline__ void consume(Shared<D>& shared, const AttentionParams& params, int tiles, int first_query,
                                        int head) {
    constexpr Tiles TILES = forward_tiles(D);
    const int group = threadIdx.x / WARPGROUP - 1;
    const int warp = threadIdx.x % WARPGROUP / 32;
    bf16* q = shared.q[group];              // [64, D]
    const int keys = params.keys;

    float out[D / 2] = {};                  // [64, D] over the warpgroup
    float scores[TILES.keys / 2];           // [64, keys]
    uint32_t p[TILES.keys / 4];             // [64, keys] in bf16
    float rescale[2];
    OnlineSoftmax softmax;
    const float scale = params.scale * LOG2_E;
    Cursor<TILES.stages> k_at, v_at;

    mbar_wait(&shared.q_full[group], 0);
    mbar_wait(&shared.k_full[0], 0);
    queue_scores<D>(scores, q, shared.k[0]);
    wgmma_wait<0>();
    wgmma_done(scores);
    release(&shared.k_empty[0]);
    k_at.advance();
    if (keys < TILES.keys) mask_columns(scores, keys, -INFINITY);
    softmax.update(scores, scale, rescale);
    pack_strip(p, scores);

    if (tiles > 1) mbar_wait(&shared.k_full[k_at.stage], k_at.phase);
    for (int tile = 1; tile < tiles; tile++) {
        queue_scores<D>(scores, q, shared.k[k_at.stage]);
        mbar_wait(&shared.v_full[v_at.stage], v_at.phase);
        queue_output<D>(out, p, shared.v[v_at.stage]);

        // The scores are complete, the product with the values may still run.
        wgmma_wait<1>();
        wgmma_done(scores);
        release(&shared.k_empty[k_at.stage]);
        k_at.advance();
        const int left = keys - tile * TILES.keys;
        if (left < TILES.keys) mask_columns(scores, left, -INFINITY);
        softmax.update(scores, scale, rescale);

        // The next keys are awaited here and not where they are used: within one basic block ptxas moves the wait below up
        // before the exponentials, and then nothing overlaps. The loop of this wait separates them.
        if (tile + 1 < tiles) mbar_wait(&shared.k_full[k_at.stage], k_at.phase);

        // Both are complete: results may be rescaled, probabilities replaced.
        wgmma_wait<0>();
        wgmma_done(out);
        release(&shared.v_empty[v_at.stage]);
        v_at.advance();
        scale_rows(out, rescale);
        pack_strip(p, scores);
    }

    mbar_wait(&shared.v_full[v_at.stage], v_at.phase);
    queue_output<D>(out, p, shared.v[v_at.stage]);
    softmax.finish();
    wgmma_wait<0>();
    wgmma_done(out);

    const float inverse[2] = {1.0f / softmax.sum[0], 1.0f / softmax.sum[1]};
    scale_rows(out, inverse);
    const int first_row = first_query + group * GROUP_QUERIES + warp * STRIP_ROWS;
    const int queries = params.queries;
    float* lse = at<float>(params.lse) + (uint64_t)head * keys;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first_row + strip_row(half);
        if (lane_id() % 4 == 0 && row < queries) lse[row] = softmax.lse(half, scale);
    }
    // The queries' place serves as staging: the products of all four warps have read them before any warp overwrites them.
    named_bar_sync(CONSUMER_BARRIER + group, WARPGROUP);
    const uint32_t sample = head / params.heads;
    const StreamRows<bf16> outs(params.out_image, params.out_text, params.image, keys, params.heads, D, sample,
                                head % params.heads);
    const SplitRows<bf16> rows{outs, (uint32_t)first_row, params.queries};
    store_strip<D, true>(q + warp * STRIP_ROWS * D, out, D, rows);
}

template <int D>
__device__ __forceinline__ void attention(const CUtensorMap* q_map, const CUtensorMap* k_map, const CUtensorMap* v_map,
                                          const AttentionParams& params) {
    constexpr Tiles TILES = forward_tiles(D);
    static_assert(sizeof(Shared<D>) <= TILES.shared, "what the launcher asks for");
    DYNAMIC_SHARED(memory);
    Shared<D>& shared = *reinterpret_cast<Shared<D>*>(memory);
    const int tiles = (params.keys + TILES.keys - 1) / TILES.keys;
    const int first_query = blockIdx.x * QUERIES;
    const int head = blockIdx.z * params.heads + blockIdx.y;    // of B H
    if (threadIdx.x == 0) {
        for (int group = 0; group < GROUPS; group++) mbar_init(&shared.q_full[group], 1);
        for (int stage = 0; stage < TILES.stages; stage++) {
            mbar_init(&shared.k_full[stage], 1);
            mbar_init(&shared.v_full[stage], 1);
            mbar_init(&shared.k_empty[stage], CONSUMER_WARPS);
            mbar_init(&shared.v_empty[stage], CONSUMER_WARPS);
        }
        mbar_init_fence();
    }
    // The barriers are set up before anyone uses them.
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        reg_dealloc<PRODUCER_REGISTERS>();
        if (threadIdx.x / 32 == 0 && elect_one()) produce<D>(shared, q_map, k_map, v_map, tiles, first_query, head);
    } else {
        reg_alloc<CONSUMER_REGISTERS>();
        consume<D>(shared, params, tiles, first_query, head);
    }
}

#define ATTENTION_BODY(D) attention<D>(&q_map, &k_map, &v_map, params)
#else
#define ATTENTION_BODY(D)
#endif

#define ATTENTION(D)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(ATTENTION_SM90_THREADS, 1) attention_sm90_d##D(                      \
        const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,                         \
        const __grid_constant__ CUtensorMap v_map, const __grid_constant__ AttentionParams params) {                  \
        ATTENTION_BODY(D);                                                                                            \
    }                                                                                                                 \
    LADD_KERNEL(attention_sm90_d##D)

ATTENTION(64)
ATTENTION(128)
