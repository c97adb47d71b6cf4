// Sampling and log probabilities of one row of logits. Deterministic: a row's result depends on that row alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trivet {

struct SampleSpec {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: all
  float top_p = 1, min_p = 0;
  uint64_t seed = 0;
  int sample_idx = 0;
  int64_t position = 0;            // of the token that is drawn, from the prompt's start
  const int32_t* bias_ids = nullptr;
  const float* bias_values = nullptr;
  size_t num_bias = 0;
  const uint32_t* mask = nullptr;  // bit (id & 31) of word (id >> 5); null: every token is allowed
};

// The token drawn from logits [vocab] (which is left as it was), or -1 when a logit is NaN, +inf, or none is allowed.
//
// Order: bias added, mask applied, divided by temperature, top-k, then top-p, then min-p (of the most likely one
// left), then Gumbel-max over what is left: argmax(logit / temperature + g(seed, sample_idx, position, id)), ties to
// the lower id. g comes from a counter-based generator, so a token's noise does not depend on who else is a candidate.
// (logit - max) / temperature is what is computed, so that no temperature overflows. Bias ids must be below vocab.
// scratch: room for 2 * vocab values of 8 bytes. Runs on the calling thread.
int32_t sample(const float* logits, size_t vocab, const SampleSpec& spec, void* scratch);
inline size_t sample_scratch_bytes(size_t vocab) { return 16 * vocab; }

// log_softmax(logits)[id], its rank (1 + how many are higher), and the num_top most likely (ties to the lower id).
// Past the last token with a finite logit: id -1, -inf. A row with NaN or +inf, or none finite: NaN, rank 0, ids -1.
// Sums run in a fixed order (chunks of 4096, 16 lanes each), whatever the thread count.
void log_probs(const float* logits, size_t vocab, int32_t id, int num_top, float* logprob, int32_t* rank,
               int32_t* top_ids, float* top_logprobs, void* scratch);

}  // namespace trivet
