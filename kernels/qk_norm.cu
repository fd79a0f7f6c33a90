// Splits the fused qkv rows of one stream into the joint buffers [B, H, S, D], with RMSNorm of every query and key head, and
// the backward, which gathers them again:
//
//   forward    r = 1 / sqrt(mean(x^2) + eps)     y = x r w                        v is copied
//   backward   dx = r (dy w - x r^2 mean(dy w x))     dw = sum_heads,tokens dy x r     dv is copied
//
// Without weights everything is copied. Overwrites its outputs; dw is added to the gradients by a second kernel, from the
// blocks' partial sums. Called by src/device/cuda/ops/qk_norm.rs.
//
// Floors, for the three values of a channel; with weights 8 bytes of r a head beside
//   qk_norm                    12 bytes, each value read once and written once: memory
//   qk_norm_backward           16 bytes, 12 without weights; without a gradient of the queries 4 or 2 less: memory
//   qk_norm_backward_sums      the same, and 8 D bytes of partial sums a block: memory
//   qk_norm_any                12 bytes, q and k again from L1; two bytes an access: the number of accesses
//   qk_norm_backward_any       16 bytes, both again from L1; two bytes an access: the number of accesses
//   qk_norm_finalize           4 bytes a partial sum, 8 a weight: latency
#include "abi.h"
#include "include/reduce.cuh"
#include "include/vector.cuh"

static constexpr int WIDTH = QK_NORM_WIDTH;

struct Head {
    uint64_t in_row;   // first value of its query in the fused rows; key and value follow a hidden width apart
    uint64_t in_joint; // first value in the joint buffers
    uint64_t rstd;     // query's reciprocal root mean square; the key's follows H later
};

// Heads are counted row by row.
__device__ __forceinline__ Head head_of(const QkNormParams& p, uint32_t index) {
    const uint32_t row = index / p.heads;
    const uint32_t head = index % p.heads;
    const uint32_t sample = row / p.tokens;
    const uint32_t token = row % p.tokens;
    const uint64_t in_joint = ((uint64_t)sample * p.heads + head) * p.sequence + p.start + token;
    return {((uint64_t)row * 3 * p.heads + head) * p.head_dim, in_joint * p.head_dim, (uint64_t)row * 2 * p.heads + head};
}

// Sum over the products of two heads' values.
__device__ __forceinline__ float dot(const float (&a)[WIDTH], const float (&b)[WIDTH]) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) sum += a[j] * b[j];
    return sum;
}

// ---- wide: LANES neighbouring lanes hold a head, eight values each; every lane takes part in every exchange ----------------

__device__ __forceinline__ Packed load_if(bool valid, const bf16* from) {
    return valid ? load_packed(from) : make_uint4(0, 0, 0, 0);
}

// Weights may lie anywhere; they are loaded once.
__device__ __forceinline__ void load_weights(const QkNormParams& p, uint32_t column, Packed (&to)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        to[i] = p.weights[i] ? gather_packed(at<const bf16>(p.weights[i]) + column) : make_uint4(0, 0, 0, 0);
    }
}

template <int LANES>
__device__ __forceinline__ void forward(const QkNormParams& p) {
    const uint32_t column = threadIdx.x % LANES * WIDTH;
    const uint64_t hidden = (uint64_t)p.heads * p.head_dim;
    const uint32_t units = p.rows * p.heads * LANES;
    const bool norm = p.weights[0] != 0;
    Packed weights[2];
    load_weights(p, column, weights);
    const uint32_t stride = gridDim.x * blockDim.x;
    for (uint32_t unit = blockIdx.x * blockDim.x + threadIdx.x; unit - lane_index() < units; unit += stride) {
        const bool valid = unit < units;
        const Head head = head_of(p, unit / LANES);
        Packed in[3];
#pragma unroll
        for (int i = 0; i < 3; i++) in[i] = load_if(valid, at<const bf16>(p.qkv) + head.in_row + i * hidden + column);
        if (norm) {
            keep_packed(weights);
            float x[2][WIDTH];
            unpack(in[0], x[0]);
            unpack(in[1], x[1]);
            float squares[2] = {dot(x[0], x[0]), dot(x[1], x[1])};
            warp_sum<LANES>(squares);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float r = rsqrtf(squares[i] / (LANES * WIDTH) + p.eps);
                if (valid && column == 0) at<float>(p.rstd)[head.rstd + i * p.heads] = r;
                float weight[WIDTH];
                unpack(weights[i], weight);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) x[i][j] = x[i][j] * r * weight[j];
                in[i] = pack(x[i]);
            }
        }
        if (!valid) continue;
#pragma unroll
        for (int i = 0; i < 3; i++) store_packed(at<bf16>(p.joint[i]) + head.in_joint + column, in[i]);
    }
}

// SUMS: whether the weights' gradients are wanted.
template <int LANES, bool SUMS>
__device__ __forceinline__ void backward(const QkNormParams& p) {
    const uint32_t column = threadIdx.x % LANES * WIDTH;
    const uint64_t hidden = (uint64_t)p.heads * p.head_dim;
    const uint32_t units = p.rows * p.heads * LANES;
    const bool norm = p.weights[0] != 0;
    Packed weights[2];
    load_weights(p, column, weights);
    float d_weights[2 * WIDTH] = {};
    const uint32_t stride = gridDim.x * blockDim.x;
    for (uint32_t unit = blockIdx.x * blockDim.x + threadIdx.x; unit - lane_index() < units; unit += stride) {
        const bool valid = unit < units;
        const Head head = head_of(p, unit / LANES);
        Packed in[2], d_out[3];
        float r[2];
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const bool wanted = valid && (i > 0 || p.queries);
            d_out[i] = load_if(wanted, at<const bf16>(p.joint[i]) + head.in_joint + column);
            if (i == 2) continue;
            in[i] = load_if(wanted && norm, at<const bf16>(p.qkv) + head.in_row + i * hidden + column);
            r[i] = wanted && norm ? at<const float>(p.rstd)[head.rstd + i * p.heads] : 0.0f;
        }
        if (norm) {
            keep_packed(weights);
            float means[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float x_hat[WIDTH], dy[WIDTH], g[WIDTH];
                unpack(in[i], x_hat);
                unpack(d_out[i], dy);
                unpack(weights[i], g);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) {
                    x_hat[j] *= r[i];
                    g[j] *= dy[j];
                    if constexpr (SUMS) d_weights[i * WIDTH + j] += dy[j] * x_hat[j];
                }
                means[i] = dot(g, x_hat) / (LANES * WIDTH);
            }
            warp_sum<LANES>(means);
            keep_packed(in);
            keep_packed(d_out);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float x_hat[WIDTH], dy[WIDTH], weight[WIDTH];
                unpack(in[i], x_hat);
                unpack(d_out[i], dy);
                unpack(weights[i], weight);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) dy[j] = r[i] * (dy[j] * weight[j] - x_hat[j] * r[i] * means[i]);
                d_out[i] = pack(dy);
            }
        }
        if (!valid) continue;
#pragma unroll
        for (int i = 0; i < 3; i++) store_packed(at<bf16>(p.d_qkv) + head.in_row + i * hidden + column, d_out[i]);
    }
    if constexpr (SUMS) {
        // Over the heads of a warp, then over the warps of the block.
        __shared__ float room[QK_NORM_THREADS / 32][2 * LANES * WIDTH];
#pragma unroll
        for (int distance = 16; distance >= LANES; distance /= 2) {
#pragma unroll
            for (int j = 0; j < 2 * WIDTH; j++) d_weights[j] += __shfl_xor_sync(ALL_LANES, d_weights[j], distance);
        }
        if (lane_index() < LANES) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                room[warp_index()][column + j] = d_weights[j];
                room[warp_index()][LANES * WIDTH + column + j] = d_weights[WIDTH + j];
            }
        }
        // Orders the warps' sums ahead of their reads.
        __syncthreads();
        for (uint32_t c = threadIdx.x; c < 2 * LANES * WIDTH; c += blockDim.x) {
            float sum = room[0][c];
#pragma unroll
            for (int warp = 1; warp < QK_NORM_THREADS / 32; warp++) sum += room[warp][c];
            at<float>(p.partials)[(uint64_t)blockIdx.x * 2 * LANES * WIDTH + c] = sum;
        }
    }
}

// The accumulators of the weights' gradients leave registers for two blocks on a multiprocessor.
#define QK_NORM_KERNEL(name, blocks, body)                                                                          \
    extern "C" __global__ void __launch_bounds__(QK_NORM_THREADS, blocks) name(QkNormParams p) { body(p); }         \
    LADD_KERNEL(name)
#define QK_NORM(head_dim, lanes)                                                        \
    QK_NORM_KERNEL(qk_norm_d##head_dim, 3, forward<lanes>)                              \
    QK_NORM_KERNEL(qk_norm_backward_d##head_dim, 3, (backward<lanes, false>))           \
    QK_NORM_KERNEL(qk_norm_backward_sums_d##head_dim, 2, (backward<lanes, true>))

QK_NORM(32, 4)
QK_NORM(64, 8)
QK_NORM(128, 16)

// ---- any head width and alignment: the slow path, a warp to a block and to a head -------------------------------------------

__device__ __forceinline__ float value_of(uint64_t matrix, uint64_t i) { return __bfloat162float(at<const bf16>(matrix)[i]); }

__device__ __forceinline__ void set(uint64_t matrix, uint64_t i, float value) {
    at<bf16>(matrix)[i] = __float2bfloat16_rn(value);
}

extern "C" __global__ void __launch_bounds__(32) qk_norm_any(const __grid_constant__ QkNormParams p) {
    const uint64_t hidden = (uint64_t)p.heads * p.head_dim;
    for (uint32_t index = blockIdx.x; index < p.rows * p.heads; index += gridDim.x) {
        const Head head = head_of(p, index);
        for (int i = 0; i < 3; i++) {
            const uint64_t from = head.in_row + i * hidden;
            const bool norm = i < 2 && p.weights[0] != 0;
            float r = 1.0f;
            if (norm) {
                float squares = 0.0f;
                for (uint32_t c = threadIdx.x; c < p.head_dim; c += 32) {
                    const float x = value_of(p.qkv, from + c);
                    squares += x * x;
                }
                r = rsqrtf(warp_sum(squares) / p.head_dim + p.eps);
                if (threadIdx.x == 0) at<float>(p.rstd)[head.rstd + i * p.heads] = r;
            }
            for (uint32_t c = threadIdx.x; c < p.head_dim; c += 32) {
                const float weight = norm ? value_of(p.weights[i], c) : 1.0f;
                set(p.joint[i], head.in_joint + c, value_of(p.qkv, from + c) * r * weight);
            }
        }
    }
}
LADD_KERNEL(qk_norm_any)

extern "C" __global__ void __launch_bounds__(32) qk_norm_backward_any(const __grid_constant__ QkNormParams p) {
    const uint64_t hidden = (uint64_t)p.heads * p.head_dim;
    // This block's partial sums; each column has one thread.
    float* d_weights = at<float>(p.partials) + (uint64_t)blockIdx.x * 2 * p.head_dim;
    for (int i = 0; i < 2 && p.partials; i++) {
        for (uint32_t c = threadIdx.x; c < p.head_dim; c += 32) d_weights[i * p.head_dim + c] = 0.0f;
    }
    for (uint32_t index = blockIdx.x; index < p.rows * p.heads; index += gridDim.x) {
        const Head head = head_of(p, index);
        for (int i = 0; i < 3; i++) {
            const uint64_t to = head.in_row + i * hidden;
            const bool asked = i > 0 || p.queries;
            const bool norm = asked && i < 2 && p.weights[0] != 0;
            const float r = norm ? at<const float>(p.rstd)[head.rstd + i * p.heads] : 1.0f;
            float mean = 0.0f;
            if (norm) {
                for (uint32_t c = threadIdx.x; c < p.head_dim; c += 32) {
                    mean += value_of(p.joint[i], head.in_joint + c) * value_of(p.weights[i], c) * value_of(p.qkv, to + c) * r;
                }
                mean = warp_sum(mean) / p.head_dim;
            }
            for (uint32_t c = threadIdx.x; c < p.head_dim; c += 32) {
                float dx = asked ? value_of(p.joint[i], head.in_joint + c) : 0.0f;
                if (norm) {
                    const float x_hat = value_of(p.qkv, to + c) * r;
                    if (p.partials) d_weights[i * p.head_dim + c] += dx * x_hat;
                    dx = r * (dx * value_of(p.weights[i], c) - x_hat * mean);
                }
                set(p.d_qkv, to + c, dx);
            }
        }
    }
}
LADD_KERNEL(qk_norm_backward_any)

// ---- the weights' gradients from the blocks' partial sums -------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(QK_NORM_FINALIZE_THREADS) qk_norm_finalize(QkNormFinalizeParams p) {
    const uint32_t column = blockIdx.x * 32 + lane_index();
    constexpr int SLICES = QK_NORM_FINALIZE_THREADS / 32;
    const float total = column_total<SLICES>(at<const float>(p.partials), p.parts, 2 * p.head_dim, blockIdx.x * 32);
    if (warp_index() > 0 || column >= 2 * p.head_dim) return;
    const bool key = column >= p.head_dim;
    float* d_weight = at<float>(key ? p.d_key_weight : p.d_query_weight);
    d_weight[key ? column - p.head_dim : column] += total;
}
LADD_KERNEL(qk_norm_finalize)
