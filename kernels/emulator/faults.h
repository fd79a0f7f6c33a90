// Turns what would kill the process into errors of the launch: access faults, failed checks of the compiler, endless loops.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include <pthread.h>
#include <signal.h>

#include "launch.h"

namespace emulator {

// While it lives, signals of this OS thread are handled on a stack of their own.
class SignalStack {
public:
    SignalStack();
    ~SignalStack();
    SignalStack(const SignalStack&) = delete;
    SignalStack& operator=(const SignalStack&) = delete;

private:
    std::vector<uint8_t> memory;
    stack_t previous;
};

// While it lives, the block that this OS thread runs is under observation: a block that takes longer than the budget
// (60 seconds, or LADD_EMULATOR_SECONDS) fails.
class BlockClock {
public:
    explicit BlockClock(Launch& launch);
    ~BlockClock();
    BlockClock(const BlockClock&) = delete;
    BlockClock& operator=(const BlockClock&) = delete;

    Launch& launch;
    const std::chrono::steady_clock::time_point start;
    const pthread_t thread;
    bool interrupted = false;
};

// Installs the handlers, once.
void install_fault_handlers();

}  // namespace emulator
