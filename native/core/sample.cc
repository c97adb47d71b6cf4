// Sampling of one row. No tier's code on purpose, but for integers (noise): the same bits in every build and tier.
//
// Two ideas keep it fast without changing the result. Every filter leaves a prefix of one order (likely tokens first,
// ties to the lower id), so a filter is a cut in that order and tokens are never sorted or moved. And a token can only
// win if its noise bits pass a bound known before any logarithm is taken, so a few hundred of 150,000 need one.
#include "trivet/sample.h"

#include <cmath>
#include <cstring>

#include "core/fixed_math.h"
#include "core/logits_row.h"
#include "core/noise.h"

namespace trivet {
namespace {

struct Row {
  const float* x;  // biased and masked logits: below +inf, one at least is finite
  size_t vocab;
  const float* chunk_max;
  float max, temperature;
  float cut_x = -FLT_MAX;  // the last token that the filters keep, in the order above
  uint32_t cut_id = UINT32_MAX;
  double least_y = -DBL_MAX;

  // Logit over temperature, less its highest value: at most 0, so that no temperature overflows.
  float y(float logit) const { return (logit - max) / temperature; }
  bool keeps(float logit, size_t id) const { return logit > cut_x || (logit == cut_x && id <= cut_id); }
  void cut_after(uint64_t key) {
    cut_id = static_cast<uint32_t>(key_id(key));
    cut_x = x[cut_id];
  }
};

// --- top-k --------------------------------------------------------------------------------------------------------

void cut_top_k(Row& row, size_t k, uint64_t* keys) {
  if (k >= row.vocab) return;
  const float least = least_of_top(row.vocab, row.chunk_max, k, reinterpret_cast<float*>(keys));
  const size_t n = gather_keys(row.x, row.vocab, row.chunk_max, least, keys);
  if (n < k) return;  // fewer are allowed: `least` was the lowest finite value
  std::nth_element(keys, keys + (k - 1), keys + n);
  row.cut_after(keys[k - 1]);
}

// --- top-p --------------------------------------------------------------------------------------------------------
//
// A token's mass is an integer, e^y * 2^42 rounded down, so that sums do not depend on their order. What lies below
// e^-30 of the most likely token has none; all of it together is below 2^-42 * vocab of the whole.

constexpr float kMassUnit = 4398046511104.0f, kLeastY = -30.0f;
constexpr size_t kBuckets = 2048;

inline int64_t mass_of(float y) { return static_cast<int64_t>(exp_f32(y) * kMassUnit); }

// Buckets run from likely to unlikely; tokens of equal logit are in the same one.
inline int32_t bucket_of(float y) {
  const float b = y * (float(kBuckets - 1) / kLeastY);
  return static_cast<int32_t>(b < float(kBuckets - 1) ? b : float(kBuckets - 1));
}

template <class F>  // f(first id, 64 values) for each chunk that may hold mass
void for_chunks(const Row& row, F&& f) {
  float buffer[kChunk];
  for (size_t c = 0; c < num_chunks(row.vocab); ++c)
    if (row.chunk_max[c] >= row.cut_x && row.y(row.chunk_max[c]) >= kLeastY)
      f(c * kChunk, chunk_values(row.x, row.vocab, c, buffer));
}

void add_masses(const Row& row, int64_t* buckets) {
  for_chunks(row, [&](size_t first, const float* v) {
    float mass[kChunk];
    int32_t bucket[kChunk];
    for (size_t i = 0; i < kChunk; ++i) {
      const float y = row.y(v[i]);
      mass[i] = exp_f32(y) * kMassUnit;
      bucket[i] = bucket_of(y);
    }
    for (size_t i = 0; i < kChunk; ++i)
      if (row.keeps(v[i], first + i)) buckets[bucket[i]] += static_cast<int64_t>(mass[i]);
  });
}

size_t gather_bucket(const Row& row, int32_t wanted, uint64_t* keys) {
  size_t n = 0;
  for_chunks(row, [&](size_t first, const float* v) {
    int32_t in[kChunk], any = 0;
    for (size_t i = 0; i < kChunk; ++i) in[i] = bucket_of(row.y(v[i])) == wanted;
    for (size_t i = 0; i < kChunk; ++i) any |= in[i];
    if (any)
      for (size_t i = 0; i < kChunk; ++i)
        if (in[i] && row.keeps(v[i], first + i)) keys[n++] = order_key(v[i], first + i);
  });
  return n;
}

// The key, among n keys of at least `needed` mass together, with which the likely ones first reach it.
uint64_t reach_mass(const Row& row, uint64_t* keys, size_t n, int64_t needed) {
  const auto mass = [&](uint64_t key) { return mass_of(row.y(row.x[key_id(key)])); };
  while (n > 512) {
    const size_t half = n / 2;
    std::nth_element(keys, keys + half, keys + n);
    int64_t upper = 0;
    for (size_t i = 0; i < half; ++i) upper += mass(keys[i]);
    if (upper >= needed) {
      n = half;
    } else {
      needed -= upper, keys += half, n -= half;
    }
  }
  std::sort(keys, keys + n);
  size_t i = 0;
  for (needed -= mass(keys[0]); needed > 0 && i + 1 < n;) needed -= mass(keys[++i]);
  return keys[i];
}

void cut_top_p(Row& row, float top_p, uint64_t* keys) {
  int64_t buckets[kBuckets] = {}, total = 0;
  add_masses(row, buckets);
  for (const int64_t mass : buckets) total += mass;
  int64_t needed = static_cast<int64_t>(std::ceil(static_cast<double>(top_p) * static_cast<double>(total)));
  needed = std::clamp<int64_t>(needed, 1, total);
  int32_t b = 0;
  for (; buckets[b] < needed; ++b) needed -= buckets[b];
  row.cut_after(reach_mass(row, keys, gather_bucket(row, b, keys), needed));
}

// --- Gumbel-max ---------------------------------------------------------------------------------------------------

double gumbel(uint32_t word) {
  const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;  // exact, strictly inside (0, 1)
  return -log_f64(-log_f64(u));
}

struct Best {
  double key;
  size_t id;
  void offer(double other, size_t other_id) {
    if (other > key || (other == key && other_id < id)) key = other, id = other_id;
  }
};

// Only a token with y + g(u) >= best can win, that is -ln u <= e^(y - best); and 1 - u <= -ln u. So the complement of
// its word, (1 - u) * 2^32 - 1/2, is at most e^(chunk's highest y - best) * 2^32. A factor of 1.001 covers the
// rounding of all of this, which is below 1e-5.
float word_scale(const Best& best) { return exp_f32(static_cast<float>(-best.key)) * 1.001f * 0x1p32f; }

// Whether the complement of a word may be up to `limit`; compared without the lowest bit, as signed numbers.
struct WordLimit {
  int32_t half;
  explicit WordLimit(float limit) : half(limit < 0x1p32f ? static_cast<int32_t>(limit * 0.5f) : INT32_MAX) {}
  bool admits(uint32_t word) const { return static_cast<int32_t>(~word >> 1) <= half; }
};

void offer_chunk(const Row& row, size_t begin, const uint32_t* words, WordLimit limit, Best& best) {
  int32_t any = 0;
  for (size_t i = 0; i < kChunk; ++i) any |= limit.admits(words[i]);
  if (!any) return;
  const size_t end = std::min(row.vocab, begin + kChunk);
  for (size_t id = begin; id < end; ++id) {
    if (!limit.admits(words[id - begin]) || !row.keeps(row.x[id], id)) continue;
    const double y = static_cast<double>(row.y(row.x[id]));
    if (y >= row.least_y) best.offer(y + gumbel(words[id - begin]), id);
  }
}

int32_t gumbel_max(const Row& row, RowKey key) {
  const NoiseFn noise = noise_words();
  const size_t chunks = num_chunks(row.vocab), first = argmax(row.x, row.vocab, row.chunk_max, row.max);
  uint32_t words[kChunk];
  noise(key, first / kChunk * kChunk, words);
  Best best{gumbel(words[first % kChunk]), first};
  float scale = word_scale(best);
  for (size_t block = 0; block < chunks; block += kLanes) {
    float highest[kLanes];
    for (size_t j = 0; j < kLanes; ++j) highest[j] = row.chunk_max[std::min(block + j, chunks - 1)];
    for (size_t j = 0; j < kLanes; ++j) highest[j] = exp_f32(row.y(highest[j]));
    for (size_t c = block; c < std::min(block + kLanes, chunks); ++c) {
      const float limit = highest[c - block] * scale;
      if (limit < 0.5f || row.chunk_max[c] < row.cut_x) continue;
      noise(key, c * kChunk, words);
      const size_t before = best.id;
      offer_chunk(row, c * kChunk, words, WordLimit(limit), best);
      if (best.id != before) scale = word_scale(best);
    }
  }
  return static_cast<int32_t>(best.id);
}

// --- bias and mask ------------------------------------------------------------------------------------------------

void copy_allowed(const float* logits, size_t vocab, const uint32_t* mask, float* out) {
  for (size_t begin = 0; begin < vocab; begin += 32) {
    const uint32_t word = mask[begin / 32];
    const size_t n = std::min<size_t>(32, vocab - begin);
    for (size_t i = 0; i < n; ++i) out[begin + i] = word >> i & 1 ? logits[begin + i] : -kInf;
  }
}

void add_bias(const SampleSpec& spec, size_t vocab, float* x) {
  for (size_t i = 0; i < spec.num_bias; ++i)  // the caller has checked the ids; one outside is not followed
    if (static_cast<uint32_t>(spec.bias_ids[i]) < vocab) x[spec.bias_ids[i]] += spec.bias_values[i];
}

}  // namespace

// scratch: keys 8 * V, biased and masked logits 4 * V, chunk maxima 4 * ceil(V / 64)
int32_t sample(const float* logits, size_t vocab, const SampleSpec& spec, void* scratch) {
  uint64_t* keys = static_cast<uint64_t*>(scratch);
  float* copy = reinterpret_cast<float*>(keys + vocab);
  float* chunk_max = copy + vocab;
  Row row{.x = logits, .vocab = vocab, .chunk_max = chunk_max, .max = 0, .temperature = spec.temperature};
  if (!scan(logits, vocab, chunk_max, &row.max)) return -1;
  if (spec.mask || spec.num_bias) {
    if (spec.mask) copy_allowed(logits, vocab, spec.mask, copy);
    else std::memcpy(copy, logits, vocab * sizeof(float));
    add_bias(spec, vocab, copy);
    if (!scan(copy, vocab, chunk_max, &row.max)) return -1;
    row.x = copy;
  }
  if (!(spec.temperature > 0)) return static_cast<int32_t>(argmax(row.x, vocab, chunk_max, row.max));
  row.temperature = std::max(spec.temperature, FLT_MIN);
  if (spec.top_k > 0) cut_top_k(row, static_cast<size_t>(spec.top_k), keys);
  if (spec.top_p < 1) cut_top_p(row, spec.top_p, keys);
  if (spec.min_p > 0) row.least_y = log_f64(spec.min_p);
  return gumbel_max(row, row_key(spec.seed, spec.sample_idx, spec.position));
}

}  // namespace trivet
