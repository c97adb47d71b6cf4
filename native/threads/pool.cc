// A fork-join pool: a generation counter, a bounded spin, then a futex wait. No OpenMP (docs/design/threads.md).
#include "trivet/threads.h"

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace trivet {
namespace {

constexpr int kSpins = 4000;  // about 100 us of `pause`: longer than any gap inside a step, shorter than idle

constexpr uint32_t kActiveMask = 1023;

struct Pool {
  std::mutex region;  // one parallel region at a time
  std::mutex turn;    // one PoolTurn at a time
  // Low 10 bits: threads of this region; the rest counts regions. One word, so that a late thread cannot mix two.
  std::atomic<uint32_t> generation{0};
  std::atomic<int> running{0};
  std::atomic<bool> sleeping_caller{false};
  Body body = nullptr;
  void* ctx = nullptr;
  int size = 1;
  bool spin = true;
  pid_t owner = getpid();
};

Pool* pool = nullptr;
std::mutex pool_mutex;

inline void pause() { __builtin_ia32_pause(); }

template <class Condition>
bool spin_until(bool spin, Condition done) {
  for (int i = 0; spin && i < kSpins; ++i) {
    if (done()) return true;
    pause();
  }
  return done();
}

void worker(Pool* p, int index) {
  uint32_t seen = 0;
  for (;;) {
    while (!spin_until(p->spin, [&] { return p->generation.load(std::memory_order_acquire) != seen; }))
      p->generation.wait(seen, std::memory_order_acquire);
    seen = p->generation.load(std::memory_order_acquire);
    const int active = int(seen & kActiveMask);
    if (index < active) {
      p->body(p->ctx, index, active);
      if (p->running.fetch_sub(1) == 1 && p->sleeping_caller.load()) p->running.notify_one();
    }
  }
}

double cgroup_quota() {  // CPUs; 0 when unlimited or unreadable
  if (FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    char quota[64] = {0};
    double period = 0;
    const int got = std::fscanf(f, "%63s %lf", quota, &period);
    std::fclose(f);
    if (got == 2 && std::strcmp(quota, "max") != 0 && period > 0) return std::atof(quota) / period;
    return 0;
  }
  double values[2] = {0, 0};
  const char* names[2] = {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"};
  for (int i = 0; i < 2; ++i)
    if (FILE* f = std::fopen(names[i], "r")) {
      if (std::fscanf(f, "%lf", &values[i]) != 1) values[i] = 0;
      std::fclose(f);
    }
  return values[0] > 0 && values[1] > 0 ? values[0] / values[1] : 0;
}

int affinity_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return int(std::thread::hardware_concurrency());
  return CPU_COUNT(&set);
}

}  // namespace

int allowed_threads() {
  int n = affinity_count();
  const double quota = cgroup_quota();
  if (quota > 0 && quota < n) n = int(quota + 0.5);  // 1.5 CPUs: 2 threads
  return n < 1 ? 1 : n;
}

void grow_pool(int num_threads) {
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (!pool || pool->owner != getpid()) pool = new Pool;  // the parent's threads do not live in a forked child
  std::lock_guard<std::mutex> region(pool->region);
  while (pool->size < num_threads) std::thread(worker, pool, pool->size++).detach();
  pool->spin = pool->size <= affinity_count();  // spinning with more threads than cores starves the others
}

PoolTurn::PoolTurn(int num_threads) : pool_(nullptr) {
  if (num_threads <= 1) return;  // the caller alone: nothing is shared
  grow_pool(num_threads);
  pool_ = pool;
  pool->turn.lock();
}

PoolTurn::~PoolTurn() {
  if (pool_) static_cast<Pool*>(pool_)->turn.unlock();
}

void parallel(int num_threads, Body body, void* ctx) {
  if (num_threads > int(kActiveMask)) num_threads = int(kActiveMask);
  if (num_threads <= 1) return body(ctx, 0, 1);
  if (!pool || pool->owner != getpid() || pool->size < num_threads) grow_pool(num_threads);
  Pool* p = pool;
  std::lock_guard<std::mutex> lock(p->region);
  p->body = body;
  p->ctx = ctx;
  p->running.store(num_threads - 1, std::memory_order_relaxed);
  const uint32_t next = (p->generation.load(std::memory_order_relaxed) & ~kActiveMask) + kActiveMask + 1;
  p->generation.store(next | uint32_t(num_threads));
  p->generation.notify_all();
  body(ctx, 0, num_threads);
  if (spin_until(p->spin, [&] { return p->running.load(std::memory_order_acquire) == 0; })) return;
  p->sleeping_caller.store(true);
  for (int left; (left = p->running.load(std::memory_order_acquire)) != 0;) p->running.wait(left, std::memory_order_acquire);
  p->sleeping_caller.store(false);
}

}  // namespace trivet
