// fp32 arithmetic in which every operation is rounded by itself, as the CPU backend computes it: nvcc would otherwise
// contract products and sums into multiply-adds, whose bits differ. An expression of Exact values reads like one of floats.
#pragma once
#include "ptx.cuh"

struct Exact {
    float value;
    __device__ __forceinline__ Exact(float v) : value(v) {}
};

__device__ __forceinline__ Exact operator+(Exact a, Exact b) { return __fadd_rn(a.value, b.value); }
__device__ __forceinline__ Exact operator-(Exact a, Exact b) { return __fsub_rn(a.value, b.value); }
__device__ __forceinline__ Exact operator*(Exact a, Exact b) { return __fmul_rn(a.value, b.value); }
__device__ __forceinline__ Exact operator/(Exact a, Exact b) { return __fdiv_rn(a.value, b.value); }
__device__ __forceinline__ Exact sqrt(Exact a) { return __fsqrt_rn(a.value); }
