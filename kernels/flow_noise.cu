// Everything that draws random numbers or moves along the flow, with x_t = (1 - t) x0 + t n and n standard normal:
//
//   timesteps          one t per sample: discrete, logit-normal, uniform or shifted
//   normal             out = n
//   flow_noise         x_t as above, velocity = n - x0; x0 + sigma n' may take x0's place
//   predict_x0_renoise x0_hat = x_t - t v, renoised = (1 - t_hat) x0_hat + t_hat n
//   .. _backward       dv = -t ((1 - t_hat) d_renoised + d_x0_hat)
//   euler_cfg          x += dt (u + guidance (v - u)), without u: x += dt v
//
// All fp32, all outputs overwritten (x of euler_cfg is added to). predict_x0_renoise stands between two networks and patchifies
// as well: v comes as the bf16 tokens of one's final layer, renoised goes as those that the other embeds; so do gradients. Every
// operation is rounded by itself (Exact), so that the results have the bits of the CPU backend's. Called by
// src/device/cuda/ops/flow_noise.rs.
//
// Floors, per value. Noise is drawn in registers, 65 instructions a normal: half a cycle of a multiprocessor, in which an H100's
// memory brings about 7 bytes
//   timesteps_*                   4 bytes and a Philox block a sample: latency
//   normal                        4 bytes: the drawing
//   flow_noise                    8 bytes, 12 with the velocity: memory, at 8 bytes the drawing as much; perturbed: the drawing
//   predict_x0_renoise            12 bytes: memory, the drawing somewhat less
//   predict_x0_renoise_backward   4 bytes, 8 with both gradients: memory
//   euler_cfg                     12 bytes, 16 with guidance: memory
#include "abi.h"
#include "include/philox.cuh"
#include "include/vector.cuh"

namespace {

__device__ __forceinline__ void draw(const StepParams& step, uint32_t stream, uint64_t block, float (&noise)[4]) {
    normals(philox_block(step.seed, step.step, stream, block), noise);
}

// Calls visit(sample, element of its first value in the random sequence, Philox block) for every block that holds normals
// of these samples. Blocks along y share the samples, so that no thread divides to find its own.
template <class Visit>
__device__ __forceinline__ void each_block(const StepParams& step, uint32_t batch, uint64_t numel, Visit visit) {
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
    for (uint32_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const uint64_t first = ((uint64_t)step.first_sample + b) * numel;
        const uint64_t end = (first + numel + 3) / 4;
        for (uint64_t block = first / 4 + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; block < end; block += stride) {
            visit(b, first, block);
        }
    }
}

// Calls visit(lane, position in the sample) for the lanes of a block that belong to the sample: all four at once where
// samples are whole blocks, else one by one.
template <int WIDTH, class Visit>
__device__ __forceinline__ void each_lane(uint64_t first, uint64_t numel, uint64_t block, Visit visit) {
    if constexpr (WIDTH == 4) {
        visit(0, 4 * block - first);
    } else {
#pragma unroll
        for (int lane = 0; lane < 4; lane++) {
            // Before the sample's first value this wraps around to a huge position.
            const uint64_t i = 4 * block + lane - first;
            if (i < numel) visit(lane, i);
        }
    }
}

// One of a block's four, without an array in local memory.
__device__ __forceinline__ float of_lane(const float (&four)[4], uint32_t lane) {
    return lane == 0 ? four[0] : lane == 1 ? four[1] : lane == 2 ? four[2] : four[3];
}

__device__ __forceinline__ float mix(Exact x0, Exact noise, Exact t) { return ((1.0f - t) * x0 + t * noise).value; }

template <int WIDTH>
__device__ __forceinline__ void normal(const NormalParams& p) {
    const StepParams step = *at<const StepParams>(p.step);
    each_block(step, p.batch, p.numel, [&](uint32_t b, uint64_t first, uint64_t block) {
        float noise[4];
        draw(step, p.stream, block, noise);
        each_lane<WIDTH>(first, p.numel, block, [&](int lane, uint64_t i) {
            float out[WIDTH];
#pragma unroll
            for (int j = 0; j < WIDTH; j++) out[j] = noise[lane + j];
            store<WIDTH>(at<float>(p.out) + b * p.numel + i, out);
        });
    });
}

template <int WIDTH>
__device__ __forceinline__ void flow_noise(const FlowNoiseParams& p) {
    const StepParams step = *at<const StepParams>(p.step);
    each_block(step, p.batch, p.numel, [&](uint32_t b, uint64_t first, uint64_t block) {
        float noise[4], perturbation[4];
        draw(step, p.stream, block, noise);
        if (p.perturbed) draw(step, p.perturb_stream, block, perturbation);
        const float t = at<const float>(p.t)[b];
        each_lane<WIDTH>(first, p.numel, block, [&](int lane, uint64_t i) {
            const uint64_t index = b * p.numel + i;
            float x0[WIDTH], x_t[WIDTH], velocity[WIDTH];
            load<WIDTH>(at<const float>(p.x0) + index, x0);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                const float n = noise[lane + j];
                if (p.perturbed) x0[j] = (x0[j] + Exact(p.sigma) * perturbation[lane + j]).value;
                x_t[j] = mix(x0[j], n, t);
                velocity[j] = n - x0[j];
            }
            store<WIDTH>(at<float>(p.x_t) + index, x_t);
            if (p.velocity) store<WIDTH>(at<float>(p.velocity) + index, velocity);
        });
    });
}

// ---- between latents and tokens ---------------------------------------------------------------------------------------------

// Calls visit(sample, position in the latent, values) for four neighbours in a row of a latent of patches of 2, with what
// tokens `in` hold for them (zeros where there are none), and puts what it leaves into tokens `out`. A block takes a strip of
// tokens: 16 bytes a thread on both sides of shared memory, whole rows of the latent in between. IN_LAST: the order of `in` is
// channel last and that of `out` channel first, else the other way round.
template <bool IN_LAST, class Params, class Visit>
__device__ __forceinline__ void each_quad(const Params& p, DevicePtr in, DevicePtr out, Visit visit) {
    constexpr int QUADS = RENOISE_TOKENS / 2;
    DYNAMIC_SHARED(shared);
    const uint32_t token_width = 4 * p.channels;
    const uint32_t stride = token_width + RENOISE_PAD;  // neighbouring tokens begin in different banks
    bf16* from = reinterpret_cast<bf16*>(shared);       // [RENOISE_TOKENS][stride]
    bf16* to = from + RENOISE_TOKENS * stride;          // [RENOISE_TOKENS][stride]
    const uint32_t columns = p.width / 2;
    const uint32_t strips = (columns + RENOISE_TOKENS - 1) / RENOISE_TOKENS;
    const uint32_t top = blockIdx.x / strips;
    const uint32_t left = blockIdx.x % strips * RENOISE_TOKENS;
    const uint32_t tokens = min(columns - left, (uint32_t)RENOISE_TOKENS);
    const uint32_t quad = threadIdx.x % QUADS;
    for (uint32_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
        const uint64_t begin = (((uint64_t)b * (p.height / 2) + top) * columns + left) * token_width;
        for (uint32_t i = threadIdx.x * 8; in && i < tokens * token_width; i += FLOW_THREADS * 8) {
            const uint4 eight = load_16_bytes(at<const bf16>(in) + begin + i);
            uint32_t* words = reinterpret_cast<uint32_t*>(from + i / token_width * stride + i % token_width);
            words[0] = eight.x;
            words[1] = eight.y;
            words[2] = eight.z;
            words[3] = eight.w;
        }
        // Orders the tokens ahead of their reads, and the last sample's results' reads ahead of the writes below.
        __syncthreads();
        for (uint32_t row = threadIdx.x / QUADS; 2 * quad < tokens && row < 2 * p.channels; row += FLOW_THREADS / QUADS) {
            const uint32_t c = row / 2;
            const uint32_t dy = row % 2;
            uint32_t last[4], first[4];
            float values[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t token = (2 * quad + j / 2) * stride;
                last[j] = token + (2 * dy + j % 2) * p.channels + c;
                first[j] = token + 4 * c + 2 * dy + j % 2;
                values[j] = in ? __bfloat162float(from[IN_LAST ? last[j] : first[j]]) : 0.0f;
            }
            visit(b, ((uint64_t)c * p.height + 2 * top + dy) * p.width + 2 * left + 4 * quad, values);
#pragma unroll
            for (int j = 0; j < 4; j++) to[IN_LAST ? first[j] : last[j]] = __float2bfloat16_rn(values[j]);
        }
        // Orders the results ahead of their reads, and the reads of the tokens ahead of the next sample's.
        __syncthreads();
        for (uint32_t i = threadIdx.x * 8; i < tokens * token_width; i += FLOW_THREADS * 8) {
            const uint32_t* words = reinterpret_cast<const uint32_t*>(to + i / token_width * stride + i % token_width);
            store_16_bytes(at<bf16>(out) + begin + i, make_uint4(words[0], words[1], words[2], words[3]));
        }
    }
}

// The same for one value at a time: any patch, alignment and number of channels.
template <bool IN_LAST, class Params, class Visit>
__device__ __forceinline__ void each_value(const Params& p, DevicePtr in, DevicePtr out, Visit visit) {
    const uint64_t numel = (uint64_t)p.channels * p.height * p.width;
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
    for (uint32_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
        for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < numel; i += stride) {
            const uint32_t x = i % p.width;
            const uint32_t y = i / p.width % p.height;
            const uint32_t c = i / p.width / p.height;
            const uint32_t dx = x % p.patch;
            const uint32_t dy = y % p.patch;
            const uint64_t token = (uint64_t)(y / p.patch) * (p.width / p.patch) + x / p.patch;
            const uint64_t begin = b * numel + token * p.channels * p.patch * p.patch;
            const uint64_t last = begin + (uint64_t)(dy * p.patch + dx) * p.channels + c;
            const uint64_t first = begin + ((uint64_t)c * p.patch + dy) * p.patch + dx;
            float values[1] = {in ? __bfloat162float(at<const bf16>(in)[IN_LAST ? last : first]) : 0.0f};
            visit(b, i, values);
            at<bf16>(out)[IN_LAST ? first : last] = __float2bfloat16_rn(values[0]);
        }
    }
}

// Values of one sample: velocities become renoised predictions.
template <int WIDTH>
__device__ __forceinline__ void renoise(const RenoiseParams& p, const StepParams& step, uint32_t b, uint64_t i,
                                        float (&values)[WIDTH]) {
    const uint64_t numel = (uint64_t)p.channels * p.height * p.width;
    const uint64_t element = ((uint64_t)step.first_sample + b) * numel + i;
    float noise[4], x_t[WIDTH], x0_hat[WIDTH];
    draw(step, p.stream, element / 4, noise);
    load<WIDTH>(at<const float>(p.x_t) + b * numel + i, x_t);
    const float t = at<const float>(p.t)[b];
    const float t_hat = at<const float>(p.t_hat)[b];
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        x0_hat[j] = (x_t[j] - Exact(t) * values[j]).value;
        values[j] = mix(x0_hat[j], WIDTH == 4 ? noise[j] : of_lane(noise, element % 4), t_hat);
    }
    store<WIDTH>(at<float>(p.x0_hat) + b * numel + i, x0_hat);
}

// Values of one sample: gradients of renoised predictions become those of velocities.
template <int WIDTH>
__device__ __forceinline__ void renoise_backward(const RenoiseBackwardParams& p, uint32_t b, uint64_t i, float (&values)[WIDTH]) {
    const float t = at<const float>(p.t)[b];
    const Exact through_noise = Exact(-t) * (1.0f - Exact(at<const float>(p.t_hat)[b]));
    float d_x0_hat[WIDTH] = {};
    if (p.d_x0_hat) load<WIDTH>(at<const float>(p.d_x0_hat) + b * ((uint64_t)p.channels * p.height * p.width) + i, d_x0_hat);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        const Exact d_velocity = p.d_renoised ? through_noise * values[j] : Exact(0.0f);
        values[j] = p.d_x0_hat ? (d_velocity - Exact(t) * d_x0_hat[j]).value : d_velocity.value;
    }
}

// ---- samplers, times --------------------------------------------------------------------------------------------------------

template <int WIDTH>
__device__ __forceinline__ void euler_cfg(const EulerParams& p) {
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x * WIDTH;
    for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < p.len; i += stride) {
        float x[WIDTH], velocity[WIDTH];
        load<WIDTH>(at<const float>(p.x) + i, x);
        load<WIDTH>(at<const float>(p.velocity) + i, velocity);
        if (p.unconditional) {
            float u[WIDTH];
            load<WIDTH>(at<const float>(p.unconditional) + i, u);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) velocity[j] = (u[j] + Exact(p.guidance) * (velocity[j] - Exact(u[j]))).value;
        }
#pragma unroll
        for (int j = 0; j < WIDTH; j++) x[j] = (x[j] + Exact(p.dt) * velocity[j]).value;
        store<WIDTH>(at<float>(p.x) + i, x);
    }
}

// The first value whose cumulative probability exceeds u; rounding at the top end falls to the last value that can be
// drawn at all.
__device__ __forceinline__ float discrete(const TimestepsParams& p, bool warmup, float u) {
    float cumulative = 0.0f;
    float drawn = p.values[0];
    for (uint32_t i = 0; i < p.count; i++) {
        const float probability = warmup ? p.warmup_probs[i] : p.probs[i];
        if (!(probability > 0.0f)) continue;
        cumulative += probability;
        drawn = p.values[i];
        if (u < cumulative) break;
    }
    return drawn;
}

// In fp64 and rounded once, as is `shifted`: an error of t is an error of everything after it.
__device__ __forceinline__ float logit_normal(const TimestepsParams& p, float n) {
    const double logit = (double)p.mean + (double)p.std * n;
    const double t = 1.0 / (1.0 + exp(-logit));
    return (float)(t < 0.001 ? 0.001 : t > 0.999 ? 0.999 : t);
}

__device__ __forceinline__ float shifted(const TimestepsParams& p, double u) {
    const double shift = p.shift;
    return (float)(shift * u / (1.0 + (shift - 1.0) * u));
}

// One thread a sample. Calls convert(step, words of the sample's block, lane).
template <class Convert>
__device__ __forceinline__ void timesteps(const TimestepsParams& p, Convert convert) {
    const StepParams step = *at<const StepParams>(p.step);
    const uint32_t b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= p.batch) return;
    const uint64_t element = (uint64_t)step.first_sample + b;
    const uint4 words = philox_block(step.seed, step.step, p.stream, element / 4);
    at<float>(p.t)[b] = convert(step, words, (uint32_t)(element % 4));
}

__device__ __forceinline__ float uniform_of(uint4 words, uint32_t lane) {
    return uniform(lane == 0 ? words.x : lane == 1 ? words.y : lane == 2 ? words.z : words.w);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(FLOW_THREADS) timesteps_discrete(TimestepsParams p) {
    timesteps(p, [&](const StepParams& step, uint4 words, uint32_t lane) {
        return discrete(p, step.step < p.warmup_steps, uniform_of(words, lane));
    });
}
LADD_KERNEL(timesteps_discrete)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) timesteps_logit_normal(TimestepsParams p) {
    timesteps(p, [&](const StepParams&, uint4 words, uint32_t lane) {
        float n[4];
        normals(words, n);
        return logit_normal(p, of_lane(n, lane));
    });
}
LADD_KERNEL(timesteps_logit_normal)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) timesteps_uniform(TimestepsParams p) {
    timesteps(p, [&](const StepParams&, uint4 words, uint32_t lane) { return uniform_of(words, lane); });
}
LADD_KERNEL(timesteps_uniform)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) timesteps_shifted(TimestepsParams p) {
    timesteps(p, [&](const StepParams&, uint4 words, uint32_t lane) { return shifted(p, uniform_of(words, lane)); });
}
LADD_KERNEL(timesteps_shifted)

extern "C" __global__ void __launch_bounds__(FLOW_THREADS) normal_x4(NormalParams p) { normal<4>(p); }
LADD_KERNEL(normal_x4)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) normal_x1(NormalParams p) { normal<1>(p); }
LADD_KERNEL(normal_x1)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) flow_noise_x4(FlowNoiseParams p) { flow_noise<4>(p); }
LADD_KERNEL(flow_noise_x4)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) flow_noise_x1(FlowNoiseParams p) { flow_noise<1>(p); }
LADD_KERNEL(flow_noise_x1)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) predict_x0_renoise_x4(RenoiseParams p) {
    const StepParams step = *at<const StepParams>(p.step);
    each_quad<true>(p, p.velocity, p.renoised, [&](uint32_t b, uint64_t i, float (&values)[4]) { renoise(p, step, b, i, values); });
}
LADD_KERNEL(predict_x0_renoise_x4)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) predict_x0_renoise_x1(RenoiseParams p) {
    const StepParams step = *at<const StepParams>(p.step);
    each_value<true>(p, p.velocity, p.renoised, [&](uint32_t b, uint64_t i, float (&values)[1]) { renoise(p, step, b, i, values); });
}
LADD_KERNEL(predict_x0_renoise_x1)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) predict_x0_renoise_backward_x4(RenoiseBackwardParams p) {
    each_quad<false>(p, p.d_renoised, p.d_velocity, [&](uint32_t b, uint64_t i, float (&values)[4]) { renoise_backward(p, b, i, values); });
}
LADD_KERNEL(predict_x0_renoise_backward_x4)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) predict_x0_renoise_backward_x1(RenoiseBackwardParams p) {
    each_value<false>(p, p.d_renoised, p.d_velocity, [&](uint32_t b, uint64_t i, float (&values)[1]) { renoise_backward(p, b, i, values); });
}
LADD_KERNEL(predict_x0_renoise_backward_x1)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) euler_cfg_x4(EulerParams p) { euler_cfg<4>(p); }
LADD_KERNEL(euler_cfg_x4)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) euler_cfg_x1(EulerParams p) { euler_cfg<1>(p); }
LADD_KERNEL(euler_cfg_x1)
