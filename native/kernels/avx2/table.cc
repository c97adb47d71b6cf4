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

}  // namespace

Kernels avx2_table() {
  return make_table<ChainProducts<TileUnit>>("avx2", avx2::linear_bf16, avx2::linear_i8, avx2::linear_i4);
}

}  // namespace trivet
