// What the lanes of a warp do together: shuffles, votes, reductions, ldmatrix, mma.sync. Every one of them waits for all
// lanes of its mask, which must come from the same line of the source.
#pragma once
#include "block.h"

namespace emulator {

// The record of the lanes in `mask`, made at its first use.
Lanes& lanes_of(unsigned mask);

// Lanes of the mask that exist: the last warp of a block may be short.
unsigned lanes_expected(unsigned mask);

// Brings a word and waits; `last` is given the words of all lanes and runs once. Returns the words.
template <class Last>
const std::array<uint64_t, WARP>& exchange(unsigned mask, uint64_t word, const char* what, Where where, Last last) {
    Lanes& lanes = lanes_of(mask);
    std::array<uint64_t, WARP>& words = lanes.words[lanes.meeting.generation % 2];
    words[lane()] = word;
    meet(lanes.meeting, lanes_expected(mask), what, where, true, [&] { last(words); });
    return words;
}

inline const std::array<uint64_t, WARP>& exchange(unsigned mask, uint64_t word, const char* what, Where where) {
    return exchange(mask, word, what, where, [](const auto&) {});
}

template <class T>
uint64_t word_of(T value) {
    static_assert(sizeof(T) <= 8);
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    return word;
}

template <class T>
T shuffle(unsigned mask, T value, int source, const char* what, Where where) {
    const auto& words = exchange(mask, word_of(value), what, where);
    if (source < 0 || source >= int(WARP) || !(mask >> source & 1)) fail("%s reads lane %d, which is not in mask %08x", what, source, mask);
    T result;
    std::memcpy(&result, &words[source], sizeof result);
    return result;
}

// The lane `source`, or this lane where `source` leaves the segment of `width` lanes.
inline int within_segment(int source, int width) {
    const int first = int(lane()) / width * width;
    return source >= first && source < first + width ? source : int(lane());
}

unsigned ballot(unsigned mask, bool predicate, const char* what, Where where);

template <class T, class Combine>
T reduce(unsigned mask, T value, const char* what, Where where, Combine combine) {
    const auto& words = exchange(mask, word_of(value), what, where);
    bool first = true;
    T result{};
    for (unsigned i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        T other;
        std::memcpy(&other, &words[i], sizeof other);
        result = first ? other : combine(result, other);
        first = false;
    }
    return result;
}

void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row, Where where);
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, Where where);

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulator::Where where = emulator::Where::current()) {
    const int first = int(emulator::lane()) / width * width;
    return emulator::shuffle(mask, value, first + (source & (width - 1)), "__shfl_sync", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, emulator::Where where = emulator::Where::current()) {
    const int source = emulator::within_segment(int(emulator::lane()) ^ lanes, width);
    return emulator::shuffle(mask, value, source, "__shfl_xor_sync", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, emulator::Where where = emulator::Where::current()) {
    const int source = emulator::within_segment(int(emulator::lane() + lanes), width);
    return emulator::shuffle(mask, value, source, "__shfl_down_sync", where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, emulator::Where where = emulator::Where::current()) {
    const int source = emulator::within_segment(int(emulator::lane()) - int(lanes), width);
    return emulator::shuffle(mask, value, source, "__shfl_up_sync", where);
}

inline void __syncwarp(unsigned mask = emulator::ALL_LANES, emulator::Where where = emulator::Where::current()) {
    emulator::exchange(mask, 0, "__syncwarp", where);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate, emulator::Where where = emulator::Where::current()) {
    return emulator::ballot(mask, predicate, "__ballot_sync", where);
}
inline bool __any_sync(unsigned mask, bool predicate, emulator::Where where = emulator::Where::current()) {
    return emulator::ballot(mask, predicate, "__any_sync", where) != 0;
}
inline bool __all_sync(unsigned mask, bool predicate, emulator::Where where = emulator::Where::current()) {
    return emulator::ballot(mask, !predicate, "__all_sync", where) == 0;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, emulator::Where where = emulator::Where::current()) {
    return emulator::reduce(mask, value, "__reduce_add_sync", where, [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, emulator::Where where = emulator::Where::current()) {
    return emulator::reduce(mask, value, "__reduce_max_sync", where, [](T a, T b) { return std::max(a, b); });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, emulator::Where where = emulator::Where::current()) {
    return emulator::reduce(mask, value, "__reduce_min_sync", where, [](T a, T b) { return std::min(a, b); });
}
