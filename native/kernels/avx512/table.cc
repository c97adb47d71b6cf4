// The avx512 tier: attention tiles by f32 fma in the order of tdpbf16ps (a product of two bf16 is exact in f32, so fma
// and multiply-then-add agree).
#include <immintrin.h>

#include "kernels/common/table.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

struct Chain {
  // Four rows at a time share each load of b.
  template <bool kAdd>
  static void chain(size_t rows, const uint16_t* a, size_t lda, const uint16_t* const* b, size_t num, size_t ldb, float* c,
                    size_t ldc) {
    const __m512i high = _mm512_set1_epi32(int32_t(0xffff0000));
    for (size_t r = 0; r < rows; r += 4) {
      __m512 acc[4];
      for (int t = 0; t < 4; ++t) acc[t] = kAdd ? _mm512_loadu_ps(c + (r + t) * ldc) : _mm512_setzero_ps();
      for (size_t i = 0; i < num; ++i) {
        __m512 even[4], odd[4];
        for (int t = 0; t < 4; ++t) even[t] = odd[t] = _mm512_setzero_ps();
        for (int j = 0; j < 16; ++j) {
          const __m512i v = _mm512_loadu_si512(b[i] + j * ldb);
          const __m512 ve = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
          const __m512 vo = _mm512_castsi512_ps(_mm512_and_si512(v, high));
          for (int t = 0; t < 4; ++t) {
            const uint16_t* x = a + (r + t) * lda + 32 * i + 2 * j;
            even[t] = _mm512_fmadd_ps(ve, _mm512_set1_ps(bf16_to_float(x[0])), even[t]);
            odd[t] = _mm512_fmadd_ps(vo, _mm512_set1_ps(bf16_to_float(x[1])), odd[t]);
          }
        }
        for (int t = 0; t < 4; ++t) acc[t] = _mm512_add_ps(acc[t], _mm512_add_ps(even[t], odd[t]));
      }
      for (int t = 0; t < 4; ++t) _mm512_storeu_ps(c + (r + t) * ldc, acc[t]);
    }
  }
};

}  // namespace

Kernels avx512_table() { return make_table<TileProducts<Chain>>("avx512", avx512::linear_bf16, avx512::linear_i8, avx512::linear_i4); }

}  // namespace trivet
