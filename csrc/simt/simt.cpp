// SPDX-License-Identifier: Apache-2.0
// Fibers, the scheduler of one block, and the collectives. See simt.h for what the emulator promises.
#include "simt/simt.h"

#include <sanitizer/asan_interface.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "simt/shared_sections.h"

// Saves the callee-saved registers and the stack pointer of the running fiber, and continues the other one. ucontext
// would do the same with a system call per switch for the signal mask.
extern "C" void pe_simt_switch(void** save_sp, void* load_sp);
asm(R"(
.text
.globl pe_simt_switch
.type pe_simt_switch, @function
pe_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pe_simt_switch, .-pe_simt_switch
)");

namespace pe::simt {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kStackBytes = 256 << 10;    // virtual; only touched pages cost memory
constexpr size_t kMaxSmemBytes = 227 << 10;  // what an H100 block may have
constexpr size_t kCanaryBytes = 256;
constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;
constexpr uint32_t kAllLanes = 0xffffffffu;

enum class State { kReady, kBarrier, kWarp, kCondition, kDone };

struct Copy {
  void* dst;
  const void* src;
  int bytes, valid_bytes;
};

struct Fiber {
  void* sp = nullptr;
  uint3 index{};
  int warp = 0, lane = 0;
  State state = State::kReady;
  Site site{};
  uint32_t mask = 0;
  void* args = nullptr;
  Resolve resolve = nullptr;
  bool (*ready)(const void*) = nullptr;  // what it waits for, of args
  int barrier_result = 0;
  std::vector<Copy> copies;         // issued, not yet delivered
  std::vector<size_t> copy_groups;  // sizes of the committed groups, oldest first
};

// Memory that faults at both ends: fiber stacks and dynamic shared memory end at an unmapped page.
class GuardedPages {
 public:
  explicit GuardedPages(size_t bytes) : bytes_(round_up(bytes, kPageBytes)) {
    void* p = mmap(nullptr, bytes_ + 2 * kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    PE_CHECK("simt", p != MAP_FAILED, "mmap of " + std::to_string(bytes_) + " bytes failed");
    base_ = static_cast<unsigned char*>(p);
    PE_CHECK("simt", mprotect(begin(), bytes_, PROT_READ | PROT_WRITE) == 0, "mprotect failed");
  }
  GuardedPages(const GuardedPages&) = delete;
  ~GuardedPages() { munmap(base_, bytes_ + 2 * kPageBytes); }
  unsigned char* begin() const { return base_ + kPageBytes; }
  unsigned char* end() const { return begin() + bytes_; }
  bool guards(const void* p) const {
    const auto* q = static_cast<const unsigned char*>(p);
    return (q >= base_ && q < begin()) || (q >= end() && q < end() + kPageBytes);
  }

 private:
  size_t bytes_;
  unsigned char* base_;
};

struct Machine {
  Options options;
  // the launch
  const Grid* grid = nullptr;
  const std::function<void()>* body = nullptr;
  // the block
  std::vector<Fiber> fibers;
  std::vector<uint32_t> waiting_lanes;  // of each warp: those in a warp collective
  bool waited = false;                  // some thread has called wait_for_predecessor
  int num_threads = 0, num_done = 0, num_at_barrier = 0, barrier_count = 0;
  uint64_t random = 1;
  unsigned char* smem = nullptr;
  // the fiber that runs
  Fiber* current = nullptr;
  void* scheduler_sp = nullptr;
  std::string fault;
  bool faulted = false;
  // pools
  std::vector<std::unique_ptr<GuardedPages>> stacks;
  std::unique_ptr<GuardedPages> smem_pages;
};

Machine& machine() {
  static Machine m;
  return m;
}

uint64_t next_random(Machine& m) {  // xorshift64*
  m.random ^= m.random >> 12;
  m.random ^= m.random << 25;
  m.random ^= m.random >> 27;
  return m.random * 0x2545f4914f6cdd1dull;
}

std::string text_of(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string text_of(const Site& s) { return std::string(s.what) + " (" + s.file + ":" + std::to_string(s.line) + ")"; }

bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && same_text(a.what, b.what) && same_text(a.file, b.file);
}

void to_scheduler() {
  Machine& m = machine();
  pe_simt_switch(&m.current->sp, m.scheduler_sp);
}

// In random order the thread that completes a collective does not always run on first.
void maybe_give_way() {
  Machine& m = machine();
  if (m.options.order == Order::kRandom && (next_random(m) >> 63) != 0) to_scheduler();
}

void fiber_main() {
  Machine& m = machine();
  try {
    (*m.body)();
  } catch (const std::exception& e) {
    m.fault = std::string("exception in a kernel: ") + e.what();
    m.faulted = true;
  }
  m.current->state = State::kDone;
  ++m.num_done;
  to_scheduler();
  std::abort();  // a thread that has returned is never continued
}

void start_fiber(Fiber& f, const GuardedPages& stack) {
  ASAN_UNPOISON_MEMORY_REGION(stack.begin(), stack.end() - stack.begin());  // a Fault leaves frames that never return
  auto** top = reinterpret_cast<void**>(stack.end());
  *--top = nullptr;                               // fiber_main's return address, never used
  *--top = reinterpret_cast<void*>(&fiber_main);  // what the first switch returns to
  for (int i = 0; i < 6; ++i) *--top = nullptr;   // the six registers that it pops
  f.sp = top;
}

void resume(Fiber& f) {
  Machine& m = machine();
  m.current = &f;
  threadIdx = f.index;
  pe_simt_switch(&m.scheduler_sp, f.sp);
  if (!m.faulted) return;
  throw Fault(std::string(m.grid->op) + ": block " + text_of(blockIdx) + " thread " + text_of(f.index) + ": " +
              m.fault);
}

// ---- one block -----------------------------------------------------------------------------------------------------

void prepare_threads(Machine& m, const dim3& block) {
  m.num_threads = static_cast<int>(block.x * block.y * block.z);
  m.num_done = m.num_at_barrier = m.barrier_count = 0;
  m.waited = false;
  m.fibers.assign(static_cast<size_t>(m.num_threads), Fiber{});
  m.waiting_lanes.assign(static_cast<size_t>(div_ceil(m.num_threads, 32)), 0);
  while (m.stacks.size() < m.fibers.size()) m.stacks.push_back(std::make_unique<GuardedPages>(kStackBytes));
  for (int i = 0; i < m.num_threads; ++i) {
    const unsigned u = static_cast<unsigned>(i);
    Fiber& f = m.fibers[static_cast<size_t>(i)];
    f.index = make_uint3(u % block.x, u / block.x % block.y, u / (block.x * block.y));
    f.warp = i / 32;
    f.lane = i % 32;
    start_fiber(f, *m.stacks[static_cast<size_t>(i)]);
  }
}

// Past AddressSanitizer, whose red zones lie between the variables of a section.
__attribute__((no_sanitize("address"))) void poison(volatile unsigned char* begin, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) begin[i] = kPoison;
}

void prepare_shared(Machine& m, size_t smem_bytes) {
  if (m.smem_pages == nullptr) m.smem_pages = std::make_unique<GuardedPages>(kMaxSmemBytes + kCanaryBytes);
  const size_t padded = round_up(smem_bytes, size_t{128});
  m.smem = m.smem_pages->end() - padded;
  std::fill(m.smem - kCanaryBytes, m.smem_pages->end(), kCanary);
  std::fill_n(m.smem, smem_bytes, m.options.poison_shared ? kPoison : 0);
  if (!m.options.poison_shared) return;
  for (const auto& [begin, bytes] : shared_sections()) poison(begin, bytes);
}

void check_canaries(const Machine& m, size_t smem_bytes) {
  const auto intact = [](unsigned char c) { return c == kCanary; };
  if (std::all_of(m.smem - kCanaryBytes, m.smem, intact) &&
      std::all_of(m.smem + smem_bytes, m.smem_pages->end(), intact)) {
    return;
  }
  throw Fault(std::string(m.grid->op) + ": block " + text_of(blockIdx) + ": wrote outside its " +
              std::to_string(smem_bytes) + " bytes of dynamic shared memory");
}

// Who waits where: one line per group of threads in the same place.
[[noreturn]] void throw_deadlock(const Machine& m) {
  std::map<std::string, std::pair<int, std::string>> groups;
  for (const Fiber& f : m.fibers) {
    char mask[16];
    snprintf(mask, sizeof mask, "0x%08x", f.mask);
    const std::string place = f.state == State::kDone ? "have returned"
                              : f.state == State::kBarrier || f.state == State::kCondition
                                  ? "wait in " + text_of(f.site)
                                  : "wait in " + text_of(f.site) + " with mask " + mask;
    auto& group = groups[place];
    if (group.first++ == 0) group.second = text_of(f.index);
  }
  std::string text = std::string(m.grid->op) + ": block " + text_of(blockIdx) + " is deadlocked:";
  for (const auto& [place, group] : groups) {
    text += "\n  " + std::to_string(group.first) + " threads " + place + ", first " + group.second;
  }
  throw Fault(text);
}

void run_block(Machine& m) {
  prepare_threads(m, m.grid->block);
  prepare_shared(m, m.grid->smem_bytes);
  std::vector<int> order(m.fibers.size());
  std::iota(order.begin(), order.end(), 0);
  if (m.options.order == Order::kReverse) std::reverse(order.begin(), order.end());
  while (m.num_done < m.num_threads) {
    if (m.options.order == Order::kRandom) {
      for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[next_random(m) % (i + 1)]);
    }
    bool progress = false;
    for (const int i : order) {
      Fiber& f = m.fibers[static_cast<size_t>(i)];
      if (f.state == State::kCondition && f.ready(f.args)) f.state = State::kReady;
      if (f.state != State::kReady) continue;
      progress = true;
      resume(f);
    }
    if (!progress) throw_deadlock(m);
  }
  check_canaries(m, m.grid->smem_bytes);
  if (m.grid->overlap && !m.waited) {
    throw Fault(std::string(m.grid->op) + ": block " + text_of(blockIdx) +
                " ended without wait_for_predecessor, but was started by launch_overlapping");
  }
}

void check_grid(const Grid& g) {
  const uint64_t threads = uint64_t{g.block.x} * g.block.y * g.block.z;
  PE_CHECK(g.op, threads >= 1 && threads <= 1024 && g.block.z <= 64,
           "a block has 1 to 1024 threads, got " + std::to_string(threads));
  PE_CHECK(g.op, g.grid.x <= 0x7fffffffu && g.grid.y <= 65535 && g.grid.z <= 65535,
           "grid too large: " + text_of(make_uint3(g.grid.x, g.grid.y, g.grid.z)));
  PE_CHECK(g.op, g.smem_bytes <= kMaxSmemBytes,
           "needs " + std::to_string(g.smem_bytes) + " bytes of shared memory, an H100 block has " +
               std::to_string(kMaxSmemBytes));
}

// ---- a wild access says where it happened --------------------------------------------------------------------------

void on_bad_access(int, siginfo_t* info, void*) {
  const Machine& m = machine();
  const char* where = "memory that is not there";
  if (m.smem_pages != nullptr && m.smem_pages->guards(info->si_addr)) where = "past its dynamic shared memory";
  for (const auto& stack : m.stacks) {
    if (stack->guards(info->si_addr)) where = "past its stack (256 KiB of local variables?)";
  }
  char text[512];
  const int n = snprintf(text, sizeof text, "%s: block %s thread %s touched %s: %p\n", m.grid ? m.grid->op : "host",
                         text_of(blockIdx).c_str(), text_of(threadIdx).c_str(), where, info->si_addr);
  if (write(STDERR_FILENO, text, static_cast<size_t>(n)) < 0) std::abort();
  signal(SIGSEGV, SIG_DFL);
  raise(SIGSEGV);
}

// Reports on its own stack, because the fiber's may be what overflowed. A debugger's or sanitizer's handler stays.
void watch_bad_accesses() {
  struct sigaction old{};
  sigaction(SIGSEGV, nullptr, &old);
  if (old.sa_handler != SIG_DFL) return;
  static unsigned char handler_stack[64 << 10];
  stack_t stack{};
  stack.ss_sp = handler_stack;
  stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_bad_access;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
}

}  // namespace

Options& options() { return machine().options; }

void run_grid(const Grid& grid, const std::function<void()>& thread_body) {
  const uint64_t num_blocks = uint64_t{grid.grid.x} * grid.grid.y * grid.grid.z;
  if (num_blocks == 0) return;
  check_grid(grid);
  watch_bad_accesses();
  Machine& m = machine();
  m.grid = &grid;
  m.body = &thread_body;
  m.faulted = false;
  m.random = m.options.seed * 2 + 1;
  gridDim = grid.grid;
  blockDim = grid.block;
  for (uint64_t i = 0; i < num_blocks; ++i) {
    const uint64_t b = m.options.order == Order::kReverse ? num_blocks - 1 - i : i;
    blockIdx = make_uint3(static_cast<unsigned>(b % grid.grid.x), static_cast<unsigned>(b / grid.grid.x % grid.grid.y),
                          static_cast<unsigned>(b / grid.grid.x / grid.grid.y));
    run_block(m);
  }
}

void fail(const std::string& text) {
  Machine& m = machine();
  m.fault = text;
  m.faulted = true;
  to_scheduler();
  std::abort();  // the scheduler throws and drops the block's fibers
}

// ---- collectives ---------------------------------------------------------------------------------------------------

int barrier(const Site& site, bool predicate) {
  Machine& m = machine();
  Fiber& me = *m.current;
  me.site = site;
  m.barrier_count += predicate ? 1 : 0;
  if (++m.num_at_barrier < m.num_threads) {
    me.state = State::kBarrier;
    to_scheduler();
    return me.barrier_result;
  }
  for (Fiber& f : m.fibers) {
    if (!same_site(f.site, site)) {
      fail("barrier reached in different places: " + text_of(site) + ", thread " + text_of(f.index) + " in " +
           text_of(f.site));
    }
    f.barrier_result = m.barrier_count;
    f.state = State::kReady;
  }
  m.num_at_barrier = m.barrier_count = 0;
  const int result = me.barrier_result;
  maybe_give_way();
  return result;
}

void wait_until(const Site& site, bool (*ready)(const void*), const void* arg) {
  Fiber& me = *machine().current;
  if (ready(arg)) return;
  me.site = site;
  me.ready = ready;
  me.args = const_cast<void*>(arg);
  me.state = State::kCondition;
  to_scheduler();
}

void warp_collective(const Site& site, uint32_t mask, void* args, Resolve resolve) {
  Machine& m = machine();
  Fiber& me = *m.current;
  if (!(mask >> me.lane & 1))
    fail(text_of(site) + ": lane " + std::to_string(me.lane) + " calls but is not in the mask");
  me.site = site;
  me.mask = mask;
  me.args = args;
  me.resolve = resolve;
  me.state = State::kWarp;
  const int base = me.warp * 32;
  if (m.num_threads - base < 32 && mask >> (m.num_threads - base) != 0) {
    fail(text_of(site) + ": the mask names lanes past the " + std::to_string(m.num_threads) + " threads of the block");
  }
  uint32_t& waiting = m.waiting_lanes[static_cast<size_t>(me.warp)];
  waiting |= 1u << me.lane;
  if ((waiting & mask) != mask) return to_scheduler();  // most arrivals end here
  void* all[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& f = m.fibers[static_cast<size_t>(base + lane)];
    if (f.mask != mask || f.resolve != resolve || !same_site(f.site, site)) {
      return to_scheduler();
    }
    all[lane] = f.args;
  }
  resolve(mask, all);
  waiting &= ~mask;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) m.fibers[static_cast<size_t>(base + lane)].state = State::kReady;
  }
  maybe_give_way();
}

uint32_t live_lanes() {
  const Machine& m = machine();
  uint32_t lanes = 0;
  for (const Fiber& f : m.fibers) {
    if (f.warp == m.current->warp && f.state != State::kDone) lanes |= 1u << f.lane;
  }
  return lanes;
}

int current_lane() { return machine().current->lane; }

void wait_for_predecessor() { machine().waited = true; }

void* dynamic_smem() { return machine().smem; }

// ---- cp.async ------------------------------------------------------------------------------------------------------

// The destination is poisoned at once and filled at the wait: both are moments at which the hardware may write, and
// between them nobody may read.
void cp_async(void* smem, const void* global, int bytes, int valid_bytes) {
  if (reinterpret_cast<uintptr_t>(smem) % static_cast<unsigned>(bytes) != 0)
    fail("cp.async: misaligned shared address");
  if (reinterpret_cast<uintptr_t>(global) % static_cast<unsigned>(bytes) != 0)
    fail("cp.async: misaligned global address");
  std::memset(smem, kPoison, static_cast<size_t>(bytes));
  machine().current->copies.push_back({smem, global, bytes, valid_bytes});
}

void cp_async_commit() {
  Fiber& me = *machine().current;
  const size_t grouped = std::accumulate(me.copy_groups.begin(), me.copy_groups.end(), size_t{0});
  me.copy_groups.push_back(me.copies.size() - grouped);
}

void cp_async_wait(int pending_groups) {
  Fiber& me = *machine().current;
  while (me.copy_groups.size() > static_cast<size_t>(pending_groups)) {
    const auto count = static_cast<std::ptrdiff_t>(me.copy_groups.front());
    for (auto copy = me.copies.begin(); copy != me.copies.begin() + count; ++copy) {
      std::memset(copy->dst, 0, static_cast<size_t>(copy->bytes));
      if (copy->valid_bytes > 0) std::memcpy(copy->dst, copy->src, static_cast<size_t>(copy->valid_bytes));
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + count);
    me.copy_groups.erase(me.copy_groups.begin());
  }
}

// ---- tensor core fragments (layouts: cuda/common/mma.cuh) ----------------------------------------------------------

namespace {

struct LdmatrixArgs {
  const unsigned char* row;
  uint32_t* r;
  bool transposed;
};

void resolve_ldmatrix(uint32_t, void* const* lanes) {
  const auto of = [&](int lane) { return static_cast<LdmatrixArgs*>(lanes[lane]); };
  const auto element = [&](int matrix, int row, int column) {
    uint16_t x;
    std::memcpy(&x, of(matrix * 8 + row)->row + 2 * column, 2);
    return uint32_t{x};
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int major = lane / 4, minor = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      of(lane)->r[i] = of(lane)->transposed ? element(i, minor, major) | element(i, minor + 1, major) << 16
                                            : element(i, major, minor) | element(i, major, minor + 1) << 16;
    }
  }
}

struct MmaArgs {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
  UnpackPair unpack;
};

// Products exact, the sum in double: the hardware's order of the 16 additions is not documented.
void resolve_mma(uint32_t, void* const* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& args = *static_cast<MmaArgs*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      float* pair = &a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
      args.unpack(args.a[i], &pair[0], &pair[1]);
    }
    for (int i = 0; i < 2; ++i) args.unpack(args.b[i], &b[2 * t + 8 * i][g], &b[2 * t + 8 * i + 1][g]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& args = *static_cast<MmaArgs*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = args.c[i];
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      args.c[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void ldmatrix_x4(uint32_t (&r)[4], const void* smem_row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(smem_row) % 16 != 0) fail("ldmatrix: misaligned row address");
  LdmatrixArgs args{static_cast<const unsigned char*>(smem_row), r, transposed};
  warp_collective({transposed ? "ldmatrix_x4_trans" : "ldmatrix_x4", __FILE__, __LINE__}, kAllLanes, &args,
                  resolve_ldmatrix);
}

void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, UnpackPair unpack) {
  MmaArgs args{c, a, {b0, b1}, unpack};
  warp_collective({"mma_m16n8k16", __FILE__, __LINE__}, kAllLanes, &args, resolve_mma);
}

}  // namespace pe::simt
