// The avx512 tier: attention tiles by f32 fma in the order of tdpbf16ps, and products for few rows or for many.
#include "kernels/avx512/code_products.h"
#include "kernels/avx512/many_rows.h"
#include "kernels/avx512/unit.h"
#include "kernels/common/table.h"
#include "kernels/tables.h"
#include "trivet/cpu.h"

namespace trivet {
namespace {

struct TileUnit : Unit {
  template <bool kAdd, class At>
  TRIVET_INLINE void tile(size_t rows, const float* a, size_t lda, At&& at, size_t num, float* c, size_t ldc) {
    const auto pairs = [&](size_t i, int j, int) { return at(i, j); };
    for_runs(rows, kMostRows, [&](size_t r, size_t length, size_t, size_t) {
      switch (length) {
#define TRIVET_CASE(R) \
  case R: return chain<Unit, kAdd, R, 1>(a + r * lda, lda, pairs, num, c + r * ldc, ldc);
        TRIVET_EACH_ROWS(TRIVET_CASE)
      }
    });
  }
};

// Up to these many rows the kernels that stream weights are quicker (docs/lab.md; on AMD int8 already from two rows on);
// the bits are the same.
constexpr size_t kFewInt8 = 8, kFewInt8Amd = 1, kFewInt4 = 4, kFewBf16 = 4;

void linear_i8(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= (cpu_is_amd() ? kFewInt8Amd : kFewInt8) ? avx512::linear_i8 : avx512::many_rows_i8)(w, x, begin, end, out, scratch);
}
void linear_i4(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= kFewInt4 ? avx512::linear_i4 : avx512::many_rows_i4)(w, x, begin, end, out, scratch);
}
void linear_bf16(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= kFewBf16 ? avx512::linear_bf16 : avx512::many_rows_bf16)(w, x, begin, end, out, scratch);
}

}  // namespace

Kernels avx512_table() { return make_table<ChainProducts<TileUnit>, CodeProducts>("avx512", linear_bf16, linear_i8, linear_i4); }

}  // namespace trivet
