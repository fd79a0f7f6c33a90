// Fibers: every CUDA thread has a stack of its own and is switched to and from by hand.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

// A reusable stack. Inaccessible pages below it turn an overflow into a fault.
class Stack {
public:
    Stack();
    ~Stack();
    Stack(Stack&& other) noexcept;
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;

    uint8_t* top() const;
    bool guards(const void* address) const;
    static constexpr size_t BYTES = 128 << 10;

private:
    uint8_t* mapped;
};

// Runs `entry` on the stack at the first switch to the fiber.
void prepare_fiber(void*& fiber, Stack& stack, void (*entry)());
void switch_to_fiber(void*& fiber);
void switch_to_scheduler(void*& fiber);

}  // namespace emulator
