// What the attention kernels share: where the rows of a token lie, a row's statistic of the backward pass, the online softmax
// of a strip of scores, and the store of a strip of results.
//
// A strip is 16 rows of a warp's accumulator, float strip[N / 2] for N columns, as mma.m16n8k16 and wgmma leave it:
// element i belongs to row lane / 4 + 8 (i / 2 % 2) and column 8 (i / 4) + 2 (lane % 4) + i % 2. A thread so sees two
// rows, called halves below, and four neighbouring lanes share a row.
#pragma once
#include "abi.h"
#include "vector.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
constexpr int STRIP_ROWS = 16;

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }
__device__ __forceinline__ int strip_half(int i) { return i / 2 % 2; }
__device__ __forceinline__ int strip_row(int half) { return lane_id() / 4 + 8 * half; }
__device__ __forceinline__ int strip_column(int i) { return i / 4 * 8 + lane_id() % 4 * 2 + i % 2; }

// Sum and maximum over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// The rows of one head of one sample in a pair of tensors [B N, H D] and [B L, H D], addressed by joint token.
template <class T>
struct StreamRows {
    T* image;
    T* text;
    uint32_t image_tokens;
    uint64_t stride;

    __device__ StreamRows(DevicePtr image_address, DevicePtr text_address, uint32_t image_tokens, uint32_t tokens,
                          uint32_t heads, uint32_t head_dim, uint32_t sample, uint32_t head)
        : image(at<T>(image_address)),
          text(at<T>(text_address)),
          image_tokens(image_tokens),
          stride((uint64_t)heads * head_dim) {
        const uint64_t column = (uint64_t)head * head_dim;
        if (image) image += (uint64_t)sample * image_tokens * stride + column;
        if (text) text += (uint64_t)sample * (tokens - image_tokens) * stride + column;
    }

    // Null where the stream is absent.
    __device__ T* operator()(uint32_t token) const {
        T* stream = token < image_tokens ? image : text;
        const uint32_t row = token < image_tokens ? token : token - image_tokens;
        return stream ? stream + row * stride : nullptr;
    }
};

// Of these, the tokens [first, tokens): null behind the end.
template <class T>
struct SplitRows {
    StreamRows<T> head;
    uint32_t first;
    uint32_t tokens;

    __device__ T* operator()(int r) const { return first + r < tokens ? head(first + r) : nullptr; }
};

// rowsum(dO out) of one token, added up over ATTENTION_STATISTICS_LANES neighbouring lanes, of which this is `lane`; absent
// streams count as zeros. All lanes of the warp take part, those that are not `inside` for nothing.
template <int WIDTH>
__device__ __forceinline__ float sum_of_d_out_out(const AttentionBackwardParams& params, uint32_t sample, uint32_t head,
                                                  uint32_t token, int lane, bool inside) {
    constexpr int LANES = ATTENTION_STATISTICS_LANES;
    float sum = 0.0f;
    if (inside) {
        const StreamRows<const bf16> outs(params.out_image, params.out_text, params.image, params.keys, params.heads,
                                          params.head_dim, sample, head);
        const StreamRows<const bf16> d_outs(params.d_out_image, params.d_out_text, params.image, params.keys, params.heads,
                                            params.head_dim, sample, head);
        const bf16* out = outs(token);
        const bf16* d_out = d_outs(token);
        for (uint32_t column = lane * WIDTH; out && d_out && column < params.head_dim; column += LANES * WIDTH) {
            float a[WIDTH], b[WIDTH];
            load<WIDTH>(out + column, a);
            load<WIDTH>(d_out + column, b);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) sum = fmaf(a[i], b[i], sum);
        }
    }
    for (int distance = LANES / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    return sum;
}

// Replaces what stands for keys behind the end of the sequence: `left` of the strip's columns are in it.
template <int N>
__device__ __forceinline__ void mask_columns(float (&strip)[N], int left, float value) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (strip_column(i) >= left) strip[i] = value;
    }
}

// 2^x for x <= 0 by fp32 multiply-adds, for when the special-function unit is what everything waits for. Relative error up to
// 2.9e-6, none at 0; less than 2^-125 becomes about that. A not-a-number stays one or becomes the largest float, which is
// infinite in bf16.
__device__ __forceinline__ float ex2_by_polynomial(float x) {
    const float clamped = max_or_nan(x, -125.0f);
    const float magic = 12582912.0f;            // 1.5 2^23: the sum's last bits are x rounded to an integer
    const float shifted = clamped + magic;
    const float fraction = clamped - (shifted - magic);
    // Of degree 4, 1 at 0, with the least largest relative error in [-1/2, 1/2]. Degree 3 errs by 7.5e-5: less than bf16's
    // 2e-3, but the sum of exponentials is kept in fp32.
    float power = fmaf(fraction, 0.00958285294f, 0.0559064262f);
    power = fmaf(power, fraction, 0.240240991f);
    power = fmaf(power, fraction, 0.693124175f);
    power = fmaf(power, fraction, 1.0f);
    return __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
}

// Softmax over tiles of scores: keeps the maximum and the sum of exponentials of each row so far. All exponentials are
// base 2: `scale` takes scores to that base, in one multiply-add with the subtraction of the maximum.
struct OnlineSoftmax {
    float maximum[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.0f, 0.0f};    // over this thread's columns; `finish` adds those of the row's other lanes

    // Replaces scores by exponentials; results of earlier tiles are to be multiplied by `rescale`. POLYNOMIAL of eight
    // neighbouring exponentials avoid the special-function unit.
    template <int POLYNOMIAL = 0, int N>
    __device__ __forceinline__ void update(float (&scores)[N], float scale, float (&rescale)[2]) {
        float tile_maximum[2] = {maximum[0], maximum[1]};
#pragma unroll
        for (int i = 0; i < N; i++) tile_maximum[strip_half(i)] = fmaxf(tile_maximum[strip_half(i)], scores[i]);
        float shift[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float now = row_max(tile_maximum[half]);
            shift[half] = now * scale;
            rescale[half] = ex2(maximum[half] * scale - shift[half]);
            maximum[half] = now;
            sum[half] *= rescale[half];
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float exponent = fmaf(scores[i], scale, -shift[strip_half(i)]);
            scores[i] = i % 8 < POLYNOMIAL ? ex2_by_polynomial(exponent) : ex2(exponent);
            sum[strip_half(i)] += scores[i];
        }
    }

    __device__ __forceinline__ void finish() {
        sum[0] = row_sum(sum[0]);
        sum[1] = row_sum(sum[1]);
    }

    __device__ __forceinline__ float lse(int half, float scale) const { return maximum[half] * scale * LN_2 + logf(sum[half]); }
};

template <int N>
__device__ __forceinline__ void scale_rows(float (&strip)[N], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < N; i++) strip[i] *= factor[strip_half(i)];
}

// The strip rounded to bf16, as the left operand of the next product: words 4 k to 4 k + 3 are its 16 columns from 16 k.
template <int N>
__device__ __forceinline__ void pack_strip(uint32_t (&words)[N / 2], const float (&strip)[N]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) words[i] = pack_bf16(strip[2 * i], strip[2 * i + 1]);
}

// Tiles in shared memory are rows of D values in chunks of 16 bytes; the chunks of a row are permuted so that eight rows
// of one column of chunks lie in different banks.
template <int D>
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * D + (chunk ^ (row % 8)) * 8; }

// Stores a strip, rounded, to the rows that `row_of(r)` names for r = 0..15 (null: nowhere), through `staging`, which holds
// 16 rows of D values for this warp alone.
template <int D, bool WIDE, int N, class RowOf>
__device__ __forceinline__ void store_strip(bf16* staging, const float (&strip)[N], int head_dim, RowOf row_of) {
    static_assert(N == D / 2, "a strip of D columns");
    // The warp is done with what the staging rows held before.
    __syncwarp();
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        const int row = strip_row(strip_half(i));
        const uint32_t pair = pack_bf16(strip[i], strip[i + 1]);
        *reinterpret_cast<uint32_t*>(staging + swizzled<D>(row, i / 4) + lane_id() % 4 * 2) = pair;
    }
    // The rows are complete before other lanes read them.
    __syncwarp();
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = lane_id(); i < STRIP_ROWS * CHUNKS; i += 32) {
        const int row = i / CHUNKS;
        const int chunk = i % CHUNKS;
        bf16* to = row_of(row);
        if (!to) continue;
        const bf16* from = staging + swizzled<D>(row, chunk);
        if constexpr (WIDE) {
            if (chunk * 8 < head_dim) *reinterpret_cast<uint4*>(to + chunk * 8) = *reinterpret_cast<const uint4*>(from);
        } else {
            for (int j = 0; j < 8 && chunk * 8 + j < head_dim; j++) to[chunk * 8 + j] = from[j];
        }
    }
}
