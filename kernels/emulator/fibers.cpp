// Switching stacks: a few instructions on x86-64, ucontext elsewhere.
#include "fibers.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "memory.h"

namespace emulator {

// Large: a frame may skip a single page.
static size_t guard_bytes() { return 16 * page_size(); }

Stack::Stack() {
    const size_t bytes = BYTES + guard_bytes();
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, guard_bytes(), PROT_NONE) != 0) {
        std::perror("emulator: no memory for the stack of a thread");
        std::abort();
    }
    mapped = static_cast<uint8_t*>(memory);
}

Stack::Stack(Stack&& other) noexcept : mapped(std::exchange(other.mapped, nullptr)) {}

Stack::~Stack() {
    if (mapped) munmap(mapped, BYTES + guard_bytes());
}

uint8_t* Stack::top() const { return mapped + guard_bytes() + BYTES; }

bool Stack::guards(const void* address) const {
    const auto* byte = static_cast<const uint8_t*>(address);
    return byte >= mapped && byte < mapped + guard_bytes();
}

#if defined(__x86_64__)

// Saves the registers a function must keep on the old stack and restores them from the new one.
extern "C" void emulator_switch_stacks(void** save_to, void* load_from);
#if defined(__APPLE__)
#define EMULATOR_SYMBOL "_emulator_switch_stacks"
#else
#define EMULATOR_SYMBOL "emulator_switch_stacks"
#endif
asm(".text\n"
    ".globl " EMULATOR_SYMBOL "\n" EMULATOR_SYMBOL ":\n"
    "    push %rbp\n"
    "    push %rbx\n"
    "    push %r12\n"
    "    push %r13\n"
    "    push %r14\n"
    "    push %r15\n"
    "    mov %rsp, (%rdi)\n"
    "    mov %rsi, %rsp\n"
    "    pop %r15\n"
    "    pop %r14\n"
    "    pop %r13\n"
    "    pop %r12\n"
    "    pop %rbx\n"
    "    pop %rbp\n"
    "    ret\n");

static constinit thread_local void* scheduler_stack = nullptr;

void prepare_fiber(void*& fiber, Stack& stack, void (*entry)()) {
    constexpr int SAVED_REGISTERS = 6;
    void** top = reinterpret_cast<void**>(stack.top());
    // A return address of zero ends debuggers' backtraces and aligns the stack as a call would.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    fiber = top - SAVED_REGISTERS;
}

void switch_to_fiber(void*& fiber) { emulator_switch_stacks(&scheduler_stack, fiber); }
void switch_to_scheduler(void*& fiber) { emulator_switch_stacks(&fiber, scheduler_stack); }

#else

static thread_local ucontext_t scheduler_context;

// The context lies at the top of the fiber's own stack.
void prepare_fiber(void*& fiber, Stack& stack, void (*entry)()) {
    const size_t reserved = (sizeof(ucontext_t) + 63) / 64 * 64;
    auto* context = reinterpret_cast<ucontext_t*>(stack.top() - reserved);
    getcontext(context);
    context->uc_stack.ss_sp = stack.top() - Stack::BYTES;
    context->uc_stack.ss_size = Stack::BYTES - reserved;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    fiber = context;
}

void switch_to_fiber(void*& fiber) { swapcontext(&scheduler_context, static_cast<ucontext_t*>(fiber)); }
void switch_to_scheduler(void*& fiber) { swapcontext(static_cast<ucontext_t*>(fiber), &scheduler_context); }

#endif

}  // namespace emulator
