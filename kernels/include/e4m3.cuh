// FP8 e4m3: a sign, four bits of exponent with bias 7, three of fraction; 448 is the largest number, all ones is none. Rounds
// to nearest even and saturates. The twin of src/device/e4m3.rs, to the bit.
#pragma once
#include "exact.cuh"

constexpr float E4M3_LARGEST = 448.0f;
// Rows whose largest magnitude is smaller are zero, for 448 over it must not overflow.
constexpr float E4M3_LEAST = 1e-30f;

// A row's scale, and what its values are multiplied by before they become codes.
struct RowScale {
    float factor;
    float scale;
};

__device__ __forceinline__ RowScale row_scale(float largest) {
    if (!(largest >= E4M3_LEAST)) return {0.0f, 1.0f};
    return {(Exact(E4M3_LARGEST) / largest).value, (Exact(largest) / E4M3_LARGEST).value};
}

// By integers, for what has no instruction for it.
__device__ __forceinline__ uint32_t e4m3_code(float number) {
    const float magnitude = fabsf(number);
    const uint32_t bits = __float_as_uint(magnitude);
    // Twenty bits of the fraction go; a carry may pass into the exponent, whose bias changes from 127 to 7.
    const uint32_t normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
    // Multiples of 1/512: the sum with 2^23 rounds to one. Eight of them are the first number with a full exponent.
    const uint32_t small = __float_as_uint(magnitude * 512.0f + 8388608.0f) & 0xf;
    const uint32_t code = magnitude >= E4M3_LARGEST ? 0x7e : magnitude >= 0.015625f ? normal : small;
    return magnitude == magnitude ? code | (__float_as_uint(number) >> 24 & 0x80) : 0x7f;
}

// Four numbers, the first in the lowest byte.
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    return e4m3_pair(a, b) | e4m3_pair(c, d) << 16;
#else
    return e4m3_code(a) | e4m3_code(b) << 8 | e4m3_code(c) << 16 | e4m3_code(d) << 24;
#endif
}
