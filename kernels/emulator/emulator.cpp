// The whole emulator in one translation unit, so that a kernel can be built with it by one command (README.md).
#include "emulator.h"

// The files below use the names of these themselves.
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#undef warpSize

#include "accesses.cpp"
#include "async.cpp"
#include "faults.cpp"
#include "fibers.cpp"
#include "launch.cpp"
#include "memory.cpp"
#include "products.cpp"
#include "scheduler.cpp"
#include "source_lines.cpp"
#include "static_shared.cpp"
#include "warp.cpp"
#include "wgmma.cpp"
