// Sampling and log probabilities of rows of logits, for tests and for runners that compute logits elsewhere.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/noise.h"
#include "trivet/sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, size_t Dims>
using In = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> vector_of(size_t n, T*& data) {
  data = new T[n]();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T>(data, {n}, owner);
}

void expect(bool ok, const char* name, size_t got, const char* expected) {
  if (!ok)
    throw std::invalid_argument(std::string("`") + name + "` has length " + std::to_string(got) + ", expected " +
                                expected);
}

template <class T>
void expect_rows(const In<T, 1>& a, size_t rows, const char* name) {
  expect(a.shape(0) == rows, name, a.shape(0), "one value a row of logits");
}

nb::ndarray<nb::numpy, int32_t> sample_rows(
    In<float, 2> logits, In<float, 1> temperature, In<int32_t, 1> top_k, In<float, 1> top_p, In<float, 1> min_p,
    In<uint64_t, 1> seed, In<int32_t, 1> sample_idx, In<int64_t, 1> position, In<int32_t, 1> bias_starts,
    In<int32_t, 1> bias_ids, In<float, 1> bias_values, In<int32_t, 1> mask_idx, In<uint32_t, 2> masks) {
  const size_t rows = logits.shape(0), vocab = logits.shape(1);
  expect(vocab > 0 && vocab <= INT32_MAX, "logits", vocab, "a row of at least one");
  expect_rows(temperature, rows, "temperature");
  expect_rows(top_k, rows, "top_k");
  expect_rows(top_p, rows, "top_p");
  expect_rows(min_p, rows, "min_p");
  expect_rows(seed, rows, "seed");
  expect_rows(sample_idx, rows, "sample_idx");
  expect_rows(position, rows, "position");
  expect_rows(mask_idx, rows, "mask_idx");
  expect(bias_starts.shape(0) == rows + 1, "bias_starts", bias_starts.shape(0), "one more than rows of logits");
  expect(bias_ids.shape(0) == bias_values.shape(0), "bias_ids", bias_ids.shape(0), "as many as `bias_values`");
  const size_t num_masks = masks.shape(0), words = masks.shape(1);
  expect(num_masks == 0 || words == (vocab + 31) / 32, "masks", words, "ceil(V / 32) words a row");
  for (size_t r = 0; r < rows; ++r) {
    const int32_t begin = bias_starts.data()[r], end = bias_starts.data()[r + 1];
    if (begin < 0 || begin > end || static_cast<size_t>(end) > bias_ids.shape(0))
      throw std::invalid_argument("`bias_starts` must rise from 0 to the length of `bias_ids`");
    if (mask_idx.data()[r] < -1 || mask_idx.data()[r] >= static_cast<int64_t>(num_masks))
      throw std::invalid_argument("`mask_idx` of row " + std::to_string(r) + " is " +
                                  std::to_string(mask_idx.data()[r]) + ", but there are " + std::to_string(num_masks) +
                                  " masks");
  }
  for (size_t i = 0; i < bias_ids.shape(0); ++i)
    if (bias_ids.data()[i] < 0 || static_cast<size_t>(bias_ids.data()[i]) >= vocab)
      throw std::invalid_argument("`bias_ids` has token " + std::to_string(bias_ids.data()[i]) +
                                  ", but the vocabulary has " + std::to_string(vocab));
  int32_t* ids;
  auto result = vector_of<int32_t>(rows, ids);
  {
    nb::gil_scoped_release release;
    const auto scratch = std::make_unique_for_overwrite<uint64_t[]>(trivet::sample_scratch_bytes(vocab) / 8);
    for (size_t r = 0; r < rows; ++r) {
      const size_t begin = bias_starts.data()[r], end = bias_starts.data()[r + 1];
      const int32_t mask = mask_idx.data()[r];
      const trivet::SampleSpec spec{
          .temperature = temperature.data()[r], .top_k = top_k.data()[r], .top_p = top_p.data()[r],
          .min_p = min_p.data()[r], .seed = seed.data()[r], .sample_idx = sample_idx.data()[r],
          .position = position.data()[r], .bias_ids = bias_ids.data() + begin,
          .bias_values = bias_values.data() + begin, .num_bias = end - begin,
          .mask = mask < 0 ? nullptr : masks.data() + static_cast<size_t>(mask) * words};
      ids[r] = trivet::sample(logits.data() + r * vocab, vocab, spec, scratch.get());
    }
  }
  return result;
}

nb::tuple log_probs(In<float, 1> logits, int id, int num_top) {
  const size_t vocab = logits.shape(0);
  if (id < 0 || static_cast<size_t>(id) >= vocab)
    throw std::invalid_argument("`id` is " + std::to_string(id) + ", but the vocabulary has " + std::to_string(vocab));
  if (num_top < 0)
    throw std::invalid_argument("`num_top` is " + std::to_string(num_top) + ", but it must be 0 or more");
  float logprob, *top_logprobs;
  int32_t rank, *top_ids;
  auto ids = vector_of<int32_t>(static_cast<size_t>(num_top), top_ids);
  auto values = vector_of<float>(static_cast<size_t>(num_top), top_logprobs);
  {
    nb::gil_scoped_release release;
    const auto scratch = std::make_unique_for_overwrite<uint64_t[]>(trivet::sample_scratch_bytes(vocab) / 8);
    trivet::log_probs(logits.data(), vocab, id, num_top, &logprob, &rank, top_ids, top_logprobs, scratch.get());
  }
  return nb::make_tuple(logprob, rank, ids, values);
}

nb::ndarray<nb::numpy, uint32_t> noise(uint64_t seed, int sample_idx, int64_t position, size_t vocab) {
  uint32_t* words;
  auto result = vector_of<uint32_t>(vocab, words);
  uint32_t chunk[64];
  for (size_t first = 0; first < vocab; first += 64) {
    trivet::noise_words()(trivet::row_key(seed, sample_idx, position), first, chunk);
    for (size_t i = 0; i < 64 && first + i < vocab; ++i) words[first + i] = chunk[i];
  }
  return result;
}

}  // namespace

void bind_sample(nb::module_& m) {
  m.def("sample_rows", &sample_rows, "logits"_a.noconvert(), nb::kw_only(), "temperature"_a.noconvert(),
        "top_k"_a.noconvert(), "top_p"_a.noconvert(), "min_p"_a.noconvert(), "seed"_a.noconvert(),
        "sample_idx"_a.noconvert(), "position"_a.noconvert(), "bias_starts"_a.noconvert(), "bias_ids"_a.noconvert(),
        "bias_values"_a.noconvert(), "mask_idx"_a.noconvert(), "masks"_a.noconvert(),
        "The token drawn in each row of logits [R, V], int32 [R]; -1 where a logit is NaN or +inf or none is allowed.\n\n"
        "Arguments as in StepBatch; `position` [R] is that of the drawn token. Runs on the calling thread.");
  m.def("log_probs", &log_probs, "logits"_a.noconvert(), "id"_a, "num_top"_a,
        "(log probability of token `id`, its rank, ids and log probabilities of the `num_top` most likely tokens),\n\n"
        "ids -1 past the last possible token. A row with NaN or +inf, or without a finite value: NaN, rank 0, ids -1.");
  m.def("sampling_noise", &noise, "seed"_a, "sample_idx"_a, "position"_a, "vocab"_a,
        "The noise word of each token, uint32 [V]: u = (word + 0.5) / 2^32, and -ln(-ln(u)) is added to its logit.");
}
