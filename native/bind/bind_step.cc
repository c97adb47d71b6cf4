// Model, KvCache and Executor: checks every shape and index with the GIL held, then computes without it.
#include <nanobind/stl/pair.h>

#include <array>
#include <memory>
#include <tuple>
#include <utility>

#include "bind/arrays.h"
#include "trivet/cpu.h"
#include "trivet/step_queue.h"
#include "trivet/threads.h"

#ifdef TRIVET_FAULTS
#include "core/faults.h"
#endif

namespace {

using namespace trivet;

using I32 = Array<const int32_t, 1>;
using F32 = Array<const float, 1>;

template <class T>
T field(const nb::dict& d, const char* key, const std::string& where) {
  if (!d.contains(key)) bad_value(where + ": `" + key + "` is missing");
  return nb::cast<T>(d[key]);
}

// A packed model: the buffer (kept alive by the Python object) and the tensors in it.
class PyModel {
 public:
  PyModel(Array<const uint8_t, 1> buffer, const nb::dict& spec, const nb::dict& tensors)
      : buffer_(buffer), tensors_(tensors) {
    model.dim = field<size_t>(spec, "dim", "spec");
    model.vocab_size = field<size_t>(spec, "vocab_size", "spec");
    model.max_context = field<size_t>(spec, "max_context", "spec");
    model.norm_eps = field<float>(spec, "norm_eps", "spec");
    model.embed = linear("embed", "", model.vocab_size, model.dim);
    model.head = field<bool>(spec, "tied_head", "spec") ? model.embed : linear("head", "", model.vocab_size, model.dim);
    model.final_norm = vector("final_norm", model.dim);
    size_t i = 0;
    for (nb::handle h : field<nb::object>(spec, "layers", "spec")) {
      model.layers.push_back(layer("layers." + std::to_string(i) + ".", nb::cast<nb::dict>(h)));
      ++i;
    }
    check(!model.layers.empty(), "spec: there are no layers");
  }

  size_t weight_bytes() const {  // read by one decode step: everything but an untied embedding
    size_t total = model.head.bytes();
    for (const LayerWeights& l : model.layers) total += l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes();
    return total;
  }

  Model model;

 private:
  const uint8_t* part(const nb::dict& tensor, const std::string& name, const char* which, size_t nbytes) const {
    const nb::dict parts = field<nb::dict>(tensor, "parts", name);
    const nb::object at = field<nb::object>(parts, which, name);
    const size_t offset = nb::cast<size_t>(at[0]), size = nb::cast<size_t>(at[1]);
    check(size >= nbytes && offset + size <= buffer_.shape(0) && offset % 64 == 0,
          name + ": part `" + which + "` has " + std::to_string(size) + " bytes at " + std::to_string(offset) + ", but " +
              std::to_string(nbytes) + " are needed inside a file of " + std::to_string(buffer_.shape(0)));
    return buffer_.data() + offset;
  }

  const float* vector(const std::string& name, size_t n, bool optional = false) const {
    if (!tensors_.contains(name.c_str())) {
      check(optional, "tensor `" + name + "` is missing");
      return nullptr;
    }
    return reinterpret_cast<const float*>(part(nb::cast<nb::dict>(tensors_[name.c_str()]), name, "data", n * 4));
  }

  Linear linear(const std::string& name, const std::string& bias, size_t n, size_t k) const {
    check(tensors_.contains(name.c_str()), "tensor `" + name + "` is missing");
    const nb::dict t = nb::cast<nb::dict>(tensors_[name.c_str()]);
    const std::string kind = field<std::string>(t, "kind", name);
    Linear w;
    check(kind == "bf16" || kind == "i8" || kind == "i4", name + ": kind `" + kind + "` is unknown");
    w.kind = kind == "bf16" ? LinearKind::kBF16 : kind == "i8" ? LinearKind::kI8 : LinearKind::kI4;
    w.n = field<size_t>(t, "n", name);
    w.k = field<size_t>(t, "k", name);
    check(w.n == n && w.k == k, name + ": is [" + std::to_string(w.n) + ", " + std::to_string(w.k) + "], but the spec says [" +
                                    std::to_string(n) + ", " + std::to_string(k) + "]");
    const size_t unit = w.kind == LinearKind::kBF16 ? 32 : 64;
    w.np = (n + 15) / 16 * 16;
    w.kp = (k + unit - 1) / unit * unit;
    w.codes = part(t, name, "codes", w.np / 16 * w.panel_bytes());
    if (w.kind != LinearKind::kBF16) {
      w.scales = reinterpret_cast<const float*>(part(t, name, "scales", w.np * 4));
      w.colsum = reinterpret_cast<const int32_t*>(part(t, name, "colsum", w.np * 4));
    }
    if (w.kind == LinearKind::kI4) w.multipliers = reinterpret_cast<const int8_t*>(part(t, name, "multipliers", w.np * w.kp / 32));
    if (!bias.empty()) w.bias = vector(bias, n, true);
    return w;
  }

  LayerWeights layer(const std::string& at, const nb::dict& spec) const {
    LayerWeights l{};
    l.num_heads = field<size_t>(spec, "num_heads", at);
    l.num_kv_heads = field<size_t>(spec, "num_kv_heads", at);
    l.head_dim = field<size_t>(spec, "head_dim", at);
    l.ffn_dim = field<size_t>(spec, "ffn_dim", at);
    l.softmax_scale = field<float>(spec, "softmax_scale", at);
    check(l.head_dim % 2 == 0 && l.head_dim >= 2 && l.head_dim <= 256, at + "head_dim must be even and at most 256");
    check(l.num_kv_heads > 0 && l.num_heads % l.num_kv_heads == 0, at + "num_kv_heads must divide num_heads");
    const size_t d = model.dim, fp = (l.ffn_dim + 15) / 16 * 16;
    l.attn_norm = vector(at + "attn_norm", d);
    l.mlp_norm = vector(at + "mlp_norm", d);
    l.q_norm = vector(at + "q_norm", l.head_dim, true);
    l.k_norm = vector(at + "k_norm", l.head_dim, true);
    l.qkv = linear(at + "qkv", at + "qkv_bias", (l.num_heads + 2 * l.num_kv_heads) * l.head_dim, d);
    l.o = linear(at + "o", at + "o_bias", d, l.num_heads * l.head_dim);
    l.gate_up = linear(at + "gate_up", at + "gate_up_bias", 2 * fp, d);
    l.down = linear(at + "down", at + "down_bias", d, l.ffn_dim);
    const std::string p = "." + std::to_string(l.head_dim);
    l.rope_cos = vector("rope_cos" + p, model.max_context * l.head_dim / 2);
    l.rope_sin = vector("rope_sin" + p, model.max_context * l.head_dim / 2);
    return l;
  }

  Array<const uint8_t, 1> buffer_;
  nb::dict tensors_;
};

class PyExecutor {
 public:
  PyExecutor(nb::object model, size_t num_blocks, size_t block_size, const std::string& kv_dtype, size_t max_tokens,
             int num_threads)
      : model_object_(model), model_(nb::cast<PyModel&>(model).model), max_tokens_(max_tokens) {
    check(block_size % 32 == 0 && block_size > 0, "block_size is " + std::to_string(block_size) + ", but it must be a multiple of 32");
    check(kv_dtype == "bf16" || kv_dtype == "int8", "kv_dtype is `" + kv_dtype + "`, but it must be bf16 or int8");
    check(num_threads >= 1 && max_tokens >= 1 && num_blocks >= 1, "num_threads, max_tokens and num_blocks must be at least 1");
    std::vector<KvShape> shapes;
    for (const LayerWeights& l : model_.layers) shapes.push_back({l.num_kv_heads, l.head_dim, l.pp()});
    cache_ = std::make_unique<KvCache>(shapes, num_blocks, block_size, kv_dtype == "int8");
    executor_ = std::make_unique<Executor>(model_, *cache_, max_tokens, num_threads);
  }
  ~PyExecutor() { leave_foreign_queue(); }

  uint64_t submit(I32 token_ids, I32 seq_starts, I32 context_lens, Array<const int32_t, 2> block_tables, I32 sample_rows,
              F32 temperature, I32 top_k, F32 top_p, F32 min_p, Array<const uint64_t, 1> seed, I32 sample_idx,
              I32 bias_starts, I32 bias_ids, F32 bias_values, I32 mask_idx, Array<const uint32_t, 2> masks, I32 num_logprobs,
              I32 score_rows, I32 score_ids, I32 score_num_logprobs, I32 logits_rows, I32 hidden_rows,
              Array<int32_t, 1> sampled_ids, Array<float, 1> logprobs, Array<int32_t, 1> ranks, Array<int32_t, 2> top_ids,
              Array<float, 2> top_logprobs, Array<float, 1> score_logprobs, Array<int32_t, 1> score_ranks,
              Array<int32_t, 2> score_top_ids, Array<float, 2> score_top_logprobs, Array<float, 2> logits,
              Array<float, 2> hidden) {
    StepInput in{};
    in.num_tokens = token_ids.shape(0);
    in.num_seqs = context_lens.shape(0);
    in.table_width = block_tables.shape(1);
    in.num_samples = sample_rows.shape(0);
    in.num_scores = score_rows.shape(0);
    in.num_logits = logits_rows.shape(0);
    in.num_hidden = hidden_rows.shape(0);
    in.token_ids = token_ids.data();
    in.seq_starts = seq_starts.data();
    in.context_lens = context_lens.data();
    in.block_tables = block_tables.data();
    in.sample_rows = sample_rows.data();
    in.temperature = temperature.data();
    in.top_k = top_k.data();
    in.top_p = top_p.data();
    in.min_p = min_p.data();
    in.seed = seed.data();
    in.sample_idx = sample_idx.data();
    in.bias_starts = bias_starts.data();
    in.bias_ids = bias_ids.data();
    in.bias_values = bias_values.data();
    in.mask_idx = mask_idx.data();
    in.masks = masks.data();
    in.num_logprobs = num_logprobs.data();
    in.score_rows = score_rows.data();
    in.score_ids = score_ids.data();
    in.score_num_logprobs = score_num_logprobs.data();
    in.logits_rows = logits_rows.data();
    in.hidden_rows = hidden_rows.data();

    const size_t r = in.num_samples, q = in.num_scores, t = in.num_tokens, v = model_.vocab_size;
    check(t >= 1 && t <= max_tokens_, "the step has " + std::to_string(t) + " tokens, but 1 to " + std::to_string(max_tokens_) + " are possible");
    check(seq_starts.shape(0) == in.num_seqs + 1 && block_tables.shape(0) == in.num_seqs && in.seq_starts[0] == 0 &&
              in.seq_starts[in.num_seqs] == int32_t(t), "seq_starts, context_lens and block_tables do not agree");
    ensure_queue();
    check(queue_->num_under_way() < StepQueue::kDepth, "two steps are under way: collect one first");
    const int32_t lowest = -int32_t(queue_->num_samples());
    for (size_t i = 0; i < t; ++i)
      check(in.token_ids[i] >= lowest && (in.token_ids[i] < 0 || size_t(in.token_ids[i]) < v),
            "token id " + std::to_string(in.token_ids[i]) + " is outside the vocabulary");
    for (size_t s = 0; s < in.num_seqs; ++s) check_sequence(in, s);
    check(temperature.shape(0) == r && top_k.shape(0) == r && top_p.shape(0) == r && min_p.shape(0) == r && seed.shape(0) == r &&
              sample_idx.shape(0) == r && bias_starts.shape(0) == r + 1 && mask_idx.shape(0) == r && num_logprobs.shape(0) == r &&
              sampled_ids.shape(0) == r && logprobs.shape(0) == r && ranks.shape(0) == r && top_ids.shape(0) == r &&
              top_logprobs.shape(0) == r && top_ids.shape(1) == top_logprobs.shape(1), "the arrays of sampled rows differ in length");
    check(bias_ids.shape(0) == bias_values.shape(0) && in.bias_starts[0] == 0 && size_t(in.bias_starts[r]) == bias_ids.shape(0), "bias_starts does not fit bias_ids");
    check(masks.shape(0) == 0 || masks.shape(1) == (v + 31) / 32, "masks must have ceil(V / 32) words a row");
    for (size_t i = 0; i < bias_ids.shape(0); ++i) check(in.bias_ids[i] >= 0 && size_t(in.bias_ids[i]) < v, "a logit bias names a token outside the vocabulary");
    for (size_t i = 0; i < r; ++i)
      check(in.bias_starts[i] <= in.bias_starts[i + 1] && in.mask_idx[i] < int32_t(masks.shape(0)) && in.num_logprobs[i] <= int32_t(top_ids.shape(1)),
            "bias_starts, mask_idx or num_logprobs of a sampled row is out of range");
    check(score_ids.shape(0) == q && score_num_logprobs.shape(0) == q && score_logprobs.shape(0) == q && score_ranks.shape(0) == q &&
              score_top_ids.shape(0) == q && score_top_logprobs.shape(0) == q && score_top_ids.shape(1) == score_top_logprobs.shape(1), "the arrays of scored rows differ in length");
    for (size_t i = 0; i < q; ++i)
      check(in.score_ids[i] >= 0 && size_t(in.score_ids[i]) < v && in.score_num_logprobs[i] <= int32_t(score_top_ids.shape(1)), "a scored token or its number of alternatives is out of range");
    check_rows(in.sample_rows, r, t);
    check_rows(in.score_rows, q, t);
    check_rows(in.logits_rows, in.num_logits, t);
    check_rows(in.hidden_rows, in.num_hidden, t);
    check(logits.shape(0) == in.num_logits && (logits.shape(0) == 0 || logits.shape(1) == v), "logits must be [L, V]");
    check(hidden.shape(0) == in.num_hidden && (hidden.shape(0) == 0 || hidden.shape(1) == model_.dim), "hidden must be [E, D]");

    const StepOutput out{sampled_ids.data(), logprobs.data(), ranks.data(), top_ids.shape(1), top_ids.data(), top_logprobs.data(),
                         score_logprobs.data(), score_ranks.data(), score_top_ids.shape(1), score_top_ids.data(),
                         score_top_logprobs.data(), logits.data(), hidden.data()};
    auto arrays = std::make_tuple(
        token_ids, seq_starts, context_lens, block_tables, sample_rows, temperature, top_k, top_p, min_p, seed, sample_idx,
        bias_starts, bias_ids, bias_values, mask_idx, masks, num_logprobs, score_rows, score_ids, score_num_logprobs,
        logits_rows, hidden_rows, sampled_ids, logprobs, ranks, top_ids, top_logprobs, score_logprobs, score_ranks,
        score_top_ids, score_top_logprobs, logits, hidden);
    held_[queue_->next() % StepQueue::kDepth] = std::make_shared<decltype(arrays)>(std::move(arrays));
    return queue_->submit(in, out);
  }

  bool wait(uint64_t number, double timeout_s) {
    leave_foreign_queue();
    nb::gil_scoped_release release;
    return queue_ && queue_->wait(number, timeout_s);
  }

  std::pair<double, double> collect() {
    leave_foreign_queue();
    check(queue_ && queue_->num_under_way() > 0, "no step is under way");
    const std::shared_ptr<void> held = std::move(held_[queue_->oldest() % StepQueue::kDepth]);
    const nb::gil_scoped_release release;
    const StepTimes times = queue_->collect();
    return {times.start_s, times.end_s};
  }

  size_t scratch_bytes() const { return executor_->scratch_bytes(); }
  void set_profiling(bool on) { executor_->profile.on = on; }
  nb::dict profile() const {
    nb::dict out;
    const Profile& p = executor_->profile;
    for (int i = 0; i < int(Operation::kCount); ++i)
      out[kOperationNames[i]] = nb::make_tuple(p.seconds[i], p.calls[i], p.bytes[i], p.operations[i]);
    return out;
  }
  size_t block_bytes() const { return cache_->block_bytes(); }
  void touch_kv(size_t begin, size_t end) const {
    check(begin <= end && end <= cache_->bytes(), "bytes " + std::to_string(begin) + " to " + std::to_string(end) +
          " are not within the " + std::to_string(cache_->bytes()) + " of the KV cache");
    nb::gil_scoped_release release;
    cache_->touch(begin, end);
  }

 private:
  void leave_foreign_queue() {
    if (queue_ && !queue_->is_ours()) queue_.release();
  }
  void ensure_queue() {
    leave_foreign_queue();
    if (!queue_) queue_ = std::make_unique<StepQueue>(*executor_, max_tokens_);
  }
  void check_sequence(const StepInput& in, size_t s) const {
    const int32_t count = in.seq_starts[s + 1] - in.seq_starts[s], context = in.context_lens[s];
    check(count >= 1 && context >= count && size_t(context) <= model_.max_context,
          "sequence " + std::to_string(s) + " has " + std::to_string(count) + " new tokens and a context of " + std::to_string(context));
    const size_t blocks = (size_t(context) + cache_->block_size() - 1) / cache_->block_size();
    check(blocks <= in.table_width, "the block table of sequence " + std::to_string(s) + " is too short");
    for (size_t b = 0; b < blocks; ++b) {
      const int32_t id = in.block_tables[s * in.table_width + b];
      check(id >= 0 && size_t(id) < cache_->num_blocks(), "block " + std::to_string(id) + " of sequence " + std::to_string(s) + " does not exist");
    }
  }
  static void check_rows(const int32_t* rows, size_t count, size_t num_tokens) {
    for (size_t i = 0; i < count; ++i) check(rows[i] >= 0 && size_t(rows[i]) < num_tokens, "row " + std::to_string(rows[i]) + " is not in the step");
  }

  nb::object model_object_;  // keeps the weights alive
  const Model& model_;
  size_t max_tokens_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Executor> executor_;
  std::array<std::shared_ptr<void>, StepQueue::kDepth> held_;  // the arrays of the steps under way
  std::unique_ptr<StepQueue> queue_;  // from the first step on; last, so that it is the first to go
};

}  // namespace

void bind_step(nb::module_& m) {
  m.def("available_isas", &available_isas, "Kernel tiers that this CPU and kernel allow and that passed their self-test, slowest first.");
  m.def("isa", &isa, "The kernel tier in use.");
  m.def("isa_notes", &isa_notes, "Why tiers that this CPU seems to have are not available; usually empty.");
  m.def("set_isa", [](const std::string& name) {
    std::string known;
    for (const std::string& n : available_isas()) known += (known.empty() ? "" : ", ") + n;
    check(set_isa(name), "kernel tier `" + name + "` is not available; this CPU has " + known);
  }, nb::arg("name"), "Chooses a kernel tier for the whole process; not to be called while a step runs.");
  m.def("twin_of", [](const std::string& name) {
    const std::string twin = twin_of(name);
    check(!twin.empty(), "kernel tier `" + name + "` is not available");
    return twin;
  }, nb::arg("isa"), "The plain tier that gives the same bits; set_isa takes it, for tests.");
  m.def("cpu_has_amx", &cpu_has_amx, "Whether the CPU says that it has tiles for int8 and bf16.");
  m.def("amx_permitted", &amx_permitted, "Whether the operating system lets this process use tile registers.");
  m.def("kv_block_bytes", [](const std::vector<std::pair<size_t, size_t>>& layers, size_t block_size, bool int8) {
    size_t total = kBlockPadBytes;
    for (const auto& [heads, head_dim] : layers) total += heads * kv_head_bytes(block_size, (head_dim + 31) / 32 * 32, int8);
    return total;
  }, nb::arg("layers"), nb::arg("block_size"), nb::arg("int8"), "Bytes of one block over all layers given as (kv heads, head width).");
#ifdef TRIVET_FAULTS
  m.def("plant_fault", [](int fault) { planted_fault = Fault(fault); }, nb::arg("fault"));
  m.def("step_allocations", [] { return step_allocations.load(); });
#endif

  nb::class_<PyModel>(m, "Model", "A packed model in a memory map.")
      .def(nb::init<Array<const uint8_t, 1>, const nb::dict&, const nb::dict&>(), nb::arg("buffer").noconvert(), nb::arg("spec"), nb::arg("tensors"))
      .def_prop_ro("weight_bytes", &PyModel::weight_bytes, "Bytes of weights that one decode step reads.");

  nb::class_<PyExecutor>(m, "Executor", "Runs steps of one model over its own KV cache, one after the other; at most two are under way.")
      .def(nb::init<nb::object, size_t, size_t, const std::string&, size_t, int>(), nb::arg("model"), nb::arg("num_blocks"),
           nb::arg("block_size"), nb::arg("kv_dtype"), nb::arg("max_tokens"), nb::arg("num_threads"))
      .def_prop_ro("scratch_bytes", &PyExecutor::scratch_bytes, "Bytes of activations reserved; touched when first used.")
      .def("set_profiling", &PyExecutor::set_profiling, nb::arg("on"), "Whether steps count the time of each operation.")
      .def("profile", &PyExecutor::profile, "Operation -> (seconds, calls, bytes of weights or KV that must be read, multiplications and additions), counted while profiling was on.")
      .def_prop_ro("block_bytes", &PyExecutor::block_bytes, "Bytes of KV of one block over all layers.")
      .def("touch_kv", &PyExecutor::touch_kv, nb::arg("begin"), nb::arg("end"),
           "Brings these bytes of the KV cache, block after block, into memory; what is stored stays.")
      .def("submit", &PyExecutor::submit, nb::arg("token_ids").noconvert(), nb::arg("seq_starts").noconvert(),
           nb::arg("context_lens").noconvert(), nb::arg("block_tables").noconvert(), nb::arg("sample_rows").noconvert(),
           nb::arg("temperature").noconvert(), nb::arg("top_k").noconvert(), nb::arg("top_p").noconvert(),
           nb::arg("min_p").noconvert(), nb::arg("seed").noconvert(), nb::arg("sample_idx").noconvert(),
           nb::arg("bias_starts").noconvert(), nb::arg("bias_ids").noconvert(), nb::arg("bias_values").noconvert(),
           nb::arg("mask_idx").noconvert(), nb::arg("masks").noconvert(), nb::arg("num_logprobs").noconvert(),
           nb::arg("score_rows").noconvert(), nb::arg("score_ids").noconvert(), nb::arg("score_num_logprobs").noconvert(),
           nb::arg("logits_rows").noconvert(), nb::arg("hidden_rows").noconvert(), nb::arg("sampled_ids").noconvert(),
           nb::arg("logprobs").noconvert(), nb::arg("ranks").noconvert(), nb::arg("top_ids").noconvert(),
           nb::arg("top_logprobs").noconvert(), nb::arg("score_logprobs").noconvert(), nb::arg("score_ranks").noconvert(),
           nb::arg("score_top_ids").noconvert(), nb::arg("score_top_logprobs").noconvert(), nb::arg("logits").noconvert(),
           nb::arg("hidden").noconvert(),
           "Queues one transformer step and returns its number; arrays as in trivet.engine.step, outputs written in place.")
      .def("wait", &PyExecutor::wait, nb::arg("number"), nb::arg("timeout_s"), "Whether the step is done within so many seconds.")
      .def("collect", &PyExecutor::collect, "Waits for the oldest step under way; when it began and ended, in monotonic seconds.");
}
