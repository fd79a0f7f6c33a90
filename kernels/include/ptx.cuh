// All inline PTX lives here: kernels call only these wrappers. In the emulator's build the same names come from
// kernels/emulator/ptx_emulated.h, which says for each what the emulator checks; add a wrapper to both.
//
// Sections: language, warps, named barriers, cp.async, mma.sync, mbarrier, TMA and bulk copies, flags, registers, wgmma.
#pragma once
#ifdef LADD_EMULATOR
#include "ptx_emulated.h"
#else
#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

#define PTX __device__ __forceinline__

// ---- language ---------------------------------------------------------------------------------------------------

// Registers a kernel with the emulator; nvcc needs nothing.
#define LADD_KERNEL(name)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]

PTX uint32_t smem_u32(const void* shared) { return (uint32_t)__cvta_generic_to_shared(shared); }

// Makes the compiler forget what it derived from eight packed bf16 values, so that it keeps the four words in registers and
// not the eight floats.
PTX void keep_packed(uint4& v) { asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)); }

// 2^x on the special-function unit; subnormal results become zero.
PTX float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger one; not a number where either is none.
PTX float max_or_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

// 16 bytes at an address that is a multiple of 16; the emulator checks that. The store goes to global memory and is an
// instruction of its own: the compiler takes a vector apart where it rewrites the address, and does not always put it
// together again.
PTX uint4 load_16_bytes(const void* from) { return *reinterpret_cast<const uint4*>(from); }
PTX void store_16_bytes(void* to, uint4 value) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 ::"l"(__cvta_generic_to_global(to)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

#if __CUDA_ARCH__ >= 890
// Two numbers as e4m3, rounded to nearest even, saturated; the first in the low byte.
PTX uint32_t e4m3_pair(float low, float high) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

// ---- warps ------------------------------------------------------------------------------------------------------

// True in one lane of a converged warp.
PTX bool elect_one() {
    uint32_t elected;
    asm volatile(
        "{ .reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(elected));
    return elected;
}

// ---- named barriers: 0 is __syncthreads, kernels use 1..15; `threads` is a multiple of 32 -------------------------

PTX void named_bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
PTX void named_bar_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- cp.async: global to shared, per thread ------------------------------------------------------------------------

// Copies 16 bytes, of which the first `bytes` come from global memory and the rest are zero. Both addresses are
// 16-byte aligned; with bytes = 0 nothing is read. L1 is bypassed.
PTX void cp_async_16(void* shared, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_u32(shared)), "l"(global), "r"(bytes) : "memory");
}
PTX void cp_async_8(void* shared, const void* global, int bytes = 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(smem_u32(shared)), "l"(global), "r"(bytes) : "memory");
}
PTX void cp_async_4(void* shared, const void* global, int bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_u32(shared)), "l"(global), "r"(bytes) : "memory");
}
PTX void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most KEEP of this thread's groups are still on their way.
template <int KEEP>
PTX void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(KEEP) : "memory");
}

// ---- mma.sync: 16x8 += 16x16 times 16x8, bf16 in, fp32 out ---------------------------------------------------------

// One, two or four 8x8 matrices of bf16. Lanes 8i..8i+7 give the addresses of the rows of matrix i, 16 bytes each and
// 16-byte aligned; lane l receives the values (l / 4, 2 (l % 4)) and its right neighbour of each matrix.
PTX void ldmatrix_x1(uint32_t (&r)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(smem_u32(row)) : "memory");
}
PTX void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(smem_u32(row)) : "memory");
}
PTX void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(row))
                 : "memory");
}
// The same, transposed: lane l receives the values (2 (l % 4), l / 4) and the one below it.
PTX void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(smem_u32(row)) : "memory");
}
PTX void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_u32(row))
                 : "memory");
}
PTX void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(row))
                 : "memory");
}

// d += a b. With g = lane / 4 and c = 2 (lane % 4), a lane holds
//   d: (g, c) (g, c+1) (g+8, c) (g+8, c+1)
//   a: pairs along k at (g, c) (g+8, c) (g, c+8) (g+8, c+8)
//   b: pairs along k at (c, g) (c+8, g)
PTX void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- mbarrier ---------------------------------------------------------------------------------------------------

PTX void mbar_init(uint64_t* bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(bar)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine.
PTX void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
PTX void mbar_arrive(uint64_t* bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_u32(bar)) : "memory"); }
PTX void mbar_arrive_expect_tx(uint64_t* bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(bar)), "r"(bytes) : "memory");
}
// Waits for the end of the phase of this parity: the first phase has parity 0.
PTX void mbar_wait(uint64_t* bar, uint32_t parity) {
    asm volatile(
        "{ .reg .pred p;\n"
        "W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra D;\n"
        "bra W;\n"
        "D: }" ::"r"(smem_u32(bar)),
        "r"(parity)
        : "memory");
}

// ---- TMA and bulk copies ------------------------------------------------------------------------------------------

// Orders this thread's writes to shared memory before what the copy engine or wgmma reads of it afterwards.
PTX void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Orders what this thread knows of global memory before what the copy engine does there for it afterwards.
PTX void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
PTX void tma_prefetch(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Tiles of a tensor map into shared memory (128-byte aligned; 1024 with the 128-byte swizzle). What lies outside the
// tensor arrives as zeros and counts for the barrier's bytes too.
PTX void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                     smem_u32(shared)),
                 "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y)
                 : "memory");
}
PTX void tma_load_3d(void* shared, const CUtensorMap* map, uint64_t* bar, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                     smem_u32(shared)),
                 "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
PTX void tma_load_4d(void* shared, const CUtensorMap* map, uint64_t* bar, int x, int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
            smem_u32(shared)),
        "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}
PTX void tma_load_5d(void* shared, const CUtensorMap* map, uint64_t* bar, int x, int y, int z, int w, int v) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(
            smem_u32(shared)),
        "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
        : "memory");
}
// Tiles from shared memory into a tensor; what lies outside is not written. Part of the thread's open bulk group.
PTX void tma_store_2d(const CUtensorMap* map, const void* shared, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(smem_u32(shared)),
                 "r"(x), "r"(y)
                 : "memory");
}
PTX void tma_store_3d(const CUtensorMap* map, const void* shared, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(smem_u32(shared)),
                 "r"(x), "r"(y), "r"(z)
                 : "memory");
}
PTX void tma_store_4d(const CUtensorMap* map, const void* shared, int x, int y, int z, int w) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(smem_u32(shared)), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
// Adds fp32 values in shared memory to global memory, in no fixed order between blocks; clipped like a store.
PTX void tma_reduce_add_3d(const CUtensorMap* map, const void* shared, int x, int y, int z) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(smem_u32(shared)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
// `bytes` bytes without a tensor map; everything is a multiple of 16.
PTX void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem_u32(shared)),
                 "l"(global), "r"(bytes), "r"(smem_u32(bar))
                 : "memory");
}
PTX void bulk_store(void* global, const void* shared, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(smem_u32(shared)), "r"(bytes) : "memory");
}
PTX void bulk_reduce_add_f32(float* global, const float* shared, uint32_t bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global), "r"(smem_u32(shared)),
                 "r"(bytes)
                 : "memory");
}
// Closes the thread's bulk group: stores and reductions since the last one.
PTX void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most KEEP of the thread's groups still read shared memory, or (bulk_wait) are still on their way.
template <int KEEP>
PTX void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(KEEP) : "memory");
}
template <int KEEP>
PTX void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(KEEP) : "memory");
}

// ---- flags in global memory, by which blocks wait for each other ---------------------------------------------------

// Waits until the flag has this value: what its writer did before is visible then. Only for what a block that has begun
// already is sure to do, or the device stands still.
PTX void flag_wait(const uint32_t* flag, uint32_t value) {
    uint32_t now;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(__cvta_generic_to_global(flag)) : "memory");
    } while (now != value);
}
PTX void flag_set(uint32_t* flag, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(flag)), "r"(value) : "memory");
}

// ---- registers of a warpgroup: multiples of 8; the kernel needs __launch_bounds__(threads, 1) ----------------------

template <int REGISTERS>
PTX void reg_dealloc() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
PTX void reg_alloc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- wgmma: 64xN (+)= 64x16 times 16xN, bf16 in, fp32 out ----------------------------------------------------------
//
// Thread t of the warpgroup holds in d[i] row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2.
// Shared operands are matrix descriptors; TRANS says that the operand's rows run along M or N instead of along K.

PTX void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PTX void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int KEEP>
PTX void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(KEEP) : "memory");
}
// After the wait that completes them: accumulators or register operands may be used again. Keeps the compiler, to which they
// look finished where the product was queued, from moving their uses before the wait.
template <int R>
PTX void wgmma_done(float (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int R>
PTX void wgmma_done(uint32_t (&a)[R]) {
#pragma unroll
    for (int i = 0; i < R; i++) asm volatile("" : "+r"(a[i])::"memory");
}

// Eight accumulators as constraints, and lists of them; the placeholders of the same.
#define WGMMA_D8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_D16 WGMMA_D8(0), WGMMA_D8(8)
#define WGMMA_D32 WGMMA_D16, WGMMA_D8(16), WGMMA_D8(24)
#define WGMMA_D40 WGMMA_D32, WGMMA_D8(32)
#define WGMMA_D48 WGMMA_D40, WGMMA_D8(40)
#define WGMMA_D64 WGMMA_D48, WGMMA_D8(48), WGMMA_D8(56)
#define WGMMA_D80 WGMMA_D64, WGMMA_D8(64), WGMMA_D8(72)
#define WGMMA_D88 WGMMA_D80, WGMMA_D8(80)
#define WGMMA_D96 WGMMA_D88, WGMMA_D8(88)
#define WGMMA_D112 WGMMA_D96, WGMMA_D8(96), WGMMA_D8(104)
#define WGMMA_D128 WGMMA_D112, WGMMA_D8(112), WGMMA_D8(120)
#define WGMMA_R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_R32 WGMMA_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_R40 WGMMA_R32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define WGMMA_R48 WGMMA_R40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_R64 WGMMA_R48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_R80 WGMMA_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define WGMMA_R88 WGMMA_R80 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define WGMMA_R96 WGMMA_R88 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_R112 WGMMA_R96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define WGMMA_R128 WGMMA_R112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// The overload follows from the number of accumulators, N / 2 a thread. `ss`: a and b from shared memory; `rs`: a from
// registers, laid out as for mma_m16n8k16. p0..p6 are the numbers of the placeholders behind the accumulators.
#define WGMMA(N, R, p0, p1, p2, p3, p4, p5, p6)                                                                        \
    template <int TRANS_A, int TRANS_B>                                                                                \
    PTX void wgmma_ss(float (&d)[R], uint64_t a, uint64_t b, bool accumulate) {                                        \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #p2 ", 0;\n"                                                   \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_R##R "}, "                     \
                     "%" #p0 ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4 "; }"                                              \
                     : WGMMA_D##R                                                                                      \
                     : "l"(a), "l"(b), "r"((int)accumulate), "n"(TRANS_A), "n"(TRANS_B));                              \
    }                                                                                                                  \
    template <int TRANS_B>                                                                                             \
    PTX void wgmma_rs(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool accumulate) {                            \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #p5 ", 0;\n"                                                   \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_R##R "}, "                     \
                     "{%" #p0 ",%" #p1 ",%" #p2 ",%" #p3 "}, %" #p4 ", p, 1, 1, %" #p6 "; }"                           \
                     : WGMMA_D##R                                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS_B));        \
    }

WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86)
WGMMA(176, 88, 88, 89, 90, 91, 92, 93, 94)
WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
WGMMA(224, 112, 112, 113, 114, 115, 116, 117, 118)
WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)

#undef PTX
#endif

// ---- shared by both builds ------------------------------------------------------------------------------------------

// Matrix descriptor of wgmma with the 128-byte swizzle. Tiles of 8 rows of 128 bytes, 1024-byte aligned.
//   rows along K (TRANS 0):  `sbo` bytes from 8 rows to the next 8; `lbo` unused. K advances by adding bytes to `shared`.
//   rows along M or N (1):   `sbo` bytes from 8 steps of K to the next 8; `lbo` bytes from 64 rows of M or N to the next 64.
__device__ __forceinline__ uint64_t desc_sw128(const void* shared, uint32_t lbo, uint32_t sbo) {
    const uint64_t swizzle_128 = 1;
    return (uint64_t)((smem_u32(shared) & 0x3FFFF) >> 4) | (uint64_t)(lbo >> 4) << 16 | (uint64_t)(sbo >> 4) << 32 | swizzle_128 << 62;
}

// The descriptor of what lies `bytes` further, a multiple of 16: one addition instead of making it anew.
__device__ __forceinline__ uint64_t desc_advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t word;
    memcpy(&word, &pair, 4);
    return word;
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t word) {
    __nv_bfloat162 pair;
    memcpy(&pair, &word, 4);
    return __bfloat1622float2(pair);
}
