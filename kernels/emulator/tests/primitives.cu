// Kernels that use one primitive each, so that tests/it/emulator.rs can compare it with its definition. Each takes the
// addresses of its inputs and outputs.
#include "include/ptx.cuh"
#include "include/vector.cuh"

// ---- warps ------------------------------------------------------------------------------------------------------

// One warp. out[16][32]: what every lane gets from each operation.
extern "C" __global__ void test_warp(uint64_t out_address) {
    int* out = at<int>(out_address) + threadIdx.x;
    const int lane = int(threadIdx.x);
    out[0 * 32] = __shfl_sync(0xffffffffu, lane * 10, 5);
    out[1 * 32] = __shfl_xor_sync(0xffffffffu, lane * 10, 3);
    out[2 * 32] = __shfl_down_sync(0xffffffffu, lane * 10, 7);
    out[3 * 32] = __shfl_up_sync(0xffffffffu, lane * 10, 7);
    out[4 * 32] = __shfl_xor_sync(0xffffffffu, lane * 10, 4, 8);
    out[5 * 32] = __shfl_sync(0xffffffffu, lane * 10, 9, 8);
    out[6 * 32] = int(__ballot_sync(0xffffffffu, lane % 3 == 0));
    out[7 * 32] = __any_sync(0xffffffffu, lane == 31);
    out[8 * 32] = __all_sync(0xffffffffu, lane != 31);
    out[9 * 32] = __reduce_add_sync(0xffffffffu, lane);
    out[10 * 32] = __reduce_max_sync(0xffffffffu, lane * lane);
    // Two halves of the warp, each by itself.
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    out[11 * 32] = __reduce_add_sync(half, lane);
    out[12 * 32] = elect_one();
}
LADD_KERNEL(test_warp)

// One warp. in: 32 rows of 8 values. out[6][32][4]: the registers of x1, x2, x4 and the same transposed.
extern "C" __global__ void test_ldmatrix(uint64_t in_address, uint64_t out_address) {
    __shared__ __align__(16) uint16_t rows[32][8];
    const int lane = int(threadIdx.x);
    for (int i = 0; i < 8; i++) rows[lane][i] = at<uint16_t>(in_address)[lane * 8 + i];
    __syncwarp();
    uint32_t x1[1], x2[2], x4[4], t1[1], t2[2], t4[4];
    ldmatrix_x1(x1, rows[lane]);
    ldmatrix_x2(x2, rows[lane]);
    ldmatrix_x4(x4, rows[lane]);
    ldmatrix_x1_trans(t1, rows[lane]);
    ldmatrix_x2_trans(t2, rows[lane]);
    ldmatrix_x4_trans(t4, rows[lane]);
    uint32_t* out = at<uint32_t>(out_address) + lane * 4;
    out[0] = x1[0];
    out[3 * 128] = t1[0];
    for (int i = 0; i < 2; i++) {
        out[1 * 128 + i] = x2[i];
        out[4 * 128 + i] = t2[i];
    }
    for (int i = 0; i < 4; i++) {
        out[2 * 128 + i] = x4[i];
        out[5 * 128 + i] = t4[i];
    }
}
LADD_KERNEL(test_ldmatrix)

// One warp. out[16][8] += a[16][16] b[16][8], a and b bf16, fragments loaded value by value.
extern "C" __global__ void test_mma(uint64_t a_address, uint64_t b_address, uint64_t out_address) {
    const uint16_t* a = at<uint16_t>(a_address);
    const uint16_t* b = at<uint16_t>(b_address);
    float* out = at<float>(out_address);
    const int row = int(threadIdx.x) / 4, pair = int(threadIdx.x) % 4 * 2;
    const auto a_pair = [&](int m, int k) { return a[m * 16 + k] | uint32_t(a[m * 16 + k + 1]) << 16; };
    const auto b_pair = [&](int k, int n) { return b[k * 8 + n] | uint32_t(b[(k + 1) * 8 + n]) << 16; };
    uint32_t fragment_a[4] = {a_pair(row, pair), a_pair(row + 8, pair), a_pair(row, pair + 8), a_pair(row + 8, pair + 8)};
    uint32_t fragment_b[2] = {b_pair(pair, row), b_pair(pair + 8, row)};
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = out[(row + i / 2 * 8) * 8 + pair + i % 2];
    mma_m16n8k16(d, fragment_a, fragment_b);
    for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * 8 + pair + i % 2] = d[i];
}
LADD_KERNEL(test_mma)

// ---- copies -----------------------------------------------------------------------------------------------------

// 32 threads. out[i] = 2 in[i] for i < len, zero up to 8 * 32: pieces of 16 bytes, the last one cut off by `bytes`.
extern "C" __global__ void test_cp_async(uint64_t in_address, uint64_t out_address, uint64_t len) {
    __shared__ __align__(16) float tile[2][32][4];
    const float* in = at<float>(in_address);
    const int lane = int(threadIdx.x);
    for (int stage = 0; stage < 2; stage++) {
        const int64_t first = (stage * 32 + lane) * 4;
        const int64_t rest = int64_t(len) - first;
        const int bytes = rest >= 4 ? 16 : rest > 0 ? int(rest) * 4 : 0;
        cp_async_16(tile[stage][lane], bytes > 0 ? in + first : in, bytes);
        cp_async_commit();
    }
    for (int stage = 0; stage < 2; stage++) {
        if (stage == 0) {
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        // Orders the other threads' copies before the reads.
        __syncthreads();
        const int other = 31 - lane;
        for (int i = 0; i < 4; i++) at<float>(out_address)[(stage * 32 + other) * 4 + i] = 2 * tile[stage][other][i];
    }
}
LADD_KERNEL(test_cp_async)

// One warp. Loads `bytes` bytes in bulk, stores them to `copy` and adds them to `sums`.
extern "C" __global__ void test_bulk(uint64_t in_address, uint64_t copy_address, uint64_t sums_address, uint64_t bytes) {
    DYNAMIC_SHARED(shared);
    __shared__ uint64_t arrived;
    if (threadIdx.x == 0) {
        mbar_init(&arrived, 1);
        mbar_init_fence();
        mbar_arrive_expect_tx(&arrived, uint32_t(bytes));
        bulk_load(shared, at<void>(in_address), uint32_t(bytes), &arrived);
    }
    __syncthreads();
    mbar_wait(&arrived, 0);
    if (threadIdx.x == 0) {
        bulk_store(at<void>(copy_address), shared, uint32_t(bytes));
        bulk_reduce_add_f32(at<float>(sums_address), reinterpret_cast<float*>(shared), uint32_t(bytes));
        bulk_commit();
        bulk_wait<0>();
    }
}
LADD_KERNEL(test_bulk)

// One warp. Loads the tile at (x, y, z) of a rank-3 tensor, dumps the shared memory as it lies, and stores the tile to
// (x, y, z) of a second tensor.
extern "C" __global__ void test_tile_3d(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, uint64_t dump_address,
                                        uint64_t bytes, int x, int y, int z) {
    DYNAMIC_SHARED(shared);
    __shared__ uint64_t arrived;
    if (threadIdx.x == 0) {
        mbar_init(&arrived, 1);
        mbar_init_fence();
        mbar_arrive_expect_tx(&arrived, uint32_t(bytes));
        tma_load_3d(shared, &from, &arrived, x, y, z);
    }
    __syncthreads();
    mbar_wait(&arrived, 0);
    for (uint64_t i = threadIdx.x; i < bytes; i += blockDim.x) at<uint8_t>(dump_address)[i] = shared[i];
    if (threadIdx.x == 0) {
        tma_store_3d(&to, shared, x, y, z);
        bulk_commit();
        bulk_wait_read<0>();
    }
}
LADD_KERNEL(test_tile_3d)

// The same for rank 2 and an fp32 tensor to which the tile is added (as rank 3 with z = 0).
extern "C" __global__ void test_tile_add(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, uint64_t bytes, int x,
                                         int y) {
    DYNAMIC_SHARED(shared);
    __shared__ uint64_t arrived;
    if (threadIdx.x == 0) {
        mbar_init(&arrived, 1);
        mbar_init_fence();
        mbar_arrive_expect_tx(&arrived, uint32_t(bytes));
        tma_load_2d(shared, &from, &arrived, x, y);
        mbar_wait(&arrived, 0);
        tma_reduce_add_3d(&to, shared, x, y, 0);
        bulk_commit();
        bulk_wait_read<0>();
    }
}
LADD_KERNEL(test_tile_add)

// ---- wgmma ------------------------------------------------------------------------------------------------------

// One warpgroup: out[64][N] = a b with a depth of 64, both operands brought by TMA with the 128-byte swizzle. Stored with
// rows along K: a [64][64], b [N][64]; with rows along M and N (TRANS): a [64][64] and b [64][N] as they are multiplied.
template <int N, int TRANS_A, int TRANS_B, bool REGISTERS_A>
__device__ void test_wgmma(const CUtensorMap& map_a, const CUtensorMap& map_b, uint64_t a_address, uint64_t out_address) {
    DYNAMIC_SHARED(shared);
    __shared__ uint64_t arrived;
    constexpr int TILE = 64 * 64 * 2;
    constexpr int TILES_B = N / 64;
    if (threadIdx.x == 0) {
        mbar_init(&arrived, 1);
        mbar_init_fence();
        mbar_arrive_expect_tx(&arrived, TILE * (1 + TILES_B));
        tma_load_2d(shared, &map_a, &arrived, 0, 0);
        for (int i = 0; i < TILES_B; i++) {
            tma_load_2d(shared + TILE * (1 + i), &map_b, &arrived, TRANS_B ? i * 64 : 0, TRANS_B ? 0 : i * 64);
        }
    }
    __syncthreads();
    mbar_wait(&arrived, 0);
    const int thread = int(threadIdx.x);
    const int row = thread / 32 * 16 + thread % 32 / 4, pair = thread % 4 * 2;
    float d[N / 2];
    for (int i = 0; i < N / 2; i++) d[i] = 1000.0f;
    wgmma_fence();
    for (int k = 0; k < 64; k += 16) {
        const uint32_t advance_a = TRANS_A ? k / 8 * 1024 : k * 2;
        const uint32_t advance_b = TRANS_B ? k / 8 * 1024 : k * 2;
        const uint64_t a = desc_sw128(shared + advance_a, TILE, 1024);
        const uint64_t b = desc_sw128(shared + TILE + advance_b, TILE, 1024);
        if constexpr (REGISTERS_A) {
            const uint16_t* values = at<uint16_t>(a_address);
            const auto both = [&](int m, int c) { return values[m * 64 + k + c] | uint32_t(values[m * 64 + k + c + 1]) << 16; };
            uint32_t fragment[4] = {both(row, pair), both(row + 8, pair), both(row, pair + 8), both(row + 8, pair + 8)};
            wgmma_rs<TRANS_B>(d, fragment, b, k > 0);
        } else {
            wgmma_ss<TRANS_A, TRANS_B>(d, a, b, k > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    float* out = at<float>(out_address);
    for (int i = 0; i < N / 2; i++) out[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + pair + i % 2] = d[i];
}

#define TEST_WGMMA(name, ...)                                                                                          \
    extern "C" __global__ void name(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, uint64_t a_address, \
                                    uint64_t out) {                                                                     \
        test_wgmma<__VA_ARGS__>(a, b, a_address, out);                                                                  \
    }                                                                                                                  \
    LADD_KERNEL(name)

TEST_WGMMA(test_wgmma_64, 64, 0, 0, false)
TEST_WGMMA(test_wgmma_128, 128, 0, 0, false)
TEST_WGMMA(test_wgmma_64_trans_a, 64, 1, 0, false)
TEST_WGMMA(test_wgmma_64_trans_b, 64, 0, 1, false)
TEST_WGMMA(test_wgmma_128_trans_b, 128, 0, 1, false)
TEST_WGMMA(test_wgmma_64_registers, 64, 0, 0, true)
TEST_WGMMA(test_wgmma_128_registers_trans_b, 128, 0, 1, true)

// ---- blocks -----------------------------------------------------------------------------------------------------

// 64 threads a block. out[block][3]: how many values of static and of dynamic shared memory are no number at the beginning,
// and what a producing warp hands to a consuming one over named barriers.
extern "C" __global__ void test_block(uint64_t out_address) {
    DYNAMIC_SHARED(dynamic);
    __shared__ float values[64];
    __shared__ int poisoned[2];
    float* floats = reinterpret_cast<float*>(dynamic);
    const int thread = int(threadIdx.x);
    const bool first = isnan(values[thread]), second = isnan(floats[thread]);
    __syncthreads();
    if (thread == 0) poisoned[0] = poisoned[1] = 0;
    __syncthreads();
    atomicAdd(&poisoned[0], int(first));
    atomicAdd(&poisoned[1], int(second));
    values[thread] = 0;
    __syncthreads();
    const bool producer = thread < 32;
    float sum = 0;
    for (int round = 0; round < 3; round++) {
        if (producer) {
            floats[thread] = float(round * 100 + thread);
            named_bar_arrive(1, 64);
            named_bar_sync(2, 64);
        } else {
            named_bar_sync(1, 64);
            sum += floats[63 - thread];
            named_bar_arrive(2, 64);
        }
    }
    int* out = at<int>(out_address) + blockIdx.x * 3;
    if (thread == 32) {
        out[0] = poisoned[0];
        out[1] = poisoned[1];
        out[2] = int(sum);
    }
}
LADD_KERNEL(test_block)

// Blocks that wait for each other: each takes a ticket, waits until the one before has written, and writes.
// state[2]: tickets, flag. out[ticket]: twice what the one before wrote, plus the ticket.
extern "C" __global__ void test_flags(uint64_t state_address, uint64_t out_address) {
    if (threadIdx.x != 0) return;
    uint32_t* state = at<uint32_t>(state_address);
    uint32_t* out = at<uint32_t>(out_address);
    const uint32_t ticket = atomicAdd(state, 1u);
    flag_wait(state + 1, ticket);
    out[ticket] = ticket == 0 ? 1 : 2 * out[ticket - 1] + ticket;
    flag_set(state + 1, ticket + 1);
}
LADD_KERNEL(test_flags)
