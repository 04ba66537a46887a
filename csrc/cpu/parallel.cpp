// SPDX-License-Identifier: Apache-2.0
// Thread pool and recorder of the CPU backend (contract: pe/parallel.h).
//
// One call = one word. The caller publishes {call number, number of shares} in a single atomic; worker i takes share i
// if there is one and otherwise goes on waiting, so the job's fields are read only by workers that the caller waits
// for. Waiting spins first, because the next op is microseconds away, then sleeps: the machine is shared and threads
// are not pinned.
#include "pe/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "run.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace pe::cpu {
namespace {

using Body = std::function<void(int64_t, int64_t)>;
using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(50);  // after a lone call: longer than the Python between two ops
constexpr auto kReplaySpin =
    std::chrono::microseconds(2000);  // inside a replay: longer than any op that runs on one thread
constexpr int kMaxThreads = 1024;
constexpr uint64_t kSharesBits = 16;  // low bits of the published word; the rest counts the calls
constexpr uint64_t kSharesMask = (uint64_t{1} << kSharesBits) - 1;
constexpr uint64_t kStop = kSharesMask;  // not a number of shares: kMaxThreads is less

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until ready() or until `limit` has passed; returns ready().
template <typename Ready>
bool spin(Clock::duration limit, Ready ready) {
  const auto deadline = Clock::now() + limit;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (Clock::now() < deadline);
  return ready();
}

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads) { start(num_threads); }
  ~ThreadPool() { stop(); }

  int num_threads() const { return num_threads_.load(std::memory_order_relaxed); }

  void resize(int num_threads) {
    std::lock_guard<std::mutex> one_caller(caller_mutex_);
    if (num_threads == this->num_threads()) return;
    stop();
    start(num_threads);
  }

  void run(int64_t n, int64_t grain, const Body& body) {
    std::lock_guard<std::mutex> one_caller(caller_mutex_);
    n_ = n;
    grain_ = grain;
    num_shares_ = std::min<int64_t>(div_ceil(n, grain), num_threads());
    body_ = &body;
    error_ = nullptr;
    pending_.store(static_cast<int>(num_shares_) - 1, std::memory_order_relaxed);
    publish(static_cast<uint64_t>(num_shares_));
    run_share(0);
    const auto done = [this] { return pending_.load(std::memory_order_acquire) == 0; };
    if (!spin(kSpin, done)) {
      while (!done()) std::this_thread::yield();
    }
    if (error_) std::rethrow_exception(error_);
  }

  void keep_awake(bool on) { num_awake_.fetch_add(on ? 1 : -1, std::memory_order_relaxed); }

 private:
  void start(int num_threads) {
    num_threads_.store(num_threads, std::memory_order_relaxed);
    const uint64_t word = word_.load();
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i, word] { work(i, word); });
  }

  void stop() {
    publish(kStop);
    for (auto& worker : workers_) worker.join();
    workers_.clear();
  }

  void publish(uint64_t shares) {
    const uint64_t call = (word_.load(std::memory_order_relaxed) >> kSharesBits) + 1;
    word_.store(call << kSharesBits | shares);  // seq_cst against num_sleeping_: one of the two sides sees the other
    if (num_sleeping_.load() > 0) {
      {
        std::lock_guard<std::mutex> lock(sleep_mutex_);
      }
      wake_.notify_all();
    }
  }

  uint64_t wait_for_change(uint64_t seen) {
    const auto changed = [&] { return word_.load() != seen; };
    const bool awake = num_awake_.load(std::memory_order_relaxed) > 0;
    if (!spin(awake ? kReplaySpin : kSpin, changed)) {
      std::unique_lock<std::mutex> lock(sleep_mutex_);
      num_sleeping_.fetch_add(1);
      wake_.wait(lock, changed);
      num_sleeping_.fetch_sub(1);
    }
    return word_.load();
  }

  void work(int index, uint64_t seen) {
    inside_pool = true;
    for (;;) {
      seen = wait_for_change(seen);
      const uint64_t shares = seen & kSharesMask;
      if (shares == kStop) return;
      if (static_cast<uint64_t>(index) >= shares) continue;
      run_share(index);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  void run_share(int64_t index) {
    const int64_t num_grains = div_ceil(n_, grain_);
    const int64_t begin = num_grains * index / num_shares_ * grain_;
    const int64_t end = std::min(num_grains * (index + 1) / num_shares_ * grain_, n_);
    const bool outer = inside_pool;
    inside_pool = true;
    try {
      (*body_)(begin, end);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    inside_pool = outer;
  }

 public:
  static thread_local bool inside_pool;  // a parallel_for inside a body runs inline

 private:
  std::mutex caller_mutex_;
  std::atomic<int> num_threads_{1};
  std::vector<std::thread> workers_;

  // the call under way: set by run()
  int64_t n_ = 0, grain_ = 1, num_shares_ = 1;
  const Body* body_ = nullptr;
  std::exception_ptr error_;
  std::mutex error_mutex_;

  // each on its own cache line: written by one side while the other spins
  alignas(64) std::atomic<uint64_t> word_{0};
  alignas(64) std::atomic<int> pending_{0};
  alignas(64) std::atomic<int> num_sleeping_{0};
  std::atomic<int> num_awake_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

thread_local bool ThreadPool::inside_pool = false;
thread_local Program* recorded_program = nullptr;

// Never destroyed: workers may still be waiting when the process exits.
ThreadPool& pool() {
  static ThreadPool* instance =
      new ThreadPool(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads));
  return *instance;
}

struct KeepAwake {
  KeepAwake() { pool().keep_awake(true); }
  ~KeepAwake() { pool().keep_awake(false); }
};

}  // namespace

void set_num_threads(int n) {
  PE_CHECK("set_num_threads", n >= 1 && n <= kMaxThreads,
           "n must be in [1, " + std::to_string(kMaxThreads) + "], got " + std::to_string(n));
  PE_CHECK("set_num_threads", !ThreadPool::inside_pool, "must not be called from the body of a parallel_for");
  pool().resize(n);
}

int num_threads() { return pool().num_threads(); }

void parallel_for(int64_t n, int64_t grain, const Body& body) {
  PE_CHECK("parallel_for", grain >= 1, "grain must be positive, got " + std::to_string(grain));
  if (n <= 0) return;
  if (n <= grain || ThreadPool::inside_pool || pool().num_threads() == 1) return body(0, n);
  pool().run(n, grain, body);
}

void Program::append(std::function<void()> op) { ops_.push_back(std::move(op)); }

void Program::replay() const {
  const KeepAwake keep_awake;
  for (const auto& op : ops_) op();
}

size_t Program::size() const { return ops_.size(); }

void begin_recording(Program* program) {
  PE_CHECK("begin_recording", program != nullptr, "program is null");
  PE_CHECK("begin_recording", recorded_program == nullptr, "this thread already records; call end_recording first");
  recorded_program = program;
}

void end_recording() {
  PE_CHECK("end_recording", recorded_program != nullptr, "this thread records nothing; call begin_recording first");
  recorded_program = nullptr;
}

Program* recording() { return recorded_program; }

}  // namespace pe::cpu
