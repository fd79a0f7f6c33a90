// emu_hopper.h - software mbarrier / TMA / wgmma with the wrapper names of kernels/ptx.cuh
#pragma once
namespace emu {
// mbarrier: its own 8 bytes hold {phase, init count, pending arrivals, pending tx bytes}
struct MB { uint64_t phase : 1, init : 11, pend : 11; int64_t tx : 41; };
static_assert(sizeof(MB) == 8);
inline MB ld(const uint64_t* b) { MB m; memcpy(&m, b, 8); return m; }
inline void settle(uint64_t* b, MB m) { if (m.pend == 0 && m.tx == 0) { m.phase ^= 1; m.pend = m.init; } memcpy(b, &m, 8); }
inline void mb_tx(uint64_t* b, int64_t n) { MB m = ld(b); m.tx += n; settle(b, m); }
inline void mb_arrive(uint64_t* b, int64_t tx) { MB m = ld(b); EMU_CHECK(m.pend > 0, "mbarrier: too many arrivals in a phase"); m.tx += tx; m.pend--; settle(b, m); }
// tensor map (fits the 128 opaque bytes)
struct TM { uint8_t* base; uint64_t stride[4]; uint32_t dim[5]; uint16_t box[5]; uint16_t magic; uint8_t esz, rank, swz; };
static_assert(sizeof(TM) <= 128);
inline uint32_t swz(uint32_t a, int bytes) {   // hardware XORs absolute shared-address bits
  return bytes == 128 ? a ^ (a >> 3 & 0x70) : bytes == 64 ? a ^ (a >> 3 & 0x30) : bytes == 32 ? a ^ (a >> 3 & 0x10) : a;
}
inline uint32_t saddr(const void* p) { auto o = (const uint8_t*)p - B->smem; EMU_CHECK(o >= 0 && size_t(o) < B->smem_bytes, "address outside dynamic shared memory"); return uint32_t(o); }
template <class Fn> void tm_each(const TM& t, const int* c, Fn fn) {   // rows of the box: (smem offset, gmem ptr or null, bytes)
  uint32_t row = t.box[0] * t.esz, off = 0; unsigned i[5] = {};
  for (;;) {
    bool in = true; uint8_t* g = t.base;
    for (int d = 1; d < t.rank; d++) { int64_t x = int64_t(c[d]) + i[d]; in &= x >= 0 && x < int64_t(t.dim[d]); if (in) g += x * t.stride[d - 1]; }
    fn(off, in ? g : nullptr, row); off += row;
    int d = 1; for (; d < t.rank; d++) { if (++i[d] < t.box[d]) break; i[d] = 0; }
    if (d >= t.rank) return;
  }
}
inline void tma(const CUtensorMap* m, void* s, const int* c, uint64_t* bar, bool store, bool add = false) {
  TM t; memcpy(&t, m, sizeof t); EMU_CHECK(t.magic == 0x7A11, "not a tensor map");
  uint32_t so = saddr(s); EMU_CHECK(so % 128 == 0, "TMA shared address not 128-byte aligned");
  uint32_t bytes = t.esz; for (int d = 0; d < t.rank; d++) bytes *= t.box[d];
  EMU_CHECK(so + bytes <= B->smem_bytes, "TMA box past the end of shared memory");
  int cc[5]; memcpy(cc, c, t.rank * 4); uint8_t* base = B->smem;
  tm_each(t, cc, [&](uint32_t off, uint8_t* g, uint32_t row) {
    for (uint32_t k = 0; k < row; k += t.esz) {
      uint8_t* sp = base + swz(so + off + k, t.swz); int64_t x = int64_t(cc[0]) + k / t.esz; bool in = g && x >= 0 && x < int64_t(t.dim[0]);
      if (store) { if (in && add) atomicAdd((float*)(g + x * t.esz), *(float*)sp); else if (in) memcpy(g + x * t.esz, sp, t.esz); } else if (in) memcpy(sp, g + x * t.esz, t.esz); else memset(sp, 0, t.esz);
    }
  });
  if (bar) mb_tx(bar, -int64_t(bytes));
}
inline void tma_issue(const CUtensorMap* m, void* s, std::initializer_list<int> c, uint64_t* bar, bool store) {
  int cc[5] = {}; std::copy(c.begin(), c.end(), cc);
  if (!lazy_async || store) { tma(m, s, cc, bar, store); return; }
  std::array<int, 5> k; std::copy(cc, cc + 5, k.begin());
  B->async.push_back([=] { tma(m, s, k.data(), bar, store); });
}
// shared-memory matrix descriptor, same bits as the hardware's. (i = row of M or N, k)
inline float desc_at(uint64_t d, bool mn_major, int i, int k) {
  uint32_t a = uint32_t(d & 0x3fff) << 4, lbo = uint32_t(d >> 16 & 0x3fff) << 4, sbo = uint32_t(d >> 32 & 0x3fff) << 4; int sw = int(d >> 62);
  int span = sw == 1 ? 128 : sw == 2 ? 64 : sw == 3 ? 32 : 16, per = span / 2;   // bytes / bf16 elements in one swizzle row
  if (!mn_major) a += sw ? (i / 8) * sbo + (i % 8) * span + k * 2 : (i / 8) * sbo + (i % 8) * 16 + (k / 8) * lbo + (k % 8) * 2;
  else a += sw ? (i / per) * lbo + (k / 8) * sbo + (k % 8) * span + (i % per) * 2 : (i / 8) * sbo + (k / 8) * lbo + (k % 8) * 16 + (i % 8) * 2;
  a = swz(a, sw ? span : 0); EMU_CHECK(a + 2 <= B->smem_bytes, "wgmma descriptor reads outside shared memory");
  return __bfloat162float(*(__nv_bfloat16*)(B->smem + a));
}
template <int N> void wg_exec_n(const WgOp& o) {
  static thread_local float a[64][16], b[16][N], acc[64][N];
  for (int m = 0; m < 64; m++) for (int k = 0; k < 16; k++)
    if (o.ss) a[m][k] = desc_at(o.da, o.ta, m, k);
    else { int t = m / 16 * 32 + m % 8 * 4 + k % 8 / 2, r = (m % 16) / 8 + k / 8 * 2; a[m][k] = __bfloat162float({uint16_t(o.a[t][r] >> (k & 1) * 16)}); }
  for (int k = 0; k < 16; k++) for (int n = 0; n < N; n++) b[k][n] = desc_at(o.db, o.tb, n, k);
  memset(acc, 0, sizeof acc);
  for (int m = 0; m < 64; m++) for (int k = 0; k < 16; k++) { float x = a[m][k]; for (int n = 0; n < N; n++) acc[m][n] += x * b[k][n]; }
  for (int t = 0; t < 128; t++) for (int i = 0; i < N / 2; i++) {
    int m = t / 32 * 16 + t % 32 / 4 + i % 4 / 2 * 8, n = i / 4 * 8 + t % 4 * 2 + i % 2;
    o.d[t][i] = (o.scale ? o.d[t][i] : 0.0f) + acc[m][n];
  }
}
inline Wg& wg() { EMU_CHECK(B->n >= 128, "wgmma needs a full warpgroup"); return B->wgs[F->lin / 128]; }
template <class L> void wg_meet(int line, L last) { auto& c = wg().c; meet(c.arrived, c.gen, 128, "wgmma", line, last); }
template <int N> void wgmma_op(float* d, const uint32_t* a, uint64_t da, uint64_t db, bool scale, bool ta, bool tb) {
  Wg& w = wg(); auto* s = w.c.slot[w.c.gen & 1]; unsigned t = F->lin % 128; static_assert(N % 8 == 0 && N <= 256);
  struct In { float* d; const uint32_t* a; uint64_t da, db; bool scale; } in{d, a, da, db, scale}; s[t] = (uint64_t)&in;
  wg_meet(__LINE__, [&] {
    WgOp o{N, w.group, a == nullptr, scale, ta, tb, da, db, {}, {}, wg_exec_n<N>};
    for (int i = 0; i < 128; i++) { In* x = (In*)s[i]; EMU_CHECK(x->db == db && x->da == da && x->scale == scale, "wgmma operands differ between threads"); o.d[i] = x->d; if (x->a) memcpy(o.a[i], x->a, 16); }
    if (lazy_async) w.ops.push_back(o); else wg_exec_n<N>(o);
  });
}
void wg_exec(const WgOp& o);
inline void wg_wait(int keep) { Wg& w = wg(); wg_meet(__LINE__, [&] {
  size_t n = 0; while (n < w.ops.size() && w.ops[n].group < w.group - keep) wg_exec(w.ops[n++]);
  w.ops.erase(w.ops.begin(), w.ops.begin() + n); }); }
}  // namespace emu
namespace emu {
struct Copy { uint8_t* to; const uint8_t* from; int size, bytes; };
inline CopyGroups& groups(std::vector<CopyGroups>& all) { if (all.size() < B->n) all.resize(B->n); return all[F->lin]; }
inline void issue(std::vector<CopyGroups>& all, std::function<void()> f) { if (lazy_async) groups(all).open.push_back(f); else f(); }
inline void commit(std::vector<CopyGroups>& all) { auto& g = groups(all); g.closed.push_back(std::move(g.open)); g.open.clear(); }
inline void wait_groups(std::vector<CopyGroups>& all, size_t keep) {
  auto& g = groups(all);
  while (g.closed.size() > keep) { for (auto& f : g.closed.front()) f(); g.closed.pop_front(); }
}
inline void copy_async(void* to, const void* from, int size, int bytes) {
  EMU_CHECK((uintptr_t)to % size == 0 && ((uintptr_t)from % size == 0 || !bytes), "cp.async: misaligned address");
  EMU_CHECK(bytes >= 0 && bytes <= size, "cp.async: more bytes than its size");
  issue(B->copies, [=] { memset(to, 0, size); memcpy(to, from, bytes); });
}
// All 32 lanes meet and see each other's word.
inline const uint64_t* warp_words(uint64_t word, int line) {
  Coll& c = coll(0xffffffffu); auto* s = c.slot[c.gen & 1]; s[lane()] = word;
  meet(c.arrived, c.gen, 32, "mma.sync/ldmatrix", line, [] {});
  return s;
}
template <int COUNT, bool TRANS> void ldmatrix(uint32_t (&r)[COUNT], const void* row, int line) {
  const uint64_t* rows = warp_words((uint64_t)row, line);
  for (int m = 0; m < COUNT; m++) {
    uint16_t v[2];
    for (int i = 0; i < 2; i++) {
      unsigned y = TRANS ? lane() % 4 * 2 + i : lane() / 4, x = TRANS ? lane() / 4 : lane() % 4 * 2 + i;
      EMU_CHECK(rows[8 * m + y] % 16 == 0, "ldmatrix: misaligned row"); memcpy(&v[i], (const uint8_t*)rows[8 * m + y] + 2 * x, 2);
    }
    r[m] = v[0] | uint32_t(v[1]) << 16;
  }
  warp_words(0, line);   // nobody writes the rows before all have read them
}
struct MmaLane { const uint32_t* a; const uint32_t* b; };
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  MmaLane mine{a, b}; const uint64_t* all = warp_words((uint64_t)&mine, line);
  auto half = [](uint32_t w, int i) { return __bfloat162float({uint16_t(w >> 16 * i)}); };
  int g = lane() / 4, c = lane() % 4 * 2;
  for (int i = 0; i < 4; i++) {
    int m = g + i / 2 * 8, n = c + i % 2; float sum = 0;
    for (int k = 0; k < 16; k++) {
      auto& la = *(const MmaLane*)all[m % 8 * 4 + k % 8 / 2]; auto& lb = *(const MmaLane*)all[n * 4 + k % 8 / 2];
      sum += half(la.a[m / 8 + k / 8 * 2], k % 2) * half(lb.b[k / 8], k % 2);
    }
    d[i] += sum;
  }
  warp_words(0, line);
}
}  // namespace emu
// ---- the wrappers kernels call (nvcc gets these from ptx.cuh) ------------------------------
#define EMU_LINE int line = __builtin_LINE()
inline uint32_t smem_u32(const void* p) { return emu::saddr(p); }
inline void keep_packed(uint4&) {}
inline float ex2(float x) { return exp2f(x); }
inline uint4 load_16_bytes(const void* from) {
  EMU_CHECK(uintptr_t(from) % 16 == 0, "16-byte load from an address that is no multiple of 16");
  uint4 v; memcpy(&v, from, 16); return v;
}
inline void store_16_bytes(void* to, uint4 value) {
  EMU_CHECK(uintptr_t(to) % 16 == 0, "16-byte store to an address that is no multiple of 16");
  const uint8_t* at = (const uint8_t*)to;
  EMU_CHECK(at + 16 <= emu::B->smem || at >= emu::B->smem + emu::B->smem_bytes, "store to global memory aims at shared memory");
  memcpy(to, &value, 16);
}
inline void named_bar_sync(int id, unsigned n, EMU_LINE) { emu::bar_sync(id, n, line); }
inline void named_bar_arrive(int id, unsigned n) { emu::bar_arrive(id, n); }
inline bool elect_one(EMU_LINE) { emu::ballot(0xffffffffu, true, line); return emu::lane() == 0; }
inline void cp_async_16(void* s, const void* g, int bytes = 16) { emu::copy_async(s, g, 16, bytes); }
inline void cp_async_8(void* s, const void* g, int bytes = 8) { emu::copy_async(s, g, 8, bytes); }
inline void cp_async_4(void* s, const void* g, int bytes = 4) { emu::copy_async(s, g, 4, bytes); }
inline void cp_async_commit() { emu::commit(emu::B->copies); }
template <int KEEP> inline void cp_async_wait() { emu::wait_groups(emu::B->copies, KEEP); }
inline void ldmatrix_x1(uint32_t (&r)[1], const void* row, EMU_LINE) { emu::ldmatrix<1, false>(r, row, line); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, EMU_LINE) { emu::ldmatrix<2, false>(r, row, line); }
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMU_LINE) { emu::ldmatrix<4, false>(r, row, line); }
inline void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row, EMU_LINE) { emu::ldmatrix<1, true>(r, row, line); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, EMU_LINE) { emu::ldmatrix<2, true>(r, row, line); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMU_LINE) { emu::ldmatrix<4, true>(r, row, line); }
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_LINE) { emu::mma(d, a, b, line); }
inline void mbar_init(uint64_t* b, int n) { emu::MB m{}; m.init = m.pend = n; memcpy(b, &m, 8); }
inline void mbar_init_fence() {}
inline void fence_proxy_async() {}
inline void mbar_arrive(uint64_t* b) { emu::mb_arrive(b, 0); }
inline void mbar_arrive_expect_tx(uint64_t* b, uint32_t n) { emu::mb_arrive(b, n); }
inline void mbar_wait(uint64_t* b, uint32_t parity, EMU_LINE) {
  emu::wait([](void* p, uint64_t ph) { return emu::ld((uint64_t*)p).phase != ph; }, b, parity, "mbarrier", line);
}
inline void tma_prefetch(const CUtensorMap*) {}
inline void tma_load_2d(void* s, const CUtensorMap* m, uint64_t* bar, int x, int y) { emu::tma_issue(m, s, {x, y}, bar, false); }
inline void tma_load_3d(void* s, const CUtensorMap* m, uint64_t* bar, int x, int y, int z) { emu::tma_issue(m, s, {x, y, z}, bar, false); }
inline void tma_load_4d(void* s, const CUtensorMap* m, uint64_t* bar, int x, int y, int z, int w) {
  emu::tma_issue(m, s, {x, y, z, w}, bar, false);
}
inline void tma_load_5d(void* s, const CUtensorMap* m, uint64_t* bar, int x, int y, int z, int w, int v) {
  emu::tma_issue(m, s, {x, y, z, w, v}, bar, false);
}
namespace emu {
inline void store(const CUtensorMap* m, const void* s, std::array<int, 5> c, bool add) {
  issue(B->bulks, [=] { tma(m, (void*)s, c.data(), nullptr, true, add); });
}
}
inline void tma_store_2d(const CUtensorMap* m, const void* s, int x, int y) { emu::store(m, s, {x, y}, false); }
inline void tma_store_3d(const CUtensorMap* m, const void* s, int x, int y, int z) { emu::store(m, s, {x, y, z}, false); }
inline void tma_store_4d(const CUtensorMap* m, const void* s, int x, int y, int z, int w) { emu::store(m, s, {x, y, z, w}, false); }
inline void tma_reduce_add_3d(const CUtensorMap* m, const void* s, int x, int y, int z) { emu::store(m, s, {x, y, z}, true); }
inline void bulk_load(void* s, const void* g, uint32_t bytes, uint64_t* bar) {
  EMU_CHECK((uintptr_t)s % 16 == 0 && (uintptr_t)g % 16 == 0 && bytes % 16 == 0, "bulk copy: not a multiple of 16 bytes");
  auto copy = [=] { memcpy(s, g, bytes); emu::mb_tx(bar, -int64_t(bytes)); };
  if (emu::lazy_async) emu::B->async.push_back(copy); else copy();
}
inline void bulk_store(void* g, const void* s, uint32_t bytes) {
  EMU_CHECK((uintptr_t)s % 16 == 0 && (uintptr_t)g % 16 == 0 && bytes % 16 == 0, "bulk copy: not a multiple of 16 bytes");
  emu::issue(emu::B->bulks, [=] { memcpy(g, s, bytes); });
}
inline void bulk_reduce_add_f32(float* g, const float* s, uint32_t bytes) {
  EMU_CHECK((uintptr_t)s % 16 == 0 && (uintptr_t)g % 16 == 0 && bytes % 16 == 0, "bulk copy: not a multiple of 16 bytes");
  emu::issue(emu::B->bulks, [=] { for (uint32_t i = 0; i < bytes / 4; i++) atomicAdd(g + i, s[i]); });
}
inline void bulk_commit() { emu::commit(emu::B->bulks); }
template <int KEEP> inline void bulk_wait_read() { emu::wait_groups(emu::B->bulks, KEEP); }
template <int KEEP> inline void bulk_wait() { emu::wait_groups(emu::B->bulks, KEEP); }
template <int R> inline void reg_dealloc() {}
template <int R> inline void reg_alloc() {}
inline void wgmma_fence() {}
inline void wgmma_commit() { emu::wg_meet(__LINE__, [] { emu::wg().group++; }); }
template <int N> inline void wgmma_wait() { emu::wg_wait(N); }
template <class T, int R> inline void wgmma_done(T (&)[R]) {}
template <int TA, int TB, int R> inline void wgmma_ss(float (&d)[R], uint64_t a, uint64_t b, bool acc) {
  emu::wgmma_op<2 * R>(d, nullptr, a, b, acc, TA, TB);
}
template <int TB, int R> inline void wgmma_rs(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool acc) {
  emu::wgmma_op<2 * R>(d, a, 0, b, acc, false, TB);
}
