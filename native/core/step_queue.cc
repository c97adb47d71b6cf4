#include "trivet/step_queue.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace trivet {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

StepQueue::StepQueue(Executor& executor, size_t max_tokens) : executor_(executor), jobs_{} {
  token_ids_.resize(max_tokens);
  sampled_ids_.reserve(max_tokens);
  thread_ = std::thread([this] { run(); });
}

StepQueue::~StepQueue() {
  {
    const std::lock_guard<std::mutex> lock(changing_);
    closing_ = true;
  }
  submitted_.notify_one();
  thread_.join();
}

uint64_t StepQueue::submit(const StepInput& in, const StepOutput& out) {
  const uint64_t number = ++num_submitted_;
  num_samples_ = in.num_samples;
  job(number) = Job{in, out, {}, nullptr};
  {
    const std::lock_guard<std::mutex> lock(changing_);
    num_queued_ = number;
  }
  submitted_.notify_one();
  return number;
}

bool StepQueue::wait(uint64_t number, double timeout_s) {
  std::unique_lock<std::mutex> lock(changing_);
  return done_.wait_for(lock, std::chrono::duration<double>(timeout_s), [&] { return num_done_ >= number; });
}

StepTimes StepQueue::collect() {
  const uint64_t number = oldest();
  {
    std::unique_lock<std::mutex> lock(changing_);
    done_.wait(lock, [&] { return num_done_ >= number; });
  }
  num_collected_ = number;
  Job& done = job(number);
  if (done.failure) std::rethrow_exception(std::exchange(done.failure, nullptr));
  return done.times;
}

void StepQueue::run() {
  std::unique_lock<std::mutex> lock(changing_);
  for (uint64_t number = 1;; ++number) {
    if (num_queued_ < number) {  // nothing to begin first
      done_.notify_all();
      submitted_.wait(lock, [&] { return num_queued_ >= number || closing_; });
      if (num_queued_ < number) return;
    }
    lock.unlock();
    compute(job(number));
    lock.lock();
    num_done_ = number;
  }
}

void StepQueue::compute(Job& job) {
  job.times.start_s = now_s();
  try {
    for (size_t i = 0; i < job.in.num_tokens; ++i) {
      const int32_t id = job.in.token_ids[i];
      // A row that could not be sampled is -1: its sequence has failed, and nobody will see what comes of token 0.
      token_ids_[i] = id < 0 ? std::max(sampled_ids_[size_t(-1 - id)], 0) : id;
    }
    job.in.token_ids = token_ids_.data();
    done_.notify_all();  // who waits for the step before is woken once this one has begun: waking may cost the core
    executor_.step(job.in, job.out);
    sampled_ids_.assign(job.out.sampled_ids, job.out.sampled_ids + job.in.num_samples);
  } catch (...) {
    sampled_ids_.assign(job.in.num_samples, 0);
    job.failure = std::current_exception();
  }
  job.times.end_s = now_s();
}

}  // namespace trivet
