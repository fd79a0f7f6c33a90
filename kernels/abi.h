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
