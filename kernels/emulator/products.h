// The inner loops of mma.sync and wgmma, on operands that were gathered into plain float matrices.
#pragma once
#include <cstdint>

namespace emulator {

// out[rows][columns] = a[rows][16] b[16][columns], summed in the order of the 16 terms; columns a multiple of 8, at most 256.
void product_k16(const float* a, const float* b, float* out, int rows, int columns);

}  // namespace emulator
