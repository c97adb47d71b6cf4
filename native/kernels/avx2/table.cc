// The avx2 tier: attention tiles by f32 fma in the order of tdpbf16ps.
#include "kernels/avx2/unit.h"
#include "kernels/common/table.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

struct TileUnit : Unit {
  template <bool kAdd, class At>
  TRIVET_INLINE void tile(size_t rows, const float* a, size_t lda, At&& at, size_t num, float* c, size_t ldc) {
    const auto both = [&](size_t i, int j, int q) { return at(i, j) + 16 * q; };
    const auto right = [&](size_t i, int j, int) { return at(i, j) + 16; };
    for_runs(rows, kMostRows, [&](size_t r, size_t length, size_t, size_t) {
      const float* x = a + r * lda;
      float* y = c + r * ldc;
#define TRIVET_HALVES(R) \
  case R: return chain<Unit, kAdd, R, 1>(x, lda, both, num, y, ldc), chain<Unit, kAdd, R, 1>(x, lda, right, num, y + 8, ldc)
      switch (length) {
        case 1: return chain<Unit, kAdd, 1, 2>(x, lda, both, num, y, ldc);
        case 2: return chain<Unit, kAdd, 2, 2>(x, lda, both, num, y, ldc);
        TRIVET_HALVES(3);
        TRIVET_HALVES(4);
        TRIVET_HALVES(5);
        TRIVET_HALVES(6);
      }
    });
  }
};

// R rows of words against 8 columns of codes, four of each at a time.
template <int R, class At>
void block_of_words(const Words& a, size_t row, size_t num, At&& at, int32_t* c, size_t ldc) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i left[R], right[R];  // the first two columns of every four, the others: a column has two sums
  for (int r = 0; r < R; ++r) left[r] = right[r] = zero;
  for (size_t k = 0; k < num; ++k) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(k)));
    const __m256i l = _mm256_unpacklo_epi8(codes, zero), h = _mm256_unpackhi_epi8(codes, zero);
    for (int r = 0; r < R; ++r) {
      int64_t four;
      __builtin_memcpy(&four, a.words(row + size_t(r)) + 4 * k, 8);
      const __m256i x = _mm256_set1_epi64x(four);
      left[r] = _mm256_add_epi32(left[r], _mm256_madd_epi16(l, x));
      right[r] = _mm256_add_epi32(right[r], _mm256_madd_epi16(h, x));
    }
  }
  for (int r = 0; r < R; ++r)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + (row + size_t(r)) * ldc), _mm256_hadd_epi32(left[r], right[r]));
}

struct WordProducts {
  using Query = Words;
  using Weights = Words;
  static constexpr bool kByLines = false;
  static constexpr size_t kMostAsking = kQueryTile;
  template <class At>
  TRIVET_INLINE void eight(const Words& a, size_t rows, size_t num, int32_t* c, size_t ldc, At&& at) {
    for_runs(rows, 4, [&](size_t r, size_t length, size_t, size_t) {
      switch (length) {
        case 1: return block_of_words<1>(a, r, num, at, c, ldc);
        case 2: return block_of_words<2>(a, r, num, at, c, ldc);
        case 3: return block_of_words<3>(a, r, num, at, c, ldc);
        case 4: return block_of_words<4>(a, r, num, at, c, ldc);
      }
    });
  }
  static void scores(size_t rows, const Words& q, size_t pp, const uint8_t* keys, int32_t* s, const RunsAhead& ahead, size_t run) {
    for (size_t g = 0; g < 4; ++g) {
      ahead.share(run, g, 4);
      const uint8_t* from = keys + g / 2 * 16 * pp + g % 2 * 32;
      eight(q, rows, pp / 4, s + 8 * g, kKeyStep, [&](size_t k) { return from + 64 * k; });
    }
  }
  static void values(size_t rows, const Words& w, const uint8_t* const* vals, size_t runs, size_t pp, int32_t* o, const RunsAhead& ahead, uint8_t*) {
    for (size_t p = 0; p < pp; p += 8) {
      if (p % 32 == 0)
        for (size_t i = 0; i < runs; ++i) ahead.share(i, p / 32, pp / 32);
      eight(w, rows, 8 * runs, o + p, pp, [&](size_t k) { return vals[k / 8] + 4 * (k % 8 * pp + p); });
    }
  }
};

}  // namespace

Kernels avx2_table() {
  return make_table<ChainProducts<TileUnit>, WordProducts>("avx2", avx2::linear_bf16, avx2::linear_i8, avx2::linear_i4);
}

}  // namespace trivet
