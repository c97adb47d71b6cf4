// One transformer step for a whole batch: the arrays of engine/step.py, as pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "trivet/kernels.h"
#include "trivet/kv_cache.h"

namespace trivet {

struct LayerWeights {
  size_t num_heads, num_kv_heads, head_dim, ffn_dim;
  float softmax_scale;
  const float *attn_norm, *mlp_norm;
  const float *q_norm = nullptr, *k_norm = nullptr;  // [P], or null
  Linear qkv, o, gate_up, down;
  const float *rope_cos, *rope_sin;  // [max_context][P / 2]
  size_t pp() const { return (head_dim + 31) / 32 * 32; }
};

struct Model {
  size_t dim, vocab_size, max_context;
  float norm_eps;
  Linear embed, head;
  const float* final_norm;
  std::vector<LayerWeights> layers;
};

struct StepInput {
  size_t num_tokens, num_seqs, table_width;
  const int32_t *token_ids, *seq_starts, *context_lens, *block_tables;
  size_t num_samples;
  const int32_t* sample_rows;
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  const uint64_t* seed;
  const int32_t *sample_idx, *bias_starts, *bias_ids;
  const float* bias_values;
  const int32_t* mask_idx;
  const uint32_t* masks;
  const int32_t* num_logprobs;
  size_t num_scores;
  const int32_t *score_rows, *score_ids, *score_num_logprobs;
  size_t num_logits;
  const int32_t* logits_rows;
  size_t num_hidden;
  const int32_t* hidden_rows;
};

struct StepOutput {
  int32_t* sampled_ids;  // [R]
  float* logprobs;
  int32_t* ranks;
  size_t top_width;  // columns of top_ids and top_logprobs
  int32_t* top_ids;
  float* top_logprobs;
  float* score_logprobs;  // [Q]
  int32_t* score_ranks;
  size_t score_top_width;
  int32_t* score_top_ids;
  float* score_top_logprobs;
  float* logits;  // [L, V]
  float* hidden;  // [E, D]
};

// Where the time of steps went, by operation, and what had to be done there.
enum class Operation : int { kEmbed, kPrepare, kQkv, kKv, kAttention, kO, kGateUp, kDown, kHead, kSample, kCount };
constexpr const char* kOperationNames[] = {"embed", "norm and quantize", "qkv product", "rope and KV write", "attention",
                                           "o product", "gate and up product", "down product", "head product", "sample"};
struct Profile {
  bool on = false;
  double seconds[int(Operation::kCount)] = {0};
  uint64_t calls[int(Operation::kCount)] = {0};
  double bytes[int(Operation::kCount)] = {0};       // of weights or KV, each read once
  double operations[int(Operation::kCount)] = {0};  // multiplications and additions
  void count(Operation operation, double more_bytes, double more_operations) {
    if (!on) return;
    bytes[int(operation)] += more_bytes;
    operations[int(operation)] += more_operations;
  }
};

// Owns the scratch memory of steps; sized once, a step allocates nothing.
class Executor {
 public:
  Executor(const Model& model, const KvCache& cache, size_t max_tokens, int num_threads);
  ~Executor();
  // The caller has checked every index (bind_step.cc does). One step at a time.
  void step(const StepInput& in, const StepOutput& out);
  size_t scratch_bytes() const;
  Profile profile;  // counts while `on`

  struct Scratch;

 private:
  const Model& model_;
  const KvCache& cache_;
  int num_threads_;
  std::unique_ptr<Scratch> s_;
};

}  // namespace trivet
