// `__shared__` makes a variable of a function thread-local. Its symbol has the type STT_TLS and a name that begins with _ZZ
// (a name local to a function); the emulator itself has no such variables. The symbol's value is its offset in the
// thread-local block of the module that the emulator is linked into.
#include "static_shared.h"

#if defined(__linux__) && defined(__LP64__)

#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

namespace emulator {

struct Variable {
    size_t offset, bytes;
};

// The module (program or shared library) that holds this code.
struct Module {
    std::string file;
    uint8_t* thread_block = nullptr;   // of the calling OS thread
};

static int is_this_module(dl_phdr_info* info, size_t, void* result) {
    const auto here = reinterpret_cast<uintptr_t>(&is_this_module);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr)& segment = info->dlpi_phdr[i];
        const uintptr_t start = info->dlpi_addr + segment.p_vaddr;
        if (segment.p_type != PT_LOAD || here < start || here >= start + segment.p_memsz) continue;
        auto& module = *static_cast<Module*>(result);
        module.file = info->dlpi_name && info->dlpi_name[0] ? info->dlpi_name : "/proc/self/exe";
        module.thread_block = static_cast<uint8_t*>(info->dlpi_tls_data);
        return 1;
    }
    return 0;
}

static Module this_module() {
    Module module;
    dl_iterate_phdr(is_this_module, &module);
    return module;
}

static bool is_shared_variable(const ElfW(Sym)& symbol, const char* names) {
    return (symbol.st_info & 0xf) == STT_TLS && symbol.st_shndx != SHN_UNDEF && std::strncmp(names + symbol.st_name, "_ZZ", 3) == 0;
}

static std::vector<Variable> variables_of(const uint8_t* file) {
    std::vector<Variable> found;
    const auto& header = *reinterpret_cast<const ElfW(Ehdr)*>(file);
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(file + header.e_shoff);
    for (int i = 0; i < header.e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(file + sections[i].sh_offset);
        const auto* names = reinterpret_cast<const char*>(file + sections[sections[i].sh_link].sh_offset);
        const size_t count = sections[i].sh_size / sizeof(ElfW(Sym));
        for (size_t s = 0; s < count; s++) {
            if (is_shared_variable(symbols[s], names)) found.push_back({symbols[s].st_value, symbols[s].st_size});
        }
    }
    return found;
}

static std::vector<Variable> read_variables() {
    std::vector<Variable> found;
    const int file = open(this_module().file.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status = {};
    if (file < 0) return found;
    if (fstat(file, &status) == 0) {
        void* bytes = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
        if (bytes != MAP_FAILED) {
            found = variables_of(static_cast<const uint8_t*>(bytes));
            munmap(bytes, size_t(status.st_size));
        }
    }
    close(file);
    return found;
}

static const std::vector<Variable>& variables() {
    static const std::vector<Variable> found = read_variables();
    return found;
}

static constinit thread_local uint8_t* thread_block = nullptr;

static uint8_t* thread_block_of_caller() {
    if (!thread_block) thread_block = this_module().thread_block;
    return thread_block;
}

void poison_static_shared(uint8_t value) {
    uint8_t* const start = thread_block_of_caller();
    if (!start) return;
    for (const Variable& variable : variables()) memset(start + variable.offset, value, variable.bytes);
}

bool in_static_shared(const void* address) {
    const uint8_t* const start = thread_block_of_caller();
    const auto* byte = static_cast<const uint8_t*>(address);
    if (!start) return true;
    for (const Variable& variable : variables()) {
        const uint8_t* first = start + variable.offset;
        if (byte >= first && byte < first + variable.bytes) return true;
    }
    return false;
}

}  // namespace emulator

#else

namespace emulator {
void poison_static_shared(uint8_t) {}
bool in_static_shared(const void*) { return true; }
}  // namespace emulator

#endif
