// Measures memory bandwidth and arithmetic peaks with the pool's own threads.
#include "trivet/measure.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>
#include <vector>

#include "kernels/peaks.h"
#include "trivet/cpu.h"
#include "trivet/threads.h"

namespace trivet {
namespace {

constexpr int kRuns = 5;
std::atomic<uint64_t> sink;  // what was read or computed goes here, so that no loop can be left out

double clock_s(clockid_t id) {
  timespec t;
  clock_gettime(id, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
double seconds() { return clock_s(CLOCK_MONOTONIC); }

PeakLoops loops_of(const std::string& isa) {
  return isa == "amx"           ? amx_peaks()
         : isa == "avx512_bf16" ? avx512_bf16_peaks()
         : isa == "avx512"      ? avx512_peaks()
         : isa == "avx2"        ? avx2_peaks()
                                : baseline_peaks();
}

bool available(const std::string& tier) {
  const std::vector<std::string> tiers = available_isas();
  return std::find(tiers.begin(), tiers.end(), tier) != tiers.end();
}

// Seconds to read every thread's share once, split in num_streams streams.
double read_once(const uint8_t* data, size_t share_bytes, size_t num_streams, int num_threads) {
  const auto read = loops_of(available_isas().back()).read;
  const double begin = seconds();
  parallel(num_threads, [&](int t, int) {
    sink ^= read(data + static_cast<size_t>(t) * share_bytes, share_bytes / num_streams, num_streams);
  });
  return seconds() - begin;
}

}  // namespace

bool measure_bandwidth(size_t num_bytes, int num_threads, Bandwidth* out) {
  constexpr size_t kGrain = 4096;
  const PoolTurn turn(num_threads);
  const size_t share_bytes = std::max(num_bytes / static_cast<size_t>(num_threads) / kGrain, size_t{1}) * kGrain;
  const size_t total = share_bytes * static_cast<size_t>(num_threads);
  void* memory = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return false;
  madvise(memory, total, MADV_HUGEPAGE);  // refused where the system has none: then the figure is that of small pages
  auto* data = static_cast<uint8_t*>(memory);
  parallel(num_threads, [&](int t, int) {  // written, or every page would be the one page of zeros
    std::memset(data + static_cast<size_t>(t) * share_bytes, t + 1, share_bytes);
  });
  *out = {};
  for (int pattern = 0; pattern < 3; ++pattern) {
    double least = read_once(data, share_bytes, size_t{1} << pattern, num_threads);
    for (int run = 1; run < kRuns; ++run)
      least = std::min(least, read_once(data, share_bytes, size_t{1} << pattern, num_threads));
    out->by_streams[pattern] = static_cast<double>(total) / least;
    out->best = std::max(out->best, out->by_streams[pattern]);
  }
  munmap(memory, total);
  return true;
}

double measure_peak(PeakKind kind, const std::string& isa, int num_threads) {
  if (!available(isa)) return 0;
  const PoolTurn turn(num_threads);  // the loops end with tiles released, which a step must not see
  const PeakLoops loops = loops_of(isa);
  const auto loop = kind == PeakKind::kInt8 ? loops.int8 : loops.bf16;
  struct alignas(64) Scratch {
    uint8_t bytes[kPeakScratch];
    double operations;
  };
  std::vector<Scratch> scratch(static_cast<size_t>(num_threads));
  const auto run = [&](size_t rounds) {
    const double begin = seconds();
    parallel(num_threads, [&](int t, int) {
      Scratch& mine = scratch[static_cast<size_t>(t)];
      std::memset(mine.bytes, 0x3F, kPeakScratch);  // 63 as int8, 0.747 as bf16 and as float: no denormals
      mine.operations = loop(rounds, mine.bytes);
      sink ^= mine.bytes[0];
    });
    const double elapsed = seconds() - begin;
    double operations = 0;
    for (const Scratch& s : scratch) operations += s.operations;
    return operations / elapsed;
  };
  size_t rounds = 16;
  for (double used_s = 0; used_s < 0.008; rounds *= 2) {  // warms up too; on a busy machine only processor time counts
    const double begin = clock_s(CLOCK_THREAD_CPUTIME_ID);
    run(rounds);
    used_s = clock_s(CLOCK_THREAD_CPUTIME_ID) - begin;
  }
  double best = 0;
  for (int i = 0; i < kRuns; ++i) best = std::max(best, run(rounds));
  return best;
}

}  // namespace trivet
