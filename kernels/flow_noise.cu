// Everything that draws random numbers or moves along the flow, with x_t = (1 - t) x0 + t n and n standard normal:
//
//   timesteps          one t per sample: discrete, logit-normal, uniform or shifted
//   normal             out = n
//   flow_noise         x_t as above, velocity = n - x0; x0 + sigma n' may take x0's place
//   predict_x0_renoise x0_hat = x_t - t v, renoised = (1 - t_hat) x0_hat + t_hat n
//   .. _backward       dv = -t ((1 - t_hat) d_renoised + d_x0_hat)
//   euler_cfg          x += dt (u + guidance (v - u)), without u: x += dt v
//
// All fp32, all outputs overwritten (x of euler_cfg is added to). Every operation is rounded by itself (Exact), so that the
// results have the bits of the CPU backend's. Called by src/device/cuda/ops/flow_noise.rs.
//
// Floors, per value. Noise is drawn in registers, 65 instructions a normal: half a cycle of a multiprocessor, in which an H100's
// memory brings about 7 bytes
//   timesteps_*                   4 bytes and a Philox block a sample: latency
//   normal                        4 bytes: the drawing
//   flow_noise                    8 bytes, 12 with the velocity: memory, at 8 bytes the drawing as much; perturbed: the drawing
//   predict_x0_renoise            16 bytes: memory
//   predict_x0_renoise_backward   8 bytes, 12 with both gradients: memory
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

template <int WIDTH>
__device__ __forceinline__ void predict_x0_renoise(const RenoiseParams& p) {
    const StepParams step = *at<const StepParams>(p.step);
    each_block(step, p.batch, p.numel, [&](uint32_t b, uint64_t first, uint64_t block) {
        float noise[4];
        draw(step, p.stream, block, noise);
        const float t = at<const float>(p.t)[b];
        const float t_hat = at<const float>(p.t_hat)[b];
        each_lane<WIDTH>(first, p.numel, block, [&](int lane, uint64_t i) {
            const uint64_t index = b * p.numel + i;
            float x_t[WIDTH], velocity[WIDTH], x0_hat[WIDTH], renoised[WIDTH];
            load<WIDTH>(at<const float>(p.x_t) + index, x_t);
            load<WIDTH>(at<const float>(p.velocity) + index, velocity);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                x0_hat[j] = (x_t[j] - Exact(t) * velocity[j]).value;
                renoised[j] = mix(x0_hat[j], noise[lane + j], t_hat);
            }
            store<WIDTH>(at<float>(p.x0_hat) + index, x0_hat);
            store<WIDTH>(at<float>(p.renoised) + index, renoised);
        });
    });
}

template <int WIDTH>
__device__ __forceinline__ void predict_x0_renoise_backward(const RenoiseBackwardParams& p) {
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x * WIDTH;
    for (uint32_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
        const float t = at<const float>(p.t)[b];
        const Exact through_noise = Exact(-t) * (1.0f - Exact(at<const float>(p.t_hat)[b]));
        for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < p.numel; i += stride) {
            const uint64_t index = b * p.numel + i;
            float d_renoised[WIDTH], d_x0_hat[WIDTH], d_velocity[WIDTH] = {};
            if (p.d_renoised) {
                load<WIDTH>(at<const float>(p.d_renoised) + index, d_renoised);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) d_velocity[j] = (through_noise * d_renoised[j]).value;
            }
            if (p.d_x0_hat) {
                load<WIDTH>(at<const float>(p.d_x0_hat) + index, d_x0_hat);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) d_velocity[j] = (d_velocity[j] - Exact(t) * d_x0_hat[j]).value;
            }
            store<WIDTH>(at<float>(p.d_velocity) + index, d_velocity);
        }
    }
}

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
        return logit_normal(p, lane == 0 ? n[0] : lane == 1 ? n[1] : lane == 2 ? n[2] : n[3]);
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
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) predict_x0_renoise_x4(RenoiseParams p) { predict_x0_renoise<4>(p); }
LADD_KERNEL(predict_x0_renoise_x4)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) predict_x0_renoise_x1(RenoiseParams p) { predict_x0_renoise<1>(p); }
LADD_KERNEL(predict_x0_renoise_x1)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) predict_x0_renoise_backward_x4(RenoiseBackwardParams p) {
    predict_x0_renoise_backward<4>(p);
}
LADD_KERNEL(predict_x0_renoise_backward_x4)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) predict_x0_renoise_backward_x1(RenoiseBackwardParams p) {
    predict_x0_renoise_backward<1>(p);
}
LADD_KERNEL(predict_x0_renoise_backward_x1)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) euler_cfg_x4(EulerParams p) { euler_cfg<4>(p); }
LADD_KERNEL(euler_cfg_x4)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) euler_cfg_x1(EulerParams p) { euler_cfg<1>(p); }
LADD_KERNEL(euler_cfg_x1)
