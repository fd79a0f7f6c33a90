// The wrappers of kernels/include/ptx.cuh for the emulator: same names, same parameters (and the caller's place behind them).
#pragma once
#include "async.h"
#include "warp.h"
#include "wgmma.h"

#define WHERE emulator::Where where = emulator::Where::current()

// ---- language ---------------------------------------------------------------------------------------------------

inline uint32_t smem_u32(const void* shared) { return emulator::shared_address(shared); }
inline void keep_packed(uint4&) {}
inline float ex2(float x) { return std::exp2(x); }
inline float max_or_nan(float a, float b) { return a > b || std::isnan(a) ? a : b; }
inline uint4 load_16_bytes(const void* from) { return *static_cast<const uint4*>(from); }
inline void store_16_bytes(void* to, uint4 value) {
    emulator::require_global(to, "store_16_bytes");
    *static_cast<uint4*>(to) = value;
}

// ---- warps and named barriers -----------------------------------------------------------------------------------

inline bool elect_one(WHERE) {
    emulator::exchange(emulator::ALL_LANES, 0, "elect_one", where);
    return emulator::lane() == 0;
}
inline void named_bar_sync(int id, int threads, WHERE) { emulator::barrier_sync(id, unsigned(threads), "named_bar_sync", where); }
inline void named_bar_arrive(int id, int threads, WHERE) { emulator::barrier_arrive(id, unsigned(threads), where); }

// ---- cp.async ---------------------------------------------------------------------------------------------------

inline void cp_async_16(void* shared, const void* global, int bytes = 16, WHERE) { emulator::copy_async(shared, global, 16, bytes, where); }
inline void cp_async_8(void* shared, const void* global, int bytes = 8, WHERE) { emulator::copy_async(shared, global, 8, bytes, where); }
inline void cp_async_4(void* shared, const void* global, int bytes = 4, WHERE) { emulator::copy_async(shared, global, 4, bytes, where); }
inline void cp_async_commit() { emulator::commit(emulator::self().copies); }
template <int KEEP>
void cp_async_wait(WHERE) {
    emulator::wait_for_groups(emulator::self().copies, KEEP, "cp_async_wait", where);
}

// ---- mma.sync ---------------------------------------------------------------------------------------------------

inline void ldmatrix_x1(uint32_t (&r)[1], const void* row, WHERE) { emulator::ldmatrix(r, 1, false, row, where); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, WHERE) { emulator::ldmatrix(r, 2, false, row, where); }
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, WHERE) { emulator::ldmatrix(r, 4, false, row, where); }
inline void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row, WHERE) { emulator::ldmatrix(r, 1, true, row, where); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, WHERE) { emulator::ldmatrix(r, 2, true, row, where); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, WHERE) { emulator::ldmatrix(r, 4, true, row, where); }
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], WHERE) { emulator::mma_m16n8k16(d, a, b, where); }

// ---- mbarrier ---------------------------------------------------------------------------------------------------

inline void mbar_init(uint64_t* bar, int arrivals) { emulator::mbarrier_init(bar, arrivals); }
inline void mbar_init_fence() { emulator::mbarrier_init_fence(); }
inline void mbar_arrive(uint64_t* bar) { emulator::mbarrier_arrive(bar, 0); }
inline void mbar_arrive_expect_tx(uint64_t* bar, uint32_t bytes) { emulator::mbarrier_arrive(bar, bytes); }
inline void mbar_wait(uint64_t* bar, uint32_t parity, WHERE) { emulator::mbarrier_wait(bar, parity, where); }

// ---- TMA and bulk copies ----------------------------------------------------------------------------------------

inline void fence_proxy_async() {}
inline void fence_proxy_async_global() {}
inline void tma_prefetch(const CUtensorMap*) {}
inline void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* bar, int x, int y) {
    emulator::tile_load(shared, map, bar, {x, y}, 2);
}
inline void tma_load_3d(void* shared, const CUtensorMap* map, uint64_t* bar, int x, int y, int z) {
    emulator::tile_load(shared, map, bar, {x, y, z}, 3);
}
inline void tma_load_4d(void* shared, const CUtensorMap* map, uint64_t* bar, int x, int y, int z, int w) {
    emulator::tile_load(shared, map, bar, {x, y, z, w}, 4);
}
inline void tma_load_5d(void* shared, const CUtensorMap* map, uint64_t* bar, int x, int y, int z, int w, int v) {
    emulator::tile_load(shared, map, bar, {x, y, z, w, v}, 5);
}
inline void tma_store_2d(const CUtensorMap* map, const void* shared, int x, int y) {
    emulator::tile_store(map, shared, {x, y}, 2, emulator::Tile::STORE);
}
inline void tma_store_3d(const CUtensorMap* map, const void* shared, int x, int y, int z) {
    emulator::tile_store(map, shared, {x, y, z}, 3, emulator::Tile::STORE);
}
inline void tma_store_4d(const CUtensorMap* map, const void* shared, int x, int y, int z, int w) {
    emulator::tile_store(map, shared, {x, y, z, w}, 4, emulator::Tile::STORE);
}
inline void tma_reduce_add_3d(const CUtensorMap* map, const void* shared, int x, int y, int z) {
    emulator::tile_store(map, shared, {x, y, z}, 3, emulator::Tile::ADD);
}
inline void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* bar) { emulator::bulk_load(shared, global, bytes, bar); }
inline void bulk_store(void* global, const void* shared, uint32_t bytes) { emulator::bulk_store(global, shared, bytes); }
inline void bulk_reduce_add_f32(float* global, const float* shared, uint32_t bytes) { emulator::bulk_reduce_add(global, shared, bytes); }
inline void bulk_commit() { emulator::commit(emulator::self().bulk_copies); }
template <int KEEP>
void bulk_wait_read(WHERE) {
    emulator::wait_for_groups(emulator::self().bulk_copies, KEEP, "bulk_wait_read", where);
}
template <int KEEP>
void bulk_wait(WHERE) {
    emulator::wait_for_groups(emulator::self().bulk_copies, KEEP, "bulk_wait", where);
}

// ---- flags in global memory -------------------------------------------------------------------------------------

inline void flag_wait(const uint32_t* flag, uint32_t value, WHERE) { emulator::flag_wait(flag, value, where); }
inline void flag_set(uint32_t* flag, uint32_t value) {
    emulator::require_global(flag, "flag_set");
    std::atomic_ref<uint32_t>(*flag).store(value);
}

// ---- registers --------------------------------------------------------------------------------------------------

template <int REGISTERS>
void reg_dealloc() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256);
}
template <int REGISTERS>
void reg_alloc() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256);
}

// ---- wgmma ------------------------------------------------------------------------------------------------------

inline void wgmma_fence(WHERE) { emulator::wgmma_fence(where); }
inline void wgmma_commit(WHERE) { emulator::wgmma_commit(where); }
template <int KEEP>
void wgmma_wait(WHERE) {
    emulator::wgmma_wait(KEEP, where);
}
template <class T, int REGISTERS>
void wgmma_done(T (&registers)[REGISTERS]) {
    if constexpr (std::is_same_v<T, float>) emulator::require_finished(registers, REGISTERS);
}
template <int TRANS_A, int TRANS_B, int REGISTERS>
void wgmma_ss(float (&d)[REGISTERS], uint64_t a, uint64_t b, bool accumulate, WHERE) {
    static_assert(REGISTERS % 4 == 0 && REGISTERS <= 128);
    emulator::wgmma(2 * REGISTERS, d, nullptr, a, b, accumulate, TRANS_A, TRANS_B, where);
}
template <int TRANS_B, int REGISTERS>
void wgmma_rs(float (&d)[REGISTERS], const uint32_t (&a)[4], uint64_t b, bool accumulate, WHERE) {
    static_assert(REGISTERS % 4 == 0 && REGISTERS <= 128);
    emulator::wgmma(2 * REGISTERS, d, a, 0, b, accumulate, false, TRANS_B, where);
}

#undef WHERE
