// The losses. Adversarial, over logits [heads, groups, B, positions], m = sign * logit with sign 1 for real samples, -1 else:
//
//   hinge            L_D = max(0, 1 - m)       L_G = -fake                  (m is linear: the gradients are -sign or 0, and -1)
//   non-saturating   L_D = softplus(-m)        L_G = softplus(-fake)
//   R1 penalty       (real - perturbed)^2, weighted, part of L_D
//   mse              mean (a - b)^2
//
// One pass reads each logit once, overwrites the gradients that are asked for and leaves a block's sums in fp64; `*_finalize`
// adds them up in a fixed order and adds the result to the statistics. A thread adds up at most 8 logits in fp32 before fp64
// takes over. Called by src/device/cuda/ops/hinge.rs.
//
// Floors
//   hinge            4 bytes a logit and 4 for each of its gradients: memory
//   non_saturating   the same bytes; exp, log1p and a division a logit, twice for fake ones: these
//   hinge_finalize   8 bytes a partial sum, 8 a statistic: latency
//   mse              8 bytes a pair, 12 with the gradient: memory
//   mse_finalize     8 bytes a partial sum: latency
#include "abi.h"
#include "include/reduce.cuh"
#include "include/vector.cuh"

namespace {

// A loss term at one logit: value and derivative.
struct Term {
    float value;
    float slope;
};

struct Hinge {
    // What the discriminator pays for a logit of a real sample (sign = 1) or of a fake one (sign = -1).
    static __device__ __forceinline__ Term discriminator(float logit, float sign) {
        const float margin = sign * logit;
        return margin < 1.0f ? Term{1.0f - margin, -sign} : Term{0.0f, 0.0f};
    }
    // What the student pays for a logit of its own sample.
    static __device__ __forceinline__ Term generator(float logit) { return {-logit, -1.0f}; }
};

// ln(1 + e^x) without overflow, and its derivative.
__device__ __forceinline__ Term softplus(float x) {
    const float small = expf(-fabsf(x));
    const float sigmoid = (x < 0.0f ? small : 1.0f) / (1.0f + small);
    return {fmaxf(x, 0.0f) + log1pf(small), sigmoid};
}

struct NonSaturating {
    static __device__ __forceinline__ Term discriminator(float logit, float sign) {
        const Term term = softplus(-sign * logit);
        return {term.value, -sign * term.slope};
    }
    static __device__ __forceinline__ Term generator(float logit) {
        const Term term = softplus(-logit);
        return {term.value, -term.slope};
    }
};

// In the order of the Rust enum HingeStat.
enum Sum { LOSS_D, LOSS_G, MEAN_REAL, MEAN_FAKE, ACCURACY_REAL, ACCURACY_FAKE, PENALTY_R1 };

// A block takes HINGE_CHUNK logits of every group of one head.
template <class Loss, int WIDTH>
__device__ __forceinline__ void adversarial(const HingeParams& p) {
    __shared__ double room[MAX_WARPS][HINGE_SUMS];
    const uint32_t head = blockIdx.y;
    const uint64_t all_groups = (uint64_t)head * p.groups * p.per_group;
    const float* logits = at<const float>(p.logits) + all_groups;
    float* d_d = p.d_logits_d ? at<float>(p.d_logits_d) + all_groups : nullptr;
    float* d_g = p.d_logits_g ? at<float>(p.d_logits_g) + head * p.per_group : nullptr;
    const uint64_t begin = (uint64_t)blockIdx.x * HINGE_CHUNK;
    const uint64_t end = begin + HINGE_CHUNK < p.per_group ? begin + HINGE_CHUNK : p.per_group;
    float sums[HINGE_SUMS] = {};

    for (uint64_t i = begin + threadIdx.x * WIDTH; i < end; i += HINGE_THREADS * WIDTH) {
        // Logits of each group, then in their place the discriminator's gradient; absent groups stay 0.
        float fake[WIDTH], slope_g[WIDTH], real[WIDTH] = {}, mismatch[WIDTH] = {}, perturbed[WIDTH] = {};
        load<WIDTH>(logits + i, fake);
        if (p.real) load<WIDTH>(logits + p.real * p.per_group + i, real);
        if (p.mismatch) load<WIDTH>(logits + p.mismatch * p.per_group + i, mismatch);
        if (p.perturbed) load<WIDTH>(logits + p.perturbed * p.per_group + i, perturbed);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            const Term d = Loss::discriminator(fake[j], -1.0f);
            const Term g = Loss::generator(fake[j]);
            sums[LOSS_D] += d.value;
            sums[LOSS_G] += g.value;
            sums[MEAN_FAKE] += fake[j];
            sums[ACCURACY_FAKE] += fake[j] < 0.0f ? 1.0f : 0.0f;
            fake[j] = p.weight_d * d.slope;
            slope_g[j] = p.weight_g * g.slope;
        }
        if (p.real) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                const Term d = Loss::discriminator(real[j], 1.0f);
                const float difference = p.perturbed ? real[j] - perturbed[j] : 0.0f;
                const float pull = p.weight_d * 2.0f * p.r1_weight * difference;
                sums[LOSS_D] += d.value;
                sums[MEAN_REAL] += real[j];
                sums[ACCURACY_REAL] += real[j] > 0.0f ? 1.0f : 0.0f;
                sums[PENALTY_R1] += difference * difference;
                real[j] = p.weight_d * d.slope + pull;
                perturbed[j] = -pull;
            }
        }
        if (p.mismatch) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                const Term d = Loss::discriminator(mismatch[j], -1.0f);
                sums[LOSS_D] += p.mismatch_weight * d.value;
                mismatch[j] = p.weight_d * p.mismatch_weight * d.slope;
            }
        }
        if (d_g) store<WIDTH>(d_g + i, slope_g);
        if (!d_d) continue;
        store<WIDTH>(d_d + i, fake);
        if (p.real) store<WIDTH>(d_d + p.real * p.per_group + i, real);
        if (p.mismatch) store<WIDTH>(d_d + p.mismatch * p.per_group + i, mismatch);
        if (p.perturbed) store<WIDTH>(d_d + p.perturbed * p.per_group + i, perturbed);
    }
    sums[LOSS_D] += p.r1_weight * sums[PENALTY_R1];

    double totals[HINGE_SUMS];
#pragma unroll
    for (int s = 0; s < HINGE_SUMS; s++) totals[s] = sums[s];
    block_sum(totals, room);
    double* partial = at<double>(p.partials) + ((uint64_t)head * p.parts + blockIdx.x) * HINGE_SUMS;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < HINGE_SUMS; s++) partial[s] = totals[s];
    }
}

// The sum of partials[i * stride] for i < parts, in every lane of a warp.
__device__ __forceinline__ double warp_total(const double* partials, uint32_t parts, uint32_t stride) {
    double sum = 0.0;
    for (uint32_t i = lane_index(); i < parts; i += 32) sum += partials[(uint64_t)i * stride];
    return warp_sum(sum);
}

template <int WIDTH>
__device__ __forceinline__ void squares(const MseParams& p) {
    __shared__ double room[MAX_WARPS][1];
    const float* a = at<const float>(p.a);
    const float* b = at<const float>(p.b);
    const uint64_t stride = (uint64_t)gridDim.x * MSE_THREADS * WIDTH;
    double sum = 0.0;
    for (uint64_t i = ((uint64_t)blockIdx.x * MSE_THREADS + threadIdx.x) * WIDTH; i < p.len; i += stride) {
        float x[WIDTH], y[WIDTH], d_a[WIDTH];
        load<WIDTH>(a + i, x);
        load<WIDTH>(b + i, y);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            const float difference = x[j] - y[j];
            sum += (double)difference * difference;
            d_a[j] = p.factor * difference;
        }
        if (p.d_a) store<WIDTH>(at<float>(p.d_a) + i, d_a);
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) at<double>(p.partials)[blockIdx.x] = sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(HINGE_THREADS) hinge_x4(HingeParams p) { adversarial<Hinge, 4>(p); }
LADD_KERNEL(hinge_x4)
extern "C" __global__ void __launch_bounds__(HINGE_THREADS) hinge_x1(HingeParams p) { adversarial<Hinge, 1>(p); }
LADD_KERNEL(hinge_x1)
extern "C" __global__ void __launch_bounds__(HINGE_THREADS) non_saturating_x4(HingeParams p) { adversarial<NonSaturating, 4>(p); }
LADD_KERNEL(non_saturating_x4)
extern "C" __global__ void __launch_bounds__(HINGE_THREADS) non_saturating_x1(HingeParams p) { adversarial<NonSaturating, 1>(p); }
LADD_KERNEL(non_saturating_x1)

// A warp for each statistic of each head.
extern "C" __global__ void __launch_bounds__(HINGE_THREADS) hinge_finalize(HingeParams p) {
    const uint32_t index = blockIdx.x * (HINGE_THREADS / 32) + warp_index();
    if (index >= p.heads * HINGE_SUMS) return;
    const uint32_t head = index / HINGE_SUMS;
    const double* partials = at<const double>(p.partials) + (uint64_t)head * p.parts * HINGE_SUMS + index % HINGE_SUMS;
    const double total = warp_total(partials, p.parts, HINGE_SUMS);
    if (lane_index() == 0) at<float>(p.stats)[index] += (float)(p.share * total);
}
LADD_KERNEL(hinge_finalize)

extern "C" __global__ void __launch_bounds__(MSE_THREADS) mse_x4(MseParams p) { squares<4>(p); }
LADD_KERNEL(mse_x4)
extern "C" __global__ void __launch_bounds__(MSE_THREADS) mse_x1(MseParams p) { squares<1>(p); }
LADD_KERNEL(mse_x1)

// One warp.
extern "C" __global__ void __launch_bounds__(32) mse_finalize(MseParams p) {
    const double total = warp_total(at<const double>(p.partials), p.parts, 1);
    if (threadIdx.x == 0) *at<float>(p.loss) += (float)(p.share * total);
}
LADD_KERNEL(mse_finalize)
