// emu.h - run CUDA kernels on the CPU: one block = one OS thread, each CUDA thread = a fiber.
// Force-included (g++ -x c++ -DEMU -include emu.h kernel.cu).  Not seen by nvcc.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <utility>
#include <vector>
// ---- language ----------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __shared__ static thread_local   // a block never leaves its OS thread
#define DYNAMIC_SHARED(name) uint8_t* name = emu::B->smem
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
#define EMU_VEC(T, n, al2, al4) \
  struct alignas(al2) n##2 { T x, y; }; struct alignas(al4) n##4 { T x, y, z, w; }; \
  inline n##2 make_##n##2(T x, T y) { return {x, y}; } inline n##4 make_##n##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VEC(float, float, 8, 16) EMU_VEC(int, int, 8, 16) EMU_VEC(unsigned, uint, 8, 16)
struct __nv_bfloat16 { uint16_t x; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 b) { uint32_t u = uint32_t(b.x) << 16; float f; memcpy(&f, &u, 4); return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t u; memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline float __logf(float x) { return std::log(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline float sinpif(float x) { return float(std::sin(double(x) * M_PI)); }
inline float cospif(float x) { return float(std::cos(double(x) * M_PI)); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
template <class T> inline T __ldg(const T* p) { return *p; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
using std::max; using std::min;
inline float atomicAdd(float* p, float v) { return std::atomic_ref<float>(*p).fetch_add(v); }
inline unsigned atomicAdd(unsigned* p, unsigned v) { return std::atomic_ref<unsigned>(*p).fetch_add(v); }
inline int atomicAdd(int* p, int v) { return std::atomic_ref<int>(*p).fetch_add(v); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
struct alignas(64) CUtensorMap { uint64_t opaque[16]; };
// ---- scheduler ---------------------------------------------------------------------------
namespace emu {
struct Coll { unsigned mask = 0, arrived = 0; uint64_t gen = 0; uint64_t slot[2][128]; };
struct Bar { unsigned arrived = 0; uint64_t gen = 0; };
struct WgOp { int N, group; bool ss, scale, ta, tb; uint64_t da, db; float* d[128]; uint32_t a[128][4]; void (*run)(const WgOp&); };
struct Wg { Coll c; std::vector<WgOp> ops; int group = 0; };
struct Warp { std::deque<Coll> colls; };
struct Fiber { void* sp; uint3 tid; unsigned lin; bool done; bool (*ready)(void*, uint64_t); void* wa; uint64_t wb; const char* what; int line; };
struct CopyGroups { std::vector<std::function<void()>> open; std::deque<std::vector<std::function<void()>>> closed; };
struct Block {
  uint3 bid; dim3 bdim, gdim; unsigned n; uint8_t* smem; size_t smem_bytes;
  Fiber* f; Bar bars[16]; std::vector<Warp> warps; std::vector<Wg> wgs; std::deque<std::function<void()>> async; std::vector<CopyGroups> copies, bulks;
};
extern thread_local Block* B; extern thread_local Fiber* F;
extern bool lazy_async;   // EMU_LAZY=1: TMA lands / wgmma executes as late as the program order permits
void yield_to_sched();
[[noreturn]] void fail(const char* msg);
#define EMU_CHECK(c, m) do { if (!(c)) emu::fail(m " [" #c "]"); } while (0)
inline void wait(bool (*r)(void*, uint64_t), void* a, uint64_t b, const char* what, int line) {
  if (r(a, b)) return;
  F->ready = r; F->wa = a; F->wb = b; F->what = what; F->line = line; yield_to_sched();
}
inline unsigned lane() { return F->lin & 31; }
// n threads meet; `last` runs once, in the last arriver, before anyone leaves
template <class L> void meet(unsigned& arrived, uint64_t& gen, unsigned n, const char* what, int line, L last) {
  uint64_t g = gen;
  if (++arrived == n) { last(); arrived = 0; gen = g + 1; return; }
  wait([](void* p, uint64_t o) { return *(uint64_t*)p != o; }, &gen, g, what, line);
}
inline void bar_sync(int id, unsigned n, int line) { Bar& b = B->bars[id]; meet(b.arrived, b.gen, n, "bar.sync", line, [] {}); }
inline void bar_arrive(int id, unsigned n) { Bar& b = B->bars[id]; if (++b.arrived == n) { b.arrived = 0; b.gen++; } }
inline Coll& coll(unsigned mask) {
  EMU_CHECK(mask >> lane() & 1, "warp collective: own lane not in mask");
  auto& v = B->warps[F->lin / 32].colls;
  for (auto& c : v) if (c.mask == mask) return c;
  v.emplace_back(); v.back().mask = mask; return v.back();
}
template <class T> T shfl(unsigned mask, T v, int src, int line) {
  static_assert(sizeof(T) <= 8); Coll& c = coll(mask); auto* s = c.slot[c.gen & 1];
  memcpy(&s[lane()], &v, sizeof v);
  meet(c.arrived, c.gen, __builtin_popcount(mask), "shfl", line, [] {});
  EMU_CHECK(mask >> (src & 31) & 1, "shfl: source lane not in mask");
  T r; memcpy(&r, &s[src & 31], sizeof r); return r;
}
inline unsigned ballot(unsigned mask, bool p, int line) {
  Coll& c = coll(mask); auto* s = c.slot[c.gen & 1]; s[lane()] = p;
  meet(c.arrived, c.gen, __builtin_popcount(mask), "ballot", line, [] {});
  unsigned r = 0; for (int i = 0; i < 32; i++) if (mask >> i & 1) r |= unsigned(s[i]) << i; return r;
}
// kernels registered by name; args = cuLaunchKernel's kernelParams
using Thunk = void (*)(void**);
template <auto K> struct thunk;
template <class... A, void (*K)(A...)> struct thunk<K> {
  template <size_t... I> static void go(void** p, std::index_sequence<I...>) { K(*(std::remove_const_t<A>*)p[I]...); }
  static void call(void** p) { go(p, std::index_sequence_for<A...>{}); }
};
bool reg(const char* name, Thunk t);
void run_grid(Thunk t, dim3 grid, dim3 block, size_t smem, void** args);
}  // namespace emu
#define LADD_KERNEL(k) [[maybe_unused]] static bool emu_reg_##k = emu::reg(#k, emu::thunk<k>::call);
#define threadIdx (emu::F->tid)
#define blockIdx (emu::B->bid)
#define blockDim (emu::B->bdim)
#define gridDim (emu::B->gdim)
#define __syncthreads() emu::bar_sync(0, emu::B->n, __LINE__)
#define __syncwarp(...) (void)emu::ballot(0xffffffffu, true, __LINE__)
#define __shfl_sync(m, v, s) emu::shfl(m, v, s, __LINE__)
#define __shfl_xor_sync(m, v, d) emu::shfl(m, v, int(emu::lane() ^ (d)), __LINE__)
#define __shfl_down_sync(m, v, d) emu::shfl(m, v, emu::lane() + (d) < 32 ? int(emu::lane() + (d)) : int(emu::lane()), __LINE__)
#define __shfl_up_sync(m, v, d) emu::shfl(m, v, emu::lane() >= unsigned(d) ? int(emu::lane() - (d)) : int(emu::lane()), __LINE__)
#define __ballot_sync(m, p) emu::ballot(m, p, __LINE__)
#define __any_sync(m, p) (emu::ballot(m, p, __LINE__) != 0)
#define __all_sync(m, p) (emu::ballot(m, p, __LINE__) == (m))
extern "C" {   // what Rust (or a C++ test) calls
int emu_launch(const char* name, const unsigned grid[3], const unsigned block[3], size_t smem, void** params, unsigned seed, int late);
void* emu_allocate(size_t bytes); void emu_free(void* p); const char* emu_last_error();
int emu_tensor_map(CUtensorMap* out, int elem_bytes, int rank, void* base, const uint64_t* dim, const uint64_t* stride_bytes,
                   const uint32_t* box, int swizzle_bytes);
}
