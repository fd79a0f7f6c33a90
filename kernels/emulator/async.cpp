// mbarriers, cp.async, bulk copies and TMA.
#include "async.h"

#include "accesses.h"
#include "memory.h"
#include "static_shared.h"

namespace emulator {

// ---- shared-memory addresses ------------------------------------------------------------------------------------

static bool in_dynamic_shared(const void* pointer, size_t bytes) {
    const auto* byte = static_cast<const uint8_t*>(pointer);
    const Block& in = block();
    return byte >= in.shared && byte + bytes <= in.shared + in.shared_bytes;
}

uint32_t shared_address(const void* pointer) {
    if (!in_dynamic_shared(pointer, 0)) fail("%p has no shared address: it is not in dynamic shared memory", pointer);
    return uint32_t(static_cast<const uint8_t*>(pointer) - block().window);
}

void require_shared(const void* pointer, size_t bytes, const char* what) {
    if (in_dynamic_shared(pointer, bytes) || in_static_shared(pointer)) return;
    const ptrdiff_t offset = static_cast<const uint8_t*>(pointer) - block().shared;
    fail("%s: %zu bytes at offset %td are not in the %zu bytes of shared memory", what, bytes, offset, block().shared_bytes);
}

void require_global(const void* pointer, const char* what) {
    if (in_dynamic_shared(pointer, 0)) fail("%s: %p is in shared memory, not in global memory", what, pointer);
}

static void require_multiple_of_16(const void* shared, const void* global, size_t bytes, const char* what) {
    const uintptr_t all = uintptr_t(shared) | uintptr_t(global) | bytes;
    if (all % 16 != 0) fail("%s: shared %p, global %p and %zu bytes must be multiples of 16", what, shared, global, bytes);
}

// ---- mbarrier ---------------------------------------------------------------------------------------------------

static Mbarrier load(const uint64_t* barrier) { return bits<Mbarrier>(*barrier); }

static void settle(uint64_t* barrier, Mbarrier state) {
    if (state.missing == 0 && state.bytes == 0) {
        state.phase ^= 1;
        state.missing = state.arrivals;
    }
    *barrier = bits<uint64_t>(state);
}

static KnownMbarrier& known(const uint64_t* barrier) {
    for (KnownMbarrier& candidate : block().mbarriers) {
        if (candidate.address == barrier) return candidate;
    }
    fail("there is no initialised mbarrier at %p", static_cast<const void*>(barrier));
}

static std::string describe_mbarrier(const void* barrier) {
    const Mbarrier state = load(static_cast<const uint64_t*>(barrier));
    char text[160];
    snprintf(text, sizeof text, "in phase %u, %u of %u arrivals and %lld bytes missing", unsigned(state.phase), unsigned(state.missing),
             unsigned(state.arrivals), static_cast<long long>(state.bytes));
    return text;
}

void mbarrier_init(uint64_t* barrier, int arrivals) {
    require_shared(barrier, 8, "mbar_init");
    if (arrivals < 1 || arrivals > 1024) fail("mbar_init: %d arrivals", arrivals);
    Mbarrier state = {};
    state.arrivals = unsigned(arrivals);
    state.missing = unsigned(arrivals);
    *barrier = bits<uint64_t>(state);
    std::erase_if(block().mbarriers, [&](const KnownMbarrier& old) { return old.address == barrier; });
    block().mbarriers.push_back({barrier, &self(), false});
}

void mbarrier_init_fence() {
    for (KnownMbarrier& barrier : block().mbarriers) {
        if (barrier.initialised_by == &self()) barrier.visible = true;
    }
}

void mbarrier_arrive(uint64_t* barrier, uint32_t announced_bytes) {
    known(barrier);
    Mbarrier state = load(barrier);
    state.bytes += announced_bytes;
    state.missing--;
    settle(barrier, state);
}

void mbarrier_complete(uint64_t* barrier, uint32_t copied_bytes) {
    known(barrier);
    Mbarrier state = load(barrier);
    state.bytes -= copied_bytes;
    settle(barrier, state);
}

static bool phase_over(const void* barrier, uint64_t parity) { return load(static_cast<const uint64_t*>(barrier)).phase != parity; }

void mbarrier_wait(uint64_t* barrier, uint32_t parity, Where where) {
    known(barrier);
    if (parity > 1) fail("mbar_wait: parity %u", parity);
    wait(phase_over, barrier, parity, "mbar_wait", where, describe_mbarrier);
}

std::string unfinished_mbarriers(const Block& block) {
    for (const KnownMbarrier& barrier : block.mbarriers) {
        if (load(barrier.address).bytes != 0) return "an mbarrier " + describe_mbarrier(barrier.address);
    }
    return "";
}

// The barrier that a copy will complete on must be visible to the copy engine.
static void require_visible(const uint64_t* barrier, const char* what) {
    if (!known(barrier).visible) fail("%s: the thread that initialised its mbarrier has not called mbar_init_fence", what);
}

// ---- copies of one thread ---------------------------------------------------------------------------------------

void issue(CopyGroups& groups, std::function<void()> copy) {
    if (block().late) {
        groups.open.push_back(std::move(copy));
    } else {
        copy();
    }
}

void commit(CopyGroups& groups) {
    // Early copies are done already: nothing is kept of their groups.
    if (block().late) groups.closed.push_back(std::exchange(groups.open, {}));
}

void wait_for_groups(CopyGroups& groups, size_t keep, const char* what, Where where) {
    self().what = what;
    self().where = where;
    while (groups.closed.size() > keep) {
        for (const auto& copy : groups.closed.front()) copy();
        groups.closed.erase(groups.closed.begin());
    }
}

void copy_async(void* to, const void* from, int size, int bytes, Where where) {
    require_shared(to, size_t(size), "cp_async");
    if (bytes < 0 || bytes > size) fail("cp_async: %d of %d bytes at line %u", bytes, size, where.line());
    const bool aligned = uintptr_t(to) % size_t(size) == 0 && uintptr_t(from) % size_t(size) == 0;
    if (!aligned) fail("cp_async of %d bytes from %p to %p at line %u: misaligned", size, from, to, where.line());
    issue(self().copies, [=] {
        uint8_t buffer[16] = {};
        note_access(from, size_t(bytes), false);
        memcpy(buffer, from, size_t(bytes));
        memcpy(to, buffer, size_t(size));
    });
}

static void start_transfer(const uint64_t* barrier, std::function<void()> run) {
    if (block().late) {
        block().transfers.push_back({&self(), barrier, std::move(run)});
    } else {
        run();
    }
}

void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
    require_multiple_of_16(shared, global, bytes, "bulk_load");
    require_shared(shared, bytes, "bulk_load");
    require_visible(barrier, "bulk_load");
    start_transfer(barrier, [=] {
        note_access(global, bytes, false);
        memcpy(shared, global, bytes);
        mbarrier_complete(barrier, bytes);
    });
}

void bulk_store(void* global, const void* shared, uint32_t bytes) {
    require_multiple_of_16(shared, global, bytes, "bulk_store");
    require_shared(shared, bytes, "bulk_store");
    issue(self().bulk_copies, [=] {
        note_access(global, bytes, true);
        memcpy(global, shared, bytes);
    });
}

void bulk_reduce_add(float* global, const float* shared, uint32_t bytes) {
    require_multiple_of_16(shared, global, bytes, "bulk_reduce_add_f32");
    require_shared(shared, bytes, "bulk_reduce_add_f32");
    issue(self().bulk_copies, [=] {
        note_access(global, bytes, false);
        note_access(global, bytes, true);
        for (uint32_t i = 0; i < bytes / sizeof(float); i++) atomicAdd(global + i, shared[i]);
    });
}

// ---- flags in global memory ---------------------------------------------------------------------------------------

bool flag_has(const void* flag, uint64_t value) {
    uint32_t& awaited = *const_cast<uint32_t*>(static_cast<const uint32_t*>(flag));
    note_access(flag, sizeof awaited, false);
    return std::atomic_ref<uint32_t>(awaited).load() == value;
}

void flag_wait(const uint32_t* flag, uint32_t value, Where where) {
    require_global(flag, "flag_wait");
    wait(flag_has, flag, value, "flag_wait", where);
}

// ---- TMA --------------------------------------------------------------------------------------------------------

// Our own encoding of a tensor map.
struct TensorMap {
    uint8_t* base;
    uint64_t strides[4];
    uint32_t dims[5];
    uint16_t tile[5];
    uint16_t magic;
    uint8_t element_bytes, rank, swizzle;

    uint32_t tile_bytes() const {
        uint32_t bytes = element_bytes;
        for (int d = 0; d < rank; d++) bytes *= tile[d];
        return bytes;
    }
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));
constexpr uint16_t TENSOR_MAP_MAGIC = 0x7a11;
constexpr uint32_t PIECE = 16;   // what swizzling keeps together

static bool rule(bool kept, std::string& reason, const char* broken) {
    if (!kept && reason.empty()) reason = broken;
    return kept;
}

bool encode_tensor_map(CUtensorMap* out, int element_bytes, int rank, void* base, const uint64_t* dims, const uint64_t* strides,
                       const uint32_t* tile, uint32_t swizzle, std::string& reason) {
    if (!rule(rank >= 1 && rank <= 5, reason, "its rank is not 1 to 5")) return false;
    rule(uintptr_t(base) % 16 == 0, reason, "its address is no multiple of 16");
    rule(swizzle == 0 || swizzle == 32 || swizzle == 64 || swizzle == 128, reason, "its swizzle is not 0, 32, 64 or 128");
    rule(tile[0] * uint32_t(element_bytes) % 16 == 0, reason, "the tile's rows are no multiple of 16 bytes");
    rule(swizzle == 0 || tile[0] * uint32_t(element_bytes) <= swizzle, reason, "the tile's rows are longer than the swizzle");
    TensorMap map = {};
    map.base = static_cast<uint8_t*>(base);
    map.magic = TENSOR_MAP_MAGIC;
    map.element_bytes = uint8_t(element_bytes);
    map.rank = uint8_t(rank);
    map.swizzle = uint8_t(swizzle);
    size_t bytes = size_t(element_bytes) * dims[0];
    for (int d = 0; d < rank; d++) {
        rule(dims[d] >= 1 && dims[d] < (1ull << 32), reason, "a dimension is 0 or above 2^32");
        rule(tile[d] >= 1 && tile[d] <= 256, reason, "the tile is 0 or above 256 along a dimension");
        map.dims[d] = uint32_t(dims[d]);
        map.tile[d] = uint16_t(tile[d]);
        if (d == 0) continue;
        rule(strides[d - 1] % 16 == 0 && strides[d - 1] < (1ull << 40), reason, "a stride is no multiple of 16, or above 2^40");
        map.strides[d - 1] = strides[d - 1];
        bytes += strides[d - 1] * (dims[d] - 1);
    }
    rule(accessible(base, bytes), reason, "it reaches beyond the allocation");
    memset(out, 0, sizeof *out);
    memcpy(out, &map, sizeof map);
    return reason.empty();
}

// Calls `row(offset in the tile, global row or null)` for every innermost row of the tile; null lies outside.
template <class Row>
static void for_each_row(const TensorMap& map, const Coordinates& at, Row row) {
    const uint32_t row_bytes = map.tile[0] * map.element_bytes;
    const uint32_t rows = map.tile_bytes() / row_bytes;
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t rest = r;
        uint8_t* global = map.base;
        for (int d = 1; d < map.rank; d++) {
            const int64_t index = int64_t(at[size_t(d)]) + rest % map.tile[d];
            rest /= map.tile[d];
            if (index < 0 || index >= int64_t(map.dims[d])) global = nullptr;
            if (global) global += uint64_t(index) * map.strides[d - 1];
        }
        row(r * row_bytes, global);
    }
}

static void move_element(Tile kind, uint8_t* shared, uint8_t* global, uint32_t bytes) {
    if (kind != Tile::STORE) note_access(global, bytes, false);
    if (kind != Tile::LOAD) note_access(global, bytes, true);
    if (kind == Tile::LOAD) memcpy(shared, global, bytes);
    if (kind == Tile::STORE) memcpy(global, shared, bytes);
    if (kind == Tile::ADD) atomicAdd(reinterpret_cast<float*>(global), bits<float>(*reinterpret_cast<uint32_t*>(shared)));
}

// One piece of a row: `x` is the index of its first element.
static void move_piece(const TensorMap& map, Tile kind, uint8_t* shared, uint8_t* global_row, int64_t x) {
    const int64_t elements = PIECE / map.element_bytes;
    const bool inside = global_row && x >= 0 && x + elements <= int64_t(map.dims[0]);
    if (inside && kind == Tile::LOAD) {
        note_access(global_row + x * map.element_bytes, PIECE, false);
        memcpy(shared, global_row + x * map.element_bytes, PIECE);
        return;
    }
    for (int64_t i = 0; i < elements; i++) {
        uint8_t* element = shared + i * map.element_bytes;
        const bool exists = global_row && x + i >= 0 && x + i < int64_t(map.dims[0]);
        if (exists) move_element(kind, element, global_row + (x + i) * map.element_bytes, map.element_bytes);
        if (!exists && kind == Tile::LOAD) memset(element, 0, map.element_bytes);
    }
}

static void move_tile(const TensorMap& map, Tile kind, uint32_t shared, const Coordinates& at) {
    uint8_t* const window = const_cast<uint8_t*>(block().window);
    for_each_row(map, at, [&](uint32_t offset, uint8_t* global_row) {
        for (uint32_t byte = 0; byte < map.tile[0] * uint32_t(map.element_bytes); byte += PIECE) {
            uint8_t* piece = window + swizzled(shared + offset + byte, map.swizzle);
            move_piece(map, kind, piece, global_row, int64_t(at[0]) + byte / map.element_bytes);
        }
    });
}

static TensorMap checked_map(const CUtensorMap* from, const void* shared, int rank, const char* what) {
    TensorMap map;
    memcpy(&map, from, sizeof map);
    if (map.magic != TENSOR_MAP_MAGIC) fail("%s: not a tensor map", what);
    if (map.rank != rank) fail("%s: %d coordinates for a tensor map of rank %d", what, rank, map.rank);
    if (shared_address(shared) % 128 != 0) fail("%s: shared memory at %p is not 128-byte aligned", what, shared);
    require_shared(shared, map.tile_bytes(), what);
    return map;
}

void tile_load(void* shared, const CUtensorMap* from, uint64_t* barrier, Coordinates at, int rank) {
    const TensorMap map = checked_map(from, shared, rank, "tma_load");
    require_visible(barrier, "tma_load");
    const uint32_t address = shared_address(shared);
    start_transfer(barrier, [=] {
        move_tile(map, Tile::LOAD, address, at);
        mbarrier_complete(barrier, map.tile_bytes());
    });
}

void tile_store(const CUtensorMap* to, const void* shared, Coordinates at, int rank, Tile kind) {
    const TensorMap map = checked_map(to, shared, rank, kind == Tile::ADD ? "tma_reduce_add" : "tma_store");
    if (kind == Tile::ADD && map.element_bytes != 4) fail("tma_reduce_add: only fp32 is emulated");
    const uint32_t address = shared_address(shared);
    issue(self().bulk_copies, [=] { move_tile(map, kind, address, at); });
}

}  // namespace emulator
