// Philox4x32-10 (Salmon et al., SC'11), counter-based random numbers: the twin of src/flow/philox.rs, equal to the bit.
//
// The counter is (element / 4 low, element / 4 high, step, stream), the key is the seed; element e is lane e % 4. Normals
// come from Box-Muller in fp32 with nothing but + - * /, sqrt and comparisons, each rounded once (Exact). About 260
// instructions for the four normals of a block, so a kernel must use all four words.
#pragma once
#include "exact.cuh"

static constexpr int PHILOX_ROUNDS = 10;
static constexpr uint32_t PHILOX_MULTIPLIER_0 = 0xD2511F53;
static constexpr uint32_t PHILOX_MULTIPLIER_1 = 0xCD9E8D57;
static constexpr uint32_t PHILOX_WEYL_0 = 0x9E3779B9;
static constexpr uint32_t PHILOX_WEYL_1 = 0xBB67AE85;

// The raw generator: a counter and a key to four random words.
__device__ __forceinline__ uint4 philox4x32(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const uint64_t a = (uint64_t)PHILOX_MULTIPLIER_0 * counter.x;
        const uint64_t b = (uint64_t)PHILOX_MULTIPLIER_1 * counter.z;
        counter = make_uint4((uint32_t)(b >> 32) ^ counter.y ^ key.x, (uint32_t)b, (uint32_t)(a >> 32) ^ counter.w ^ key.y, (uint32_t)a);
        key = make_uint2(key.x + PHILOX_WEYL_0, key.y + PHILOX_WEYL_1);
    }
    return counter;
}

// The four words of elements 4 block to 4 block + 3.
__device__ __forceinline__ uint4 philox_block(uint64_t seed, uint32_t step, uint32_t stream, uint64_t block) {
    const uint4 counter = make_uint4((uint32_t)block, (uint32_t)(block >> 32), step, stream);
    return philox4x32(counter, make_uint2((uint32_t)seed, (uint32_t)(seed >> 32)));
}

// A word as a number strictly between 0 and 1: the middle of one of 2^23 equal intervals. Exact in fp32.
__device__ __forceinline__ float uniform(uint32_t word) { return ((float)(word >> 9) + 0.5f) * (1.0f / 8388608.0f); }

// Natural logarithm of a number in (0, 1): m 2^e with m in [sqrt(1/2), sqrt 2), then the series of artanh.
__device__ __forceinline__ Exact philox_ln(float u) {
    const uint32_t sqrt_half = 0x3f3504f3;
    const uint32_t shifted = __float_as_uint(u) + (0x3f800000 - sqrt_half);
    const Exact exponent = (float)((int)(shifted >> 23) - 127);
    const Exact f = Exact(__uint_as_float((shifted & 0x007fffff) + sqrt_half)) - 1.0f;
    const Exact s = f / (2.0f + f);
    const Exact z = s * s;
    Exact q = 1.0f / 9.0f;
    q = q * z + 1.0f / 7.0f;
    q = q * z + 1.0f / 5.0f;
    q = q * z + 1.0f / 3.0f;
    q = q * z + 1.0f;
    return (2.0f * s) * q + exponent * 0.693147180559945f;
}

// Cosine (x) and sine (y) of 2 pi u, u in (0, 1): Taylor polynomials around the nearest quarter turn.
__device__ __forceinline__ float2 philox_cos_sin_turn(Exact u) {
    const Exact quarter = floorf((4.0f * u + 0.5f).value);
    const Exact a = (u - quarter * 0.25f) * 6.28318530717958f;
    const Exact a2 = a * a;
    Exact s = 1.0f / 362880.0f;
    s = s * a2 + -1.0f / 5040.0f;
    s = s * a2 + 1.0f / 120.0f;
    s = s * a2 + -1.0f / 6.0f;
    s = s * a2 + 1.0f;
    const Exact sin = a * s;
    Exact c = -1.0f / 3628800.0f;
    c = c * a2 + 1.0f / 40320.0f;
    c = c * a2 + -1.0f / 720.0f;
    c = c * a2 + 1.0f / 24.0f;
    c = c * a2 + -0.5f;
    const Exact cos = c * a2 + 1.0f;
    // Quadrants 0 to 3 give (c, s), (-s, c), (-c, -s), (s, -c): a choice of polynomial and a choice of sign each.
    const uint32_t quadrant = (uint32_t)quarter.value & 3;
    const float first = quadrant & 1 ? sin.value : cos.value;
    const float second = quadrant & 1 ? cos.value : sin.value;
    const uint32_t flip_first = ((quadrant + 1) >> 1 & 1) << 31;
    const uint32_t flip_second = (quadrant >> 1) << 31;
    return make_float2(__uint_as_float(__float_as_uint(first) ^ flip_first), __uint_as_float(__float_as_uint(second) ^ flip_second));
}

__device__ __forceinline__ float2 box_muller(float u1, float u2) {
    const Exact radius = sqrt(-2.0f * philox_ln(u1));
    const float2 turn = philox_cos_sin_turn(u2);
    return make_float2((radius * turn.x).value, (radius * turn.y).value);
}

// The four standard normals of a block.
__device__ __forceinline__ void normals(uint4 words, float (&to)[4]) {
    const float2 first = box_muller(uniform(words.x), uniform(words.y));
    const float2 second = box_muller(uniform(words.z), uniform(words.w));
    to[0] = first.x;
    to[1] = first.y;
    to[2] = second.x;
    to[3] = second.y;
}
