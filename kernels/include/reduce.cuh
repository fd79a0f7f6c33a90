// Sums in a fixed order, so that the same values give the same bits on every run: over a warp, over a block, and over
// the partial sums that the blocks of an earlier kernel left behind; maxima over a block. No atomics.
#pragma once
#include "ptx.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int MAX_WARPS = 32;

__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / 32; }

// Sums each of N values over groups of LANES neighbouring lanes (a power of two). Every lane of a group gets the sums, to
// the same bits: both partners of an exchange add the same two numbers. All lanes of the warp must take part.
template <int LANES = 32, class T, int N>
__device__ __forceinline__ void warp_sum(T (&values)[N]) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] += __shfl_xor_sync(ALL_LANES, values[i], distance);
    }
}

template <int LANES = 32, class T>
__device__ __forceinline__ T warp_sum(T value) {
    T values[1] = {value};
    warp_sum<LANES>(values);
    return values[0];
}

// Sums each of N values over a block of whole warps, at most MAX_WARPS. Every thread gets the sums. `room` is shared
// memory that only block sums use; it may be the same for all of them.
template <class T, int N>
__device__ __forceinline__ void block_sum(T (&values)[N], T (&room)[MAX_WARPS][N]) {
    const int warps = blockDim.x / 32;
    warp_sum(values);
    if (warps == 1) return;
    // Orders the reads of the sum before this one ahead of the writes below.
    __syncthreads();
    if (lane_index() == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) room[warp_index()][i] = values[i];
    }
    // Orders the warps' sums ahead of their reads.
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = room[0][i];
    for (int warp = 1; warp < warps; warp++) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] += room[warp][i];
    }
}

template <class T>
__device__ __forceinline__ T block_sum(T value, T (&room)[MAX_WARPS][1]) {
    T values[1] = {value};
    block_sum(values, room);
    return values[0];
}

// The same for sums that follow each other, in two rooms by turns: one synchronisation in place of two.
template <int N>
__device__ __forceinline__ void block_sum(float (&values)[N], float (&rooms)[2][MAX_WARPS][N], int& turn) {
    const int warps = blockDim.x / 32;
    warp_sum(values);
    if (warps == 1) return;
    float(&room)[MAX_WARPS][N] = rooms[turn];
    turn ^= 1;
    if (lane_index() == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) room[warp_index()][i] = values[i];
    }
    // Orders the warps' sums ahead of their reads, and the reads of the sum before this one ahead of the writes of the next.
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = room[0][i];
    for (int warp = 1; warp < warps; warp++) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] += room[warp][i];
    }
}

// The largest of each of N values over a block, in two rooms by turns; what is no number is passed over. Every thread gets them.
template <int N>
__device__ __forceinline__ void block_max(float (&values)[N], float (&rooms)[2][MAX_WARPS][N], int& turn) {
    const int warps = blockDim.x / 32;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = fmaxf(values[i], __shfl_xor_sync(ALL_LANES, values[i], distance));
    }
    if (warps == 1) return;
    float(&room)[MAX_WARPS][N] = rooms[turn];
    turn ^= 1;
    if (lane_index() == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) room[warp_index()][i] = values[i];
    }
    // Orders the warps' maxima ahead of their reads, and the reads of the exchange before this one ahead of the writes of the next.
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = room[0][i];
    for (int warp = 1; warp < warps; warp++) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = fmaxf(values[i], room[warp][i]);
    }
}

// Second half of a sum over columns: partials [parts, columns] of which a block of 32 x SLICES threads adds up 32 columns,
// each warp every SLICES-th part. The first warp gets the totals, one column a lane; other warps and lanes behind the last
// column get nothing of use. Bound by the reads, 4 bytes a partial.
template <int SLICES>
__device__ __forceinline__ float column_total(const float* partials, uint32_t parts, uint64_t columns, uint64_t first_column) {
    __shared__ float room[SLICES][32];
    const uint64_t column = first_column + lane_index();
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 4
        for (uint32_t part = warp_index(); part < parts; part += SLICES) sum += partials[part * columns + column];
    }
    room[warp_index()][lane_index()] = sum;
    // Orders the slices' sums ahead of their reads.
    __syncthreads();
    if (warp_index() == 0) {
        for (int slice = 1; slice < SLICES; slice++) sum += room[slice][lane_index()];
    }
    return sum;
}
