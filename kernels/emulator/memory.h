// Device memory: every allocation ends at an inaccessible range, and one lies before it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

// `owner` numbers the driver that the memory belongs to.
void* allocate(size_t bytes, uint64_t owner);
void release(void* address);

// Whether the range lies in one allocation that is still in use.
bool accessible(const void* address, size_t bytes);

// Whether the address lies in an allocation or in the inaccessible range at either side of one, given back or not.
bool near_allocation(const void* address);

// The allocation nearest to an address and where the address lies, in words.
std::string describe_address(const void* address);

// The owner's first allocation whose surroundings were written, in words, or nothing. Repairs them.
std::string check_surroundings(uint64_t owner);

size_t page_size();

}  // namespace emulator
