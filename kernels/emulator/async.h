// Work that goes on beside the threads: mbarriers, cp.async, bulk copies and TMA tiles with their swizzles.
//
// In the early schedules a copy happens when it is issued. In the late ones loads that complete on an mbarrier happen when no
// thread can go on without them, first those that somebody waits for; per-thread copies and stores when their group is waited for.
#pragma once
#include <initializer_list>

#include "block.h"

namespace emulator {

// ---- shared-memory addresses ------------------------------------------------------------------------------------

// The 32-bit address of something in dynamic shared memory.
uint32_t shared_address(const void* pointer);
// Fails unless the range lies in shared memory.
void require_shared(const void* pointer, size_t bytes, const char* what);
void require_global(const void* pointer, const char* what);

// XORs address bits 4..6 with bits 7..9, as far as the swizzle of 32, 64 or 128 bytes goes. Tiles keep 16-byte pieces whole.
inline uint32_t swizzled(uint32_t address, uint32_t swizzle) {
    const uint32_t moved = swizzle == 128 ? 0x70 : swizzle == 64 ? 0x30 : swizzle == 32 ? 0x10 : 0;
    return address ^ (address >> 3 & moved);
}

// ---- mbarrier ---------------------------------------------------------------------------------------------------

// Lives in the barrier's own eight bytes.
struct Mbarrier {
    uint64_t phase : 1;
    uint64_t arrivals : 11;   // of each phase
    uint64_t missing : 11;    // in the present one
    int64_t bytes : 41;       // announced and not yet copied
};
static_assert(sizeof(Mbarrier) == 8);

void mbarrier_init(uint64_t* barrier, int arrivals);
// Makes the barriers that this thread has initialised known to the copy engine.
void mbarrier_init_fence();
void mbarrier_arrive(uint64_t* barrier, uint32_t announced_bytes);
void mbarrier_complete(uint64_t* barrier, uint32_t copied_bytes);
void mbarrier_wait(uint64_t* barrier, uint32_t parity, Where where);
// At the end of a block: the first barrier with bytes announced but not copied, or the reverse, in words; or nothing.
std::string unfinished_mbarriers(const Block& block);

// ---- copies of one thread: cp.async, bulk stores ------------------------------------------------------------------

void copy_async(void* to, const void* from, int size, int bytes, Where where);
void issue(CopyGroups& groups, std::function<void()> copy);
void commit(CopyGroups& groups);
void wait_for_groups(CopyGroups& groups, size_t keep, const char* what, Where where);

void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);
void bulk_store(void* global, const void* shared, uint32_t bytes);
void bulk_reduce_add(float* global, const float* shared, uint32_t bytes);

// ---- flags in global memory ---------------------------------------------------------------------------------------

// Waits for another block. A block of which nobody else can go on keeps its OS thread: the other one must have begun.
void flag_wait(const uint32_t* flag, uint32_t value, Where where);
bool flag_has(const void* flag, uint64_t value);

// ---- TMA --------------------------------------------------------------------------------------------------------

using Coordinates = std::array<int, 5>;

enum class Tile { LOAD, STORE, ADD };

void tile_load(void* shared, const CUtensorMap* map, uint64_t* barrier, Coordinates at, int rank);
void tile_store(const CUtensorMap* map, const void* shared, Coordinates at, int rank, Tile kind);

// Fills in a tensor map; false when the copy engine's rules are broken. `element_bytes` 2: bf16, 4: fp32.
bool encode_tensor_map(CUtensorMap* map, int element_bytes, int rank, void* base, const uint64_t* dims, const uint64_t* strides,
                       const uint32_t* tile, uint32_t swizzle, std::string& reason);

}  // namespace emulator
