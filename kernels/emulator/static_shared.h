// Static __shared__ variables: found in the symbol table, so that every block begins with poison in them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

// Fills this OS thread's static shared variables. Does nothing where they cannot be found (no ELF, or stripped).
void poison_static_shared(uint8_t value);

// Whether the address lies in one of them.
bool in_static_shared(const void* address);

}  // namespace emulator
