/* Parameters of every kernel: read by nvcc, by the host compiler of the emulator, and by bindgen, which writes
 * src/device/cuda/abi.rs from it (scripts/bindgen). Plain C without padding: 64-bit fields first, then 32-bit ones in
 * pairs. A kernel takes one such struct by value.
 *
 * A device address is a DevicePtr; the comment beside it says what lies there: bf16 or f32, its shape. 0 means absent. */
#pragma once
#include <stdint.h>

typedef uint64_t DevicePtr;

/* What changes from step to step, in device memory (shapes.rs, StepValues). */
typedef struct StepParams {
    uint64_t seed;
    uint32_t step;
    uint32_t first_sample;
    float lr[2];
} StepParams;

/* ---- activation.cu ---------------------------------------------------------------------------------------------- */

typedef struct ActivationParams {
    uint64_t len;
    DevicePtr x;        /* bf16 [len]: input of the activation */
    DevicePtr other;    /* bf16 [len]: upstream gradient of a backward, residual of leaky_relu or 0 */
    DevicePtr out;      /* bf16 [len] */
} ActivationParams;

enum { ACTIVATION_THREADS = 256 };

/* ---- adaln.cu --------------------------------------------------------------------------------------------------- */

/* A norm; shift and scale point into the first sample's row of the table, 0 where the norm is plain. */
typedef struct AdalnNorm {
    DevicePtr out;      /* bf16 [batch * tokens, hidden]: the output, or its gradient in the backward */
    DevicePtr shift;    /* bf16 [hidden], the next sample's `stride` later */
    DevicePtr scale;    /* bf16 [hidden], likewise */
} AdalnNorm;

typedef struct AdalnBranch {
    DevicePtr y;        /* bf16 [batch * tokens, hidden] */
    DevicePtr d_y;      /* bf16 [batch * tokens, hidden]: its gradient, in the backward */
    DevicePtr gate;     /* bf16 [hidden], likewise */
} AdalnBranch;

/* Forward and backward; block x takes rows_per_block tokens of sample y. */
typedef struct AdalnParams {
    DevicePtr x;        /* bf16 [batch * tokens, hidden]: x, or the kept x_out in the backward */
    DevicePtr out;      /* bf16 [batch * tokens, hidden]: x_out, or dx in the backward */
    DevicePtr extra;    /* bf16 [batch * tokens, hidden] or 0: one more gradient of x_out */
    DevicePtr stats;    /* f32 [batch * tokens, 2]: mean, reciprocal standard deviation */
    DevicePtr partials; /* f32 [batch, blocks, sums, hidden] or 0: shift and scale of each norm, gate of each branch */
    AdalnNorm norms[2];
    AdalnBranch branches[2];
    uint32_t stride;
    uint32_t tokens;
    uint32_t hidden;
    uint32_t rows_per_block;
    uint32_t norm_count;
    uint32_t branch_count;
    uint32_t accumulate;    /* backward: whether dx holds a gradient already */
    uint32_t table_aligned; /* whether every shift, scale and gate of every sample allows 16-byte loads */
    float eps;
    uint32_t unused;
} AdalnParams;

typedef struct AdalnFinalizeParams {
    DevicePtr partials; /* f32 [batch, parts, sums, hidden] */
    DevicePtr d_table;  /* bf16 [batch, stride] */
    uint32_t parts;
    uint32_t sums;
    uint32_t hidden;
    uint32_t stride;
    uint32_t columns[6]; /* first column of each sum in the table; ADALN_NO_COLUMN: the sum goes nowhere */
} AdalnFinalizeParams;

enum { ADALN_WIDTH = 8, ADALN_MAX_THREADS = 320, ADALN_ANY_THREADS = 128, ADALN_FINALIZE_THREADS = 256 };
enum { ADALN_NO_COLUMN = 0x7fffffff };

/* ---- attention.cu ----------------------------------------------------------------------------------------------- */

/* Sequences are joint: image tokens first, then text. The first `queries` of the `keys` tokens ask. */
typedef struct AttentionParams {
    DevicePtr q;            /* bf16 [B, H, S, D]; unused by the kernels for Hopper, which take tensor maps */
    DevicePtr k;            /* bf16 [B, H, S, D] */
    DevicePtr v;            /* bf16 [B, H, S, D] */
    DevicePtr out_image;    /* bf16 [B N, H D] */
    DevicePtr out_text;     /* bf16 [B L, H D], 0 where text does not ask */
    DevicePtr lse;          /* f32 [B, H, S], natural logarithm, written for asking tokens */
    uint32_t heads;
    uint32_t head_dim;
    uint32_t keys;
    uint32_t queries;
    uint32_t image;
    float scale;            /* 1 / sqrt(D) */
} AttentionParams;

typedef struct AttentionBackwardParams {
    DevicePtr q;            /* bf16 [B, H, S, D] */
    DevicePtr k;            /* bf16 [B, H, S, D] */
    DevicePtr v;            /* bf16 [B, H, S, D] */
    DevicePtr out_image;    /* bf16 [B N, H D]; 0: zeros, as for the three below */
    DevicePtr out_text;     /* bf16 [B L, H D] */
    DevicePtr d_out_image;  /* bf16 [B N, H D] */
    DevicePtr d_out_text;   /* bf16 [B L, H D] */
    DevicePtr lse;          /* f32 [B, H, S] */
    DevicePtr statistics;   /* f32 [B, H, S, 2], scratch: lse to base 2 and rowsum(d_out * out) of asking tokens */
    DevicePtr dq;           /* bf16 [B, H, S, D], written for asking tokens */
    DevicePtr dk;           /* bf16 [B, H, S, D] */
    DevicePtr dv;           /* bf16 [B, H, S, D] */
    uint32_t batch;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t keys;
    uint32_t queries;
    uint32_t image;
    float scale;            /* 1 / sqrt(D) */
    uint32_t unused;
} AttentionBackwardParams;

/* Tiles of the portable kernels, by head width: rows of a block, columns of a step, bytes of shared memory (the rows, two
 * stages of columns; the backward pass has two tensors of rows, and the statistics of columns). */
enum {
    ATTENTION_THREADS = 128,
    ATTENTION_QUERIES_D64 = 128,
    ATTENTION_QUERIES_D128 = 64,
    ATTENTION_KEYS = 64,
    ATTENTION_SHARED_D64 = 2 * 64 * (ATTENTION_QUERIES_D64 + 4 * ATTENTION_KEYS),
    ATTENTION_SHARED_D128 = 2 * 128 * (ATTENTION_QUERIES_D128 + 4 * ATTENTION_KEYS),
    ATTENTION_STATISTICS_LANES = 8,
    ATTENTION_BACKWARD_ROWS = 64,
    ATTENTION_BACKWARD_COLUMNS_D64 = 64,
    ATTENTION_BACKWARD_COLUMNS_D128 = 32,
    ATTENTION_BACKWARD_SHARED_D64 = 2 * 64 * (2 * ATTENTION_BACKWARD_ROWS + 4 * ATTENTION_BACKWARD_COLUMNS_D64) + 16 * ATTENTION_BACKWARD_COLUMNS_D64,
    ATTENTION_BACKWARD_SHARED_D128 = 2 * 128 * (2 * ATTENTION_BACKWARD_ROWS + 4 * ATTENTION_BACKWARD_COLUMNS_D128) + 16 * ATTENTION_BACKWARD_COLUMNS_D128
};

/* attention_sm90.cu: tiles of queries are numbered along the sequence, then along the heads. The first `whole` of them are
 * done whole, by block `tile % blocks`; what the others take of keys is one row of tiles of keys, cut evenly between the
 * blocks. A block's parts of a tile of queries go to `parts`: one that does not begin at the first key to place 2 block, one
 * that does and ends early to place 2 block + 1. */
typedef struct AttentionSm90Params {
    DevicePtr out_image;    /* bf16 [B N, heads head_dim], or 0 */
    DevicePtr out_text;     /* bf16 [B L, heads head_dim], or 0 */
    DevicePtr lse;          /* fp32 [B heads, keys] */
    DevicePtr parts;        /* fp32 [2 blocks, groups, head_dim / 8 + 1, 128 threads, 4]: results, then maximum and sum twice */
    uint32_t heads;
    uint32_t keys;
    uint32_t queries;
    uint32_t image;         /* N */
    uint32_t query_tiles;   /* of a head */
    uint32_t key_tiles;
    uint32_t tiles;         /* of queries, of all heads and samples */
    uint32_t whole;
    uint32_t blocks;
    float scale;
} AttentionSm90Params;

/* A consumer warpgroup of the kernels for Hopper takes 64 queries. Shared memory: queries and staging, stages of keys and
 * values (src/device/cuda/policy.rs), a page for the barriers. */
enum {
    ATTENTION_SM90_GROUP_QUERIES = 64,
    ATTENTION_SM90_BARRIERS = 1024,
    ATTENTION_SM90_COMBINE_THREADS = 128
};

/* ---- attention_backward_sm90.cu --------------------------------------------------------------------------------- */

/* Queries are taken in tiles of ATTENTION_BACKWARD_SM90_QUERIES tokens of one stream: the tiles of the image, then those of
 * the text. Per tile, head and sample there are statistics, a sum of dq and a flag. */
typedef struct AttentionBackwardSm90Params {
    AttentionBackwardParams of; /* its statistics: f32 [B, H, tiles, 2, queries], scratch: lse to base 2 (infinite behind the
                                   end of the stream) and rowsum(d_out * out) */
    DevicePtr dq_sums;      /* f32 [B, H, tiles, D / 64, 8, 128, 4], scratch: dq / scale as the threads of a warpgroup hold it */
    DevicePtr flags;        /* u32 [B, H, tiles], scratch: how many blocks of keys have added to the tile's sum */
    DevicePtr ticket;       /* u32 [1], scratch: how many blocks have begun */
    uint32_t tiles;         /* of all asking tokens */
    uint32_t image_tiles;
    uint32_t first_tile;    /* tiles [first_tile, last_tile) have a gradient of their output */
    uint32_t last_tile;
    uint32_t key_blocks;
    uint32_t ordered;       /* whether sums are added up in the order of the keys: the same bits on every run */
} AttentionBackwardSm90Params;

/* Tiles, and shared memory: keys and values; two stages each of queries, upstream gradients, dS, dq and statistics; a page
 * for the barriers. */
enum {
    ATTENTION_BACKWARD_SM90_THREADS = 384,
    ATTENTION_BACKWARD_SM90_KEYS = 128,
    ATTENTION_BACKWARD_SM90_QUERIES = 64,
    ATTENTION_BACKWARD_SM90_SHARED_D64 = 2 * 2 * 128 * 64 + 2 * 64 * (2 * 2 * 64 + 2 * 128 + 4 * 64 + 8) + 1024,
    ATTENTION_BACKWARD_SM90_SHARED_D128 = 2 * 2 * 128 * 128 + 2 * 64 * (2 * 2 * 128 + 2 * 128 + 4 * 128 + 8) + 1024,
    ATTENTION_BACKWARD_SM90_FINISH_THREADS = 256
};

/* ---- qk_norm.cu ------------------------------------------------------------------------------------------------- */

typedef struct QkNormParams {
    DevicePtr qkv;          /* bf16 [rows, 3, heads, head_dim] */
    DevicePtr joint[3];     /* bf16 [batch, heads, sequence, head_dim]: q, k, v, or their gradients in the backward */
    DevicePtr weights[2];   /* bf16 [head_dim] of queries and keys; both 0: no norm */
    DevicePtr rstd;         /* f32 [rows, 2, heads] */
    DevicePtr d_qkv;        /* bf16 as qkv: its gradient, in the backward */
    DevicePtr partials;     /* f32 [blocks, 2, head_dim] or 0: the weights' gradients */
    uint32_t rows;          /* batch * tokens */
    uint32_t tokens;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t sequence;
    uint32_t start;
    uint32_t queries;       /* backward: whether queries have a gradient */
    float eps;
} QkNormParams;

typedef struct QkNormFinalizeParams {
    DevicePtr partials;         /* f32 [parts, 2, head_dim] */
    DevicePtr d_query_weight;   /* f32 [head_dim], added to */
    DevicePtr d_key_weight;     /* f32 [head_dim], added to */
    uint32_t parts;
    uint32_t head_dim;
} QkNormFinalizeParams;

enum { QK_NORM_WIDTH = 8, QK_NORM_THREADS = 256, QK_NORM_FINALIZE_THREADS = 1024 };

/* ---- linear.cu -------------------------------------------------------------------------------------------------- */

typedef struct ColumnSumParams {
    uint64_t columns;
    DevicePtr x;            /* bf16 [rows, columns] */
    DevicePtr partials;     /* f32 [parts, columns], or 0 where there is one part */
    DevicePtr sums;         /* f32 [columns], added to */
    uint32_t rows;
    uint32_t parts;
    uint32_t rows_per_part;
    uint32_t unused;
} ColumnSumParams;

/* A bf16 matrix, row-major with `ld` elements from row to row, read as it is or transposed. */
typedef struct GemmOperand {
    DevicePtr address;
    uint64_t ld;
    uint32_t transposed;
    uint32_t unused;
} GemmOperand;

typedef struct GemmAnyParams {
    GemmOperand a;          /* [rows, depth] after its transposition */
    GemmOperand b;          /* [depth, columns] after its transposition */
    DevicePtr out;          /* bf16 or f32 [rows, columns] */
    DevicePtr bias;         /* bf16 [columns] or 0 */
    DevicePtr kept;         /* bf16 [rows, columns] or 0: where the input of a GELU is kept */
    DevicePtr pre;          /* bf16 [rows, columns] or 0: where the derivative of the GELU is taken */
    uint32_t rows;
    uint32_t columns;
    uint32_t depth;
    uint32_t accumulate;
    uint32_t fp32;          /* whether out is f32 */
    uint32_t unused;
} GemmAnyParams;

enum { COLUMN_SUM_THREADS = 256, GEMM_ANY_THREADS = 256, GEMM_ANY_TILE = 64 };

/* ---- flow_noise.cu ---------------------------------------------------------------------------------------------- */

enum { TIMESTEPS_MAX_DISCRETE = 16 };

typedef struct TimestepsParams {
    DevicePtr step;     /* StepParams */
    DevicePtr t;        /* f32 [batch] */
    uint32_t stream;
    uint32_t batch;
    uint32_t count;     /* entries of the tables (discrete) */
    uint32_t warmup_steps;
    float mean;         /* logit-normal */
    float std;
    float shift;        /* shifted */
    uint32_t unused;
    float values[TIMESTEPS_MAX_DISCRETE];
    float probs[TIMESTEPS_MAX_DISCRETE];
    float warmup_probs[TIMESTEPS_MAX_DISCRETE];
} TimestepsParams;

typedef struct NormalParams {
    uint64_t numel;     /* values of one sample */
    DevicePtr step;     /* StepParams */
    DevicePtr out;      /* f32 [batch, numel] */
    uint32_t stream;
    uint32_t batch;
} NormalParams;

typedef struct FlowNoiseParams {
    uint64_t numel;
    DevicePtr step;     /* StepParams */
    DevicePtr x0;       /* f32 [batch, numel] */
    DevicePtr t;        /* f32 [batch] */
    DevicePtr x_t;      /* f32 [batch, numel] */
    DevicePtr velocity; /* f32 [batch, numel] or 0 */
    uint32_t stream;
    uint32_t batch;
    uint32_t perturbed; /* whether x0 + sigma n takes the place of x0 */
    uint32_t perturb_stream;
    float sigma;
    uint32_t unused;
} FlowNoiseParams;

/* Tokens of a velocity are channel last (dy, dx, c), as the final layer writes them; those renoised, and gradients of either
 * alike, channel first (c, dy, dx), as the patch embedding reads them. */
typedef struct RenoiseParams {
    DevicePtr step;     /* StepParams */
    DevicePtr x_t;      /* f32 [batch, channels, height, width] */
    DevicePtr velocity; /* bf16 [batch, height / patch * width / patch, patch * patch * channels] */
    DevicePtr t;        /* f32 [batch] */
    DevicePtr t_hat;    /* f32 [batch] */
    DevicePtr x0_hat;   /* f32 [batch, channels, height, width] */
    DevicePtr renoised; /* bf16 [batch, height / patch * width / patch, channels * patch * patch] */
    uint32_t stream;
    uint32_t batch;
    uint32_t channels;
    uint32_t height;
    uint32_t width;
    uint32_t patch;
} RenoiseParams;

typedef struct RenoiseBackwardParams {
    DevicePtr t;            /* f32 [batch] */
    DevicePtr t_hat;        /* f32 [batch] */
    DevicePtr d_renoised;   /* bf16, as renoised, or 0 */
    DevicePtr d_x0_hat;     /* f32 [batch, channels, height, width] or 0 */
    DevicePtr d_velocity;   /* bf16, as velocity */
    uint32_t batch;
    uint32_t channels;
    uint32_t height;
    uint32_t width;
    uint32_t patch;
    uint32_t unused;
} RenoiseBackwardParams;

typedef struct EulerParams {
    uint64_t len;
    DevicePtr x;                /* f32 [len], read and written */
    DevicePtr velocity;         /* f32 [len] */
    DevicePtr unconditional;    /* f32 [len] or 0 */
    float guidance;
    float dt;
} EulerParams;

/* Tokens of a strip are neighbours in a row of the grid; a block moves them through shared memory, in and out. */
enum { FLOW_THREADS = 256, RENOISE_TOKENS = 32, RENOISE_PAD = 2 };

/* ---- hinge.cu --------------------------------------------------------------------------------------------------- */

/* Sums per head, in the order of the Rust enum HingeStat. */
enum { HINGE_SUMS = 7 };

typedef struct HingeParams {
    uint64_t per_group;     /* batch * positions */
    DevicePtr logits;       /* f32 [heads, groups, per_group] */
    DevicePtr d_logits_d;   /* f32 [heads, groups, per_group] or 0 */
    DevicePtr d_logits_g;   /* f32 [heads, per_group] or 0 */
    DevicePtr partials;     /* f64 [heads, parts, HINGE_SUMS] */
    DevicePtr stats;        /* f32 [heads, HINGE_SUMS], added to */
    double share;           /* of one logit in the statistics */
    uint32_t heads;
    uint32_t groups;
    uint32_t parts;         /* blocks of a head */
    uint32_t real;          /* index of each group, 0 where it is absent; fakes come first */
    uint32_t mismatch;
    uint32_t perturbed;
    float mismatch_weight;
    float r1_weight;
    float weight_d;         /* of one logit in the discriminator's gradient */
    float weight_g;         /* and in the generator's */
} HingeParams;

typedef struct MseParams {
    uint64_t len;
    DevicePtr a;        /* f32 [len] */
    DevicePtr b;        /* f32 [len] */
    DevicePtr d_a;      /* f32 [len] or 0 */
    DevicePtr partials; /* f64 [parts] */
    DevicePtr loss;     /* f32 [1], added to */
    double share;       /* of one square in the loss */
    float factor;       /* of one difference in the gradient */
    uint32_t parts;     /* blocks */
} MseParams;

enum {
    HINGE_THREADS = 256,
    HINGE_CHUNK = 2048,     /* logits of a group that one block takes */
    MSE_THREADS = 256,
    MSE_MAX_PARTS = 1024    /* not the device's number of multiprocessors: the sum has the same bits on all of them */
};

/* ---- head_conv.cu ----------------------------------------------------------------------------------------------- */

/* y of a 3x3 convolution, or the gradient of its input. */
typedef struct ConvParams {
    DevicePtr source;       /* bf16 [tokens, cin]: x of the forward; [tokens, cout]: dy of the backward */
    DevicePtr weight;       /* bf16 [cout, 3, 3, cin] */
    DevicePtr bias;         /* bf16 [cout] of the forward, or 0 */
    DevicePtr out;          /* bf16 [tokens, cout]: y; [tokens, cin]: dx */
    uint32_t tokens;        /* samples * rows * columns */
    uint32_t rows;
    uint32_t columns;
    uint32_t cin;
    uint32_t cout;
    uint32_t accumulate;    /* whether the result is added to `out` */
} ConvParams;

/* Gradients of weight and bias, one partial sum per chunk of tokens. */
typedef struct ConvWeightParams {
    DevicePtr x;            /* bf16 [tokens, cin] */
    DevicePtr dy;           /* bf16 [tokens, cout] */
    DevicePtr partial;      /* f32 [chunks, cout * 9 * cin + cout]: dweight, then dbias */
    uint32_t tokens;
    uint32_t chunk;         /* tokens of a chunk, a multiple of CONV_DEPTH */
    uint32_t rows;
    uint32_t columns;
    uint32_t cin;
    uint32_t cout;
} ConvWeightParams;

/* Adds the chunks' partial sums to the gradients. */
typedef struct ConvFinishParams {
    uint64_t weights;       /* cout * 9 * cin */
    DevicePtr partial;      /* f32 [chunks, weights + cout] */
    DevicePtr d_weight;     /* f32 [weights], added to */
    DevicePtr d_bias;       /* f32 [cout], added to */
    uint32_t chunks;
    uint32_t cout;
} ConvFinishParams;

/* A block makes a square of the result; CONV_DEPTH terms of its sums are in shared memory per stage. */
enum {
    CONV_THREADS = 128,
    CONV_LARGE_TILE = 128,
    CONV_SMALL_TILE = 64,
    CONV_DEPTH = 32,
    CONV_STAGES = 4,
    CONV_PAD = 8,
    CONV_FINISH_THREADS = 256
};

/* ---- head_logits.cu --------------------------------------------------------------------------------------------- */

typedef struct HeadLogitsParams {
    DevicePtr h;            /* bf16 [samples * positions, width] */
    DevicePtr cm;           /* bf16 [samples, width] */
    DevicePtr weight;       /* bf16 [width] */
    DevicePtr bias;         /* bf16 [1] */
    DevicePtr logits;       /* f32 [samples * positions] */
    uint32_t tokens;        /* samples * positions */
    uint32_t positions;
    uint32_t width;
    uint32_t unused;
} HeadLogitsParams;

typedef struct HeadLogitsBackwardParams {
    DevicePtr h;            /* bf16 [samples * positions, width] */
    DevicePtr cm;           /* bf16 [samples, width] */
    DevicePtr weight;       /* bf16 [width] */
    DevicePtr d_logits;     /* f32 [samples * positions] */
    DevicePtr dh;           /* bf16 [samples * positions, width] */
    DevicePtr partial;      /* f32 [samples, chunks, 2 * width + 1]: gradients of weight, cm, bias; 0 without gradients */
    uint32_t positions;
    uint32_t chunk;         /* positions of a chunk */
    uint32_t width;
    uint32_t unused;
} HeadLogitsBackwardParams;

typedef struct HeadLogitsFinishParams {
    DevicePtr partial;      /* f32 [samples, chunks, 2 * width + 1] */
    DevicePtr d_weight;     /* f32 [width], added to */
    DevicePtr d_bias;       /* f32 [1], added to */
    DevicePtr d_cm;         /* bf16 [samples, width] */
    uint32_t samples;
    uint32_t chunks;
    uint32_t width;
    uint32_t unused;
} HeadLogitsFinishParams;

/* Warps of a block; of the block that adds partial sums up, each takes its share of them for 32 columns. */
enum { HEAD_LOGITS_WARPS = 8, HEAD_LOGITS_SLICES = 8 };

/* ---- patchify.cu ------------------------------------------------------------------------------------------------ */

typedef struct PatchParams {
    uint64_t len;       /* values of all samples */
    DevicePtr latent;   /* f32 [B, channels, height, width] */
    DevicePtr tokens;   /* bf16 [B, height / patch * width / patch, channels * patch * patch] */
    uint32_t channels;
    uint32_t height;
    uint32_t width;
    uint32_t patch;
} PatchParams;

enum { PATCH_THREADS = 256 };

/* ---- embed.cu --------------------------------------------------------------------------------------------------- */

typedef struct PosEmbedParams {
    DevicePtr pos;      /* bf16 [max, max, hidden] */
    DevicePtr x;        /* bf16 [batch * grid_rows, columns, hidden], added to */
    uint32_t rows;      /* batch * grid_rows */
    uint32_t grid_rows;
    uint32_t columns;
    uint32_t hidden;
    uint32_t max;
    uint32_t top;       /* first row and column of the crop */
    uint32_t left;
    uint32_t unused;
} PosEmbedParams;

typedef struct TimestepEmbeddingParams {
    DevicePtr t;        /* f32 [batch] */
    DevicePtr pooled;   /* bf16 [batch, pooled_width] or 0 */
    DevicePtr out;      /* bf16 [batch, 2 half + pooled_width] */
    uint32_t batch;
    uint32_t half;
    uint32_t pooled_width;
    uint32_t unused;
} TimestepEmbeddingParams;

enum { EMBED_THREADS = 256 };

/* ---- adamw.cu --------------------------------------------------------------------------------------------------- */

typedef struct NormParams {
    uint64_t len;
    DevicePtr grads;        /* f32 [len] */
    DevicePtr partials;     /* f64 [parts] */
    DevicePtr norm;         /* f32 [1] */
    uint32_t parts;         /* blocks */
    uint32_t unused;
} NormParams;

/* What one update needs of its settings, worked out once on the device. */
typedef struct AdamwCoefficients {
    float clip;             /* of the gradient */
    float rate;             /* lr / (1 - beta1^n) */
    float root;             /* 1 / sqrt(1 - beta2^n) */
    float keep;             /* 1 - lr weight_decay */
    float follow;           /* 1 - decay of the moving average */
    uint32_t apply;         /* 0: the gradient is not finite, nothing may change */
} AdamwCoefficients;

typedef struct AdamwParams {
    uint64_t len;
    DevicePtr step;         /* StepParams */
    DevicePtr norm;         /* f32 [1] */
    DevicePtr counters;     /* f32 [2]: updates applied, updates skipped */
    DevicePtr coefficients; /* AdamwCoefficients */
    DevicePtr grads;        /* f32 [len] */
    DevicePtr params;       /* bf16 [len], written */
    DevicePtr master;       /* f32 [len] */
    DevicePtr moment1;      /* f32 [len], or packed: u8 [len]; 0 where beta1 is 0 */
    DevicePtr moment2;      /* f32 [len], or packed: u16 [len] */
    DevicePtr scales1;      /* packed: f32 [ceil(len / ADAMW_PACK_BLOCK)] */
    DevicePtr scales2;      /* packed: f32 [ceil(len / ADAMW_PACK_BLOCK)] */
    DevicePtr ema;          /* f32 [len] or 0 */
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    double max_norm;
    double ema_decay;
    uint32_t lr_index;
    uint32_t rounding;      /* stream of the random bits that round packed moments */
} AdamwParams;

enum {
    ADAMW_THREADS = 256,
    ADAMW_PACK_BLOCK = 256, /* weights that share a scale: eight for each lane of a warp */
    NORM_THREADS = 256,
    NORM_MAX_PARTS = 1024   /* not the device's number of multiprocessors: the norm has the same bits on all of them */
};

/* ---- quantize.cu ------------------------------------------------------------------------------------------------ */

typedef struct QuantizeRowsParams {
    DevicePtr x;        /* bf16 [rows, width] */
    DevicePtr codes;    /* u8 [rows, width]: e4m3 */
    DevicePtr scales;   /* f32 [rows] */
    uint32_t rows;
    uint32_t width;
} QuantizeRowsParams;

enum {
    QUANTIZE_WIDTH = 16,        /* columns of a thread: 16 bytes of codes */
    QUANTIZE_ROWS = 4,          /* rows a block has in flight */
    QUANTIZE_MAX_THREADS = 640, /* 10240 columns; SD3.5-large's MLP has 9728 */
    QUANTIZE_ANY_THREADS = 128
};

/* ---- memory.cu -------------------------------------------------------------------------------------------------- */

typedef struct FillParams {
    uint64_t len;
    DevicePtr out;      /* f32 [len] */
    float value;
    uint32_t unused;
} FillParams;

typedef struct CastParams {
    uint64_t len;
    DevicePtr x;        /* f32 [len] */
    DevicePtr out;      /* bf16 [len] */
} CastParams;

enum { MEMORY_THREADS = 256 };
