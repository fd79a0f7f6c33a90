// g++ -std=c++20 -O2 -include emu.h -c emu.cpp
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include "ptx_emulated.h"
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif
namespace emu {
thread_local Block* B; thread_local Fiber* F;
bool lazy_async = false;
static thread_local Thunk cur_thunk; static thread_local void** cur_args;
constexpr size_t STACK = 128 << 10;
static std::mutex err_mu; static std::string err_text; static std::atomic<bool> failed{false};
static void set_error(const std::string& m) { std::lock_guard<std::mutex> g(err_mu); if (!failed.exchange(true)) err_text = m; }
// A failing thread's fiber is abandoned where it stands; the grid stops and emu_launch returns 2.
[[noreturn]] void fail(const char* msg) {
  char t[512]; snprintf(t, sizeof t, "block (%u,%u,%u) thread %u: %s", B->bid.x, B->bid.y, B->bid.z, F ? F->lin : 0u, msg); set_error(t);
  if (!F) throw 0;
  for (;;) yield_to_sched();
}
#ifdef EMU_UCONTEXT
static thread_local ucontext_t sched_ctx; static thread_local std::vector<ucontext_t>* ctxs;
void yield_to_sched() { swapcontext(&(*ctxs)[F->lin], &sched_ctx); }
#else
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
static thread_local void* sched_sp;
void yield_to_sched() { emu_switch(&F->sp, sched_sp); }
#endif
static void entry() {
  cur_thunk(cur_args);
  F->done = true;
  for (;;) yield_to_sched();
}
static void resume(Fiber& f) {
  F = &f; f.ready = nullptr;
#ifdef EMU_UCONTEXT
  swapcontext(&sched_ctx, &(*ctxs)[f.lin]);
#else
  emu_switch(&sched_sp, f.sp);
#endif
}
static void report_deadlock() {
  std::map<std::pair<std::string, int>, std::vector<unsigned>> m; unsigned done = 0;
  for (unsigned i = 0; i < B->n; i++) { auto& f = B->f[i]; if (f.done) done++; else m[{f.what ? f.what : "?", f.line}].push_back(i); }
  char t[256]; snprintf(t, sizeof t, "DEADLOCK in block (%u,%u,%u), %u threads exited", B->bid.x, B->bid.y, B->bid.z, done); std::string r = t;
  for (auto& [k, v] : m) { snprintf(t, sizeof t, "; %zu threads (%u..%u) at %s, line %d", v.size(), v.front(), v.back(), k.first.c_str(), k.second); r += t; }
  set_error(r);
}
struct Worker {   // reusable stacks and smem of one OS thread
  std::vector<Fiber> f; uint8_t* stacks = nullptr; size_t nstk = 0; uint8_t* smem = nullptr;
  ~Worker() { if (stacks) munmap(stacks, nstk * STACK); free(smem); }
  void run_block(Block& b, unsigned seed) {
    if (nstk < b.n) { if (stacks) munmap(stacks, nstk * STACK);
      stacks = (uint8_t*)mmap(nullptr, b.n * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); nstk = b.n; }
    if (!smem) smem = (uint8_t*)aligned_alloc(1024, 256 << 10);
    memset(smem, 0xff, b.smem_bytes);                       // poison: NaN in every float format
    b.smem = smem; f.assign(b.n, {}); b.f = f.data(); B = &b;
    b.warps.resize((b.n + 31) / 32); b.wgs.resize((b.n + 127) / 128);
#ifdef EMU_UCONTEXT
    std::vector<ucontext_t> cs(b.n); ctxs = &cs;
#endif
    for (unsigned i = 0; i < b.n; i++) {
      Fiber& x = f[i]; x.lin = i; x.tid = {i % b.bdim.x, i / b.bdim.x % b.bdim.y, i / (b.bdim.x * b.bdim.y)};
      uint8_t* top = stacks + (i + 1) * STACK;
#ifdef EMU_UCONTEXT
      getcontext(&cs[i]); cs[i].uc_stack.ss_sp = top - STACK; cs[i].uc_stack.ss_size = STACK; cs[i].uc_link = nullptr; makecontext(&cs[i], entry, 0);
#else
      void** sp = (void**)top; *--sp = nullptr; *--sp = (void*)entry; sp -= 6; x.sp = sp;
#endif
    }
    // EMU_SEED=0: round-robin over threads. Else: depth-first - a random warp runs until it blocks, which lets warps run
    // as far apart as the barriers permit and so exposes missing ones.
    unsigned left = b.n, nw = (b.n + 31) / 32; uint64_t s = (seed + 1) * 0x9E3779B97F4A7C15ull ^ (b.bid.x * 7919 + b.bid.y * 104729);
    auto rnd = [&](unsigned n) { s ^= s << 13; s ^= s >> 7; s ^= s << 17; return unsigned(s % n); };
    auto pass = [&](unsigned lo, unsigned hi) { bool ran = false;
      for (unsigned i = lo; i < hi; i++) { Fiber& x = f[i]; if (x.done || (x.ready && !x.ready(x.wa, x.wb))) continue; ran = true; resume(x); if (x.done) left--; if (failed) return false; }
      return ran; };
    while (left && !failed) {
      bool ran = false;
      if (!seed) ran = pass(0, b.n);
      else { unsigned w0 = rnd(nw), k = 0; for (; k < nw && !ran; k++) { unsigned w = (w0 + k) % nw; while (pass(w * 32, std::min(b.n, w * 32 + 32))) ran = true; } }
      if (!ran || (seed && !b.async.empty() && rnd(4) == 0)) {
        if (b.async.empty()) { if (!ran) report_deadlock(); } else { size_t q = seed ? rnd(b.async.size()) : b.async.size() - 1;   // TMA completes in no promised order
          auto op = std::move(b.async[q]); b.async.erase(b.async.begin() + q); op(); } }
    }
    F = nullptr; if (failed) { B = nullptr; return; }
    while (!b.async.empty()) { b.async.front()(); b.async.pop_front(); }
    for (auto& w : b.wgs) if (!w.ops.empty()) set_error("block ended with wgmma not waited for");
    B = nullptr;
  }
};
static unsigned sched_seed = 0; static bool sched_lazy = false;
void run_grid(Thunk t, dim3 g, dim3 blk, size_t smem, void** args) {
  lazy_async = sched_lazy; unsigned seed = sched_seed;
  unsigned nt = std::thread::hardware_concurrency();
  failed = false; if (smem > (227 << 10)) { set_error("dynamic shared memory over 227 KB"); return; }
  size_t total = size_t(g.x) * g.y * g.z; std::atomic<size_t> next{0};
  auto work = [&] {
    Worker w; cur_thunk = t; cur_args = args;
    for (size_t i; !failed && (i = next++) < total;) {
      Block b{}; b.bid = {unsigned(i % g.x), unsigned(i / g.x % g.y), unsigned(i / (size_t(g.x) * g.y))};
      b.bdim = blk; b.gdim = g; b.n = blk.x * blk.y * blk.z; b.smem_bytes = smem; w.run_block(b, seed);
    }
  };
  std::vector<std::thread> ts; nt = std::min<size_t>(nt, total);
  for (unsigned i = 1; i < nt; i++) ts.emplace_back(work);
  work(); for (auto& x : ts) x.join();
}
static std::map<std::string, Thunk>& table() { static std::map<std::string, Thunk> t; return t; }
bool reg(const char* n, Thunk t) { table()[n] = t; return true; }
}  // namespace emu
namespace emu { void wg_exec(const WgOp& o) { o.run(o); } }
extern "C" int emu_tensor_map(CUtensorMap* out, int esz, int rank, void* base, const uint64_t* dim, const uint64_t* stride, const uint32_t* box, int swz) {
  emu::TM t{}; t.base = (uint8_t*)base; t.magic = 0x7A11; t.esz = esz; t.rank = rank; t.swz = swz;
  if (rank < 1 || rank > 5 || (uintptr_t)base % 16 || box[0] * esz % 16 || (swz && box[0] * esz > unsigned(swz))) return 1;   // CUDA_ERROR_INVALID_VALUE
  for (int i = 0; i < rank; i++) { if (box[i] > 256 || !box[i]) return 1; t.dim[i] = dim[i]; t.box[i] = box[i]; if (i) { if (stride[i - 1] % 16) return 1; t.stride[i - 1] = stride[i - 1]; } }
  memset(out, 0, sizeof *out); memcpy(out, &t, sizeof t); return 0;
}
extern "C" const char* emu_last_error() { return emu::err_text.c_str(); }
extern "C" void* emu_allocate(size_t bytes) { void* p = aligned_alloc(256, (bytes + 255) / 256 * 256); if (p) memset(p, 0, bytes); return p; }
extern "C" void emu_free(void* p) { free(p); }
extern "C" int emu_launch(const char* name, const unsigned g[3], const unsigned b[3], size_t smem, void** p, unsigned seed, int late) {
  auto it = emu::table().find(name); if (it == emu::table().end()) return 1;
  static std::mutex one; std::lock_guard<std::mutex> lk(one); emu::sched_seed = seed; emu::sched_lazy = late != 0;   // one grid at a time (Rust tests are threaded)
  emu::run_grid(it->second, {g[0], g[1], g[2]}, {b[0], b[1], b[2]}, smem, p); return emu::failed ? 2 : 0;
}
