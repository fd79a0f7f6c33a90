// Asks addr2line, which comes with the compiler, about the file that the address was loaded from.
#include "source_lines.h"

#if defined(__linux__)

#include <dlfcn.h>

#include <cstdio>

namespace emulator {

// The innermost line that lies in a .cu file: helpers and the emulator's own headers are called from there.
static std::string first_kernel_line(FILE* lines) {
    char line[512];
    std::string found;
    while (fgets(line, sizeof line, lines)) {
        std::string text = line;
        text.erase(text.find_last_not_of(" \n") + 1);
        const size_t discriminator = text.find(" (disc");
        if (discriminator != std::string::npos) text.erase(discriminator);
        if (found.empty() && text.find(".cu:") != std::string::npos) found = text;
    }
    return found;
}

std::string source_line(uintptr_t pc) {
    Dl_info file = {};
    if (!dladdr(reinterpret_cast<const void*>(pc), &file) || !file.dli_fname) return "";
    const uintptr_t offset = pc - reinterpret_cast<uintptr_t>(file.dli_fbase);
    char command[1024];
    snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>/dev/null", file.dli_fname, size_t(offset));
    FILE* lines = popen(command, "r");
    if (!lines) return "";
    std::string found = first_kernel_line(lines);
    pclose(lines);
    return found;
}

}  // namespace emulator

#else

namespace emulator {
std::string source_line(uintptr_t) { return ""; }
}  // namespace emulator

#endif
