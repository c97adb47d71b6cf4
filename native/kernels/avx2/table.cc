// The avx2 tier: attention tiles by f32 fma in the order of tdpbf16ps.
#include "kernels/avx2/chain.h"
#include "kernels/common/table.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

// c[r, 0..15] for any number of rows; at(i, j) gives the 16 pairs of step j of chunk i.
template <class At>
TRIVET_INLINE void tile(size_t rows, const float* a, size_t lda, At&& at, size_t num, float* c, size_t ldc) {
  const auto both = [&](size_t i, int j, int q) { return at(i, j) + 16 * q; };
  const auto right = [&](size_t i, int j, int) { return at(i, j) + 16; };
  for_runs(rows, [&](size_t r, size_t length, size_t, size_t) {
    const float* x = a + r * lda;
    float* y = c + r * ldc;
    switch (length) {
#define TRIVET_CASE(R)                           \
  case R:                                        \
    chain<R, 1>(x, lda, both, num, y, ldc);      \
    chain<R, 1>(x, lda, right, num, y + 8, ldc); \
    break;
      case 1: chain<1, 2>(x, lda, both, num, y, ldc); break;
      case 2: chain<2, 2>(x, lda, both, num, y, ldc); break;
      TRIVET_CASE(3)
      TRIVET_CASE(4)
      TRIVET_CASE(5)
      TRIVET_CASE(6)
#undef TRIVET_CASE
    }
  });
}

struct Tier {
  static void scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* const* keys, size_t groups, float* s) {
    alignas(64) float wide[kQueryTile * kMaxHeadDim];
    widen(q, rows * pp, wide);
    for (size_t g = 0; g < groups; ++g) {
      const auto key = [&](size_t i, int j) { return keys[g] + 512 * i + 32 * j; };
      tile(rows, wide, pp, key, pp / 32, s + 16 * g, kKeyStep);
    }
  }
  static void values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o) {
    alignas(64) float wide[kQueryTile * kKeyStep];
    for (size_t r = 0; r < rows; ++r) widen(w + r * kKeyStep, 32 * runs, wide + r * kKeyStep);
    for (size_t p = 0; p < pp; p += 16) {
      const auto value = [&](size_t i, int j) { return vals[i] + 2 * (p + j * pp); };
      tile(rows, wide, kKeyStep, value, runs, o + p, pp);
    }
  }
};

}  // namespace

Kernels avx2_table() { return make_table<Tier>("avx2", avx2::linear_bf16, avx2::linear_i8, avx2::linear_i4); }

}  // namespace trivet
