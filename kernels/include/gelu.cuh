// GELU in its tanh form, x s(2 sqrt(2 / pi) (x + 0.044715 x^3)) with s the logistic function, and its derivative.
#pragma once
#include "ptx.cuh"

constexpr float GELU_LINEAR = 1.5957691216057308f;
constexpr float GELU_CUBIC = GELU_LINEAR * 0.044715f;

__device__ __forceinline__ float gelu_gate(float x) { return 1.0f / (1.0f + __expf(-x * (GELU_LINEAR + GELU_CUBIC * x * x))); }

// To about 2^-21, for what is rounded to bf16 next: a division by one instruction, not the nine of an exact one.
__device__ __forceinline__ float gelu_fast(float x) { return __fdividef(x, 1.0f + __expf(-x * (GELU_LINEAR + GELU_CUBIC * x * x))); }

__device__ __forceinline__ float gelu_derivative(float x) {
    const float gate = gelu_gate(x);
    return gate + x * gate * (1.0f - gate) * (GELU_LINEAR + 3.0f * GELU_CUBIC * x * x);
}
