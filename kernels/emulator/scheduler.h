// What runs the blocks of a launch on one OS thread: stacks, shared memory, the order of threads.
#pragma once
#include <memory>
#include <random>

#include "block.h"
#include "fibers.h"
#include "launch.h"

namespace emulator {

// Dynamic shared memory: ends at an inaccessible page (rounded up to its alignment of 1024 bytes).
class SharedWindow {
public:
    SharedWindow();
    ~SharedWindow();
    SharedWindow(const SharedWindow&) = delete;
    SharedWindow& operator=(const SharedWindow&) = delete;

    // Memory for one block, filled with not-a-numbers. `window` is where 32-bit shared addresses begin.
    uint8_t* provide(size_t bytes);
    const uint8_t* window() const { return mapped; }
    // Whether nothing was written around the last block's memory.
    bool intact() const;

    static constexpr size_t LIMIT = 227 << 10;

private:
    uint8_t* mapped;
    uint8_t* start = nullptr;
    size_t bytes = 0;
};

class Worker {
public:
    void run(Launch& launch);
    // Where the handler of a fault finds room: the stack of the thread may be the reason.
    uint8_t* emergency_stack() const { return emergency.top(); }
    bool is_stack_overflow(const void* address) const;

private:
    void run_block(Launch& launch, size_t number);
    void begin_block(Launch& launch, size_t number);
    void end_block(Launch& launch);
    bool run_in_turn(unsigned first, unsigned count, bool backwards);
    bool run_random_warp();
    void resume(Thread& thread);
    size_t needed_transfer();
    void finish_transfer(size_t which);
    unsigned random(unsigned below);

    Block block;
    std::vector<Stack> stacks;
    Stack engine_stack, emergency;
    Thread engine;   // runs what the copy engine does, so that it can fail like a thread
    SharedWindow shared;
    unsigned running = 0;
    uint64_t random_state = 1;
};

// The worker whose launch runs on this OS thread, or null.
extern constinit thread_local Worker* active_worker;

}  // namespace emulator
