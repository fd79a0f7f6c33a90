// Included before every .cu file of the emulator's build (-include emulator.h): what nvcc knows by itself. PTX comes later,
// through kernels/include/ptx.cuh.
#pragma once
#include "block.h"
#include "language.h"
#include "launch.h"
#include "warp.h"
