// The transformer step, in the order of the model's equations. Rows are the step's tokens, whatever sequence they are of.
//
//   x = embed[token]
//   for each layer:  x += o(attention(rope(norm(qkv(rms(x))))));  x += down(silu(gate(rms(x))) * up(rms(x)))
//   for each row that asks: logits = head(rms(x)); sample
//
// Law 1: nothing below depends on how many rows or threads there are, except who computes what. Work is split over
// outputs (panels of 16), rows, or attention items; a sum is never split by the number of threads.
#include "trivet/step.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/faults.h"
#include "trivet/sample.h"
#include "trivet/threads.h"

namespace trivet {
namespace {

constexpr size_t kHeadRows = 64;    // rows whose logits are held at once

// Memory whose pages are touched when first used.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : bytes_((count * sizeof(T) + 4159) / 64 * 64) {
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes_));
    if (!data_) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_), 0, std::min<size_t>(bytes_, 4096));
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  T* data_;
};

// The pool's threads are ours: what they compute outside a step does not mind.
void flush_denormals_for_good() { __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); }

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// A row length in floats that is not a multiple of 4 KiB: else the same column of all rows would share few cache sets.
size_t spread(size_t n) { return round_up(n, 16) + (round_up(n, 16) % 32 == 0 ? 16 : 32); }

// The largest of f(layer) over the layers.
template <class F>
size_t most(const Model& m, F f) {
  size_t n = 0;
  for (const LayerWeights& l : m.layers) n = std::max(n, f(l));
  return n;
}

size_t most_kp(const Model& m) {
  return std::max({most(m, [](const LayerWeights& l) { return std::max({l.qkv.kp, l.o.kp, l.gate_up.kp, l.down.kp}); }),
                   m.head.kp, m.embed.kp});
}

void embed_row(const Linear& w, int32_t token, float* x) {
  const uint8_t* panel = w.codes + size_t(token) / 16 * w.panel_bytes();
  const size_t c = size_t(token) % 16;
  if (w.kind == LinearKind::kBF16) {
    const uint16_t* codes = reinterpret_cast<const uint16_t*>(panel);
    for (size_t k = 0; k < w.k; ++k) {
      const uint32_t bits = uint32_t(codes[k / 2 * 32 + c * 2 + k % 2]) << 16;
      std::memcpy(x + k, &bits, 4);
    }
  } else {
    const int8_t* codes = reinterpret_cast<const int8_t*>(panel);
    for (size_t k = 0; k < w.k; ++k) x[k] = float(codes[k / 4 * 64 + c * 4 + k % 4]) * w.scales[token];
  }
}

}  // namespace

struct Executor::Scratch {
  size_t max_tokens, rows;  // rows: max_tokens rounded up to tiles, plus one tile that may be read past the end
  size_t normed_ld, x_ld, qkv_ld, attn_ld, act_ld;
  Buffer<float> x, normed, qkv, attn, act, logits, row_scales, head_x;
  Buffer<uint8_t> operand;  // bf16 or int8 activations of the product under way
  Buffer<uint16_t> q;       // bf16 [K][T * G][Pp]
  Buffer<int32_t> position, seq;
  size_t linear_bytes, attend_bytes, partial_floats, sample_bytes;
  Buffer<uint8_t> linear_scratch, attend_scratch, sample_scratch;  // one slice a thread
  Buffer<float> partial;

  Scratch(const Model& m, size_t tokens, int threads)
      : max_tokens(tokens),
        rows(round_up(tokens, 32) + 32),
        normed_ld(round_up(m.dim, 16)),
        x_ld(spread(m.dim)),
        qkv_ld(spread(most(m, [](const LayerWeights& l) { return l.qkv.n; }))),
        attn_ld(spread(most(m, [](const LayerWeights& l) { return l.num_heads * l.head_dim; }))),
        act_ld(spread(most(m, [](const LayerWeights& l) { return l.gate_up.n / 2; }))),
        x(rows * x_ld),
        normed(size_t(threads) * normed_ld),
        qkv(rows * qkv_ld),
        attn(rows * attn_ld),
        act(rows * act_ld),
        logits(kHeadRows * round_up(m.vocab_size, 16)),
        row_scales(rows),
        head_x(kHeadRows * m.dim),
        operand(rows * most_kp(m) * 2),
        q((rows * most(m, [](const LayerWeights& l) { return l.num_heads * l.pp(); })) + 16 * 256),
        position(rows),
        seq(rows),
        linear_bytes(round_up(linear_scratch_bytes(most_kp(m)), 64)),
        attend_bytes(round_up(attend_scratch_bytes(most(m, [](const LayerWeights& l) { return l.pp(); })), 64)),
        partial_floats(2 * kQueryTile * (most(m, [](const LayerWeights& l) { return l.pp(); }) + 32)),
        sample_bytes(round_up(sample_scratch_bytes(m.vocab_size), 64)),
        linear_scratch(linear_bytes * size_t(threads)),
        attend_scratch(attend_bytes * size_t(threads)),
        sample_scratch(sample_bytes * size_t(threads)),
        partial(partial_floats * size_t(threads)) {}
};

Executor::Executor(const Model& model, const KvCache& cache, size_t max_tokens, int num_threads)
    : model_(model), cache_(cache), num_threads_(num_threads), s_(new Scratch(model, max_tokens, num_threads)) {
  grow_pool(num_threads);
}
Executor::~Executor() = default;

size_t Executor::scratch_bytes() const {
  const Scratch& s = *s_;
  return s.x.bytes() + s.normed.bytes() + s.qkv.bytes() + s.attn.bytes() + s.act.bytes() + s.logits.bytes() +
         s.row_scales.bytes() + s.head_x.bytes() + s.operand.bytes() + s.q.bytes() + s.position.bytes() + s.seq.bytes() +
         s.linear_scratch.bytes() + s.attend_scratch.bytes() + s.sample_scratch.bytes() + s.partial.bytes();
}

namespace {

// One step's view of everything; the members below are the operations of the equations.
struct Step {
  const Model& model;
  const KvCache& cache;
  const Kernels& k;
  Executor::Scratch& s;
  int threads;
  Profile& profile;
  const StepInput& in;
  size_t num_tokens;

  // Runs f and, when asked to, counts its time.
  template <class F>
  auto timed(Operation operation, F&& f) const {
    struct Timer {
      Profile& profile;
      int at;
      std::chrono::steady_clock::time_point begin;
      ~Timer() {
        if (!profile.on) return;
        profile.seconds[at] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        ++profile.calls[at];
      }
    };
    const Timer timer{profile, int(operation), profile.on ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point()};
    return f();
  }

  // Splits `count` rows over the threads; few rows stay on the caller, where a barrier would cost more than they do.
  template <class F>
  void for_rows(size_t count, size_t few, F&& f) const {
    if (count <= few) {
      for (size_t r = 0; r < count; ++r) f(r, 0);
      return;
    }
    parallel(threads, [&](int t, int n) {
      const Range range = share(count, t, n);
      for (size_t r = range.begin; r < range.end; ++r) f(r, t);
    });
  }

  // Rows ready for `w`: normed (weight may be null), then rounded to bf16 or quantized a row at a time.
  Rows prepare(const float* x, size_t ld, size_t count, const float* norm_weight, const Linear& w) const {
    timed(Operation::kPrepare, [&] { prepare_rows(x, ld, count, norm_weight, w); });
    return {count, w.kp, s.operand.get(), s.row_scales.get()};
  }
  void prepare_rows(const float* x, size_t ld, size_t count, const float* norm_weight, const Linear& w) const {
    for_rows(count, 4, [&](size_t r, int t) {
      const float* row = x + r * ld;
      if (norm_weight) {
        float* normed = s.normed.get() + size_t(t) * s.normed_ld;
        k.rms_norm(row, norm_weight, model.norm_eps, w.k, normed);
        row = normed;
      }
      if (w.kind == LinearKind::kBF16)
        k.to_bf16(row, w.k, w.kp, reinterpret_cast<uint16_t*>(s.operand.get()) + r * w.kp);
      else
        k.quantize(row, w.k, w.kp, reinterpret_cast<int8_t*>(s.operand.get()) + r * w.kp, s.row_scales.get() + r);
    });
  }

  void product(Operation operation, const Linear& w, const Rows& x, Epilogue epilogue, float* out, size_t ld) const {
    timed(operation, [&] { run_panels(w, x, epilogue, out, ld); });
  }
  void run_panels(const Linear& w, const Rows& x, Epilogue epilogue, float* out, size_t ld) const {
#ifdef TRIVET_FAULTS
    if (planted_fault == Fault::kSplitK && faulty_product(w, x, epilogue, out, ld, threads)) return;
#endif
    parallel(threads, [&](int t, int n) {
      const Range panels = share(w.np / 16, t, n, 4);
      if (panels.begin < panels.end)
        k.linear[int(w.kind)](w, x, panels.begin, panels.end, epilogue, out, ld,
                              s.linear_scratch.get() + size_t(t) * s.linear_bytes);
    });
  }

  // Norms and turns queries and keys, writes keys and values to their slots, and lays the queries out for attention.
  void write_kv(const LayerWeights& l, size_t layer) const {
    const size_t heads = l.num_heads, kv_heads = l.num_kv_heads, p = l.head_dim, pp = l.pp(), group = heads / kv_heads;
    for_rows(num_tokens, 4, [&](size_t r, int) {
      const float* row = s.qkv.get() + r * s.qkv_ld;
      const size_t position = size_t(s.position.get()[r]);
      const float *cos = l.rope_cos + position * (p / 2), *sin = l.rope_sin + position * (p / 2);
      float head[kMaxHeadDim];
      auto norm_and_turn = [&](const float* x, const float* weight) {
        if (weight)
          k.rms_norm(x, weight, model.norm_eps, p, head);
        else
          std::memcpy(head, x, p * sizeof(float));
        k.rope(head, cos, sin, p);
      };
      for (size_t h = 0; h < heads; ++h) {
        norm_and_turn(row + h * p, l.q_norm);
        k.to_bf16(head, p, pp, s.q.get() + ((h / group) * num_tokens * group + r * group + h % group) * pp);
      }
      const int32_t* table = in.block_tables + size_t(s.seq.get()[r]) * in.table_width;
      const int64_t slot = int64_t(table[position / cache.block_size()]) * int64_t(cache.block_size()) +
                           int64_t(position % cache.block_size());
      for (size_t h = 0; h < kv_heads; ++h) {
        norm_and_turn(row + (heads + h) * p, l.k_norm);
        cache.write(k, layer, h, slot, head, row + (heads + kv_heads + h) * p);
      }
    });
  }

  // Attention of up to 16 (token, head of the group) rows of one sequence and one key/value head, into s.attn.
  void attend_tile(const LayerWeights& l, size_t layer, size_t seq, size_t kv_head, size_t first, int t) const {
    const size_t group = l.num_heads / l.num_kv_heads, pp = l.pp(), p = l.head_dim;
    const size_t begin = size_t(in.seq_starts[seq]) * group, end = size_t(in.seq_starts[seq + 1]) * group;
    const size_t row0 = begin + first, rows = std::min(kQueryTile, end - row0);
    int32_t position[kQueryTile];
    for (size_t r = 0; r < rows; ++r) position[r] = s.position.get()[(row0 + r) / group];
    float* out = s.partial.get() + size_t(t) * s.partial_floats;
    float *row_max = out + kQueryTile * pp, *row_sum = row_max + 16;
    float *out2 = row_sum + 16, *max2 = out2 + kQueryTile * pp, *sum2 = max2 + 16;
    const size_t num_keys = size_t(position[rows - 1]) + 1;
    AttendItem item{s.q.get() + (kv_head * num_tokens * group + row0) * pp,
                    rows,
                    position,
                    in.block_tables + seq * in.table_width,
                    cache.view(layer, kv_head),
                    l.softmax_scale,
                    0,
                    0};
    size_t segment = kKeySegment;
#ifdef TRIVET_FAULTS
    if (planted_fault == Fault::kSplitAttention && in.num_seqs > 1) segment = kKeyStep;
#endif
    uint8_t* scratch = s.attend_scratch.get() + size_t(t) * s.attend_bytes;
    for (size_t key = 0; key < num_keys; key += segment) {
      item.key_begin = key;
      item.key_end = std::min(key + segment, num_keys);
      if (key == 0) {
        k.attend(item, out, row_max, row_sum, scratch);
      } else {
        k.attend(item, out2, max2, sum2, scratch);
        k.merge(rows, pp, out, row_max, row_sum, out2, max2, sum2);
      }
    }
    for (size_t r = 0; r < rows; ++r) {
      const size_t token = (row0 + r) / group, head = kv_head * group + (row0 + r) % group;
      k.divide(out + r * pp, row_sum[r], p, s.attn.get() + token * s.attn_ld + head * p);
    }
  }

  // Items are handed out one by one: sequence by sequence, head by head (its keys and values stay in L2), the last
  // and longest tiles first.
  void attention(const LayerWeights& l, size_t layer) const {
#ifdef TRIVET_FAULTS
    if (planted_fault == Fault::kFreshKv && faulty_attention(l, in, s.qkv.get(), s.qkv_ld, s.q.get(), num_tokens, s.position.get(), cache, layer, s.attn.get(), s.attn_ld))
      return;
#endif
    const size_t group = l.num_heads / l.num_kv_heads;
    std::atomic<size_t> next{0};
    parallel(threads, [&](int t, int) {
      size_t item = next.fetch_add(1), first_of_seq = 0;
      for (size_t seq = 0; seq < in.num_seqs; ++seq) {
        const size_t rows = size_t(in.seq_starts[seq + 1] - in.seq_starts[seq]) * group;
        const size_t tiles = (rows + kQueryTile - 1) / kQueryTile, items = tiles * l.num_kv_heads;
        for (; item < first_of_seq + items; item = next.fetch_add(1)) {
          const size_t i = item - first_of_seq;
          attend_tile(l, layer, seq, i / tiles, (tiles - 1 - i % tiles) * kQueryTile, t);
        }
        first_of_seq += items;
      }
    });
  }

  void embed() const {
    for (size_t q = 0; q < in.num_seqs; ++q)
      for (int32_t r = in.seq_starts[q]; r < in.seq_starts[q + 1]; ++r) {
        s.seq.get()[r] = int32_t(q);
        s.position.get()[r] = in.context_lens[q] - (in.seq_starts[q + 1] - r);
      }
    for_rows(num_tokens, 4, [&](size_t r, int) { embed_row(model.embed, in.token_ids[r], s.x.get() + r * s.x_ld); });
  }

  void layer(const LayerWeights& l, size_t index) const {
    float* x = s.x.get();
    product(Operation::kQkv, l.qkv, prepare(x, s.x_ld, num_tokens, l.attn_norm, l.qkv), Epilogue::kStore, s.qkv.get(), s.qkv_ld);
    timed(Operation::kKv, [&] { write_kv(l, index); });
    timed(Operation::kAttention, [&] { attention(l, index); });
    product(Operation::kO, l.o, prepare(s.attn.get(), s.attn_ld, num_tokens, nullptr, l.o), Epilogue::kAdd, x, s.x_ld);
    product(Operation::kGateUp, l.gate_up, prepare(x, s.x_ld, num_tokens, l.mlp_norm, l.gate_up), Epilogue::kSiluMul, s.act.get(), s.act_ld);
    product(Operation::kDown, l.down, prepare(s.act.get(), s.act_ld, num_tokens, nullptr, l.down), Epilogue::kAdd, x, s.x_ld);
  }

  // Calls f(i, thread, logits of rows[i]) for every asked row, a bounded number of logits at a time.
  template <class F>
  void for_logits(const int32_t* rows, size_t count, F&& f) const {
    const size_t vocab = model.vocab_size, ld = round_up(vocab, 16);
    for (size_t begin = 0; begin < count; begin += kHeadRows) {
      const size_t n = std::min(kHeadRows, count - begin);
      for (size_t i = 0; i < n; ++i)
        std::memcpy(s.head_x.get() + i * model.dim, s.x.get() + size_t(rows[begin + i]) * s.x_ld, model.dim * 4);
      product(Operation::kHead, model.head, prepare(s.head_x.get(), model.dim, n, model.final_norm, model.head), Epilogue::kStore,
              s.logits.get(), ld);
      timed(Operation::kSample, [&] { for_rows(n, 1, [&](size_t i, int t) { f(begin + i, t, s.logits.get() + i * ld); }); });
    }
  }

  void outputs(const StepOutput& out) const {
    const size_t vocab = model.vocab_size;
    auto scratch = [&](int t) { return s.sample_scratch.get() + size_t(t) * s.sample_bytes; };
    for_logits(in.sample_rows, in.num_samples, [&](size_t i, int t, const float* logits) {
      SampleSpec spec;
      spec.temperature = in.temperature[i];
      spec.top_k = in.top_k[i];
      spec.top_p = in.top_p[i];
      spec.min_p = in.min_p[i];
      spec.seed = in.seed[i];
      spec.sample_idx = in.sample_idx[i];
      spec.position = s.position.get()[in.sample_rows[i]] + 1;
      spec.bias_ids = in.bias_ids + in.bias_starts[i];
      spec.bias_values = in.bias_values + in.bias_starts[i];
      spec.num_bias = size_t(in.bias_starts[i + 1] - in.bias_starts[i]);
      spec.mask = in.mask_idx[i] < 0 ? nullptr : in.masks + size_t(in.mask_idx[i]) * ((vocab + 31) / 32);
      out.sampled_ids[i] = sample(logits, vocab, spec, scratch(t));
      if (in.num_logprobs[i] >= 0 && out.sampled_ids[i] >= 0)
        log_probs(logits, vocab, out.sampled_ids[i], in.num_logprobs[i], out.logprobs + i, out.ranks + i,
                  out.top_ids + i * out.top_width, out.top_logprobs + i * out.top_width, scratch(t));
    });
    for_logits(in.score_rows, in.num_scores, [&](size_t i, int t, const float* logits) {
      log_probs(logits, vocab, in.score_ids[i], in.score_num_logprobs[i], out.score_logprobs + i, out.score_ranks + i,
                out.score_top_ids + i * out.score_top_width, out.score_top_logprobs + i * out.score_top_width, scratch(t));
    });
    for_logits(in.logits_rows, in.num_logits,
               [&](size_t i, int, const float* logits) { std::memcpy(out.logits + i * vocab, logits, vocab * 4); });
    for_rows(in.num_hidden, 4, [&](size_t i, int) {
      k.rms_norm(s.x.get() + size_t(in.hidden_rows[i]) * s.x_ld, model.final_norm, model.norm_eps, model.dim,
                 out.hidden + i * model.dim);
    });
  }
};

}  // namespace

void Executor::step(const StepInput& in, const StepOutput& out) {
  // Engines of one process share the pool, and tile shapes belong to its threads for a whole step: steps take turns.
  const PoolTurn turn(num_threads_);
  const Step step{model_, cache_, kernels(), *s_, num_threads_, profile, in, in.num_tokens};
  const FlushDenormals flush;
  parallel(num_threads_, [](int t, int) {
    if (t > 0) flush_denormals_for_good();
    count_allocations(true);
    tiles_begin();
  });
  step.timed(Operation::kEmbed, [&] { step.embed(); });
  for (size_t i = 0; i < model_.layers.size(); ++i) step.layer(model_.layers[i], i);
  step.outputs(out);
  parallel(num_threads_, [](int, int) {
    tiles_end();
    count_allocations(false);
  });
}

}  // namespace trivet
