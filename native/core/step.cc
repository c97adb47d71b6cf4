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
#include <chrono>
#include <cstring>

#include "core/attention.h"
#include "core/buffer.h"
#include "core/faults.h"
#include "trivet/sample.h"
#include "trivet/threads.h"

namespace trivet {
namespace {

constexpr size_t kHeadRows = 64;    // rows whose logits are held at once

// The pool's threads are ours: what they compute outside a step does not mind.
void flush_denormals_for_good() { __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); }

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

template <class T>
size_t spread(size_t n) { return spread_bytes(n * sizeof(T)) / sizeof(T); }

size_t operand_stride(const Linear& w) { return spread_bytes(w.kp * (w.kind == LinearKind::kBF16 ? 2 : 1)); }

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
  Buffer<float> x, normed, logits, row_scales, head_x;
  Buffer<uint16_t> qkv, attn, act;  // bf16
  Buffer<uint8_t> operand;  // bf16 or int8 activations of the product under way
  Buffer<uint16_t> q;       // bf16 [K][T * G][Pp]
  Buffer<int32_t> position, seq;
  size_t linear_bytes, sample_bytes;
  Buffer<uint8_t> linear_scratch, sample_scratch;  // one slice a thread
  StepAttention attention;

  Scratch(const Model& m, const KvCache& cache, size_t tokens, int threads)
      : max_tokens(tokens),
        rows(round_up(tokens, 32) + 32),
        normed_ld(round_up(m.dim, 16)),
        x_ld(spread<float>(m.dim)),
        qkv_ld(spread<uint16_t>(most(m, [](const LayerWeights& l) { return l.qkv.n; }))),
        attn_ld(spread<uint16_t>(most(m, [](const LayerWeights& l) { return l.num_heads * l.head_dim; }))),
        act_ld(spread<uint16_t>(most(m, [](const LayerWeights& l) { return l.gate_up.n / 2; }))),
        x(rows * x_ld),
        normed(size_t(threads) * normed_ld),
        logits(kHeadRows * round_up(m.vocab_size, 16)),
        row_scales(rows),
        head_x(kHeadRows * m.dim),
        qkv(rows * qkv_ld),
        attn(rows * attn_ld),
        act(rows * act_ld),
        operand(rows * spread_bytes(most_kp(m) * 2)),
        q((rows * most(m, [](const LayerWeights& l) { return l.num_heads * l.pp(); })) + kQueryTile * kMaxHeadDim),
        position(rows),
        seq(rows),
        linear_bytes(round_up(linear_scratch_bytes(most_kp(m)), 64)),
        sample_bytes(round_up(sample_scratch_bytes(m.vocab_size), 64)),
        linear_scratch(linear_bytes * size_t(threads)),
        sample_scratch(sample_bytes * size_t(threads)),
        attention(m, cache, tokens, threads) {}
};

Executor::Executor(const Model& model, const KvCache& cache, size_t max_tokens, int num_threads)
    : model_(model), cache_(cache), num_threads_(num_threads), s_(new Scratch(model, cache, max_tokens, num_threads)) {
  grow_pool(num_threads);
}
Executor::~Executor() = default;

size_t Executor::scratch_bytes() const {
  const Scratch& s = *s_;
  return s.x.bytes() + s.normed.bytes() + s.qkv.bytes() + s.attn.bytes() + s.act.bytes() + s.logits.bytes() +
         s.row_scales.bytes() + s.head_x.bytes() + s.operand.bytes() + s.q.bytes() + s.position.bytes() + s.seq.bytes() +
         s.linear_scratch.bytes() + s.sample_scratch.bytes() + s.attention.bytes();
}

namespace {

constexpr size_t kRowGrain = 32;  // rows of one block of tiles
constexpr size_t kFewRows = 4;    // of which each operation on rows takes less than a barrier, all but that on every head
bool is_split_by_rows(size_t count, int threads) { return count >= 64 * size_t(threads); }

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
    parallel_rows(count, few, [&](Range range, int t) {
      for (size_t r = range.begin; r < range.end; ++r) f(r, t);
    });
  }
  template <class F>
  void parallel_rows(size_t count, size_t few, F&& f) const {
    if (count <= few) return f(Range{0, count}, 0);
    parallel(threads, [&](int t, int n) { f(share(count, t, n, is_split_by_rows(count, n) ? kRowGrain : 1), t); });
  }

  template <class T>
  static void fetch(const T* row, size_t n) {
    for (size_t i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(row + i);
  }

  // Rows ready for `w`: rounded to bf16 or quantized a row at a time; `row(r, t)` gives row r, f32 or bf16.
  template <class F>
  Rows prepare(size_t count, const Linear& w, F&& row) const {
    timed(Operation::kPrepare, [&] {
      for_rows(count, kFewRows, [&](size_t r, int t) { prepare_row(row(r, t), w, r); });
    });
    return {count, operand_stride(w), s.operand.get(), s.row_scales.get()};
  }
  Rows prepare_normed(const float* x, size_t ld, size_t count, const float* norm_weight, const Linear& w) const {
    return prepare(count, w, [&](size_t r, int t) {
      if (r + 1 < count) fetch(x + (r + 1) * ld, w.k);
      float* normed = s.normed.get() + size_t(t) * s.normed_ld;
      k.rms_norm(x + r * ld, norm_weight, model.norm_eps, w.k, normed);
      return static_cast<const float*>(normed);
    });
  }
  Rows prepare_bf16(const uint16_t* x, size_t ld, const Linear& w) const {
    return prepare(num_tokens, w, [&](size_t r, int) {
      if (r + 1 < num_tokens) fetch(x + (r + 1) * ld, w.k);
      return x + r * ld;
    });
  }
  template <class T>
  T* operand(const Linear& w, size_t r) const { return reinterpret_cast<T*>(s.operand.get() + r * operand_stride(w)); }
  void prepare_row(const float* row, const Linear& w, size_t r) const {
    if (w.kind == LinearKind::kBF16)
      k.to_bf16(row, w.k, w.kp, operand<uint16_t>(w, r));
    else
      k.quantize(row, w.k, w.kp, operand<int8_t>(w, r), s.row_scales.get() + r);
  }
  void prepare_row(const uint16_t* row, const Linear& w, size_t r) const {
    if (w.kind == LinearKind::kBF16) {
      std::memcpy(operand<uint16_t>(w, r), row, w.k * 2);
      std::memset(operand<uint16_t>(w, r) + w.k, 0, (w.kp - w.k) * 2);
    } else {
      k.quantize_bf16(row, w.k, w.kp, operand<int8_t>(w, r), s.row_scales.get() + r);
    }
  }

  void product(Operation operation, const Linear& w, const Rows& x, const Output& out) const {
    profile.count(operation, double(w.bytes()), 2.0 * double(x.num) * double(w.n) * double(w.k));
    timed(operation, [&] { run_panels(w, x, out); });
  }
  // Many rows are split by rows, as everything between two products is: what a thread wrote it reads again, and nothing
  // but weights is read twice. Few rows are split by panels, so that each weight is read once.
  void run_panels(const Linear& w, const Rows& x, const Output& out) const {
#ifdef TRIVET_FAULTS
    if (planted_fault == Fault::kSplitK && faulty_product(w, x, out, threads)) return;
#endif
    parallel(threads, [&](int t, int n) {
      uint8_t* scratch = s.linear_scratch.get() + size_t(t) * s.linear_bytes;
      if (is_split_by_rows(x.num, n)) {
        const Range rows = share(x.num, t, n, kRowGrain);
        if (rows.begin < rows.end)
          k.linear[int(w.kind)](w, x.part(rows.begin, rows.end), 0, w.np / 16, out.from_row(rows.begin), scratch);
        return;
      }
      const Range panels = share(w.np / 16, t, n, 4);
      if (panels.begin < panels.end) k.linear[int(w.kind)](w, x, panels.begin, panels.end, out, scratch);
    });
  }

  // How many rows from r on, at most 16, are tokens in a row of one sequence in one group of 16 slots.
  size_t run_of(size_t r, size_t end) const {
    const int32_t seq = s.seq.get()[r], position = s.position.get()[r];
    size_t n = 1;
    while (r + n < end && n < size_t(16 - position % 16) && s.seq.get()[r + n] == seq) ++n;
    return n;
  }

  // Norms and turns queries and keys, lays the queries out for attention and writes keys and values to their slots.
  // Few rows are split by heads.
  void write_kv(const LayerWeights& l, size_t layer) const {
    const auto write = [&](Range rows, Range kv_heads) {
      for (size_t r = rows.begin; r < rows.end && kv_heads.begin < kv_heads.end;) {
        const size_t n = run_of(r, rows.end);
        if (n == 1 && r + 1 < rows.end) fetch_slots(l, layer, r + 1, kv_heads);
        write_run(l, layer, r, n, kv_heads);
        r += n;
      }
    };
    if (num_tokens <= kFewRows && l.num_kv_heads > 1)
      parallel(threads, [&](int t, int n) { write({0, num_tokens}, share(l.num_kv_heads, t, n)); });
    else
      parallel_rows(num_tokens, kFewRows, [&](Range rows, int) { write(rows, {0, l.num_kv_heads}); });
  }
  uint8_t* block_of(const KvView& view, size_t row) const {
    const int32_t* table = in.block_tables + size_t(s.seq.get()[row]) * in.table_width;
    return view.base + size_t(table[size_t(s.position.get()[row]) / view.block_size]) * view.block_stride;
  }
  // Asks for the lines that a token will be written to: a line has a few numbers of its keys, and some of its values.
  void fetch_slots(const LayerWeights& l, size_t layer, size_t row, Range kv_heads) const {
    const auto fetch = [](const uint8_t* from, size_t bytes) {
      for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b, 1);
    };
    for (size_t h = kv_heads.begin; h < kv_heads.end; ++h) {
      const KvView view = cache.view(layer, h);
      const uint8_t* block = block_of(view, row);
      const size_t slot = size_t(s.position.get()[row]) % view.block_size, token = view.pp * (view.int8 ? 1 : 2);
      const size_t woven = kv_woven(view.int8);
      fetch(block + slot / 16 * 16 * token, 16 * token);
      fetch(block + (view.block_size + slot / woven * woven) * token, woven * token);
      if (view.int8) {
        fetch(block + 2 * view.block_size * token + 4 * slot, 4);
        fetch(block + 2 * view.block_size * token + 4 * (view.block_size + slot), 4);
      }
    }
  }
  void write_run(const LayerWeights& l, size_t layer, size_t first, size_t num, Range of_kv_heads) const {
    const size_t heads = l.num_heads, kv_heads = l.num_kv_heads, p = l.head_dim, pp = l.pp(), group = heads / kv_heads;
    const size_t position = size_t(s.position.get()[first]), block_size = cache.block_size();
    const uint16_t* qkv = s.qkv.get() + first * s.qkv_ld;
    float keys[16 * kMaxHeadDim];
    auto head_of = [&](size_t t, size_t h, const float* norm_weight) {
      const size_t at = (position + t) * (p / 2);
      return HeadTurn{qkv + t * s.qkv_ld + h * p, norm_weight, model.norm_eps, l.rope_cos + at, l.rope_sin + at, p};
    };
    for (size_t h = of_kv_heads.begin * group; h < of_kv_heads.end * group; ++h)
      for (size_t t = 0; t < num; ++t) {
        uint16_t* q = s.q.get() + ((h / group) * num_tokens * group + (first + t) * group + h % group) * pp;
        k.turn_bf16(head_of(t, h, l.q_norm), q);
        std::memset(q + p, 0, (pp - p) * 2);
      }
    for (size_t h = of_kv_heads.begin; h < of_kv_heads.end; ++h) {
      for (size_t t = 0; t < num; ++t) k.turn(head_of(t, heads + h, l.k_norm), keys + t * kMaxHeadDim);
      const KvView view = cache.view(layer, h);
      k.write_kv({block_of(view, first), block_size, p, pp, position % block_size, num, view.int8, keys, kMaxHeadDim,
                  qkv + (heads + kv_heads + h) * p, s.qkv_ld});
    }
  }

  void attention(const LayerWeights& l, size_t layer) const {
#ifdef TRIVET_FAULTS
    if (planted_fault == Fault::kFreshKv && faulty_attention(l, in, s.qkv.get(), s.qkv_ld, s.q.get(), num_tokens, s.position.get(), cache, layer, s.attn.get(), s.attn_ld))
      return;
#endif
    s.attention.layer(k, l, layer, s.q.get(), s.attn.get(), s.attn_ld);
  }

  void embed() const {
    for (size_t q = 0; q < in.num_seqs; ++q)
      for (int32_t r = in.seq_starts[q]; r < in.seq_starts[q + 1]; ++r) {
        s.seq.get()[r] = int32_t(q);
        s.position.get()[r] = in.context_lens[q] - (in.seq_starts[q + 1] - r);
      }
    s.attention.plan(in, s.position.get());
    for_rows(num_tokens, kFewRows, [&](size_t r, int) { embed_row(model.embed, in.token_ids[r], s.x.get() + r * s.x_ld); });
  }

  void layer(const LayerWeights& l, size_t index) const {
    float* x = s.x.get();
    product(Operation::kQkv, l.qkv, prepare_normed(x, s.x_ld, num_tokens, l.attn_norm, l.qkv),
            {Epilogue::kStoreBf16, s.qkv.get(), s.qkv_ld});
    timed(Operation::kKv, [&] { write_kv(l, index); });
    profile.count(Operation::kAttention, s.attention.kv_bytes(l), s.attention.operations(l));
    timed(Operation::kAttention, [&] { attention(l, index); });
    product(Operation::kO, l.o, prepare_bf16(s.attn.get(), s.attn_ld, l.o), {Epilogue::kAdd, x, s.x_ld});
    product(Operation::kGateUp, l.gate_up, prepare_normed(x, s.x_ld, num_tokens, l.mlp_norm, l.gate_up),
            {Epilogue::kSiluMul, s.act.get(), s.act_ld});
    product(Operation::kDown, l.down, prepare_bf16(s.act.get(), s.act_ld, l.down), {Epilogue::kAdd, x, s.x_ld});
  }

  // Calls f(i, thread, logits of rows[i]) for every asked row, a bounded number of logits at a time.
  template <class F>
  void for_logits(const int32_t* rows, size_t count, F&& f) const {
    const size_t vocab = model.vocab_size, ld = round_up(vocab, 16);
    for (size_t begin = 0; begin < count; begin += kHeadRows) {
      const size_t n = std::min(kHeadRows, count - begin);
      for (size_t i = 0; i < n; ++i)
        std::memcpy(s.head_x.get() + i * model.dim, s.x.get() + size_t(rows[begin + i]) * s.x_ld, model.dim * 4);
      product(Operation::kHead, model.head, prepare_normed(s.head_x.get(), model.dim, n, model.final_norm, model.head),
              {Epilogue::kStore, s.logits.get(), ld});
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
    for_rows(in.num_hidden, kFewRows, [&](size_t i, int) {
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
