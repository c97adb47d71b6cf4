// Steps under way: run one after the other on a thread of its own, so that the next begins the moment the last has
// ended, whatever the caller is doing.
#pragma once

#include <unistd.h>

#include <array>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "trivet/step.h"

namespace trivet {

// Seconds of the monotonic clock.
struct StepTimes {
  double start_s, end_s;
};

class StepQueue {
 public:
  static constexpr size_t kDepth = 2;  // steps that may be under way

  StepQueue(Executor& executor, size_t max_tokens);
  ~StepQueue();  // ends the thread when what was submitted is done
  StepQueue(const StepQueue&) = delete;
  StepQueue& operator=(const StepQueue&) = delete;

  // False in a child that was forked: the thread stayed with the parent, and the queue can only be leaked.
  bool is_ours() const { return owner_ == getpid(); }
  uint64_t oldest() const { return num_collected_ + 1; }  // the number of the step that `collect` waits for
  uint64_t next() const { return num_submitted_ + 1; }    // the number that `submit` will give
  size_t num_under_way() const { return size_t(num_submitted_ - num_collected_); }
  // How many sampled rows the step submitted last has.
  size_t num_samples() const { return num_samples_; }

  // Queues a step; the arrays must live until it is collected. A token id -1 - r stands for what row r of the step
  // submitted before it samples. The caller has checked that there is room. Returns the step's number, from 1.
  uint64_t submit(const StepInput& in, const StepOutput& out);
  // Whether the step is done within timeout_s seconds.
  bool wait(uint64_t number, double timeout_s);
  // Waits for the oldest step under way; throws what the step threw.
  StepTimes collect();

 private:
  struct Job {
    StepInput in;
    StepOutput out;
    StepTimes times;
    std::exception_ptr failure;
  };
  Job& job(uint64_t number) { return jobs_[number % kDepth]; }
  void run();
  void compute(Job& job);

  Executor& executor_;
  std::array<Job, kDepth> jobs_;
  std::vector<int32_t> token_ids_, sampled_ids_;  // of the step that runs, and of the one before it
  size_t num_samples_ = 0;
  uint64_t num_submitted_ = 0, num_collected_ = 0;  // the caller's
  std::mutex changing_;
  std::condition_variable submitted_, done_;
  uint64_t num_queued_ = 0, num_done_ = 0;  // under `changing_`
  bool closing_ = false;                    // under `changing_`
  const pid_t owner_ = getpid();
  std::thread thread_;
};

}  // namespace trivet
