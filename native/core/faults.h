// Faults that a build with TRIVET_FAULTS can plant, one for each way in which engines usually break law 1. The
// invariance test must find every one of them; an ordinary build holds none of this.
#pragma once

#ifndef TRIVET_FAULTS
namespace trivet {
inline void count_allocations(bool) {}
}  // namespace trivet
#else
#include <atomic>

#include "trivet/step.h"

namespace trivet {

// Calls of operator new inside steps, by the threads that compute; only this build counts them.
extern std::atomic<size_t> step_allocations;
void count_allocations(bool on);  // of this thread

enum class Fault : int { kNone, kSplitK, kSplitAttention, kFreshKv };
extern Fault planted_fault;

// bf16 products with K split into as many parts as there are threads, added at the end. False: not a bf16 product.
bool faulty_product(const Linear& w, const Rows& x, const Output& out, int threads);

// Attention that reads the keys and values of this step's own tokens before they were quantized. False: not int8.
bool faulty_attention(const LayerWeights& l, const StepInput& in, const uint16_t* qkv, size_t qkv_ld, const uint16_t* q,
                      size_t num_tokens, const int32_t* position, const KvCache& cache, size_t layer, uint16_t* attn,
                      size_t attn_ld);

}  // namespace trivet
#endif
