// Which device memory a launch reads and which it writes, to the byte: for launches between which there is no order.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {

// Bytes that lie side by side. What src/device/cuda/emulated/library.rs reads.
struct Access {
    uint64_t first, end;
    uint64_t written;   // 1: written, 0: read
};

// While it lives, accesses of this OS thread are added to `into`, unless that is null.
class AccessLog {
public:
    explicit AccessLog(std::vector<Access>* into);
    ~AccessLog();
    AccessLog(const AccessLog&) = delete;
    AccessLog& operator=(const AccessLog&) = delete;

private:
    std::vector<Access>* into;
};

// Notes an access of this OS thread. Kernels do it by themselves: they are compiled with -fsanitize=thread, of which only the
// calls before each access are used. The emulator's own copies have to ask for it.
void note_access(const void* address, size_t bytes, bool written);

// Sorted, without overlaps among the read or among the written ranges.
void tidy(std::vector<Access>& accesses);

}  // namespace emulator
