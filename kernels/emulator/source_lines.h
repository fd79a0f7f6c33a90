// Source lines of machine addresses, for reports.
#pragma once
#include <cstdint>
#include <string>

namespace emulator {

// `kernels/x.cu:12` for an address in a compiled kernel; empty where binutils' addr2line or debug information is missing.
std::string source_line(uintptr_t pc);

}  // namespace emulator
