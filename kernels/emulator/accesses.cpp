// The log of accesses, and the functions that -fsanitize=thread calls before each access of a kernel. The sanitizer's own
// library is not linked: between threads of a launch the schedules find races, here it is about launches.
#include "accesses.h"

#include <algorithm>
#include <atomic>

namespace emulator {

// As long as this, a log is tidied up: kernels come back to the same bytes.
constexpr size_t LONG = 1 << 16;

struct Log {
    bool open = false;
    size_t long_from = LONG;
    std::vector<Access> accesses;
};

static thread_local Log log_of_thread;

AccessLog::AccessLog(std::vector<Access>* into) : into(into) { log_of_thread.open = into != nullptr; }

AccessLog::~AccessLog() {
    if (!into) return;
    Log& log = log_of_thread;
    tidy(log.accesses);
    into->insert(into->end(), log.accesses.begin(), log.accesses.end());
    log = Log();
}

void tidy(std::vector<Access>& accesses) {
    const auto before = [](const Access& a, const Access& b) { return a.written != b.written ? a.written < b.written : a.first < b.first; };
    std::sort(accesses.begin(), accesses.end(), before);
    size_t kept = 0;
    for (const Access& next : accesses) {
        Access* last = kept > 0 ? &accesses[kept - 1] : nullptr;
        if (last && last->written == next.written && next.first <= last->end) {
            last->end = std::max(last->end, next.end);
        } else {
            accesses[kept++] = next;
        }
    }
    accesses.resize(kept);
}

static void add(Log& log, uint64_t first, uint64_t end, bool written) {
    // Neighbouring threads mostly touch neighbouring bytes.
    if (!log.accesses.empty()) {
        Access& last = log.accesses.back();
        if (last.written == written && first >= last.first && first <= last.end) {
            last.end = std::max(last.end, end);
            return;
        }
    }
    log.accesses.push_back({first, end, written});
    if (log.accesses.size() < log.long_from) return;
    tidy(log.accesses);
    log.long_from = std::max(LONG, 2 * log.accesses.size());
}

void note_access(const void* address, size_t bytes, bool written) {
    Log& log = log_of_thread;
    if (log.open && bytes > 0) add(log, uint64_t(address), uint64_t(address) + bytes, written);
}

}  // namespace emulator

// ---- what the compiler calls ------------------------------------------------------------------------------------

using emulator::note_access;

#define ACCESSES(BYTES)                                                                         \
    void __tsan_read##BYTES(void* address) { note_access(address, BYTES, false); }              \
    void __tsan_write##BYTES(void* address) { note_access(address, BYTES, true); }              \
    void __tsan_unaligned_read##BYTES(void* address) { note_access(address, BYTES, false); }    \
    void __tsan_unaligned_write##BYTES(void* address) { note_access(address, BYTES, true); }    \
    void __tsan_volatile_read##BYTES(void* address) { note_access(address, BYTES, false); }     \
    void __tsan_volatile_write##BYTES(void* address) { note_access(address, BYTES, true); }

// Read and written at once: two ranges.
template <class T>
static T* changed(T* address) {
    note_access(address, sizeof(T), false);
    note_access(address, sizeof(T), true);
    return address;
}

// The emulator's memory is sequentially consistent, whatever order the kernel asks for.
#define FETCH(BITS, T, NAME) \
    T __tsan_atomic##BITS##_fetch_##NAME(T* address, T value, int) { return __atomic_fetch_##NAME(changed(address), value, __ATOMIC_SEQ_CST); }
#define ATOMICS(BITS, T)                                                                                                     \
    T __tsan_atomic##BITS##_load(const T* address, int) {                                                                    \
        note_access(address, sizeof(T), false);                                                                              \
        return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                                                   \
    }                                                                                                                        \
    void __tsan_atomic##BITS##_store(T* address, T value, int) {                                                             \
        note_access(address, sizeof(T), true);                                                                               \
        __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                                                  \
    }                                                                                                                        \
    T __tsan_atomic##BITS##_exchange(T* address, T value, int) {                                                             \
        return __atomic_exchange_n(changed(address), value, __ATOMIC_SEQ_CST);                                               \
    }                                                                                                                        \
    FETCH(BITS, T, add) FETCH(BITS, T, sub) FETCH(BITS, T, and) FETCH(BITS, T, or) FETCH(BITS, T, xor)                       \
    int __tsan_atomic##BITS##_compare_exchange_strong(T* address, T* expected, T value, int, int) {                          \
        return __atomic_compare_exchange_n(changed(address), expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
    }                                                                                                                        \
    int __tsan_atomic##BITS##_compare_exchange_weak(T* address, T* expected, T value, int, int) {                            \
        return __atomic_compare_exchange_n(changed(address), expected, value, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);     \
    }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_atomic_thread_fence(int) { std::atomic_thread_fence(std::memory_order_seq_cst); }
void __tsan_atomic_signal_fence(int) {}
void __tsan_read_range(void* address, size_t bytes) { note_access(address, bytes, false); }
void __tsan_write_range(void* address, size_t bytes) { note_access(address, bytes, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

}  // extern "C"
