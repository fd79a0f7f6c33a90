// wgmma. The layouts are those of the PTX manual: fragments as in ptx.cuh, matrix descriptors with the swizzles of 32, 64 and
// 128 bytes and without, rows along K or along M and N.
#include "wgmma.h"

#include "async.h"
#include "products.h"

namespace emulator {

constexpr int ROWS = 64;
constexpr int DEPTH = 16;
constexpr int MOST_COLUMNS = 256;
// In accumulators that are in flight: a signalling not-a-number, which any arithmetic turns into a quiet one.
constexpr uint32_t IN_FLIGHT = 0x7fadbeefu;

// ---- operands in shared memory ----------------------------------------------------------------------------------

struct Descriptor {
    uint32_t start, leading, stride;   // bytes
    uint32_t swizzle;                  // bytes, 0 for none

    explicit Descriptor(uint64_t word) {
        constexpr uint32_t SWIZZLES[4] = {0, 128, 64, 32};
        start = uint32_t(word & 0x3fff) << 4;
        leading = uint32_t(word >> 16 & 0x3fff) << 4;
        stride = uint32_t(word >> 32 & 0x3fff) << 4;
        swizzle = SWIZZLES[word >> 62];
    }

    // Eight values along K, from (row, k) on; k is a multiple of 8.
    uint32_t piece_along_k(uint32_t row, uint32_t k) const {
        const uint32_t group = row / 8 * stride;
        if (swizzle == 0) return start + group + row % 8 * 16 + k / 8 * leading;
        return start + group + row % 8 * swizzle + k * 2;
    }

    // Eight values along M or N, from (row, k) on; row is a multiple of 8.
    uint32_t piece_along_rows(uint32_t row, uint32_t k) const {
        if (swizzle == 0) return start + row / 8 * stride + k / 8 * leading + k % 8 * 16;
        const uint32_t across = swizzle / 2;
        return start + row / across * leading + row % across * 2 + k / 8 * stride + k % 8 * swizzle;
    }
};

static void read_piece(uint32_t address, uint32_t swizzle, float* to, int step) {
    const uint8_t* piece = block().window + swizzled(address, swizzle);
    require_shared(piece, 16, "wgmma descriptor");
    uint16_t values[8];
    memcpy(values, piece, sizeof values);
    for (int i = 0; i < 8; i++) to[i * step] = __bfloat162float({values[i]});
}

// Puts element (row, k) at to[row * row_step + k * k_step].
static void gather(uint64_t word, bool transposed, int rows, float* to, int row_step, int k_step) {
    const Descriptor operand(word);
    if (transposed) {
        for (int k = 0; k < DEPTH; k++) {
            for (int row = 0; row < rows; row += 8) {
                const uint32_t address = operand.piece_along_rows(uint32_t(row), uint32_t(k));
                read_piece(address, operand.swizzle, to + row * row_step + k * k_step, row_step);
            }
        }
    } else {
        for (int row = 0; row < rows; row++) {
            for (int k = 0; k < DEPTH; k += 8) {
                const uint32_t address = operand.piece_along_k(uint32_t(row), uint32_t(k));
                read_piece(address, operand.swizzle, to + row * row_step + k * k_step, k_step);
            }
        }
    }
}

// ---- operands in registers --------------------------------------------------------------------------------------

static int fragment_row(int thread) { return thread / 32 * 16 + thread % 32 / 4; }

static void gather_registers(const Matrices& of, float* a) {
    for (int thread = 0; thread < int(WARPGROUP); thread++) {
        const auto& registers = of.a[size_t(thread)];
        for (int i = 0; i < 4; i++) {
            const int row = fragment_row(thread) + i % 2 * 8;
            const int k = thread % 4 * 2 + i / 2 * 8;
            a[row * DEPTH + k] = __uint_as_float(registers[size_t(i)] << 16);
            a[row * DEPTH + k + 1] = __uint_as_float(registers[size_t(i)] & 0xffff0000u);
        }
    }
}

// Calls `pair(element of the thread's accumulators, row, column)` for every pair of neighbouring accumulators.
template <class Pair>
static void for_each_pair(int columns, int thread, Pair pair) {
    for (int i = 0; i < columns / 2; i += 2) {
        pair(i, fragment_row(thread) + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2);
    }
}

static void multiply(const Matrices& of) {
    alignas(64) float a[ROWS * DEPTH], b[DEPTH * MOST_COLUMNS], product[ROWS * MOST_COLUMNS];
    if (of.a_in_registers) {
        gather_registers(of, a);
    } else {
        gather(of.descriptor_a, of.transposed_a, ROWS, a, DEPTH, 1);
    }
    gather(of.descriptor_b, of.transposed_b, of.columns, b, 1, of.columns);
    product_k16(a, b, product, ROWS, of.columns);
    for (int thread = 0; thread < int(WARPGROUP); thread++) {
        float* d = of.d[size_t(thread)];
        for_each_pair(of.columns, thread, [&](int i, int row, int column) {
            const float* sums = product + row * of.columns + column;
            d[i] = (of.accumulate ? d[i] : 0.0f) + sums[0];
            d[i + 1] = (of.accumulate ? d[i + 1] : 0.0f) + sums[1];
        });
    }
}

// ---- accumulators in flight -------------------------------------------------------------------------------------

static void mark_in_flight(Matrices& of) {
    const size_t each = size_t(of.columns) / 2;
    of.saved.resize(each * WARPGROUP);
    const std::vector<uint32_t> marks(each, IN_FLIGHT);
    for (size_t thread = 0; thread < WARPGROUP; thread++) {
        memcpy(&of.saved[thread * each], of.d[thread], each * sizeof(float));
        memcpy(of.d[thread], marks.data(), each * sizeof(float));
    }
}

static void restore(Matrices& of) {
    const size_t each = size_t(of.columns) / 2;
    const std::vector<uint32_t> marks(each, IN_FLIGHT);
    for (size_t thread = 0; thread < WARPGROUP; thread++) {
        if (memcmp(of.d[thread], marks.data(), each * sizeof(float)) != 0) {
            fail("thread %zu of the warpgroup wrote an accumulator while a wgmma on it was in flight", thread);
        }
        memcpy(of.d[thread], &of.saved[thread * each], each * sizeof(float));
    }
    of.saved.clear();
}

void require_finished(const float* d, int count) {
    for (int i = 0; i < count; i++) {
        if (__float_as_uint(d[i]) == IN_FLIGHT) fail("wgmma_done on accumulators that no wgmma_wait has waited for");
    }
}

static bool same_accumulators(const Matrices& a, const Matrices& b) { return a.d == b.d; }

static void enqueue(Warpgroup& warpgroup, Matrices product) {
    const bool marked = std::any_of(warpgroup.pending.begin(), warpgroup.pending.end(),
                                    [&](const Matrices& earlier) { return same_accumulators(earlier, product); });
    if (!marked) mark_in_flight(product);
    warpgroup.pending.push_back(std::move(product));
}

// Does the products of all groups before `group`.
static void finish(Warpgroup& warpgroup, int group) {
    size_t done = 0;
    std::vector<Matrices>& pending = warpgroup.pending;
    for (; done < pending.size() && pending[done].group < group; done++) {
        if (!pending[done].saved.empty()) restore(pending[done]);
        multiply(pending[done]);
        // A later product on the same accumulators is still in flight if its group is.
        const auto next = std::find_if(pending.begin() + ptrdiff_t(done) + 1, pending.end(),
                                       [&](const Matrices& later) { return same_accumulators(later, pending[done]); });
        if (next != pending.end() && next->group >= group) mark_in_flight(*next);
    }
    pending.erase(pending.begin(), pending.begin() + ptrdiff_t(done));
}

// ---- what the threads call --------------------------------------------------------------------------------------

struct WgmmaThread {
    float* d;
    const uint32_t* a;
    uint64_t descriptor_a, descriptor_b;
    bool accumulate;
};

static Warpgroup& warpgroup() {
    const unsigned first = self().number / WARPGROUP * WARPGROUP;
    if (first + WARPGROUP > block().threads) fail("wgmma needs a full warpgroup");
    return block().warpgroups[self().number / WARPGROUP];
}

template <class Last>
static void meet_warpgroup(Warpgroup& warpgroup, const char* what, Where where, Last last) {
    meet(warpgroup.meeting, WARPGROUP, what, where, true, last);
}

static Matrices collect(const std::array<uint64_t, WARPGROUP>& words, const WgmmaThread& mine) {
    Matrices product;
    product.a_in_registers = mine.a != nullptr;
    product.accumulate = mine.accumulate;
    product.descriptor_a = mine.descriptor_a;
    product.descriptor_b = mine.descriptor_b;
    for (size_t i = 0; i < WARPGROUP; i++) {
        const auto& thread = *reinterpret_cast<const WgmmaThread*>(words[i]);
        const bool agree = thread.descriptor_a == mine.descriptor_a && thread.descriptor_b == mine.descriptor_b &&
                           thread.accumulate == mine.accumulate;
        if (!agree) fail("wgmma: descriptors or `accumulate` differ between the threads of the warpgroup");
        product.d[i] = thread.d;
        if (thread.a) memcpy(product.a[i].data(), thread.a, sizeof product.a[i]);
    }
    return product;
}

void wgmma(int columns, float* d, const uint32_t* a, uint64_t descriptor_a, uint64_t descriptor_b, bool accumulate, bool transposed_a,
           bool transposed_b, Where where) {
    Warpgroup& group = warpgroup();
    const WgmmaThread mine = {d, a, descriptor_a, descriptor_b, accumulate};
    auto& words = group.words[group.meeting.generation % 2];
    words[self().number % WARPGROUP] = reinterpret_cast<uint64_t>(&mine);
    meet_warpgroup(group, "wgmma", where, [&] {
        if (!group.fenced) fail("wgmma without wgmma_fence since the kernel's start or the last wgmma_wait");
        Matrices product = collect(words, mine);
        product.columns = columns;
        product.group = group.groups_committed;
        product.transposed_a = transposed_a;
        product.transposed_b = transposed_b;
        if (block().late) {
            enqueue(group, std::move(product));
        } else {
            multiply(product);
        }
    });
}

void wgmma_fence(Where where) {
    Warpgroup& group = warpgroup();
    meet_warpgroup(group, "wgmma_fence", where, [&] { group.fenced = true; });
}

void wgmma_commit(Where where) {
    Warpgroup& group = warpgroup();
    meet_warpgroup(group, "wgmma_commit", where, [&] { group.groups_committed++; });
}

void wgmma_wait(int keep, Where where) {
    Warpgroup& group = warpgroup();
    meet_warpgroup(group, "wgmma_wait", where, [&] {
        finish(group, group.groups_committed - keep);
        group.fenced = false;
    });
}

}  // namespace emulator
