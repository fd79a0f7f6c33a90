// Loads and stores of WIDTH neighbouring bf16 or fp32 values as floats: one 16-byte access where WIDTH is 8 (bf16) or
// 4 (fp32), plain accesses otherwise. Launchers choose the wide form where pointers and sizes allow it.
#pragma once
#include "ptx.cuh"

using bf16 = __nv_bfloat16;

template <class T>
__device__ __forceinline__ T* at(uint64_t address) { return reinterpret_cast<T*>(address); }

template <int WIDTH>
__device__ __forceinline__ void load(const bf16* from, float (&to)[WIDTH]) {
    if constexpr (WIDTH == 8) {
        uint4 raw = load_16_bytes(from);
        uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 pair = unpack_bf16(words[i]);
            to[2 * i] = pair.x;
            to[2 * i + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) to[i] = __bfloat162float(from[i]);
    }
}

template <int WIDTH>
__device__ __forceinline__ void store(bf16* to, const float (&from)[WIDTH]) {
    if constexpr (WIDTH == 8) {
        store_16_bytes(to, make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
                                      pack_bf16(from[6], from[7])));
    } else {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) to[i] = __float2bfloat16_rn(from[i]);
    }
}

template <int WIDTH>
__device__ __forceinline__ void load(const float* from, float (&to)[WIDTH]) {
    if constexpr (WIDTH % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WIDTH; i += 4) {
            uint4 raw = load_16_bytes(from + i);
            to[i] = __uint_as_float(raw.x);
            to[i + 1] = __uint_as_float(raw.y);
            to[i + 2] = __uint_as_float(raw.z);
            to[i + 3] = __uint_as_float(raw.w);
        }
    } else {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) to[i] = from[i];
    }
}

template <int WIDTH>
__device__ __forceinline__ void store(float* to, const float (&from)[WIDTH]) {
    if constexpr (WIDTH % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WIDTH; i += 4) {
            store_16_bytes(to + i, make_uint4(__float_as_uint(from[i]), __float_as_uint(from[i + 1]), __float_as_uint(from[i + 2]),
                                              __float_as_uint(from[i + 3])));
        }
    } else {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) to[i] = from[i];
    }
}

// Eight bf16 values as they lie in memory: half the registers of the floats they stand for. What must outlive an exchange
// between threads, or a row, is kept this way and unpacked again; `keep_packed` (ptx.cuh) holds the compiler to it.
using Packed = uint4;

__device__ __forceinline__ Packed load_packed(const bf16* from) { return load_16_bytes(from); }

__device__ __forceinline__ void store_packed(bf16* to, Packed packed) { store_16_bytes(to, packed); }

__device__ __forceinline__ void unpack(Packed packed, float (&to)[8]) {
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_bf16(words[i]);
        to[2 * i] = pair.x;
        to[2 * i + 1] = pair.y;
    }
}

__device__ __forceinline__ Packed pack(const float (&from)[8]) {
    return make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
                      pack_bf16(from[6], from[7]));
}

// The same from any address, value by value.
__device__ __forceinline__ Packed gather_packed(const bf16* from) {
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = __bfloat162float(from[i]);
    return pack(values);
}

template <int N>
__device__ __forceinline__ void keep_packed(Packed (&vectors)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) keep_packed(vectors[i]);
}
