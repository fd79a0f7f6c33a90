// Global gradient norm, and AdamW with clipping, moving average and cast in one pass over the arena.
//
//   global_norm   norm = sqrt(sum g^2), summed in fp64; not finite where a gradient is not
//   adamw         g' = clip g,  m = b1 m + (1 - b1) g',  v = b2 v + (1 - b2) g'^2,
//                 w = keep w - rate m / (root sqrt(v) + eps),  ema += follow (w - ema),  params = bf16(w)
//
// as torch.optim.AdamW, with rate = lr / (1 - b1^n), root = 1 / sqrt(1 - b2^n), keep = 1 - lr decay; follow comes from
// min(decay, (1 + n) / (10 + n)). Each operation is rounded by itself as on the CPU. With b1 = 0, m is g' and need not be there.
// Packed moments (src/device/packed.rs says what they are) take one byte and two. All state is updated in place. Called by
// src/device/cuda/ops/adamw.rs.
//
// Floors, per weight; 8 bytes more with the average
//   global_norm_partial    4 bytes, one fp64 multiply-add: memory
//   global_norm_finalize   8 bytes a partial sum, one block: latency
//   adamw_prepare          one thread, some fp64: latency
//   adamw                  30 bytes, 22 with b1 = 0, about 20 operations: memory
//   adamw_packed           20 bytes, 18 with b1 = 0, about 80 operations: memory
#include <type_traits>

#include "abi.h"
#include "include/exact.cuh"
#include "include/philox.cuh"
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

// Moments and weights of WIDTH values from index i on; leaves the new moments in m and v.
template <int WIDTH>
__device__ __forceinline__ void move(const AdamwParams& p, const AdamwCoefficients& c, const Decay& d, uint64_t i,
                                     float (&m)[WIDTH], float (&v)[WIDTH]) {
    float g[WIDTH], w[WIDTH];
    load<WIDTH>(at<const float>(p.grads) + i, g);
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

template <int WIDTH>
__device__ __forceinline__ void update(const AdamwParams& p, const AdamwCoefficients& c, const Decay& d, uint64_t i) {
    float m[WIDTH], v[WIDTH];
    if (p.moment1) load<WIDTH>(at<const float>(p.moment1) + i, m);
    load<WIDTH>(at<const float>(p.moment2) + i, v);
    move(p, c, d, i, m, v);
    if (p.moment1) store<WIDTH>(at<float>(p.moment1) + i, m);
    store<WIDTH>(at<float>(p.moment2) + i, v);
}

// ---- packed moments: small floats of one or two bytes, relative to their block's largest value ----------------------------

constexpr int LANE_VALUES = 8;  // of a block of 256, by each lane of the warp that owns it
static_assert(ADAMW_PACK_BLOCK == 32 * LANE_VALUES, "a warp owns a block");
constexpr float LEAST_SCALE = 1e-36f;

// A sign, where there is one, four bits of exponent and the rest fraction.
template <bool SIGNED>
struct Packing {
    using Code = std::conditional_t<SIGNED, uint8_t, uint16_t>;
    static constexpr int FRACTION = SIGNED ? 3 : 12;
    static constexpr uint32_t LAST = (16 << FRACTION) - 1;
    static constexpr float TOP = SIGNED ? 1.875f : 1.9997559f;

    __device__ static __forceinline__ float decode(uint32_t code) {
        const float number = __uint_as_float((code & LAST) << (23 - FRACTION)) * __uint_as_float((127 + 112) << 23);
        return SIGNED && code > 127 ? -number : number;
    }

    // One of the two codes around a number, by 16 random bits.
    __device__ static __forceinline__ uint32_t encode(float number, uint32_t random) {
        const float magnitude = fabsf(number);
        uint32_t code;
        if (magnitude >= 1.0f / 16384.0f) {
            code = ((__float_as_uint(magnitude) + (random << 7 >> FRACTION)) >> (23 - FRACTION)) - (112 << FRACTION);
        } else {
            const Exact steps = __uint_as_float((127 + 14 + FRACTION) << 23);
            code = (uint32_t)(magnitude * steps + (float)(random >> 5) * Exact(1.0f / 2048.0f)).value;
        }
        const uint32_t least = !SIGNED && magnitude > 0.0f;
        code = min(max(code, least), LAST);
        return SIGNED && number < 0.0f ? code | 128 : code;
    }
};

// Codes of eight neighbouring values, or of the first `count`.
template <bool WHOLE, class Code>
__device__ __forceinline__ void load_codes(const Code* from, int count, uint32_t (&to)[LANE_VALUES]) {
    if constexpr (WHOLE) {
        constexpr int IN_WORD = 4 / sizeof(Code);
        uint32_t words[LANE_VALUES / IN_WORD];
        if constexpr (sizeof(Code) == 1) {
            const uint2 raw = *reinterpret_cast<const uint2*>(from);
            words[0] = raw.x;
            words[1] = raw.y;
        } else {
            const uint4 raw = load_16_bytes(from);
            words[0] = raw.x;
            words[1] = raw.y;
            words[2] = raw.z;
            words[3] = raw.w;
        }
#pragma unroll
        for (int j = 0; j < LANE_VALUES; j++) to[j] = (Code)(words[j / IN_WORD] >> 32 / IN_WORD * (j % IN_WORD));
    } else {
        for (int j = 0; j < LANE_VALUES; j++) to[j] = j < count ? from[j] : 0;
    }
}

template <bool WHOLE, class Code>
__device__ __forceinline__ void store_codes(Code* to, int count, const uint32_t (&from)[LANE_VALUES]) {
    if constexpr (WHOLE) {
        constexpr int IN_WORD = 4 / sizeof(Code);
        uint32_t words[LANE_VALUES / IN_WORD] = {};
#pragma unroll
        for (int j = 0; j < LANE_VALUES; j++) words[j / IN_WORD] |= from[j] << 32 / IN_WORD * (j % IN_WORD);
        if constexpr (sizeof(Code) == 1) {
            *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        } else {
            store_16_bytes(to, make_uint4(words[0], words[1], words[2], words[3]));
        }
    } else {
        for (int j = 0; j < count; j++) to[j] = (Code)from[j];
    }
}

// The numbers of a block's codes, eight a lane.
template <bool SIGNED, bool WHOLE>
__device__ __forceinline__ void unpack_moment(DevicePtr codes, DevicePtr scales, uint64_t block, uint64_t i, int count,
                                              float (&to)[LANE_VALUES]) {
    using Kind = Packing<SIGNED>;
    uint32_t packed[LANE_VALUES];
    load_codes<WHOLE>(at<const typename Kind::Code>(codes) + i, count, packed);
    const Exact factor = Exact(at<const float>(scales)[block]) * (1.0f / Kind::TOP);
#pragma unroll
    for (int j = 0; j < LANE_VALUES; j++) to[j] = (Kind::decode(packed[j]) * factor).value;
}

// Packs a block and its scale; `words` hold 16 random bits a value, in their low halves for numbers with a sign.
template <bool SIGNED, bool WHOLE>
__device__ __forceinline__ void pack_moment(DevicePtr codes, DevicePtr scales, uint64_t block, uint64_t i, int count,
                                            const float (&from)[LANE_VALUES], const uint32_t (&words)[LANE_VALUES]) {
    using Kind = Packing<SIGNED>;
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < LANE_VALUES; j++) largest = j < count ? fmaxf(largest, fabsf(from[j])) : largest;
    for (int distance = 16; distance > 0; distance /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    }
    const bool some = largest >= LEAST_SCALE;
    const Exact factor = some ? Exact(Kind::TOP) / largest : 0.0f;
    uint32_t packed[LANE_VALUES];
#pragma unroll
    for (int j = 0; j < LANE_VALUES; j++) {
        packed[j] = Kind::encode((from[j] * factor).value, SIGNED ? words[j] & 0xffff : words[j] >> 16);
    }
    store_codes<WHOLE>(at<typename Kind::Code>(codes) + i, count, packed);
    if (lane_index() == 0) at<float>(scales)[block] = some ? largest : 0.0f;
}

// One block by one warp. Not WHOLE: the arena ends in it.
template <bool WHOLE>
__device__ __forceinline__ void update_packed(const AdamwParams& p, const AdamwCoefficients& c, const Decay& d,
                                              const StepParams& step, uint64_t block) {
    const uint64_t i = block * ADAMW_PACK_BLOCK + lane_index() * LANE_VALUES;
    const int count = WHOLE ? LANE_VALUES : (int)(i < p.len ? min(p.len - i, (uint64_t)LANE_VALUES) : 0);
    float m[LANE_VALUES] = {}, root[LANE_VALUES], v[LANE_VALUES];
    if (p.moment1) unpack_moment<true, WHOLE>(p.moment1, p.scales1, block, i, count, m);
    unpack_moment<false, WHOLE>(p.moment2, p.scales2, block, i, count, root);
#pragma unroll
    for (int j = 0; j < LANE_VALUES; j++) v[j] = (Exact(root[j]) * root[j]).value;
    if constexpr (WHOLE) {
        move(p, c, d, i, m, v);
    } else {
        for (int j = 0; j < count; j++) {
            float one_m[1] = {m[j]}, one_v[1] = {v[j]};
            move(p, c, d, i + j, one_m, one_v);
            m[j] = one_m[0];
            v[j] = one_v[0];
        }
    }
    uint32_t words[LANE_VALUES];
#pragma unroll
    for (int j = 0; j < LANE_VALUES; j += 4) {
        const uint4 four = philox_block(step.seed, step.step, p.rounding, (i + j) / 4);
        words[j] = four.x;
        words[j + 1] = four.y;
        words[j + 2] = four.z;
        words[j + 3] = four.w;
    }
    if (p.moment1) pack_moment<true, WHOLE>(p.moment1, p.scales1, block, i, count, m, words);
#pragma unroll
    for (int j = 0; j < LANE_VALUES; j++) root[j] = sqrt(Exact(v[j])).value;
    pack_moment<false, WHOLE>(p.moment2, p.scales2, block, i, count, root, words);
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

extern "C" __global__ void __launch_bounds__(ADAMW_THREADS) adamw_packed(AdamwParams p) {
    const AdamwCoefficients c = *at<const AdamwCoefficients>(p.coefficients);
    if (!c.apply) return;
    const Decay d = {(float)p.beta1, (float)p.beta2, (float)(1.0 - p.beta1), (float)(1.0 - p.beta2), (float)p.eps};
    const StepParams step = *at<const StepParams>(p.step);
    const uint64_t whole = p.len / ADAMW_PACK_BLOCK;
    const uint64_t blocks = (p.len + ADAMW_PACK_BLOCK - 1) / ADAMW_PACK_BLOCK;
    const uint64_t warps = (uint64_t)gridDim.x * (ADAMW_THREADS / 32);
    for (uint64_t block = (uint64_t)blockIdx.x * (ADAMW_THREADS / 32) + warp_index(); block < blocks; block += warps) {
        if (block < whole) {
            update_packed<true>(p, c, d, step, block);
        } else {
            update_packed<false>(p, c, d, step, block);
        }
    }
}
LADD_KERNEL(adamw_packed)
