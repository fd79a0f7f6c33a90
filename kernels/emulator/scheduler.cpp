// Runs the blocks of a launch on one OS thread.
//
// Seed 0 runs the threads of a block in turn, each until it has to wait. Any other seed runs one random warp as far as it
// gets, its lanes forwards or backwards, so that warps drift as far apart as the barriers permit. A block in which nobody can
// go on and no copy is under way is deadlocked.
#include "scheduler.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <thread>

#include "async.h"
#include "faults.h"
#include "memory.h"
#include "static_shared.h"
#include "wgmma.h"

namespace emulator {

constinit thread_local Thread* current = nullptr;
constinit thread_local Worker* active_worker = nullptr;

// ---- errors -----------------------------------------------------------------------------------------------------

std::string format(const char* pattern, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

std::string place(const char* what, Where where) { return format("%s at %s:%u", what, where.file_name(), where.line()); }

void Launch::fail(const std::string& message) {
    std::lock_guard<std::mutex> guard(error_lock);
    if (error.empty()) error = message;
    failed = true;
}

[[noreturn]] static void fail_with(const char* message) {
    if (!current) {
        fprintf(stderr, "emulator: %s, outside a kernel\n", message);
        abort();
    }
    const Thread& thread = self();
    const Block& in = block();
    std::string text = format("block (%u,%u,%u), thread %u: %s", in.index.x, in.index.y, in.index.z, thread.number, message);
    text += thread.what ? "; last synchronised in " + place(thread.what, thread.where) : "; it had not synchronised yet";
    in.launch->fail(text);
    // The thread is left where it stands; the scheduler sees that the launch failed.
    for (;;) suspend();
}

void fail(const char* pattern, ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(message, sizeof message, pattern, arguments);
    va_end(arguments);
    fail_with(message);
}

// ---- meeting ----------------------------------------------------------------------------------------------------

void suspend() { switch_to_scheduler(self().stack_pointer); }

static bool same(Where a, Where b) { return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0; }

void check_arrival(const Meeting& meeting, unsigned expected, const char* what, Where where, bool same_place) {
    if (meeting.arrived >= meeting.expected) fail("%s: more than %u threads arrive", what, expected);
    if (meeting.expected != expected) {
        const std::string first = place(meeting.what, meeting.where);
        fail("%s expects %u threads, %s expects %u", place(what, where).c_str(), expected, first.c_str(), meeting.expected);
    }
    if (same_place && !same(meeting.where, where)) {
        const std::string first = place(meeting.what, meeting.where);
        fail("threads diverged: some are in %s, others in %s", first.c_str(), place(what, where).c_str());
    }
}

static Meeting& barrier(int id, unsigned threads) {
    if (id < 0 || id >= int(NAMED_BARRIERS)) fail("there is no barrier %d", id);
    if (id != 0 && (threads % WARP != 0 || threads == 0)) fail("barrier %d for %u threads: not a multiple of a warp", id, threads);
    if (threads > block().threads) fail("barrier %d for %u threads: the block has %u", id, threads, block().threads);
    return block().barriers[size_t(id)];
}

void barrier_sync(int id, unsigned threads, const char* what, Where where) {
    meet(barrier(id, threads), threads, what, where, id == 0, [] {});
}

void barrier_arrive(int id, unsigned threads, Where where) {
    Meeting& meeting = barrier(id, threads);
    self().what = "named_bar_arrive";
    self().where = where;
    if (arrive(meeting, threads, "named_bar_arrive", where, id == 0)) dismiss(meeting);
}

// ---- shared memory ----------------------------------------------------------------------------------------------

constexpr size_t SHARED_ALIGNMENT = 1024;
constexpr size_t SHARED_MARGIN = 1024;   // checked on either side
constexpr size_t WINDOW_BYTES = 256 << 10;
constexpr uint8_t POISON = 0xff;         // a not-a-number in every float format
constexpr uint8_t CANARY = 0xc5;

SharedWindow::SharedWindow() {
    void* memory = mmap(nullptr, WINDOW_BYTES + 2 * page_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) {
        mapped = static_cast<uint8_t*>(memory) + page_size();
        if (mprotect(mapped, WINDOW_BYTES, PROT_READ | PROT_WRITE) == 0) return;
    }
    perror("emulator: no memory for shared memory");
    abort();
}

SharedWindow::~SharedWindow() { munmap(mapped - page_size(), WINDOW_BYTES + 2 * page_size()); }

uint8_t* SharedWindow::provide(size_t wanted) {
    bytes = wanted;
    const size_t rounded = (bytes + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT;
    uint8_t* const end = mapped + WINDOW_BYTES;
    start = end - rounded;
    memset(start - SHARED_MARGIN, CANARY, SHARED_MARGIN);
    memset(start, POISON, bytes);
    memset(start + bytes, CANARY, rounded - bytes);
    return start;
}

bool SharedWindow::intact() const {
    const auto is_canary = [](uint8_t byte) { return byte == CANARY; };
    return std::all_of(start - SHARED_MARGIN, start, is_canary) && std::all_of(start + bytes, mapped + WINDOW_BYTES, is_canary);
}

// ---- one block --------------------------------------------------------------------------------------------------

static void run_thread() {
    const Launch& launch = *block().launch;
    launch.kernel.entry(launch.arguments);
    self().exited = true;
    for (;;) suspend();
}

static void run_engine() {
    for (;;) {
        {
            Block& of = block();
            const Transfer transfer = std::move(of.transfers.front());
            of.transfers.pop_front();
            transfer.run();
        }
        suspend();
    }
}

bool Worker::is_stack_overflow(const void* address) const {
    return std::any_of(stacks.begin(), stacks.end(), [&](const Stack& stack) { return stack.guards(address); });
}

unsigned Worker::random(unsigned below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return unsigned(random_state % below);
}

void Worker::begin_block(Launch& launch, size_t number) {
    block.launch = &launch;
    block.index = {unsigned(number % launch.grid.x), unsigned(number / launch.grid.x % launch.grid.y),
                   unsigned(number / (size_t(launch.grid.x) * launch.grid.y))};
    block.size = launch.size;
    block.grid = launch.grid;
    block.threads = launch.size.x * launch.size.y * launch.size.z;
    block.shared = shared.provide(launch.shared_bytes);
    block.shared_bytes = launch.shared_bytes;
    block.window = shared.window();
    block.late = launch.late;
    block.thread.assign(block.threads, Thread{});
    block.warps.assign((block.threads + WARP - 1) / WARP, Warp{});
    block.warpgroups.assign((block.threads + WARPGROUP - 1) / WARPGROUP, Warpgroup{});
    block.barriers.fill(Meeting{});
    block.transfers.clear();
    block.mbarriers.clear();
    poison_static_shared(POISON);
    while (stacks.size() < block.threads) stacks.emplace_back();
    for (unsigned i = 0; i < block.threads; i++) {
        Thread& thread = block.thread[i];
        thread.block = &block;
        thread.number = i;
        thread.index = {i % block.size.x, i / block.size.x % block.size.y, i / (block.size.x * block.size.y)};
        prepare_fiber(thread.stack_pointer, stacks[i], run_thread);
    }
    engine.block = &block;
    running = block.threads;
    random_state = (launch.seed + 1) * 0x9E3779B97F4A7C15ull ^ (number * 7919 + 1);
}

void Worker::resume(Thread& thread) {
    thread.ready = nullptr;
    current = &thread;
    switch_to_fiber(thread.stack_pointer);
    current = nullptr;
    if (thread.exited) running--;
}

// Runs each of these threads until it waits. False when none could run, or the launch failed.
bool Worker::run_in_turn(unsigned first, unsigned count, bool backwards) {
    bool ran = false;
    for (unsigned i = 0; i < count; i++) {
        Thread& thread = block.thread[backwards ? first + count - 1 - i : first + i];
        if (thread.exited) continue;
        if (thread.ready && !thread.ready(thread.condition, thread.expectation)) continue;
        resume(thread);
        if (block.launch->failed) return false;
        ran = true;
    }
    return ran;
}

bool Worker::run_random_warp() {
    const unsigned warps = unsigned(block.warps.size());
    const unsigned start = random(warps);
    for (unsigned i = 0; i < warps; i++) {
        const unsigned first = (start + i) % warps * WARP;
        const unsigned count = std::min(WARP, block.threads - first);
        bool ran = false;
        while (run_in_turn(first, count, random(2) == 1)) ran = true;
        if (ran || block.launch->failed) return true;
    }
    return false;
}

// A transfer on whose barrier some thread waits, or any: copies that nobody waits for stay under way as long as possible.
size_t Worker::needed_transfer() {
    std::vector<size_t> needed;
    for (size_t i = 0; i < block.transfers.size(); i++) {
        const auto waits = [&](const Thread& thread) { return thread.ready && thread.condition == block.transfers[i].barrier; };
        if (std::any_of(block.thread.begin(), block.thread.end(), waits)) needed.push_back(i);
    }
    if (needed.empty()) return random(unsigned(block.transfers.size()));
    return needed[random(unsigned(needed.size()))];
}

// Lets the copy engine do one of its transfers, in the name of the thread that asked for it.
void Worker::finish_transfer(size_t which) {
    std::swap(block.transfers.front(), block.transfers[which]);
    const Thread& issuer = *block.transfers.front().issuer;
    engine.number = issuer.number;
    engine.what = issuer.what;
    engine.where = issuer.where;
    resume(engine);
}

static std::string deadlock(const Block& block) {
    struct Group {
        std::vector<unsigned> threads;
        std::string state;
    };
    std::map<std::string, Group> groups;
    unsigned exited = 0;
    for (const Thread& thread : block.thread) {
        if (thread.exited) {
            exited++;
            continue;
        }
        Group& group = groups[place(thread.what, thread.where)];
        group.threads.push_back(thread.number);
        if (thread.describe && group.state.empty()) group.state = " (" + thread.describe(thread.condition) + ")";
    }
    std::string text = format("deadlock in block (%u,%u,%u): %u of %u threads have returned", block.index.x, block.index.y, block.index.z,
                              exited, block.threads);
    for (const auto& [where, group] : groups) {
        text += format("; %zu wait in ", group.threads.size()) + where + group.state;
        text += format(", threads %u..%u", group.threads.front(), group.threads.back());
    }
    return text;
}

void Worker::end_block(Launch& launch) {
    const std::string where = format("block (%u,%u,%u)", block.index.x, block.index.y, block.index.z);
    if (!block.transfers.empty()) launch.fail(where + " ended while copies into its shared memory were under way");
    for (const Warpgroup& warpgroup : block.warpgroups) {
        if (!warpgroup.pending.empty()) launch.fail(where + " ended with wgmma products that nobody waited for");
    }
    for (const Thread& thread : block.thread) {
        if (!thread.bulk_copies.open.empty() || !thread.bulk_copies.closed.empty()) {
            launch.fail(where + format(", thread %u: it ended before its bulk stores had read shared memory", thread.number));
        }
    }
    const std::string barriers = unfinished_mbarriers(block);
    if (!barriers.empty()) launch.fail(where + " ended with " + barriers);
    if (!shared.intact()) launch.fail(where + format(": memory around its %zu bytes of shared memory was written", launch.shared_bytes));
}

static bool waits_for_flag(const Thread& thread) { return thread.ready == flag_has; }

void Worker::run_block(Launch& launch, size_t number) {
    begin_block(launch, number);
    const BlockClock clock(launch);
    while (running > 0 && !launch.failed) {
        const bool ran = launch.seed == 0 ? run_in_turn(0, block.threads, false) : run_random_warp();
        if (launch.failed) return;
        if (ran) continue;
        if (!block.transfers.empty()) {
            finish_transfer(needed_transfer());
        } else if (std::any_of(block.thread.begin(), block.thread.end(), waits_for_flag)) {
            // Another block has to do something, on another OS thread.
            std::this_thread::yield();
        } else {
            launch.fail(deadlock(block));
        }
    }
    if (!launch.failed) end_block(launch);
}

void Worker::run(Launch& launch) {
    active_worker = this;
    // Anew: a fiber stays on one OS thread, whose thread-local variables the compiler may have found for it.
    prepare_fiber(engine.stack_pointer, engine_stack, run_engine);
    const size_t blocks = launch.blocks();
    for (size_t i = launch.next_block++; i < blocks && !launch.failed; i = launch.next_block++) {
        const bool backwards = launch.seed % 2 == 1;
        run_block(launch, backwards ? blocks - 1 - i : i);
    }
    active_worker = nullptr;
}

// ---- workers: kept and used again, since their stacks are dear ----------------------------------------------------

static std::mutex idle_lock;
static std::vector<std::unique_ptr<Worker>> idle_workers;

static std::unique_ptr<Worker> take_worker() {
    std::lock_guard<std::mutex> guard(idle_lock);
    if (idle_workers.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> worker = std::move(idle_workers.back());
    idle_workers.pop_back();
    return worker;
}

void run_blocks(Launch& launch) {
    std::unique_ptr<Worker> worker = take_worker();
    const SignalStack signal_stack;
    std::vector<Access> accesses;
    {
        const AccessLog log(launch.observed ? &accesses : nullptr);
        worker->run(launch);
    }
    if (launch.observed) launch.add(accesses);
    // After a failure the engine may stand in the middle of a transfer.
    if (launch.failed) return;
    std::lock_guard<std::mutex> guard(idle_lock);
    idle_workers.push_back(std::move(worker));
}

}  // namespace emulator
