// Access faults: the handler sends the interrupted thread to a function that reports the fault and gives the thread up.
// Faults outside kernels go to whoever handled them before.
//
// Compiler checks: the kernels are compiled with -fsanitize=alignment,null,bounds, whose calls end up here.
#include "faults.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <set>
#include <thread>

#include "memory.h"
#include "scheduler.h"
#include "source_lines.h"

namespace emulator {

constexpr int OVERTIME_SIGNAL = SIGURG;   // ignored by default: harmless if it comes too late

// ---- the interrupted registers, by platform ------------------------------------------------------------------------

struct Interrupted {
    uintptr_t pc;
    const char* access;   // what it was doing, if known
};

#if defined(__linux__) && defined(__x86_64__)

constexpr bool CAN_REDIRECT = true;

static Interrupted interrupted(const ucontext_t& context) {
    constexpr greg_t WRITE_FLAG = 2;
    const auto& registers = context.uc_mcontext.gregs;
    return {uintptr_t(registers[REG_RIP]), registers[REG_ERR] & WRITE_FLAG ? "writes" : "reads"};
}

static void redirect(ucontext_t& context, void (*to)(), uint8_t* stack) {
    auto& registers = context.uc_mcontext.gregs;
    // As after a call: the return address makes the stack odd.
    registers[REG_RSP] = greg_t(stack - 8);
    registers[REG_RIP] = greg_t(to);
}

#elif defined(__linux__) && defined(__aarch64__)

constexpr bool CAN_REDIRECT = true;

static Interrupted interrupted(const ucontext_t& context) { return {uintptr_t(context.uc_mcontext.pc), "accesses"}; }

static void redirect(ucontext_t& context, void (*to)(), uint8_t* stack) {
    context.uc_mcontext.sp = uintptr_t(stack);
    context.uc_mcontext.pc = uintptr_t(to);
}

#elif defined(__APPLE__) && defined(__aarch64__)

constexpr bool CAN_REDIRECT = true;

static Interrupted interrupted(const ucontext_t& context) { return {uintptr_t(context.uc_mcontext->__ss.__pc), "accesses"}; }

static void redirect(ucontext_t& context, void (*to)(), uint8_t* stack) {
    context.uc_mcontext->__ss.__sp = uintptr_t(stack);
    context.uc_mcontext->__ss.__pc = uintptr_t(to);
}

#else

constexpr bool CAN_REDIRECT = false;
static Interrupted interrupted(const ucontext_t&) { return {0, "accesses"}; }
static void redirect(ucontext_t&, void (*)(), uint8_t*) {}

#endif

// ---- access faults ----------------------------------------------------------------------------------------------

static constinit thread_local const void* fault_address = nullptr;
static constinit thread_local const char* fault_access = nullptr;
static constinit thread_local uintptr_t fault_pc = 0;
static constinit thread_local uintptr_t asked_again_at = 0;

// Whether the access is made once more before its address is believed: a virtual machine was once seen to report the upper
// half of an address in place of the address. A wild access faults again in the same place.
static bool ask_again(const void* address, uintptr_t pc) {
    const bool again = !near_allocation(address) && asked_again_at != pc;
    asked_again_at = again ? pc : 0;
    return again;
}

static std::string at_source(uintptr_t pc) {
    const std::string line = source_line(pc);
    return line.empty() ? "" : " in " + line;
}

static void report_fault() {
    if (active_worker->is_stack_overflow(fault_address)) fail("the thread's stack of %zu KB overflows%s", Stack::BYTES >> 10, at_source(fault_pc).c_str());
    fail("%s inaccessible memory%s: %s", fault_access, at_source(fault_pc).c_str(), describe_address(fault_address).c_str());
}

static void report_overtime() { fail("the block runs too long%s: it may spin on something that never comes", at_source(fault_pc).c_str()); }

static struct sigaction previous_segv, previous_bus;

static void pass_on(int signal, siginfo_t* info, void* context) {
    const struct sigaction& previous = signal == SIGBUS ? previous_bus : previous_segv;
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(signal, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signal);
    } else {
        // The instruction faults again and ends the process.
        ::signal(signal, SIG_DFL);
    }
}

static void on_fault(int signal, siginfo_t* info, void* opaque) {
    if (!current || !active_worker || !CAN_REDIRECT) return pass_on(signal, info, opaque);
    auto& context = *static_cast<ucontext_t*>(opaque);
    const Interrupted state = interrupted(context);
    if (ask_again(info->si_addr, state.pc)) return;
    fault_address = info->si_addr;
    fault_access = state.access;
    fault_pc = state.pc;
    redirect(context, report_fault, active_worker->emergency_stack());
}

static void on_overtime(int, siginfo_t*, void* opaque) {
    if (!current || !active_worker || !CAN_REDIRECT) return;
    auto& context = *static_cast<ucontext_t*>(opaque);
    fault_pc = interrupted(context).pc;
    redirect(context, report_overtime, active_worker->emergency_stack());
}

static void handle(int signal, void (*handler)(int, siginfo_t*, void*), struct sigaction* previous) {
    struct sigaction action = {};
    action.sa_sigaction = handler;
    // The handler does not return to where it interrupted: the signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    sigaction(signal, &action, previous);
}

void install_fault_handlers() {
    static std::once_flag once;
    std::call_once(once, [] {
        handle(SIGSEGV, on_fault, &previous_segv);
        handle(SIGBUS, on_fault, &previous_bus);
        handle(OVERTIME_SIGNAL, on_overtime, nullptr);
    });
}

SignalStack::SignalStack() : memory(64 << 10) {
    stack_t mine = {};
    mine.ss_sp = memory.data();
    mine.ss_size = memory.size();
    sigaltstack(&mine, &previous);
}

SignalStack::~SignalStack() {
    // macOS wants a size even to switch the stack off.
    if (previous.ss_flags & SS_DISABLE) previous.ss_size = memory.size();
    sigaltstack(&previous, nullptr);
}

// ---- blocks that do not end -------------------------------------------------------------------------------------

// Never destroyed: the watching thread may outlive main.
struct Watch {
    std::mutex lock;
    std::set<BlockClock*> clocks;
    bool watching = false;
};

static Watch& watch() {
    static Watch* const watch = new Watch;
    return *watch;
}

static std::chrono::duration<double> budget() {
    const char* seconds = getenv("LADD_EMULATOR_SECONDS");
    return std::chrono::duration<double>(seconds ? atof(seconds) : 60.0);
}

static void watch_clocks() {
    for (;;) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        std::lock_guard<std::mutex> guard(watch().lock);
        for (BlockClock* clock : watch().clocks) {
            const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - clock->start;
            if (elapsed < budget()) continue;
            // Interrupts a thread that spins by itself. Once: the report takes its time.
            if (!std::exchange(clock->interrupted, true)) pthread_kill(clock->thread, OVERTIME_SIGNAL);
            // Threads that keep switching are ended by their scheduler, which looks at this.
            if (elapsed > budget() + std::chrono::seconds(1)) clock->launch.fail("a block runs too long: its threads keep meeting");
        }
    }
}

BlockClock::BlockClock(Launch& launch) : launch(launch), start(std::chrono::steady_clock::now()), thread(pthread_self()) {
    std::lock_guard<std::mutex> guard(watch().lock);
    watch().clocks.insert(this);
    if (!std::exchange(watch().watching, true)) std::thread(watch_clocks).detach();
}

BlockClock::~BlockClock() {
    std::lock_guard<std::mutex> guard(watch().lock);
    watch().clocks.erase(this);
}

}  // namespace emulator

// ---- checks by the compiler: what it calls when one fails -----------------------------------------------------------

namespace {

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};

struct TypeDescriptor {
    uint16_t kind, info;
    char name[1];
};

struct TypeMismatch {
    SourceLocation location;
    const TypeDescriptor* type;
    uint8_t log_alignment;
    uint8_t kind;
};

struct OutOfBounds {
    SourceLocation location;
    const TypeDescriptor* array;
    const TypeDescriptor* index;
};

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* check, uintptr_t address) {
    static const char* const ACCESS[] = {"load of", "store to", "reference to", "member of", "member call on"};
    const char* access = check->kind < 5 ? ACCESS[check->kind] : "use of";
    const SourceLocation& at = check->location;
    if (address == 0) emulator::fail("%s:%u:%u: %s %s at address 0", at.file, at.line, at.column, access, check->type->name);
    emulator::fail("%s:%u:%u: %s %s at the misaligned address %#zx: it needs %u bytes", at.file, at.line, at.column, access,
                   check->type->name, size_t(address), 1u << check->log_alignment);
}

extern "C" void __ubsan_handle_out_of_bounds_abort(OutOfBounds* check, uintptr_t index) {
    const SourceLocation& at = check->location;
    emulator::fail("%s:%u:%u: index %zd is out of bounds of %s", at.file, at.line, at.column, ssize_t(index), check->array->name);
}
