// One pool of compute threads a process. The caller works as thread 0.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

namespace trivet {

// How many threads there are by default: one for each core behind the affinity mask, as far as the CPU quota of this process's
// cgroups goes (at least 1). Hardware threads of one core share its arithmetic and its misses under way.
int allowed_threads();
int allowed_cores();
// How many cores these CPUs lie on, by the topology that the system shows at `root` (/sys/devices/system/cpu).
int num_cores(const std::vector<int>& cpus, const std::string& root);
// CPUs by the quota of the cgroups named in the file `membership` (as /proc/self/cgroup) and of those above them, in
// the hierarchy mounted at `root`; 0: no quota.
double cgroup_quota(const std::string& membership, const std::string& root);

// A parallel region: runs body(ctx, thread, num_threads) once on each of num_threads threads and waits for all.
// The pool grows to num_threads (at most 1023) on first need; after that nothing is allocated. Regions of several
// callers take turns; a region must not open another. What a body throws is thrown again here, when all are done;
// std::runtime_error when the threads cannot be had.
using Body = void (*)(void* ctx, int thread, int num_threads);
void parallel(int num_threads, Body body, void* ctx);

template <class F>
void parallel(int num_threads, F&& f) {
  parallel(num_threads, +[](void* ctx, int t, int n) { (*static_cast<std::remove_reference_t<F>*>(ctx))(t, n); },
           const_cast<void*>(static_cast<const void*>(&f)));
}

// Makes sure that the pool has at least num_threads threads; never shrinks.
void grow_pool(int num_threads);

// Holds the pool for many regions in a row, where its threads keep state between them (tile shapes during a step).
// Other holders wait; regions of callers that hold no turn still come in between.
class PoolTurn {
 public:
  explicit PoolTurn(int num_threads);
  ~PoolTurn();
  PoolTurn(const PoolTurn&) = delete;
  PoolTurn& operator=(const PoolTurn&) = delete;

 private:
  void* pool_;
};

// The half-open range [begin, end) of thread t when `count` things are shared by n threads in steps of `grain`.
struct Range {
  size_t begin, end;
};
inline Range share(size_t count, int t, int n, size_t grain = 1) {
  const size_t units = (count + grain - 1) / grain;
  const size_t begin = units * size_t(t) / size_t(n) * grain, end = units * size_t(t + 1) / size_t(n) * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace trivet
