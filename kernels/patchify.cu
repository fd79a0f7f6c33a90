// Latents to tokens and back: two permutations, each the other's adjoint. With patch p, token (b, top, left) holds
//
//   latent[b, c, top p + dy, left p + dx]   at (c, dy, dx), channel first, or at (dy, dx, c), channel last
//
// `patchify` reads the fp32 latent and rounds to bf16 tokens, `unpatchify` widens; both overwrite. Neighbouring threads take
// neighbouring pieces of a token: tokens move 16 bytes a thread without gaps, and at p = 2 a warp's accesses to the latent fill
// whole 32-byte sectors. Called by src/device/cuda/ops/patchify.rs.
//
// Floors
//   patchify_*     6 bytes a value: memory
//   unpatchify_*   6 bytes a value: memory
#include "abi.h"
#include "include/vector.cuh"

namespace {

// Where a value of a token lies inside its patch. Stepping from value to value needs no division.
struct ChannelFirst {
    uint32_t c, dy, dx;

    __device__ __forceinline__ ChannelFirst(const PatchParams& p, uint32_t inner) {
        dx = inner % p.patch;
        dy = inner / p.patch % p.patch;
        c = inner / (p.patch * p.patch);
    }
    __device__ __forceinline__ void step(const PatchParams& p) {
        if (++dx < p.patch) return;
        dx = 0;
        if (++dy < p.patch) return;
        dy = 0;
        c++;
    }
};

struct ChannelLast {
    uint32_t c, dy, dx;

    __device__ __forceinline__ ChannelLast(const PatchParams& p, uint32_t inner) {
        c = inner % p.channels;
        dx = inner / p.channels % p.patch;
        dy = inner / p.channels / p.patch;
    }
    __device__ __forceinline__ void step(const PatchParams& p) {
        if (++c < p.channels) return;
        c = 0;
        if (++dx < p.patch) return;
        dx = 0;
        dy++;
    }
};

// Moves WIDTH neighbouring values of a token at a time, which WIDTH must divide.
template <class Place, bool TO_TOKENS, int WIDTH>
__device__ __forceinline__ void permute(const PatchParams& p) {
    float* latent = at<float>(p.latent);
    bf16* tokens = at<bf16>(p.tokens);
    const uint32_t token_width = p.channels * p.patch * p.patch;
    const uint32_t columns = p.width / p.patch;
    const uint32_t rows = p.height / p.patch;
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x * WIDTH;
    for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < p.len; i += stride) {
        const uint64_t token = i / token_width;
        const uint32_t left = token % columns;
        const uint64_t row = token / columns;
        const uint32_t top = row % rows;
        float* sample = latent + row / rows * p.channels * p.height * p.width;
        Place place(p, (uint32_t)(i - token * token_width));
        float values[WIDTH];
        if (!TO_TOKENS) load<WIDTH>(tokens + i, values);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            const uint32_t y = top * p.patch + place.dy;
            const uint32_t x = left * p.patch + place.dx;
            float& value = sample[((uint64_t)place.c * p.height + y) * p.width + x];
            if (TO_TOKENS) values[j] = value;
            else value = values[j];
            place.step(p);
        }
        if (TO_TOKENS) store<WIDTH>(tokens + i, values);
    }
}

}  // namespace

#define PATCH(name, Place, TO_TOKENS)                                                                                      \
    extern "C" __global__ void __launch_bounds__(PATCH_THREADS) name##_x8(PatchParams p) { permute<Place, TO_TOKENS, 8>(p); } \
    LADD_KERNEL(name##_x8)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(PATCH_THREADS) name##_x1(PatchParams p) { permute<Place, TO_TOKENS, 1>(p); } \
    LADD_KERNEL(name##_x1)

PATCH(patchify_channel_first, ChannelFirst, true)
PATCH(patchify_channel_last, ChannelLast, true)
PATCH(unpatchify_channel_first, ChannelFirst, false)
PATCH(unpatchify_channel_last, ChannelLast, false)
