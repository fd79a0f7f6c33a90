// The registry of kernels, the OS threads that run blocks, and the C functions that src/device/cuda/emulated.rs calls.
#include "launch.h"

#include <condition_variable>
#include <cstdlib>
#include <map>
#include <thread>

#include "async.h"
#include "faults.h"
#include "memory.h"

namespace emulator {

// ---- kernels ----------------------------------------------------------------------------------------------------

static std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

// Bounds of the kernel that is registered next.
static unsigned noted_threads = 0;

bool note_launch_bounds(unsigned threads, unsigned) {
    if (noted_threads != 0) {
        fprintf(stderr, "emulator: LADD_KERNEL is missing behind a kernel with __launch_bounds__(%u)\n", noted_threads);
        abort();
    }
    noted_threads = threads;
    return true;
}

bool register_kernel(const char* name, const char* file, Kernel kernel) {
    kernel.file = file;
    kernel.most_threads = std::exchange(noted_threads, 0);
    return kernels().emplace(name, std::move(kernel)).second;
}

// ---- OS threads -------------------------------------------------------------------------------------------------

// Helps callers with their launches. A launch stays in the list until its caller has run out of blocks.
class Pool {
public:
    // Never destroyed: its threads may outlive main.
    static Pool& get() {
        static Pool* const pool = new Pool;
        return *pool;
    }

    void run(Launch& launch) {
        const bool shared = helpers > 0 && launch.blocks() > 1;
        if (shared) begin(launch);
        run_blocks(launch);
        if (shared) end(launch);
    }

private:
    struct Job {
        Launch* launch;
        unsigned helping;
        bool closed;
    };

    Pool() {
        const char* wanted = getenv("LADD_EMULATOR_THREADS");
        const unsigned threads = wanted ? unsigned(atoi(wanted)) : std::thread::hardware_concurrency();
        helpers = std::max(threads, 1u) - 1;
        for (unsigned i = 0; i < helpers; i++) std::thread([this] { help(); }).detach();
    }

    void begin(Launch& launch) {
        std::lock_guard<std::mutex> guard(lock);
        jobs.push_back({&launch, 0, false});
        changed.notify_all();
    }

    // No new helper may come, and those that came must have finished.
    void end(Launch& launch) {
        std::unique_lock<std::mutex> guard(lock);
        const auto job = std::find_if(jobs.begin(), jobs.end(), [&](const Job& job) { return job.launch == &launch; });
        job->closed = true;
        changed.wait(guard, [&] { return job->helping == 0; });
        jobs.erase(job);
    }

    std::list<Job>::iterator open_job() {
        return std::find_if(jobs.begin(), jobs.end(), [](const Job& job) {
            return !job.closed && job.launch->next_block < job.launch->blocks() && !job.launch->failed;
        });
    }

    void help() {
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            // Asked once: the caller may take its last block at any time, and then there is no open job any more.
            const auto job = open_job();
            if (job == jobs.end()) {
                changed.wait(guard);
                continue;
            }
            job->helping++;
            guard.unlock();
            run_blocks(*job->launch);
            guard.lock();
            job->helping--;
            changed.notify_all();
        }
    }

    unsigned helpers;
    std::mutex lock;
    std::condition_variable changed;
    std::list<Job> jobs;
};

// ---- what a driver checks -----------------------------------------------------------------------------------------

constexpr unsigned MOST_THREADS = 1024;
constexpr unsigned MOST_BLOCKS_X = 0x7fffffff;
constexpr unsigned MOST_BLOCKS_YZ = 65535;
constexpr size_t MOST_SHARED = 227 << 10;

static std::string refusal(const Launch& launch, const size_t* sizes, size_t count) {
    const dim3 grid = launch.grid;
    char text[256] = "";
    const auto say = [&](const char* pattern, auto... values) { snprintf(text, sizeof text, pattern, values...); };
    const std::vector<size_t>& wanted = launch.kernel.parameter_bytes;
    const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0;
    if (empty || grid.x > MOST_BLOCKS_X || grid.y > MOST_BLOCKS_YZ || grid.z > MOST_BLOCKS_YZ) {
        say("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
    } else if (launch.size.x == 0 || launch.size.x > MOST_THREADS) {
        say("a block of %u threads", launch.size.x);
    } else if (launch.kernel.most_threads != 0 && launch.size.x > launch.kernel.most_threads) {
        say("a block of %u threads, its __launch_bounds__ allow %u", launch.size.x, launch.kernel.most_threads);
    } else if (launch.shared_bytes > MOST_SHARED) {
        say("%zu bytes of shared memory, %zu at most", launch.shared_bytes, MOST_SHARED);
    } else if (count != wanted.size()) {
        say("%zu parameters for a kernel that takes %zu", count, wanted.size());
    } else {
        for (size_t i = 0; i < count; i++) {
            if (sizes[i] != wanted[i]) say("parameter %zu has %zu bytes, the kernel takes %zu", i, sizes[i], wanted[i]);
        }
    }
    return text;
}

static thread_local std::string last_error;
static thread_local std::vector<Access> last_accesses;

// Of device memory only: stacks and shared memory belong to the launch alone.
static void keep_accesses(std::vector<Access>& accesses) {
    tidy(accesses);
    std::erase_if(accesses, [](const Access& access) {
        return !accessible(reinterpret_cast<const void*>(access.first), 1);
    });
    last_accesses = std::move(accesses);
}

static int failed(const std::string& message) {
    last_error = message;
    return 2;
}

}  // namespace emulator

// ---- C functions ------------------------------------------------------------------------------------------------

using namespace emulator;

extern "C" {

// The reason of this OS thread's last failure.
const char* emu_last_error() { return last_error.c_str(); }

// A line for each kernel, its file and its name.
const char* emu_kernels() {
    static const std::string lines = [] {
        std::string text;
        for (const auto& [name, kernel] : kernels()) text += std::string(kernel.file) + " " + name + "\n";
        return text;
    }();
    return lines.c_str();
}

// 0: done; 1: there is no such kernel; 2: refused or failed. `owner` numbers the driver: only its memory is checked afterwards.
// `observed`: keep what it reads and writes for `emu_accesses`.
int emu_launch(const char* name, const unsigned* grid, unsigned threads, size_t shared, const void* const* parameters, const size_t* sizes,
               size_t count, unsigned seed, int late, uint64_t owner, int observed) {
    const auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    Launch launch{.name = name,
                  .kernel = found->second,
                  .arguments = parameters,
                  .grid = {grid[0], grid[1], grid[2]},
                  .size = {threads, 1, 1},
                  .shared_bytes = shared,
                  .seed = seed,
                  .late = late != 0,
                  .observed = observed != 0,
                  .next_block = 0,
                  .failed = false,
                  .error_lock = {},
                  .error = {},
                  .accesses = {}};
    const std::string refused = refusal(launch, sizes, count);
    if (!refused.empty()) return failed(refused);
    install_fault_handlers();
    Pool::get().run(launch);
    if (launch.failed) return failed(launch.error);
    if (observed) keep_accesses(launch.accesses);
    const std::string written = check_surroundings(owner);
    return written.empty() ? 0 : failed(written);
}

// Device memory that this OS thread's last observed launch read and wrote, until its next one.
const Access* emu_accesses(size_t* count) {
    *count = last_accesses.size();
    return last_accesses.data();
}

void* emu_allocate(size_t bytes, uint64_t owner) { return allocate(bytes, owner); }
void emu_free(void* address) { release(address); }

// Whether the range lies in one allocation.
int emu_accessible(const void* address, size_t bytes) { return accessible(address, bytes); }

// Where an address lies: the text lives until this OS thread's next failure.
const char* emu_describe(const void* address) {
    last_error = describe_address(address);
    return last_error.c_str();
}

// 0: done; 2: refused.
int emu_tensor_map(CUtensorMap* map, int element_bytes, int rank, void* base, const uint64_t* dims, const uint64_t* strides,
                   const uint32_t* tile, unsigned swizzle) {
    std::string reason;
    return encode_tensor_map(map, element_bytes, rank, base, dims, strides, tile, swizzle, reason) ? 0 : failed(reason);
}

}  // extern "C"
