// A fork-join pool: a generation counter, a bounded spin, then a futex wait. No OpenMP: two copies of it in one process
// slow one another, and none survives a fork.
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "trivet/threads.h"

namespace trivet {
namespace {

constexpr int kSpins = 4000;  // 100 to 200 us of `pause`: longer than any gap inside a step, shorter than idle
// Who is later than that inside a step was put aside by something else on its core, for milliseconds. A thread that sleeps
// meanwhile is woken late, and on the core of another; so it gives its core to whoever wants it, and looks again: up to 20 ms.
constexpr int kMostSpins = 100 * kSpins, kSpinsToYield = 64;
constexpr uint32_t kActiveMask = 1023;

// Whoever came first is next. A mutex would go to whoever asks again at once, which is what an engine with steps
// waiting does, and the engines beside it would starve.
class Turns {
 public:
  void take() {
    const uint32_t mine = next_.fetch_add(1);
    for (uint32_t now; (now = now_.load(std::memory_order_acquire)) != mine;) now_.wait(now, std::memory_order_acquire);
  }
  void give() {
    now_.fetch_add(1, std::memory_order_release);
    now_.notify_all();
  }

 private:
  std::atomic<uint32_t> next_{0}, now_{0};
};

struct Pool {
  std::mutex region;  // one parallel region at a time
  Turns turn;         // one PoolTurn at a time
  // Low 10 bits: threads of this region; the rest counts regions. One word, so that a late thread cannot mix two.
  std::atomic<uint32_t> generation{0};
  std::atomic<int> running{0};
  std::atomic<bool> sleeping_caller{false};
  std::atomic<int> size{1};
  std::atomic<bool> spin{true};
  std::atomic<bool> may_yield{true};
  std::atomic<bool> in_turn{false};
  Body body = nullptr;
  void* ctx = nullptr;
  std::mutex failing;
  std::exception_ptr failure;  // the first thing thrown in this region
  const pid_t owner = getpid();

  void run(int index, int active) {
    try {
      body(ctx, index, active);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      if (!failure) failure = std::current_exception();
    }
  }
};

std::atomic<Pool*> the_pool{nullptr};
std::mutex making;

inline void pause() { __builtin_ia32_pause(); }

template <class Condition>
bool spin_until(const Pool& p, Condition done) {
  for (int i = 0, most = kSpins; p.spin && i < most; ++i) {
    if (done()) return true;
    if (p.may_yield && p.in_turn.load(std::memory_order_relaxed)) {
      most = kMostSpins;
    } else if (most == kMostSpins) {  // the turn is over
      most = kSpins;
      i = 0;
    }
    if (i > kSpins && i % kSpinsToYield == 0) sched_yield();
    pause();
  }
  return done();
}

void worker(Pool* p, int index) {
  uint32_t seen = 0;
  for (;;) {
    while (!spin_until(*p, [&] { return p->generation.load(std::memory_order_acquire) != seen; }))
      p->generation.wait(seen, std::memory_order_acquire);
    seen = p->generation.load(std::memory_order_acquire);
    const int active = int(seen & kActiveMask);
    if (index < active) {
      p->run(index, active);
      if (p->running.fetch_sub(1) == 1 && p->sleeping_caller.load()) p->running.notify_one();
    }
  }
}

// The process's pool with at least num_threads threads. Throws std::runtime_error when they cannot be had.
Pool* pool_of(int num_threads) {
  Pool* p = the_pool.load();
  if (p && p->size >= num_threads && p->owner == getpid()) return p;
  const std::lock_guard<std::mutex> lock(making);
  p = the_pool.load();
  if (!p || p->owner != getpid()) the_pool = p = new Pool;  // the parent's threads do not live in a forked child
  const std::lock_guard<std::mutex> region(p->region);
  while (p->size < num_threads) {
    try {
      std::thread(worker, p, p->size.load()).detach();
    } catch (const std::system_error& error) {
      throw std::runtime_error("a pool of " + std::to_string(num_threads) + " compute threads is wanted, but the system gave " +
                               std::to_string(p->size) + " (" + error.what() + "); ask for fewer threads");
    }
    ++p->size;
  }
  p->spin = p->size <= allowed_cores();  // spinning with more threads than cores starves the others
  const double quota = cgroup_quota("/proc/self/cgroup", "/sys/fs/cgroup");
  p->may_yield = quota == 0 || quota >= p->size;  // time that is given away comes out of the quota, too
  return p;
}

}  // namespace

void grow_pool(int num_threads) { pool_of(num_threads); }

PoolTurn::PoolTurn(int num_threads) : pool_(nullptr) {
  if (num_threads <= 1) return;  // the caller alone: nothing is shared
  Pool* p = pool_of(num_threads);
  p->turn.take();
  p->in_turn.store(true, std::memory_order_relaxed);
  pool_ = p;
}

PoolTurn::~PoolTurn() {
  Pool* p = static_cast<Pool*>(pool_);
  if (!p) return;
  p->in_turn.store(false, std::memory_order_relaxed);
  p->turn.give();
}

void parallel(int num_threads, Body body, void* ctx) {
  if (num_threads > int(kActiveMask)) num_threads = int(kActiveMask);
  if (num_threads <= 1) return body(ctx, 0, 1);
  Pool* p = pool_of(num_threads);
  const std::lock_guard<std::mutex> lock(p->region);
  p->body = body;
  p->ctx = ctx;
  p->failure = nullptr;
  p->running.store(num_threads - 1, std::memory_order_relaxed);
  const uint32_t next = (p->generation.load(std::memory_order_relaxed) & ~kActiveMask) + kActiveMask + 1;
  p->generation.store(next | uint32_t(num_threads));
  p->generation.notify_all();
  p->run(0, num_threads);
  if (!spin_until(*p, [&] { return p->running.load(std::memory_order_acquire) == 0; })) {
    p->sleeping_caller.store(true);
    for (int left; (left = p->running.load(std::memory_order_acquire)) != 0;) p->running.wait(left, std::memory_order_acquire);
    p->sleeping_caller.store(false);
  }
  if (p->failure) std::rethrow_exception(p->failure);
}

}  // namespace trivet
