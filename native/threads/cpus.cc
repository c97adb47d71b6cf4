// How many CPUs this process may use: the affinity mask, the cores behind it, and the CPU quota of its cgroup and of every
// cgroup above it.
#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "trivet/threads.h"

namespace trivet {
namespace {

// The first number of the file, or `otherwise` when there is none (no such file, or "max").
double number_in(const std::string& path, double otherwise, double* second = nullptr) {
  FILE* f = std::fopen(path.c_str(), "r");
  if (!f) return otherwise;
  char word[64] = {0};
  const int got = std::fscanf(f, "%63s", word);
  if (got == 1 && second && std::fscanf(f, "%lf", second) != 1) *second = 0;
  std::fclose(f);
  return got == 1 && (word[0] == '-' || (word[0] >= '0' && word[0] <= '9')) ? std::atof(word) : otherwise;
}

double quota_v2(const std::string& folder) {
  double period = 0;
  const double quota = number_in(folder + "/cpu.max", 0, &period);
  return quota > 0 && period > 0 ? quota / period : 0;
}

double quota_v1(const std::string& folder) {
  const double quota = number_in(folder + "/cpu.cfs_quota_us", 0), period = number_in(folder + "/cpu.cfs_period_us", 0);
  return quota > 0 && period > 0 ? quota / period : 0;
}

// The smallest quota of the cgroup `path` below `root` and of those above it; 0: none.
double smallest(const std::string& root, std::string path, double (*quota_of)(const std::string&)) {
  double least = 0;
  for (;;) {
    const double quota = quota_of(root + path);
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
    if (path.empty()) return least;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace

double cgroup_quota(const std::string& membership, const std::string& root) {
  FILE* f = std::fopen(membership.c_str(), "r");
  double least = 0;
  auto take = [&](double quota) {
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
  };
  char line[4096];
  while (f && std::fgets(line, sizeof line, f)) {  // "0::/path" (v2) or "4:cpu,cpuacct:/path" (v1)
    line[std::strcspn(line, "\n")] = 0;
    char* controllers = std::strchr(line, ':');
    char* path = controllers ? std::strchr(controllers + 1, ':') : nullptr;
    if (!path) continue;
    *path++ = 0;
    const std::string at = std::strcmp(path, "/") == 0 ? "" : path, names = std::string(",") + (controllers + 1) + ",";
    if (names == ",,") take(smallest(root, at, quota_v2));
    if (names.find(",cpu,") != std::string::npos) take(smallest(root + "/cpu", at, quota_v1));
  }
  if (f) std::fclose(f);
  take(quota_v2(root));  // in a container the path above may be one of the host
  take(quota_v1(root + "/cpu"));
  return least;
}

namespace {

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  for (size_t room = 1024; room <= 1 << 20 && cpus.empty(); room *= 2) {  // the mask of a large machine is longer
    cpu_set_t* set = CPU_ALLOC(room);
    const size_t bytes = CPU_ALLOC_SIZE(room);
    if (set && sched_getaffinity(0, bytes, set) == 0)
      for (size_t cpu = 0; cpu < room; ++cpu)
        if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(int(cpu));
    CPU_FREE(set);
  }
  return cpus;
}

}  // namespace

int num_cores(const std::vector<int>& cpus, const std::string& root) {
  constexpr ptrdiff_t kMostThreads = 4;     // of a core; a list of more is a made-up topology of a virtual machine
  std::map<std::string, ptrdiff_t> siblings;  // CPUs by what those of a core have in common
  for (const int cpu : cpus) {
    const std::string folder = root + "/cpu" + std::to_string(cpu);
    FILE* f = std::fopen((folder + "/topology/thread_siblings_list").c_str(), "r");
    char line[256];
    ++siblings[f && std::fgets(line, sizeof line, f) ? line : folder];  // not known: a core of its own
    if (f) std::fclose(f);
  }
  ptrdiff_t cores = 0;
  for (const auto& [list, num] : siblings) cores += num > kMostThreads ? num : 1;
  return int(cores);
}

int allowed_cores() {
  const int cores = num_cores(allowed_cpus(), "/sys/devices/system/cpu");
  return cores ? cores : int(std::thread::hardware_concurrency());
}

int allowed_threads() {
  int n = allowed_cores();
  const double quota = cgroup_quota("/proc/self/cgroup", "/sys/fs/cgroup");
  if (quota > 0 && quota < n) n = int(quota + 0.5);  // 1.5 CPUs: 2 threads
  return n < 1 ? 1 : n;
}

}  // namespace trivet
