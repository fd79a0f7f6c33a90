// Device memory. An allocation is placed so that its end, rounded up to 16 bytes, touches an inaccessible range; another one
// lies before it. What remains around it holds a pattern that is checked after every launch; as bf16 or fp32 the pattern is
// not a number, so that reading it shows in the results. Memory that was given back stays inaccessible for a while.
#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

namespace emulator {

constexpr size_t ALIGNMENT = 16;
constexpr size_t CHECKED_BEFORE = 256;
constexpr size_t GUARD = 1 << 20;   // only addresses, no memory: a multiple of every page size
constexpr size_t QUARANTINE = 512;
constexpr uint8_t PATTERN[2] = {0xc1, 0x7f};

struct Allocation {
    uint8_t* start;
    size_t bytes;
    uint8_t* pages;   // the first accessible page
    size_t page_bytes;
    uint64_t owner;
    bool freed;

    uint8_t* mapped() const { return pages - GUARD; }
    size_t mapped_bytes() const { return page_bytes + 2 * GUARD; }
    uint8_t* checked_from() const { return std::max(pages, start - CHECKED_BEFORE); }
    uint8_t* end() const { return pages + page_bytes; }
};

struct Registry {
    std::mutex lock;
    std::map<const uint8_t*, Allocation> allocations;   // by start
    std::deque<const uint8_t*> quarantine;
};

// Never destroyed: buffers may be given back while the program ends.
static Registry& registry() {
    static Registry* const registry = new Registry;
    return *registry;
}

size_t page_size() {
    static const size_t size = size_t(sysconf(_SC_PAGESIZE));
    return size;
}

static uint8_t pattern_at(const uint8_t* address) { return PATTERN[uintptr_t(address) % 2]; }

static void fill_pattern(uint8_t* first, uint8_t* last) {
    for (; first < last; first++) *first = pattern_at(first);
}

static bool holds_pattern(const uint8_t* first, const uint8_t* last) {
    for (; first < last; first++) {
        if (*first != pattern_at(first)) return false;
    }
    return true;
}

static size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void* allocate(size_t bytes, uint64_t owner) {
    Allocation made = {};
    made.owner = owner;
    made.bytes = bytes;
    made.page_bytes = rounded_up(std::max<size_t>(bytes, 1), page_size());
    void* memory = mmap(nullptr, made.mapped_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    made.pages = static_cast<uint8_t*>(memory) + GUARD;
    if (mprotect(made.pages, made.page_bytes, PROT_READ | PROT_WRITE) != 0) {
        munmap(memory, made.mapped_bytes());
        return nullptr;
    }
    made.start = made.end() - rounded_up(bytes, ALIGNMENT);
    fill_pattern(made.checked_from(), made.start);
    fill_pattern(made.start + bytes, made.end());
    std::lock_guard<std::mutex> guard(registry().lock);
    registry().allocations[made.start] = made;
    return made.start;
}

static void forget_oldest(Registry& all) {
    const auto oldest = all.allocations.find(all.quarantine.front());
    all.quarantine.pop_front();
    munmap(oldest->second.mapped(), oldest->second.mapped_bytes());
    all.allocations.erase(oldest);
}

void release(void* address) {
    Registry& all = registry();
    std::lock_guard<std::mutex> guard(all.lock);
    const auto found = all.allocations.find(static_cast<uint8_t*>(address));
    if (found == all.allocations.end() || found->second.freed) return;
    Allocation& allocation = found->second;
    allocation.freed = true;
    // Mapping it anew gives the memory back and keeps the addresses.
    mmap(allocation.pages, allocation.page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    all.quarantine.push_back(allocation.start);
    if (all.quarantine.size() > QUARANTINE) forget_oldest(all);
}

// The allocation whose pages, guards included, hold the address, or null.
static const Allocation* around(const Registry& all, const uint8_t* address) {
    const auto holds = [&](const Allocation& candidate) {
        return address >= candidate.mapped() && address < candidate.mapped() + candidate.mapped_bytes();
    };
    const auto next = all.allocations.upper_bound(address);
    if (next != all.allocations.begin() && holds(std::prev(next)->second)) return &std::prev(next)->second;
    if (next != all.allocations.end() && holds(next->second)) return &next->second;
    return nullptr;
}

bool accessible(const void* address, size_t bytes) {
    Registry& all = registry();
    std::lock_guard<std::mutex> guard(all.lock);
    const auto* first = static_cast<const uint8_t*>(address);
    auto next = all.allocations.upper_bound(first);
    if (next == all.allocations.begin()) return false;
    const Allocation& allocation = (--next)->second;
    return !allocation.freed && size_t(first - allocation.start) <= allocation.bytes &&
           bytes <= allocation.bytes - size_t(first - allocation.start);
}

bool near_allocation(const void* address) {
    Registry& all = registry();
    std::lock_guard<std::mutex> guard(all.lock);
    return around(all, static_cast<const uint8_t*>(address)) != nullptr;
}

std::string describe_address(const void* address) {
    Registry& all = registry();
    std::lock_guard<std::mutex> guard(all.lock);
    const auto* byte = static_cast<const uint8_t*>(address);
    const Allocation* allocation = around(all, byte);
    char text[256];
    if (!allocation) {
        snprintf(text, sizeof text, "address %p is in or near no allocation", address);
    } else if (allocation->freed) {
        snprintf(text, sizeof text, "address %p is in an allocation of %zu bytes that was given back, at offset %td", address,
                 allocation->bytes, byte - allocation->start);
    } else if (byte < allocation->start) {
        snprintf(text, sizeof text, "%td bytes before an allocation of %zu bytes", allocation->start - byte, allocation->bytes);
    } else {
        snprintf(text, sizeof text, "at offset %td of an allocation of %zu bytes", byte - allocation->start, allocation->bytes);
    }
    return text;
}

std::string check_surroundings(uint64_t owner) {
    Registry& all = registry();
    std::lock_guard<std::mutex> guard(all.lock);
    std::string found;
    for (const auto& [start, allocation] : all.allocations) {
        // Other drivers may be in the middle of their own launches.
        if (allocation.freed || allocation.owner != owner) continue;
        const bool before = holds_pattern(allocation.checked_from(), start);
        const bool after = holds_pattern(start + allocation.bytes, allocation.end());
        if (before && after) continue;
        fill_pattern(allocation.checked_from(), allocation.start);
        fill_pattern(allocation.start + allocation.bytes, allocation.end());
        char text[128];
        snprintf(text, sizeof text, "memory just %s an allocation of %zu bytes was written", before ? "behind" : "before", allocation.bytes);
        if (found.empty()) found = text;
    }
    return found;
}

}  // namespace emulator
