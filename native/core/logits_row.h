// One row of logits seen in chunks of 64 with their maxima: what sampling and log probabilities share.
#pragma once

#include <emmintrin.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

namespace trivet {

constexpr size_t kChunk = 64, kLanes = 16;
constexpr float kInf = std::numeric_limits<float>::infinity();

inline size_t num_chunks(size_t vocab) { return (vocab + kChunk - 1) / kChunk; }

// The 64 values of chunk c, never read past the row's end: the last chunk is copied and padded with -inf.
inline const float* chunk_values(const float* x, size_t vocab, size_t c, float* buffer) {
  const size_t begin = c * kChunk;
  if (begin + kChunk <= vocab) return x + begin;
  for (size_t i = 0; i < kChunk; ++i) buffer[i] = begin + i < vocab ? x[begin + i] : -kInf;
  return buffer;
}

// chunk_max[c] = max of chunk c; *row_max = max of all. False if a value is NaN or +inf, or all are -inf.
// Reads 4 * vocab bytes once, at the speed of memory. SSE2 is part of x86-64.
inline bool scan(const float* x, size_t vocab, float* chunk_max, float* row_max) {
  const __m128 inf = _mm_set1_ps(kInf);
  __m128 below = _mm_castsi128_ps(_mm_set1_epi32(-1)), top = _mm_set1_ps(-kInf);
  float buffer[kChunk];
  for (size_t c = 0; c < num_chunks(vocab); ++c) {
    const float* v = chunk_values(x, vocab, c, buffer);
    __m128 best = _mm_loadu_ps(v);
    below = _mm_and_ps(below, _mm_cmplt_ps(best, inf));  // false for NaN too
    for (size_t i = 4; i < kChunk; i += 4) {
      const __m128 next = _mm_loadu_ps(v + i);
      below = _mm_and_ps(below, _mm_cmplt_ps(next, inf));
      best = _mm_max_ps(best, next);
    }
    best = _mm_max_ps(best, _mm_movehl_ps(best, best));
    best = _mm_max_ss(best, _mm_shuffle_ps(best, best, 1));
    top = _mm_max_ss(top, best);
    _mm_store_ss(chunk_max + c, best);
  }
  *row_max = _mm_cvtss_f32(top);
  return _mm_movemask_ps(below) == 15 && *row_max > -kInf;
}

// The lowest id that holds the row's maximum.
inline size_t argmax(const float* x, size_t vocab, const float* chunk_max, float row_max) {
  size_t c = 0;
  while (chunk_max[c] != row_max) ++c;
  size_t id = c * kChunk;
  while (id + 1 < vocab && x[id] != row_max) ++id;
  return id;
}

// Ascending order of these keys: likely tokens first, ties to the lower id (+0 and -0 tie).
inline uint64_t order_key(float x, size_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{~ascending} << 32 | id;
}
inline size_t key_id(uint64_t key) { return key & 0xFFFFFFFFu; }

// A value that at least k tokens reach (k >= 1): the k-th highest chunk maximum, if there are so many chunks with a
// finite one, else the lowest finite value. room: num_chunks(vocab) floats.
inline float least_of_top(size_t vocab, const float* chunk_max, size_t k, float* room) {
  const size_t n = num_chunks(vocab);
  if (k > n) return -FLT_MAX;
  std::copy(chunk_max, chunk_max + n, room);
  std::nth_element(room, room + (k - 1), room + n, std::greater<float>());
  return std::max(room[k - 1], -FLT_MAX);
}

// The order keys of all tokens with x >= least, in id order; returns how many.
inline size_t gather_keys(const float* x, size_t vocab, const float* chunk_max, float least, uint64_t* keys) {
  size_t n = 0;
  for (size_t c = 0; c < num_chunks(vocab); ++c) {
    if (!(chunk_max[c] >= least)) continue;
    const size_t end = std::min(vocab, (c + 1) * kChunk);
    for (size_t id = c * kChunk; id < end; ++id) {
      keys[n] = order_key(x[id], id);  // written always, counted if wanted: no branch to mispredict
      n += x[id] >= least;
    }
  }
  return n;
}

}  // namespace trivet
