// Elementwise activations of the conditioning MLPs and the discriminator heads, forward and backward.
//
//   silu:        y = x s(x), s the logistic function          dx = dy s(x) (1 + x (1 - s(x)))
//   leaky_relu:  y = x or, up to zero, 0.2 x [+ residual]      dx = dy or 0.2 dy
//
// Reads bf16, computes in fp32, writes bf16; overwrites its output. Called by src/device/cuda/ops/activation.rs.
//
// Floors
//   silu                  4 bytes a value, an exponential and a division: memory
//   silu_backward         6 bytes a value, an exponential and a division: memory
//   leaky_relu            4 bytes a value, 6 with a residual: memory
//   leaky_relu_backward   6 bytes a value: memory
#include "abi.h"
#include "include/vector.cuh"

static constexpr float LEAKY_SLOPE = 0.2f;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

struct Silu {
    static __device__ float apply(float x, float) { return x * sigmoid(x); }
};
struct SiluBackward {
    static __device__ float apply(float x, float dy) {
        float s = sigmoid(x);
        return dy * s * (1.0f + x * (1.0f - s));
    }
};
struct LeakyRelu {
    static __device__ float apply(float x, float residual) { return (x > 0.0f ? x : LEAKY_SLOPE * x) + residual; }
};
struct LeakyReluBackward {
    static __device__ float apply(float x, float dy) { return x > 0.0f ? dy : LEAKY_SLOPE * dy; }
};

// One thread takes WIDTH neighbouring values at a time, the grid strides over the buffer.
template <class Op, int WIDTH>
__device__ __forceinline__ void elementwise(const ActivationParams& p) {
    const bf16* x = at<const bf16>(p.x);
    const bf16* other = at<const bf16>(p.other);
    bf16* out = at<bf16>(p.out);
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x * WIDTH;
    for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < p.len; i += stride) {
        float a[WIDTH], b[WIDTH] = {}, y[WIDTH];
        load<WIDTH>(x + i, a);
        if (other) load<WIDTH>(other + i, b);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) y[j] = Op::apply(a[j], b[j]);
        store<WIDTH>(out + i, y);
    }
}

#define ACTIVATION(name, Op)                                                                                            \
    extern "C" __global__ void __launch_bounds__(ACTIVATION_THREADS) name##_x8(ActivationParams p) { elementwise<Op, 8>(p); } \
    LADD_KERNEL(name##_x8)                                                                                              \
    extern "C" __global__ void __launch_bounds__(ACTIVATION_THREADS) name##_x1(ActivationParams p) { elementwise<Op, 1>(p); } \
    LADD_KERNEL(name##_x1)

ACTIVATION(silu, Silu)
ACTIVATION(silu_backward, SiluBackward)
ACTIVATION(leaky_relu, LeakyRelu)
ACTIVATION(leaky_relu_backward, LeakyReluBackward)
