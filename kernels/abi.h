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
    ATTENTION_BACKWARD_ROWS = 64,
    ATTENTION_BACKWARD_COLUMNS_D64 = 64,
    ATTENTION_BACKWARD_COLUMNS_D128 = 32,
    ATTENTION_BACKWARD_SHARED_D64 = 2 * 64 * (2 * ATTENTION_BACKWARD_ROWS + 4 * ATTENTION_BACKWARD_COLUMNS_D64) + 16 * ATTENTION_BACKWARD_COLUMNS_D64,
    ATTENTION_BACKWARD_SHARED_D128 = 2 * 128 * (2 * ATTENTION_BACKWARD_ROWS + 4 * ATTENTION_BACKWARD_COLUMNS_D128) + 16 * ATTENTION_BACKWARD_COLUMNS_D128
};

/* Tiles of the kernels for Hopper. Shared memory: queries, stages of keys and values, a page for the barriers. */
enum {
    ATTENTION_SM90_THREADS = 384,
    ATTENTION_SM90_QUERIES = 128,
    ATTENTION_SM90_KEYS = 128,
    ATTENTION_SM90_STAGES_D64 = 3,
    ATTENTION_SM90_STAGES_D128 = 2,
    ATTENTION_SM90_SHARED_D64 = 2 * 64 * (ATTENTION_SM90_QUERIES + 2 * ATTENTION_SM90_STAGES_D64 * ATTENTION_SM90_KEYS) + 1024,
    ATTENTION_SM90_SHARED_D128 = 2 * 128 * (ATTENTION_SM90_QUERIES + 2 * ATTENTION_SM90_STAGES_D128 * ATTENTION_SM90_KEYS) + 1024
};

/* ---- qk_norm.cu ------------------------------------------------------------------------------------------------- */

/* ---- linear.cu -------------------------------------------------------------------------------------------------- */

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
