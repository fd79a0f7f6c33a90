// Sums run over the 16 terms in order for every element, whatever the vector width, so results do not depend on the machine.
#include "products.h"

namespace emulator {

#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__)
#define EMULATOR_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EMULATOR_VECTOR_CLONES
#endif

// WIDTH columns of one row at a time: the sums stay in registers.
template <int WIDTH>
static inline __attribute__((always_inline)) void row_piece(const float* a, const float* b, float* out, int columns) {
    float sums[WIDTH] = {};
    for (int k = 0; k < 16; k++) {
        for (int n = 0; n < WIDTH; n++) sums[n] += a[k] * b[k * columns + n];
    }
    for (int n = 0; n < WIDTH; n++) out[n] = sums[n];
}

EMULATOR_VECTOR_CLONES
void product_k16(const float* a, const float* b, float* out, int rows, int columns) {
    for (int row = 0; row < rows; row++) {
        int n = 0;
        for (; n + 32 <= columns; n += 32) row_piece<32>(a + row * 16, b + n, out + row * columns + n, columns);
        for (; n + 8 <= columns; n += 8) row_piece<8>(a + row * 16, b + n, out + row * columns + n, columns);
    }
}

}  // namespace emulator
