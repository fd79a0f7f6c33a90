// The part of CUDA C++ that is language and mathematics: keywords, vector types, bf16, intrinsics, atomics. Nothing in here
// knows of threads. The mathematics is the host's libm: the last bits differ from the hardware's approximations.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// A block never leaves its OS thread, so its static shared memory may be the thread's.
#define __shared__ static thread_local

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

// ---- vector types -----------------------------------------------------------------------------------------------

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#define EMULATOR_VECTOR(name, Scalar, two, four)                                                    \
    struct alignas(two) name##2 {                                                                   \
        Scalar x, y;                                                                                \
    };                                                                                              \
    struct alignas(four) name##4 {                                                                  \
        Scalar x, y, z, w;                                                                          \
    };                                                                                              \
    inline name##2 make_##name##2(Scalar x, Scalar y) { return {x, y}; }                            \
    inline name##4 make_##name##4(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; }

EMULATOR_VECTOR(float, float, 8, 16)
EMULATOR_VECTOR(int, int, 8, 16)
EMULATOR_VECTOR(uint, unsigned, 8, 16)
EMULATOR_VECTOR(ushort, unsigned short, 4, 8)
#undef EMULATOR_VECTOR

struct alignas(16) double2 {
    double x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- bit patterns -----------------------------------------------------------------------------------------------

namespace emulator {

template <class To, class From>
To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace emulator

inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits<float>(x); }
inline int __float_as_int(float x) { return emulator::bits<int>(x); }
inline float __int_as_float(int x) { return emulator::bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(unsigned x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

// ---- bf16: the upper half of a float -----------------------------------------------------------------------------

struct __nv_bfloat16 {
    uint16_t x;
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(uint32_t(value.x) << 16); }

// Rounds to nearest, ties to even; every not-a-number becomes the canonical one.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const uint32_t word = __float_as_uint(value);
    const bool not_a_number = (word & 0x7fffffffu) > 0x7f800000u;
    if (not_a_number) return {0x7fff};
    const uint32_t half_minus_tie = 0x7fffu + ((word >> 16) & 1u);
    return {uint16_t((word + half_minus_tie) >> 16)};
}

inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {__bfloat162float(pair.x), __bfloat162float(pair.y)}; }
inline float __low2float(__nv_bfloat162 pair) { return __bfloat162float(pair.x); }
inline float __high2float(__nv_bfloat162 pair) { return __bfloat162float(pair.y); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }

// ---- mathematics ------------------------------------------------------------------------------------------------

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __saturatef(float x) { return x > 0.0f ? std::min(x, 1.0f) : 0.0f; }
inline float sinpif(float x) { return float(std::sin(double(x) * 3.14159265358979323846)); }
inline float cospif(float x) { return float(std::cos(double(x) * 3.14159265358979323846)); }
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = sinpif(x);
    *cosine = cospif(x);
}

// ---- memory -----------------------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* from) {
    return *from;
}
template <class T>
T __ldcs(const T* from) {
    return *from;
}
template <class T>
void __stcs(T* to, T value) {
    *to = value;
}

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <class T>
T atomicAdd(T* to, T value) {
    return std::atomic_ref<T>(*to).fetch_add(value);
}
template <class T>
T atomicExch(T* to, T value) {
    return std::atomic_ref<T>(*to).exchange(value);
}
template <class T>
T atomicCAS(T* to, T expected, T value) {
    std::atomic_ref<T>(*to).compare_exchange_strong(expected, value);
    return expected;
}
template <class T>
T atomicOr(T* to, T value) {
    return std::atomic_ref<T>(*to).fetch_or(value);
}
template <class T>
T atomicMax(T* to, T value) {
    T old = *to;
    while (old < value && !std::atomic_ref<T>(*to).compare_exchange_weak(old, value)) {
    }
    return old;
}
template <class T>
T atomicMin(T* to, T value) {
    T old = *to;
    while (value < old && !std::atomic_ref<T>(*to).compare_exchange_weak(old, value)) {
    }
    return old;
}
// Counts up to `last`, then begins at 0 again.
inline unsigned atomicInc(unsigned* to, unsigned last) {
    unsigned old = *to;
    while (!std::atomic_ref<unsigned>(*to).compare_exchange_weak(old, old >= last ? 0 : old + 1)) {
    }
    return old;
}

struct alignas(64) CUtensorMap {
    uint64_t opaque[16];
};
