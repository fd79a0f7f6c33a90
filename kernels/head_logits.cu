// The last step of a discriminator head: one logit per token, forward and backward.
//
//   logit = sum_c leaky(h_c) w_c + b + mean_c h_c cm_c         leaky: slope 0.2 up to zero
//   dh_c = d (leaky'(h_c) w_c + cm_c / width)
//   dw_c += sum d leaky(h_c)        db += sum d        dcm_c = sum d h_c / width over the positions of a sample
//
// Reads bf16 h once, sums in fp32. Logits, dh and dcm are overwritten; dw and db are added to, by way of one partial sum per
// chunk of a sample, added up in order. Called by src/device/cuda/ops/head_conv.rs.
//
// Floors, per value of h; 4 bytes a logit beside
//   head_logits                   2 bytes: memory
//   head_logits_backward          4 bytes, and 8 a channel and chunk of partial sums: memory
//   head_logits_backward_frozen   4 bytes: memory
//   head_logits_finish            4 bytes a partial sum, 2 a value of dcm, 8 a weight: memory
#include "abi.h"
#include "include/reduce.cuh"
#include "include/vector.cuh"

static constexpr float LEAKY_SLOPE = 0.2f;

__device__ __forceinline__ float leaky(float x) { return x > 0.0f ? x : LEAKY_SLOPE * x; }
__device__ __forceinline__ float leaky_derivative(float x) { return x > 0.0f ? 1.0f : LEAKY_SLOPE; }

// One warp per token; its lanes take WIDTH neighbouring channels at a time.
template <int WIDTH>
__device__ __forceinline__ void logits(const HeadLogitsParams& p) {
    const bf16* w = at<const bf16>(p.weight);
    const float bias = __bfloat162float(*at<const bf16>(p.bias));
    const float inverse = 1.0f / p.width;
    const uint32_t warps = gridDim.x * HEAD_LOGITS_WARPS;
    for (uint32_t token = blockIdx.x * HEAD_LOGITS_WARPS + warp_index(); token < p.tokens; token += warps) {
        const bf16* h = at<const bf16>(p.h) + (uint64_t)token * p.width;
        const bf16* cm = at<const bf16>(p.cm) + (uint64_t)(token / p.positions) * p.width;
        float sum = 0.0f;
        for (uint32_t c = lane_index() * WIDTH; c < p.width; c += 32 * WIDTH) {
            float h_c[WIDTH], w_c[WIDTH], cm_c[WIDTH];
            load<WIDTH>(h + c, h_c);
            load<WIDTH>(w + c, w_c);
            load<WIDTH>(cm + c, cm_c);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) sum += leaky(h_c[j]) * w_c[j] + h_c[j] * cm_c[j] * inverse;
        }
        sum = warp_sum(sum);
        if (lane_index() == 0) at<float>(p.logits)[token] = sum + bias;
    }
}

// A block takes one chunk of one sample's positions and 32 WIDTH channels: each lane keeps its channels' weights in
// registers and adds up their gradients over the rows that its warp takes.
template <int WIDTH, bool TRAINED>
__device__ __forceinline__ void logits_backward(const HeadLogitsBackwardParams& p) {
    const uint32_t chunk = blockIdx.x, sample = blockIdx.y;
    const uint32_t c = (blockIdx.z * 32 + lane_index()) * WIDTH;
    const bool inside = c < p.width;
    const float inverse = 1.0f / p.width;
    float w[WIDTH] = {}, cm[WIDTH] = {};
    if (inside) {
        load<WIDTH>(at<const bf16>(p.weight) + c, w);
        load<WIDTH>(at<const bf16>(p.cm) + (uint64_t)sample * p.width + c, cm);
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) cm[j] *= inverse;

    float d_w[WIDTH] = {}, d_cm[WIDTH] = {}, d_bias = 0.0f;
    const uint32_t end = min(p.positions, (chunk + 1) * p.chunk);
    for (uint32_t position = chunk * p.chunk + warp_index(); position < end; position += HEAD_LOGITS_WARPS) {
        const uint64_t token = (uint64_t)sample * p.positions + position;
        const float d = at<const float>(p.d_logits)[token];
        d_bias += d;
        if (!inside) continue;
        float h[WIDTH], dh[WIDTH];
        load<WIDTH>(at<const bf16>(p.h) + token * p.width + c, h);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            dh[j] = d * (leaky_derivative(h[j]) * w[j] + cm[j]);
            d_w[j] += d * leaky(h[j]);
            d_cm[j] += d * h[j];
        }
        store<WIDTH>(at<bf16>(p.dh) + token * p.width + c, dh);
    }
    if constexpr (!TRAINED) return;

    __shared__ float room[HEAD_LOGITS_WARPS][2 * WIDTH + 1][32];
    const int lane = lane_index();
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        room[warp_index()][j][lane] = d_w[j];
        room[warp_index()][WIDTH + j][lane] = d_cm[j] * inverse;
    }
    room[warp_index()][2 * WIDTH][lane] = d_bias;
    // Orders the warps' sums ahead of their reads.
    __syncthreads();
    float* partial = at<float>(p.partial) + ((uint64_t)sample * gridDim.x + chunk) * (2 * p.width + 1);
    for (int i = warp_index(); i < 2 * WIDTH + 1; i += HEAD_LOGITS_WARPS) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < HEAD_LOGITS_WARPS; warp++) sum += room[warp][i][lane];
        if (i == 2 * WIDTH) {
            if (blockIdx.z == 0 && lane == 0) partial[2 * p.width] = sum;
        } else if (inside) {
            partial[i < WIDTH ? c + i : p.width + c + i - WIDTH] = sum;
        }
    }
}

// Adds the partial sums up, 32 columns a block. blockIdx.y says of what: a sample's gradient of cm, or behind the last
// sample that of weight and bias, over all samples.
__device__ __forceinline__ void logits_finish(const HeadLogitsFinishParams& p) {
    const uint32_t columns = 2 * p.width + 1;
    const float* partial = at<const float>(p.partial);
    const uint32_t column = blockIdx.x * 32 + lane_index();
    if (blockIdx.y < p.samples) {
        const float* of_sample = partial + (uint64_t)blockIdx.y * p.chunks * columns;
        const float sum = column_total<HEAD_LOGITS_SLICES>(of_sample, p.chunks, columns, p.width + blockIdx.x * 32);
        if (warp_index() == 0 && column < p.width) at<bf16>(p.d_cm)[(uint64_t)blockIdx.y * p.width + column] = __float2bfloat16_rn(sum);
        return;
    }
    // The bias' column lies behind those of cm.
    const bool bias = blockIdx.x * 32 >= p.width;
    const uint32_t first = bias ? 2 * p.width : blockIdx.x * 32;
    const float sum = column_total<HEAD_LOGITS_SLICES>(partial, p.samples * p.chunks, columns, first);
    if (warp_index() > 0) return;
    if (bias) {
        if (lane_index() == 0) *at<float>(p.d_bias) += sum;
    } else if (column < p.width) {
        at<float>(p.d_weight)[column] += sum;
    }
}

#define HEAD_LOGITS(name, Params, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * HEAD_LOGITS_WARPS) name(Params p) { __VA_ARGS__(p); }             \
    LADD_KERNEL(name)

HEAD_LOGITS(head_logits_x8, HeadLogitsParams, logits<8>)
HEAD_LOGITS(head_logits_x1, HeadLogitsParams, logits<1>)
HEAD_LOGITS(head_logits_backward_x8, HeadLogitsBackwardParams, logits_backward<8, true>)
HEAD_LOGITS(head_logits_backward_x1, HeadLogitsBackwardParams, logits_backward<1, true>)
HEAD_LOGITS(head_logits_backward_frozen_x8, HeadLogitsBackwardParams, logits_backward<8, false>)
HEAD_LOGITS(head_logits_backward_frozen_x1, HeadLogitsBackwardParams, logits_backward<1, false>)

extern "C" __global__ void __launch_bounds__(32 * HEAD_LOGITS_SLICES) head_logits_finish(HeadLogitsFinishParams p) { logits_finish(p); }
LADD_KERNEL(head_logits_finish)
