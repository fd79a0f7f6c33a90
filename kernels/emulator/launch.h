// Kernels by name, and what one launch of a kernel is made of.
#pragma once
#include <mutex>
#include <utility>

#include "accesses.h"
#include "block.h"

namespace emulator {

// Calls a kernel with arguments from cuLaunchKernel's array of pointers.
using Entry = void (*)(const void* const* arguments);

struct Kernel {
    Entry entry;
    std::vector<size_t> parameter_bytes;
    const char* file = nullptr;
    unsigned most_threads = 0;  // of a block, by __launch_bounds__; 0: it names none
};

template <auto FUNCTION>
struct KernelOf;

template <class... Parameters, void (*FUNCTION)(Parameters...)>
struct KernelOf<FUNCTION> {
    template <size_t... I>
    static void call(const void* const* arguments, std::index_sequence<I...>) {
        FUNCTION(*static_cast<const std::remove_const_t<Parameters>*>(arguments[I])...);
    }
    static void entry(const void* const* arguments) { call(arguments, std::index_sequence_for<Parameters...>{}); }
    static Kernel kernel() { return {entry, {sizeof(Parameters)...}}; }
};

bool register_kernel(const char* name, const char* file, Kernel kernel);

// What the kernel that is registered next allows.
bool note_launch_bounds(unsigned threads, unsigned blocks = 1);

// One launch: shared by the OS threads that run its blocks.
struct Launch {
    const char* name;
    Kernel kernel;
    const void* const* arguments;
    dim3 grid, size;
    size_t shared_bytes;
    unsigned seed;
    bool late;
    bool observed;   // whether its accesses are asked for

    size_t blocks() const { return size_t(grid.x) * grid.y * grid.z; }

    std::atomic<size_t> next_block{0};
    std::atomic<bool> failed{false};
    std::mutex error_lock;
    std::string error;
    std::vector<Access> accesses;   // under error_lock

    void add(const std::vector<Access>& more) {
        std::lock_guard<std::mutex> guard(error_lock);
        accesses.insert(accesses.end(), more.begin(), more.end());
    }
    void fail(const std::string& message);
};

// Runs blocks of the launch on this OS thread until none is left or one failed (scheduler.cpp).
void run_blocks(Launch& launch);

}  // namespace emulator

// Bounds stand within a declaration, where C++ has no place for what should become of them. So they end it, as that of a function
// nobody calls, leave a note, and begin it anew; LADD_KERNEL behind the kernel takes the note. A file's variables are
// initialised in their order.
#define __launch_bounds__(...) EMULATOR_BOUNDS(__COUNTER__, __VA_ARGS__)
#define EMULATOR_BOUNDS(number, ...) EMULATOR_NOTE(number, __VA_ARGS__)
#define EMULATOR_NOTE(number, ...)                                                                                       \
    emulator_nobody_calls_##number();                                                                                    \
    [[maybe_unused]] static const bool emulator_noted_##number = emulator::note_launch_bounds(__VA_ARGS__);              \
    extern "C" void

#define LADD_KERNEL(name) [[maybe_unused]] static const bool registered_##name = \
    emulator::register_kernel(#name, __FILE__, emulator::KernelOf<name>::kernel());
