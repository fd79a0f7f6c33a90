// Joint attention for Hopper, forward: out = softmax(q k^T / sqrt(D)) v and the row sums' logarithm, head_dim 64 and 128.
//
// Reads q, k, v through tensor maps {D, tokens, B H}, overwrites out_image, out_text and lse. Called by
// src/device/cuda/ops/attention.rs, which takes the variant that src/device/cuda/policy.rs names; attention.cu holds the
// portable form, which these equal but for the order of their sums and, where asked for, a polynomial for some exponentials.
//
// A block has a producer warp, which copies tiles of keys and values into two rings, and two or three consumer warpgroups,
// which take 64 queries each and keep scores, probabilities and results in registers. The scores of the next tile are
// queued before the product with the values of this one. With turns ("ping-pong") the warpgroups queue their products one
// after the other, so that one's exponentials run under the others' products; without, each goes as it comes.
//
// A block works through a list of tiles of queries; while it finishes one, the operands of the next are copied. Tiles that
// do not make a full round of the device may be cut along the keys into equal shares: their parts go to scratch memory, and
// `attention_combine` adds them up in the order of the keys. No atomics: the bits do not depend on the schedule.
//
// Floors
//   attention_sm90      of a score, per multiprocessor and cycle: 4 D FLOPs of 4096 (D = 64: 1/16 cycle, D = 128: 1/8), one
//                       exponential of 16 (1/16; an eighth done by polynomial takes an eighth off that and adds one instruction to
//                       the six that a score takes, of 128 a cycle), shared memory 128 bytes: D / 16 + 2 D / keys read by products,
//                       4 D / queries written by copies, the same from L2. So at D = 64 tensor cores and exponentials bind alike,
//                       at D = 128 the tensor cores; 8 S D bytes a head of memory are nothing beside. Gap: not measured.
//   attention_combine   of a query of a cut tile: 4 D + 32 bytes and 8 exponentials a part, from L2, and 2 D + 4 bytes: L2
#include "include/attention.cuh"

// Other architectures have neither TMA nor wgmma; there the kernels are empty and never launched.
#if defined(LADD_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int WARPGROUP = 128;
constexpr int GROUP_QUERIES = ATTENTION_SM90_GROUP_QUERIES;     // rows of one wgmma
constexpr int PANEL = 64;               // columns of one swizzle row of 128 bytes: a tile is D / 64 panels [rows, 64]
constexpr int TURN_BARRIER = 1;         // named barriers 1.., one per consumer warpgroup: its turn; 0 is __syncthreads

// What a kernel is compiled for. POLYNOMIAL eighths of the exponentials avoid the special-function unit.
template <int D_, int GROUPS_, int KEYS_, int STAGES_, bool TURNS_, int POLYNOMIAL_>
struct Variant {
    static constexpr int D = D_;
    static constexpr int GROUPS = GROUPS_;
    static constexpr int KEYS = KEYS_;
    static constexpr int STAGES = STAGES_;
    static constexpr bool TURNS = TURNS_;
    static constexpr int POLYNOMIAL = POLYNOMIAL_;
    static constexpr int QUERIES = GROUPS * GROUP_QUERIES;
    static constexpr int THREADS = (1 + GROUPS) * WARPGROUP;
    // As many as the launch takes, 384 * 168 or 512 * 128: 128 * 40 + 256 * 232 or 128 * 32 + 384 * 160.
    static constexpr int PRODUCER_REGISTERS = GROUPS == 2 ? 40 : 32;
    static constexpr int CONSUMER_REGISTERS = GROUPS == 2 ? 232 : 160;
    static constexpr int SHARED = 2 * D * (2 * QUERIES + 2 * STAGES * KEYS) + ATTENTION_SM90_BARRIERS;
};

template <class V>
struct Shared {
    bf16 q[V::GROUPS][GROUP_QUERIES * V::D];
    bf16 k[V::STAGES][V::KEYS * V::D];
    bf16 v[V::STAGES][V::KEYS * V::D];
    bf16 staging[V::GROUPS][GROUP_QUERIES * V::D];  // results on their way out; the next queries fill q's place meanwhile
    uint64_t q_full[V::GROUPS];
    uint64_t q_empty[V::GROUPS];
    uint64_t k_full[V::STAGES];
    uint64_t k_empty[V::STAGES];
    uint64_t v_full[V::STAGES];
    uint64_t v_empty[V::STAGES];
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

// A tile of queries against tiles of keys [first, last).
struct Piece {
    uint32_t tile;
    int first;
    int last;
};

// The pieces of this block, in order; producer and consumers walk through the same list.
struct Pieces {
    const AttentionSm90Params& params;
    uint32_t tile;      // next whole one
    uint32_t at, end;   // of the cut ones, counted in tiles of keys

    __device__ __forceinline__ explicit Pieces(const AttentionSm90Params& params) : params(params), tile(blockIdx.x) {
        const uint64_t steps = (uint64_t)(params.tiles - params.whole) * params.key_tiles;
        at = (uint32_t)(blockIdx.x * steps / params.blocks);
        end = (uint32_t)((blockIdx.x + 1) * steps / params.blocks);
    }

    __device__ __forceinline__ bool next(Piece& piece) {
        if (tile < params.whole) {
            piece = {tile, 0, (int)params.key_tiles};
            tile += params.blocks;
            return true;
        }
        if (at == end) return false;
        const uint32_t first = at % params.key_tiles;
        const uint32_t steps = min(params.key_tiles - first, end - at);
        piece = {params.whole + at / params.key_tiles, (int)first, (int)(first + steps)};
        at += steps;
        return true;
    }
};

// ---- producer -----------------------------------------------------------------------------------------------------

// Copies rows [first, first + ROWS) of one head, panel by panel; rows behind the end arrive as zeros and count as bytes.
template <int ROWS, int D>
__device__ __forceinline__ void copy_tile(bf16* to, const CUtensorMap* map, uint64_t* full, int first, int head) {
    mbar_arrive_expect_tx(full, ROWS * D * sizeof(bf16));
#pragma unroll
    for (int panel = 0; panel < D / PANEL; panel++) {
        tma_load_3d(to + panel * ROWS * PANEL, map, full, panel * PANEL, first, head);
    }
}

// One thread keeps the rings full. The last keys come first: only there may some be missing, and the loop over the others
// masks nothing.
template <class V>
__device__ __forceinline__ void produce(Shared<V>& shared, const CUtensorMap* q_map, const CUtensorMap* k_map,
                                        const CUtensorMap* v_map, const AttentionSm90Params& params) {
    Cursor<V::STAGES> at;
    uint32_t q_phase = 0;
    Pieces pieces(params);
    for (Piece piece; pieces.next(piece); q_phase ^= 1) {
        const int head = piece.tile / params.query_tiles;   // of B H
        const int first_query = piece.tile % params.query_tiles * V::QUERIES;
        for (int tile = piece.last - 1; tile >= piece.first; tile--, at.advance()) {
            // A stage is free once all consumers left it; in the first round the other phase counts as completed.
            mbar_wait(&shared.k_empty[at.stage], at.phase ^ 1);
            copy_tile<V::KEYS, V::D>(shared.k[at.stage], k_map, &shared.k_full[at.stage], tile * V::KEYS, head);
            for (int group = 0; tile == piece.last - 1 && group < V::GROUPS; group++) {
                // The group's last scores of the tile before are complete.
                mbar_wait(&shared.q_empty[group], q_phase ^ 1);
                const int first = first_query + group * GROUP_QUERIES;
                copy_tile<GROUP_QUERIES, V::D>(shared.q[group], q_map, &shared.q_full[group], first, head);
            }
            // As for the keys.
            mbar_wait(&shared.v_empty[at.stage], at.phase ^ 1);
            copy_tile<V::KEYS, V::D>(shared.v[at.stage], v_map, &shared.v_full[at.stage], tile * V::KEYS, head);
        }
    }
}

// ---- products -----------------------------------------------------------------------------------------------------

// Queues scores = q k^T for 64 queries and a tile of keys, both with D running along memory.
template <int D, int N>
__device__ __forceinline__ void queue_scores(float (&scores)[N], uint64_t q, uint64_t k) {
    constexpr int KEYS = 2 * N;
    wgmma_fence();
#pragma unroll
    for (int column = 0; column < D; column += 16) {
        const int panel = column / PANEL;
        const uint64_t left = desc_advance(q, (panel * GROUP_QUERIES * PANEL + column % PANEL) * sizeof(bf16));
        const uint64_t right = desc_advance(k, (panel * KEYS * PANEL + column % PANEL) * sizeof(bf16));
        wgmma_ss<0, 0>(scores, left, right, column > 0);
    }
    wgmma_commit();
}

// Queues out += p v for a tile of values, in which D runs along memory and the sum across it.
template <int D, int WORDS>
__device__ __forceinline__ void queue_output(float (&out)[D / 2], const uint32_t (&p)[WORDS], uint64_t v) {
    constexpr int KEYS = 4 * WORDS;
    wgmma_fence();
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
        const uint32_t left[4] = {p[key / 4], p[key / 4 + 1], p[key / 4 + 2], p[key / 4 + 3]};
        wgmma_rs<1>(out, left, desc_advance(v, key * PANEL * sizeof(bf16)), true);
    }
    wgmma_commit();
}

// ---- results ------------------------------------------------------------------------------------------------------

// Divides the results of a warp's 16 queries, from `row` on, by their sums, and stores them and their lse.
template <int D>
__device__ __forceinline__ void store_results(bf16* staging, float (&out)[D / 2], const OnlineSoftmax& softmax,
                                              const AttentionSm90Params& params, uint32_t head, uint32_t row) {
    const float inverse[2] = {1.0f / softmax.sum[0], 1.0f / softmax.sum[1]};
    scale_rows(out, inverse);
    float* lse = at<float>(params.lse) + (uint64_t)head * params.keys;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t at = row + strip_row(half);
        if (lane_id() % 4 == 0 && at < params.queries) lse[at] = softmax.lse(half, params.scale * LOG2_E);
    }
    const StreamRows<bf16> streams(params.out_image, params.out_text, params.image, params.keys, params.heads, D,
                                   head / params.heads, head % params.heads);
    store_strip<D, true>(staging, out, D, SplitRows<bf16>{streams, row, params.queries});
}

// A thread's place for part of the results of a warpgroup: D / 8 float4 of results, one of maximum and sum, 128 apart.
template <int D>
__device__ __forceinline__ float4* part_of(const AttentionSm90Params& params, uint32_t place, int group, int groups) {
    return at<float4>(params.parts) + ((uint64_t)place * groups + group) * (D / 8 + 1) * WARPGROUP + threadIdx.x % WARPGROUP;
}

template <int D>
__device__ __forceinline__ void store_part(float4* part, const float (&out)[D / 2], const OnlineSoftmax& softmax) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) part[i * WARPGROUP] = {out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3]};
    part[D / 8 * WARPGROUP] = {softmax.maximum[0], softmax.maximum[1], softmax.sum[0], softmax.sum[1]};
}

// ---- consumers ----------------------------------------------------------------------------------------------------

// This warp is done with a stage.
__device__ __forceinline__ void release(uint64_t* empty) {
    if (lane_id() == 0) mbar_arrive(empty);
}

// The consumers' order: a group queues its products when the group before it has queued its own.
template <class V>
struct Turn {
    int group;

    __device__ __forceinline__ void await() const {
        if constexpr (V::TURNS) named_bar_sync(TURN_BARRIER + group, 2 * WARPGROUP);
    }
    __device__ __forceinline__ void pass() const {
        if constexpr (V::TURNS) named_bar_arrive(TURN_BARRIER + (group + 1) % V::GROUPS, 2 * WARPGROUP);
    }
};

template <class V>
__device__ __forceinline__ void consume(Shared<V>& shared, const AttentionSm90Params& params) {
    constexpr int D = V::D;
    // From one lane, so that the compiler knows it is the same in all.
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / WARPGROUP, 0) - 1;
    const int warp = threadIdx.x % WARPGROUP / 32;
    // Descriptors of the queries and of the rings' first stages.
    constexpr uint32_t TILE_BYTES = V::KEYS * D * sizeof(bf16);
    const uint64_t q = desc_sw128(shared.q[group], 16, 1024);
    const uint64_t k = desc_sw128(shared.k[0], 16, 1024);
    const uint64_t v = desc_sw128(shared.v[0], V::KEYS * PANEL * sizeof(bf16), 1024);
    const float scale = params.scale * LOG2_E;
    // Of each thread, not from one lane: as a uniform value it would cost descriptors their uniform registers.
    const Turn<V> turn{(int)threadIdx.x / WARPGROUP - 1};

    float out[D / 2] = {};                  // [64, D] over the warpgroup
    float scores[V::KEYS / 2];              // [64, keys]
    uint32_t p[V::KEYS / 4];                // [64, keys] in bf16
    float rescale[2];
    OnlineSoftmax softmax;
    Cursor<V::STAGES> k_at, v_at;
    const auto keys_arrive = [&] { mbar_wait(&shared.k_full[k_at.stage], k_at.phase); };
    // The scores are complete, and read the queries last if the piece has no other keys.
    const auto scores_done = [&](bool last) {
        wgmma_done(scores);
        release(&shared.k_empty[k_at.stage]);
        k_at.advance();
        if (last) release(&shared.q_empty[group]);
    };
    const auto output_done = [&] {
        wgmma_done(out);
        release(&shared.v_empty[v_at.stage]);
        v_at.advance();
    };
    const auto mask = [&](const Piece& piece) {
        const int left = (int)params.keys - (piece.last - 1) * V::KEYS;
        if (left < V::KEYS) mask_columns(scores, left, -INFINITY);
    };
    const auto store = [&](const Piece& piece, OnlineSoftmax& of) {
        of.finish();
        if (piece.last - piece.first == (int)params.key_tiles) {
            const uint32_t row = piece.tile % params.query_tiles * V::QUERIES + group * GROUP_QUERIES + warp * STRIP_ROWS;
            bf16* staging = shared.staging[group] + warp * STRIP_ROWS * D;
            store_results<D>(staging, out, of, params, piece.tile / params.query_tiles, row);
        } else {
            store_part<D>(part_of<D>(params, 2 * blockIdx.x + (piece.first == 0), group, V::GROUPS), out, of);
        }
    };

    Pieces pieces(params);
    Piece piece;
    if (!pieces.next(piece)) return;
    // The first turn is group 0's.
    if (group == V::GROUPS - 1) turn.pass();

    // The first queries have arrived.
    mbar_wait(&shared.q_full[group], 0);
    keys_arrive();
    turn.await();
    queue_scores<D>(scores, q, desc_advance(k, k_at.stage * TILE_BYTES));
    turn.pass();
    // The scores are complete.
    wgmma_wait<0>();
    scores_done(piece.last - piece.first == 1);
    mask(piece);
    softmax.update<V::POLYNOMIAL>(scores, scale, rescale);
    pack_strip(p, scores);
    // The next keys have arrived, here and below: the loop begins behind this wait.
    if (piece.last - piece.first > 1) keys_arrive();

    for (uint32_t q_phase = 1;; q_phase ^= 1) {
        for (int tile = piece.last - 2; tile >= piece.first; tile--) {
            // The values of the tile before have arrived; the keys have, which came after them.
            mbar_wait(&shared.v_full[v_at.stage], v_at.phase);
            turn.await();
            queue_scores<D>(scores, q, desc_advance(k, k_at.stage * TILE_BYTES));
            queue_output<D>(out, p, desc_advance(v, v_at.stage * TILE_BYTES));
            turn.pass();

            // The scores are complete, the product with the values may still run.
            wgmma_wait<1>();
            scores_done(tile == piece.first);
            softmax.update<V::POLYNOMIAL>(scores, scale, rescale);

            // The next keys are awaited here and not where they are used: within one basic block ptxas moves the wait below
            // up before the exponentials, and then nothing overlaps. The loop of this wait separates them.
            if (tile > piece.first) keys_arrive();

            // Both are complete: results may be rescaled, probabilities replaced.
            wgmma_wait<0>();
            output_done();
            scale_rows(out, rescale);
            pack_strip(p, scores);
        }
        Piece next;
        if (!pieces.next(next)) break;

        // The same between two pieces: the last values of one beside the first scores of the other, whose queries have
        // arrived.
        mbar_wait(&shared.q_full[group], q_phase);
        keys_arrive();
        mbar_wait(&shared.v_full[v_at.stage], v_at.phase);
        turn.await();
        queue_scores<D>(scores, q, desc_advance(k, k_at.stage * TILE_BYTES));
        queue_output<D>(out, p, desc_advance(v, v_at.stage * TILE_BYTES));
        turn.pass();
        // The scores are complete, the product with the values may still run.
        wgmma_wait<1>();
        scores_done(next.last - next.first == 1);
        mask(next);
        OnlineSoftmax finished = softmax;
        softmax = {};
        softmax.update<V::POLYNOMIAL>(scores, scale, rescale);
        if (next.last - next.first > 1) keys_arrive();
        // Both are complete.
        wgmma_wait<0>();
        output_done();
        pack_strip(p, scores);
        store(piece, finished);
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
        piece = next;
    }

    // The last values have arrived.
    mbar_wait(&shared.v_full[v_at.stage], v_at.phase);
    queue_output<D>(out, p, desc_advance(v, v_at.stage * TILE_BYTES));
    // The results are complete.
    wgmma_wait<0>();
    output_done();
    store(piece, softmax);
    // The turn behind the last: no barrier is left with half its threads.
    if (group == 0) turn.await();
}

template <class V>
__device__ __forceinline__ void attention(const CUtensorMap* q_map, const CUtensorMap* k_map, const CUtensorMap* v_map,
                                          const AttentionSm90Params& params) {
    static_assert(sizeof(Shared<V>) <= V::SHARED, "what the launcher asks for");
    DYNAMIC_SHARED(memory);
    Shared<V>& shared = *reinterpret_cast<Shared<V>*>(memory);
    if (threadIdx.x == 0) {
        tma_prefetch(q_map);
        tma_prefetch(k_map);
        tma_prefetch(v_map);
        for (int group = 0; group < V::GROUPS; group++) {
            mbar_init(&shared.q_full[group], 1);
            mbar_init(&shared.q_empty[group], WARPGROUP / 32);
        }
        for (int stage = 0; stage < V::STAGES; stage++) {
            mbar_init(&shared.k_full[stage], 1);
            mbar_init(&shared.v_full[stage], 1);
            mbar_init(&shared.k_empty[stage], V::GROUPS * WARPGROUP / 32);
            mbar_init(&shared.v_empty[stage], V::GROUPS * WARPGROUP / 32);
        }
        mbar_init_fence();
    }
    // The barriers are set up before anyone uses them.
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        reg_dealloc<V::PRODUCER_REGISTERS>();
        if (threadIdx.x / 32 == 0 && elect_one()) produce<V>(shared, q_map, k_map, v_map, params);
    } else {
        reg_alloc<V::CONSUMER_REGISTERS>();
        consume<V>(shared, params);
    }
}

// Adds up the parts of one warpgroup's queries, in the order of the keys. Blocks: cut tiles x groups, of 128 threads, which
// hold what a consumer's threads held.
template <int D>
__device__ __forceinline__ void combine(const AttentionSm90Params& params) {
    DYNAMIC_SHARED(memory);
    const int group = blockIdx.y;
    const int groups = gridDim.y;
    const uint64_t steps = (uint64_t)(params.tiles - params.whole) * params.key_tiles;
    const uint64_t first_step = (uint64_t)blockIdx.x * params.key_tiles;
    // The last block that begins at a step or before it.
    const auto block_of = [&](uint64_t step) { return (uint32_t)(((step + 1) * params.blocks - 1) / steps); };
    const uint32_t first = block_of(first_step);
    const uint32_t last = block_of(first_step + params.key_tiles - 1);
    // One block did the tile alone and stored its results.
    if (first == last) return;

    const float scale = params.scale * LOG2_E;
    float out[D / 2] = {};
    OnlineSoftmax softmax;
    for (uint32_t block = first; block <= last; block++) {
        const float4* part = part_of<D>(params, 2 * block + (block == first), group, groups);
        const float4 statistics = part[D / 8 * WARPGROUP];
        const float maximum[2] = {statistics.x, statistics.y};
        const float sum[2] = {statistics.z, statistics.w};
        float old_weight[2], weight[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float now = fmaxf(softmax.maximum[half], maximum[half]);
            old_weight[half] = ex2((softmax.maximum[half] - now) * scale);
            weight[half] = ex2((maximum[half] - now) * scale);
            softmax.maximum[half] = now;
            softmax.sum[half] = softmax.sum[half] * old_weight[half] + sum[half] * weight[half];
        }
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const float4 four = part[i * WARPGROUP];
            const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int half = strip_half(j);
                out[4 * i + j] = out[4 * i + j] * old_weight[half] + values[j] * weight[half];
            }
        }
    }
    const uint32_t tile = params.whole + blockIdx.x;
    const int warp = threadIdx.x / 32;
    const uint32_t row = (tile % params.query_tiles * groups + group) * GROUP_QUERIES + warp * STRIP_ROWS;
    bf16* staging = reinterpret_cast<bf16*>(memory) + warp * STRIP_ROWS * D;
    store_results<D>(staging, out, softmax, params, tile / params.query_tiles, row);
}

#define ATTENTION_BODY(...) attention<Variant<__VA_ARGS__>>(&q_map, &k_map, &v_map, params)
#define COMBINE_BODY(D) combine<D>(params)
#else
#define ATTENTION_BODY(...)
#define COMBINE_BODY(D)
#endif

#define ATTENTION(NAME, D, GROUPS, KEYS, STAGES, TURNS, POLYNOMIAL)                                                   \
    extern "C" __global__ void __launch_bounds__((1 + GROUPS) * 128, 1) attention_sm90_##NAME(                        \
        const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,                         \
        const __grid_constant__ CUtensorMap v_map, const __grid_constant__ AttentionSm90Params params) {              \
        ATTENTION_BODY(D, GROUPS, KEYS, STAGES, TURNS, POLYNOMIAL);                                                   \
    }                                                                                                                 \
    LADD_KERNEL(attention_sm90_##NAME)

// The variants that src/device/cuda/policy.rs chooses from, and says why there are no others.
ATTENTION(d64_q128_k128, 64, 2, 128, 3, false, 0)
ATTENTION(d64_q128_k128_p1, 64, 2, 128, 3, false, 1)
ATTENTION(d64_q128_k128_turns, 64, 2, 128, 3, true, 0)
ATTENTION(d64_q128_k128_turns_p1, 64, 2, 128, 3, true, 1)
ATTENTION(d64_q128_k176, 64, 2, 176, 3, false, 0)
ATTENTION(d64_q128_k176_p1, 64, 2, 176, 3, false, 1)
ATTENTION(d64_q128_k176_turns, 64, 2, 176, 3, true, 0)
ATTENTION(d64_q128_k176_turns_p1, 64, 2, 176, 3, true, 1)
ATTENTION(d64_q192_k128, 64, 3, 128, 3, false, 0)
ATTENTION(d64_q192_k128_p1, 64, 3, 128, 3, false, 1)
ATTENTION(d64_q192_k128_turns, 64, 3, 128, 3, true, 0)
ATTENTION(d64_q192_k128_turns_p1, 64, 3, 128, 3, true, 1)
ATTENTION(d128_q128_k128, 128, 2, 128, 2, false, 0)
ATTENTION(d128_q128_k128_turns, 128, 2, 128, 2, true, 0)
ATTENTION(d128_q192_k80, 128, 3, 80, 3, false, 0)
ATTENTION(d128_q192_k80_turns, 128, 3, 80, 3, true, 0)

#define COMBINE(D)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(ATTENTION_SM90_COMBINE_THREADS) attention_combine_d##D(              \
        const __grid_constant__ AttentionSm90Params params) {                                                         \
        COMBINE_BODY(D);                                                                                              \
    }                                                                                                                 \
    LADD_KERNEL(attention_combine_d##D)

COMBINE(64)
COMBINE(128)
