// Blocks and threads as a kernel sees them, and the two things everything else is built on: `wait` until something is
// true, and `meet` the other threads of a barrier, warp or warpgroup. Scheduling itself is in scheduler.cpp.
#pragma once
#include <array>
#include <deque>
#include <functional>
#include <list>
#include <source_location>
#include <string>
#include <vector>

#include "language.h"

namespace emulator {

// A place in a kernel's source: the default of every synchronising call's last parameter.
using Where = std::source_location;

constexpr unsigned WARP = 32;
constexpr unsigned WARPGROUP = 128;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr unsigned NAMED_BARRIERS = 16;

// Threads that meet: the last one to arrive opens the next generation.
struct Meeting {
    unsigned arrived = 0;
    unsigned expected = 0;
    uint64_t generation = 0;
    const char* what = nullptr;
    Where where;
};

// The lanes named by a mask, and a word of each. Two sets of words: a lane may bring its next word before the slowest
// has read the last ones.
struct Lanes {
    unsigned mask = 0;
    Meeting meeting;
    std::array<uint64_t, WARP> words[2];
};

struct Warp {
    std::list<Lanes> lanes;   // one entry per mask in use
};

// Copies of one thread that it has issued and not waited for (cp.async, or bulk stores).
struct CopyGroups {
    using Group = std::vector<std::function<void()>>;
    Group open;
    std::vector<Group> closed;
};

// One wgmma product, as its 128 threads asked for it.
struct Matrices {
    int columns = 0;
    int group = 0;
    bool a_in_registers = false;
    bool accumulate = false;
    bool transposed_a = false, transposed_b = false;
    uint64_t descriptor_a = 0, descriptor_b = 0;
    std::array<float*, WARPGROUP> d{};
    std::array<std::array<uint32_t, 4>, WARPGROUP> a{};
    // What the accumulators held before they were marked as being in flight (wgmma.cpp).
    std::vector<float> saved;
};

struct Warpgroup {
    Meeting meeting;
    std::array<uint64_t, WARPGROUP> words[2];
    std::vector<Matrices> pending;
    int groups_committed = 0;
    bool fenced = false;
};

struct Block;

struct Thread {
    Block* block = nullptr;
    uint3 index{};
    unsigned number = 0;
    void* stack_pointer = nullptr;      // where a suspended thread goes on (fibers.cpp)
    bool exited = false;
    // What the thread waits for; null while it can run.
    bool (*ready)(const void*, uint64_t) = nullptr;
    const void* condition = nullptr;
    uint64_t expectation = 0;
    std::string (*describe)(const void*) = nullptr;
    // Where it waits, or synchronised last.
    const char* what = nullptr;
    Where where;
    CopyGroups copies;
    CopyGroups bulk_copies;

    unsigned lane() const { return number % WARP; }
};

// Something the copy engine has still to do, and who asked for it.
struct Transfer {
    const Thread* issuer;
    const uint64_t* barrier;   // on which it completes
    std::function<void()> run;
};

struct KnownMbarrier {
    uint64_t* address;
    const Thread* initialised_by;
    bool visible;   // to the copy engine: its thread has fenced
};

struct Launch;

struct Block {
    Launch* launch = nullptr;
    uint3 index{};
    dim3 size, grid;
    unsigned threads = 0;
    uint8_t* shared = nullptr;          // dynamic shared memory
    size_t shared_bytes = 0;
    const uint8_t* window = nullptr;    // where 32-bit shared addresses begin
    bool late = false;                  // asynchronous work finishes as late as the program allows
    std::vector<Thread> thread;
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    std::array<Meeting, NAMED_BARRIERS> barriers;
    std::deque<Transfer> transfers;
    std::vector<KnownMbarrier> mbarriers;
};

// The thread that runs; null between threads.
extern constinit thread_local Thread* current;

inline Thread& self() { return *current; }
inline Block& block() { return *current->block; }
inline unsigned lane() { return current->lane(); }

// Ends the launch with an error that names block, thread and its last synchronisation. Does not return.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

// Lets other threads run until `ready(condition, expectation)`. `describe` adds to a deadlock report.
void suspend();

using Ready = bool (*)(const void* condition, uint64_t expectation);
using Describe = std::string (*)(const void* condition);

inline void wait(Ready ready, const void* condition, uint64_t expectation, const char* what, Where where, Describe describe = nullptr) {
    Thread& thread = self();
    thread.what = what;
    thread.where = where;
    if (ready(condition, expectation)) return;
    thread.ready = ready;
    thread.condition = condition;
    thread.expectation = expectation;
    thread.describe = describe;
    suspend();
}

inline bool next_generation(const void* generation, uint64_t old) { return *static_cast<const uint64_t*>(generation) != old; }

void check_arrival(const Meeting& meeting, unsigned expected, const char* what, Where where, bool same_place);

// Arrives; true in the last thread. `same_place`: all have to come from one line of the source.
inline bool arrive(Meeting& meeting, unsigned expected, const char* what, Where where, bool same_place) {
    if (meeting.arrived == 0) {
        meeting.expected = expected;
        meeting.what = what;
        meeting.where = where;
    }
    check_arrival(meeting, expected, what, where, same_place);
    meeting.arrived++;
    return meeting.arrived == expected;
}

inline void dismiss(Meeting& meeting) {
    meeting.arrived = 0;
    meeting.generation++;
}

// Waits for the others. `last` runs once, in the last thread to arrive, before anyone leaves.
template <class Last>
void meet(Meeting& meeting, unsigned expected, const char* what, Where where, bool same_place, Last last) {
    const uint64_t generation = meeting.generation;
    if (arrive(meeting, expected, what, where, same_place)) {
        self().what = what;
        self().where = where;
        last();
        dismiss(meeting);
    } else {
        wait(next_generation, &meeting.generation, generation, what, where);
    }
}

// Barrier 0 is __syncthreads, whose threads must come from one place; roles meet at the others from different ones.
void barrier_sync(int id, unsigned threads, const char* what, Where where);
void barrier_arrive(int id, unsigned threads, Where where);

}  // namespace emulator

#define threadIdx (emulator::self().index)
#define blockIdx (emulator::block().index)
#define blockDim (emulator::block().size)
#define gridDim (emulator::block().grid)
#define warpSize 32
#define DYNAMIC_SHARED(name) uint8_t* name = emulator::block().shared

inline void __syncthreads(emulator::Where where = emulator::Where::current()) {
    emulator::barrier_sync(0, emulator::block().threads, "__syncthreads", where);
}
