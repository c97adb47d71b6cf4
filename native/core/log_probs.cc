// Log probabilities of one row. Plain code on purpose: the same bits in every build, whatever the tier.
#include <cmath>

#include "core/fixed_math.h"
#include "core/logits_row.h"
#include "trivet/sample.h"

namespace trivet {
namespace {

// sum_i e^(x_i - max): 64 values in 16 float lanes, 4096 in 16 double lanes, those added in order.
double sum_of_exp(const float* x, size_t vocab, float max) {
  constexpr size_t kChunksASum = 4096 / kChunk;
  double total = 0;
  float buffer[kChunk];
  for (size_t c = 0; c < num_chunks(vocab); c += kChunksASum) {
    double wide[kLanes] = {};
    for (size_t d = c; d < std::min(c + kChunksASum, num_chunks(vocab)); ++d) {
      const float* v = chunk_values(x, vocab, d, buffer);
      float lanes[kLanes] = {};
      for (size_t i = 0; i < kChunk; i += kLanes)
        for (size_t j = 0; j < kLanes; ++j) lanes[j] += exp_f32(v[i + j] - max);
      for (size_t j = 0; j < kLanes; ++j) wide[j] += static_cast<double>(lanes[j]);
    }
    double part = 0;
    for (size_t j = 0; j < kLanes; ++j) part += wide[j];
    total += part;
  }
  return total;
}

int32_t count_higher(const float* x, size_t vocab, float value) {
  int32_t higher = 0;
  for (size_t i = 0; i < vocab; ++i) higher += x[i] > value;
  return higher;
}

}  // namespace

// scratch: keys 8 * V, then chunk maxima. A row that is not below +inf, or all -inf, gives NaN, rank 0 and ids -1.
void log_probs(const float* logits, size_t vocab, int32_t id, int num_top, float* logprob, int32_t* rank,
               int32_t* top_ids, float* top_logprobs, void* scratch) {
  uint64_t* keys = static_cast<uint64_t*>(scratch);
  float* chunk_max = reinterpret_cast<float*>(keys + vocab);
  const size_t wanted = num_top > 0 ? static_cast<size_t>(num_top) : 0;
  float max;
  const bool good = scan(logits, vocab, chunk_max, &max);
  for (size_t i = 0; i < wanted; ++i) top_ids[i] = -1, top_logprobs[i] = good ? -kInf : NAN;
  *logprob = NAN, *rank = 0;
  if (!good) return;

  const double log_sum = static_cast<double>(max) + log_f64(sum_of_exp(logits, vocab, max));
  *logprob = static_cast<float>(static_cast<double>(logits[id]) - log_sum);
  *rank = 1 + count_higher(logits, vocab, logits[id]);
  const size_t k = std::min(wanted, vocab);
  if (k == 0) return;
  const float least = least_of_top(vocab, chunk_max, k, reinterpret_cast<float*>(keys));
  const size_t n = gather_keys(logits, vocab, chunk_max, least, keys);
  const size_t found = std::min(k, n);
  std::partial_sort(keys, keys + found, keys + n);
  for (size_t i = 0; i < found; ++i) {
    top_ids[i] = static_cast<int32_t>(key_id(keys[i]));
    top_logprobs[i] = static_cast<float>(static_cast<double>(logits[top_ids[i]]) - log_sum);
  }
}

}  // namespace trivet
