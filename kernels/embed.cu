// Embeddings of place and time.
//
//   pos_embed            x[b, y, x, :] += pos[top + y, left + x, :], the centre crop of a stored grid; bf16, sums in fp32
//   timestep_embedding   out = [cos(1000 t f_i) | sin(1000 t f_i) | pooled], f_i = 10000^(-i / half). The angle reaches 1000
//                        radians, in fp32 it alone would cost 1e-5: fp64
//
// Called by src/device/cuda/ops/embed.rs.
//
// Floors
//   pos_embed            4 bytes a value and 2 for pos, which comes from L2 behind the first sample: memory
//   timestep_embedding   an fp64 exponential and a sine or cosine and 2 bytes a frequency, 4 bytes a pooled value, a few thousand
//                        of these in all, one block a sample: latency
#include "abi.h"
#include "include/vector.cuh"

namespace {

// Blocks along y share the rows of the grid: the values of one lie side by side both in x and in pos.
template <int WIDTH>
__device__ __forceinline__ void pos_embed(const PosEmbedParams& p) {
    const uint64_t row_len = (uint64_t)p.columns * p.hidden;
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x * WIDTH;
    for (uint32_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
        const uint32_t y = p.top + row % p.grid_rows;
        const bf16* pos = at<const bf16>(p.pos) + ((uint64_t)y * p.max + p.left) * p.hidden;
        bf16* x = at<bf16>(p.x) + row * row_len;
        for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < row_len; i += stride) {
            float sum[WIDTH], place[WIDTH];
            load<WIDTH>(x + i, sum);
            load<WIDTH>(pos + i, place);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) sum[j] += place[j];
            store<WIDTH>(x + i, sum);
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(EMBED_THREADS) pos_embed_x8(PosEmbedParams p) { pos_embed<8>(p); }
LADD_KERNEL(pos_embed_x8)
extern "C" __global__ void __launch_bounds__(EMBED_THREADS) pos_embed_x1(PosEmbedParams p) { pos_embed<1>(p); }
LADD_KERNEL(pos_embed_x1)

// One block a sample.
extern "C" __global__ void __launch_bounds__(EMBED_THREADS) timestep_embedding(TimestepEmbeddingParams p) {
    const uint32_t b = blockIdx.x;
    const double t = at<const float>(p.t)[b];
    const uint32_t frequencies = 2 * p.half;
    bf16* out = at<bf16>(p.out) + (uint64_t)b * (frequencies + p.pooled_width);
    const double decay = -9.210340371976182736 / p.half;  // ln(10000)
    for (uint32_t i = threadIdx.x; i < frequencies; i += EMBED_THREADS) {
        const bool cosine = i < p.half;
        const double frequency = 1000.0 * exp(decay * (cosine ? i : i - p.half));
        const double angle = t * frequency;
        out[i] = __float2bfloat16_rn((float)(cosine ? cos(angle) : sin(angle)));
    }
    const bf16* pooled = at<const bf16>(p.pooled) + (uint64_t)b * p.pooled_width;
    for (uint32_t i = threadIdx.x; i < p.pooled_width; i += EMBED_THREADS) out[frequencies + i] = pooled[i];
}
LADD_KERNEL(timestep_embedding)
