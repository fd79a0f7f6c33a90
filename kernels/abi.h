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

/* ---- hinge.cu --------------------------------------------------------------------------------------------------- */

/* ---- head_conv.cu ----------------------------------------------------------------------------------------------- */

/* ---- patchify.cu ------------------------------------------------------------------------------------------------ */

/* ---- embed.cu --------------------------------------------------------------------------------------------------- */

/* ---- adamw.cu --------------------------------------------------------------------------------------------------- */

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
