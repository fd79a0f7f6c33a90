// wgmma: products of a whole warpgroup, 64xN (+)= 64x16 times 16xN, from shared memory through matrix descriptors.
//
// In the early schedules a product happens when it is issued, in the late ones when its group is waited for: it then reads
// shared memory as it is at that time. Until then the accumulators hold a mark, so that whoever touches them is found out.
#pragma once
#include "block.h"

namespace emulator {

void wgmma(int columns, float* d, const uint32_t* a, uint64_t descriptor_a, uint64_t descriptor_b, bool accumulate, bool transposed_a,
           bool transposed_b, Where where);
void wgmma_commit(Where where);
void wgmma_wait(int keep, Where where);
void wgmma_fence(Where where);
// Fails when an accumulator is still in flight.
void require_finished(const float* d, int count);

}  // namespace emulator
