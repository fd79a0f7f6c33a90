// Warp collectives, ldmatrix and mma.sync. The layouts are those of the PTX manual's fragments.
#include "warp.h"

#include "async.h"
#include "products.h"
#include "static_shared.h"

namespace emulator {

Lanes& lanes_of(unsigned mask) {
    if (!(mask >> lane() & 1)) fail("lane %u takes part in a warp operation whose mask %08x leaves it out", lane(), mask);
    Warp& warp = block().warps[self().number / WARP];
    for (Lanes& lanes : warp.lanes) {
        if (lanes.mask == mask) return lanes;
    }
    warp.lanes.emplace_back();
    warp.lanes.back().mask = mask;
    return warp.lanes.back();
}

unsigned lanes_expected(unsigned mask) {
    const unsigned first = self().number / WARP * WARP;
    const unsigned existing = std::min(WARP, block().threads - first);
    const unsigned existing_mask = existing == WARP ? ALL_LANES : (1u << existing) - 1;
    return unsigned(__builtin_popcount(mask & existing_mask));
}

unsigned ballot(unsigned mask, bool predicate, const char* what, Where where) {
    const auto& words = exchange(mask, predicate, what, where);
    unsigned votes = 0;
    for (unsigned i = 0; i < WARP; i++) {
        if (mask >> i & 1) votes |= unsigned(words[i]) << i;
    }
    return votes;
}

static void require_full_warp(const char* what) {
    if (lanes_expected(ALL_LANES) != WARP) fail("%s needs a full warp", what);
}

// ---- ldmatrix ---------------------------------------------------------------------------------------------------

struct LdmatrixLane {
    uint32_t* registers;
    const uint8_t* row;
};

static void check_row(const uint8_t* row) {
    if (uintptr_t(row) % 16 != 0) fail("ldmatrix: the row at %p is not 16-byte aligned", static_cast<const void*>(row));
    const Block& in = block();
    const bool dynamic = row >= in.shared && row + 16 <= in.shared + in.shared_bytes;
    if (!dynamic && !in_static_shared(row)) fail("ldmatrix: the row at %p is not in shared memory", static_cast<const void*>(row));
}

static void load_matrices(const std::array<uint64_t, WARP>& words, int count, bool transposed) {
    const auto lane_of = [&](int i) -> const LdmatrixLane& { return *reinterpret_cast<const LdmatrixLane*>(words[size_t(i)]); };
    for (int matrix = 0; matrix < count; matrix++) {
        uint16_t values[8][8];
        for (int row = 0; row < 8; row++) {
            const uint8_t* from = lane_of(8 * matrix + row).row;
            check_row(from);
            std::memcpy(values[row], from, 16);
        }
        for (int lane = 0; lane < int(WARP); lane++) {
            const int row = lane / 4, column = lane % 4 * 2;
            const uint16_t low = transposed ? values[column][row] : values[row][column];
            const uint16_t high = transposed ? values[column + 1][row] : values[row][column + 1];
            lane_of(lane).registers[matrix] = low | uint32_t(high) << 16;
        }
    }
}

void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row, Where where) {
    require_full_warp("ldmatrix");
    const LdmatrixLane mine = {registers, static_cast<const uint8_t*>(row)};
    exchange(ALL_LANES, reinterpret_cast<uint64_t>(&mine), "ldmatrix", where, [&](const auto& words) { load_matrices(words, count, transposed); });
}

// ---- mma.sync ---------------------------------------------------------------------------------------------------

struct MmaLane {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
};

static void unpack(uint32_t word, float* to, int step) {
    to[0] = __uint_as_float(word << 16);
    to[step] = __uint_as_float(word & 0xffff0000u);
}

static void multiply(const std::array<uint64_t, WARP>& words) {
    float a[16][16], b[16][8], product[16][8];
    for (int lane = 0; lane < int(WARP); lane++) {
        const MmaLane& of = *reinterpret_cast<const MmaLane*>(words[size_t(lane)]);
        const int group = lane / 4, pair = lane % 4 * 2;
        unpack(of.a[0], &a[group][pair], 1);
        unpack(of.a[1], &a[group + 8][pair], 1);
        unpack(of.a[2], &a[group][pair + 8], 1);
        unpack(of.a[3], &a[group + 8][pair + 8], 1);
        unpack(of.b[0], &b[pair][group], 8);
        unpack(of.b[1], &b[pair + 8][group], 8);
    }
    product_k16(&a[0][0], &b[0][0], &product[0][0], 16, 8);
    for (int lane = 0; lane < int(WARP); lane++) {
        float* d = reinterpret_cast<const MmaLane*>(words[size_t(lane)])->d;
        const int group = lane / 4, pair = lane % 4 * 2;
        d[0] += product[group][pair];
        d[1] += product[group][pair + 1];
        d[2] += product[group + 8][pair];
        d[3] += product[group + 8][pair + 1];
    }
}

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, Where where) {
    require_full_warp("mma.sync");
    const MmaLane mine = {d, a, b};
    exchange(ALL_LANES, reinterpret_cast<uint64_t>(&mine), "mma_m16n8k16", where, multiply);
}

}  // namespace emulator
