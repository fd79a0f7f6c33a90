// Global gradient norm, and AdamW with clipping, moving average and cast in one pass over the arena.
//
//   global_norm   norm = sqrt(sum g^2), summed in fp64; not finite where a gradient is not. 4 bytes a weight.
//   adamw         g' = clip g,  m = b1 m + (1 - b1) g',  v = b2 v + (1 - b2) g'^2,
//                 w = keep w - rate m / (root sqrt(v) + eps),  ema += follow (w - ema),  params = bf16(w)
//
// as torch.optim.AdamW, with rate = lr / (1 - b1^n), root = 1 / sqrt(1 - b2^n), keep = 1 - lr decay; follow comes from
// min(decay, (1 + n) / (10 + n)). Reads and writes 30 bytes a weight (38 with the average), about 20 operations, each rounded
// by itself as on the CPU: bound by memory. With b1 = 0, m is g' and need not be there: 22 bytes (30). All state is updated in place. Called by src/device/cuda/ops/adamw.rs.
#include "abi.h"
#include "include/exact.cuh"
#include "include/reduce.cuh"
#include "include/vector.cuh"

namespace {

// A number of values that a visitor knows when it is compiled.
template <int WIDTH>
struct Width {
    static constexpr int value = WIDTH;
};

// Calls visit(index, width) for whole groups of WIDTH values, then for the rest one by one. Arenas begin at an address
// that allows 16-byte accesses.
template <int WIDTH, class Visit>
__device__ __forceinline__ void each_group(uint64_t len, Visit visit) {
    const uint64_t thread = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const uint64_t threads = (uint64_t)gridDim.x * blockDim.x;
    const uint64_t whole = len - len % WIDTH;
    for (uint64_t i = thread * WIDTH; i < whole; i += threads * WIDTH) visit(i, Width<WIDTH>());
    for (uint64_t i = whole + thread; i < len; i += threads) visit(i, Width<1>());
}

// What is the same for every weight and every step.
struct Decay {
    float beta1;
    float beta2;
    float one_minus_beta1;
    float one_minus_beta2;
    float eps;
};

template <int WIDTH>
__device__ __forceinline__ void update(const AdamwParams& p, const AdamwCoefficients& c, const Decay& d, uint64_t i) {
    float g[WIDTH], m[WIDTH], v[WIDTH], w[WIDTH];
    load<WIDTH>(at<const float>(p.grads) + i, g);
    if (p.moment1) load<WIDTH>(at<const float>(p.moment1) + i, m);
    load<WIDTH>(at<const float>(p.moment2) + i, v);
    load<WIDTH>(at<const float>(p.master) + i, w);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        const Exact gradient = Exact(g[j]) * c.clip;
        const Exact moment1 = p.moment1 ? Exact(d.beta1) * m[j] + Exact(d.one_minus_beta1) * gradient : gradient;
        const Exact moment2 = Exact(d.beta2) * v[j] + Exact(d.one_minus_beta2) * gradient * gradient;
        const Exact weight = Exact(w[j]) * c.keep - Exact(c.rate) * moment1 / (sqrt(moment2) * c.root + d.eps);
        m[j] = moment1.value;
        v[j] = moment2.value;
        w[j] = weight.value;
    }
    if (p.moment1) store<WIDTH>(at<float>(p.moment1) + i, m);
    store<WIDTH>(at<float>(p.moment2) + i, v);
    store<WIDTH>(at<float>(p.master) + i, w);
    store<WIDTH>(at<bf16>(p.params) + i, w);
    if (p.ema) {
        float ema[WIDTH];
        load<WIDTH>(at<const float>(p.ema) + i, ema);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) ema[j] = (ema[j] + Exact(c.follow) * (w[j] - Exact(ema[j]))).value;
        store<WIDTH>(at<float>(p.ema) + i, ema);
    }
}

}  // namespace

// A block's sum of squares. fp64: a sum of 10^9 squares keeps seven digits, and no square overflows.
extern "C" __global__ void __launch_bounds__(NORM_THREADS) global_norm_partial(NormParams p) {
    __shared__ double room[MAX_WARPS][1];
    const float* grads = at<const float>(p.grads);
    double sum = 0.0;
    each_group<4>(p.len, [&](uint64_t i, auto width) {
        float g[width.value];
        load<width.value>(grads + i, g);
#pragma unroll
        for (int j = 0; j < width.value; j++) sum += (double)g[j] * g[j];
    });
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) at<double>(p.partials)[blockIdx.x] = sum;
}
LADD_KERNEL(global_norm_partial)

// One block: the same order of summation on every run.
extern "C" __global__ void __launch_bounds__(NORM_THREADS) global_norm_finalize(NormParams p) {
    __shared__ double room[MAX_WARPS][1];
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < p.parts; i += NORM_THREADS) sum += at<const double>(p.partials)[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *at<float>(p.norm) = (float)sqrt(sum);
}
LADD_KERNEL(global_norm_finalize)

// One thread: counts the update and works out its coefficients before the pass over the arena begins, so that every
// weight sees the same count. A norm that is not finite is counted instead and stops the pass.
extern "C" __global__ void __launch_bounds__(1) adamw_prepare(AdamwParams p) {
    AdamwCoefficients c = {};
    float* counters = at<float>(p.counters);
    const float norm = *at<const float>(p.norm);
    if (fabsf(norm) < INFINITY) {
        counters[0] += 1.0f;
        const double n = counters[0];
        const double lr = at<const StepParams>(p.step)->lr[p.lr_index];
        const double warm = (1.0 + n) / (10.0 + n);
        c.clip = (float)fmin(p.max_norm / (norm + 1e-6), 1.0);
        c.rate = (float)(lr / (1.0 - pow(p.beta1, n)));
        c.root = (float)(1.0 / sqrt(1.0 - pow(p.beta2, n)));
        c.keep = (float)(1.0 - lr * p.weight_decay);
        c.follow = (float)(1.0 - fmin(p.ema_decay, warm));
        c.apply = 1;
    } else {
        counters[1] += 1.0f;
    }
    *at<AdamwCoefficients>(p.coefficients) = c;
}
LADD_KERNEL(adamw_prepare)

extern "C" __global__ void __launch_bounds__(ADAMW_THREADS) adamw(AdamwParams p) {
    const AdamwCoefficients c = *at<const AdamwCoefficients>(p.coefficients);
    if (!c.apply) return;
    const Decay d = {(float)p.beta1, (float)p.beta2, (float)(1.0 - p.beta1), (float)(1.0 - p.beta2), (float)p.eps};
    each_group<8>(p.len, [&](uint64_t i, auto width) { update<width.value>(p, c, d, i); });
}
LADD_KERNEL(adamw)
