// The avx512_bf16 tier, for CPUs with bf16 products but no tiles (Zen 4 and 5, Cooper Lake): attention on vdpbf16ps; int8
// and int4 are those of avx512.
#include "kernels/avx512/code_products.h"
#include "kernels/avx512_bf16/pairs.h"
#include "kernels/avx512_bf16/tier.h"
#include "kernels/common/chain.h"
#include "kernels/common/table.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

// c[r, 0..16 Q] (+)= chains of pairs for R rows.
template <bool kAdd, int R, int Q, class At>
void block(const uint16_t* a, size_t lda, size_t num, float* c, size_t ldc, At&& at) {
  chains<R, Q>(
      a, lda, num, [&](int r, int q) { return kAdd ? _mm512_loadu_ps(c + size_t(r) * ldc + 16 * q) : _mm512_setzero_ps(); },
      at, [&](int r, int q, __m512 sum) { _mm512_storeu_ps(c + size_t(r) * ldc + 16 * q, sum); });
}

template <bool kAdd, class At>
TRIVET_INLINE void block_of_rows(size_t rows, const uint16_t* a, size_t lda, size_t num, float* c, size_t ldc, At&& at) {
  switch (rows) {
#define TRIVET_CASE(R) \
  case R: return block<kAdd, R, 2>(a, lda, num, c, ldc, at);
    TRIVET_CASE(1) TRIVET_CASE(2) TRIVET_CASE(3) TRIVET_CASE(4) TRIVET_CASE(5) TRIVET_CASE(6) TRIVET_CASE(7) TRIVET_CASE(8)
#undef TRIVET_CASE
  }
}

// 32 columns for any number of rows. The first rows ask, with asking(i, j, g), the others do not, with at(i, j, g).
template <bool kAdd, class At, class Asking>
TRIVET_INLINE void tile(size_t rows, const uint16_t* a, size_t lda, size_t num, float* c, size_t ldc, bool asks, At&& at, Asking&& asking) {
  for_runs(rows, kMostRows, [&](size_t r, size_t length, size_t run, size_t) {
    if (run == 0 && asks) return block_of_rows<kAdd>(length, a + r * lda, lda, num, c + r * ldc, ldc, asking);
    block_of_rows<kAdd>(length, a + r * lda, lda, num, c + r * ldc, ldc, at);
  });
}

struct PairProducts {
  static constexpr bool kByLines = true;
  static constexpr size_t kMostAsking = kQueryTile;
  static void scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* keys, float* s, const RunsAhead& ahead, size_t run) {
    const auto at = [&](size_t i, size_t j, int g) { return keys + 16 * size_t(g) * pp + 512 * i + 32 * j; };
    tile<false>(rows, q, pp, pp / 32, s, kKeyStep, !ahead.is_empty(), at, [&](size_t i, size_t j, int g) {
      ahead.line(run, 2 * (16 * i + j) + size_t(g));
      return at(i, j, g);
    });
  }
  static void values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o, const RunsAhead& ahead) {
    for (size_t p = 0; p < pp; p += 32) {
      const auto at = [&](size_t i, size_t j, int g) { return vals[i] + 2 * (p + 16 * size_t(g) + j * pp); };
      tile<true>(rows, w, kKeyStep, runs, o + p, pp, !ahead.is_empty(), at, [&](size_t i, size_t j, int g) {
        ahead.line(i, p + 2 * j + size_t(g));
        return at(i, j, g);
      });
    }
  }
};

}  // namespace

Kernels avx512_bf16_table() {
  const Kernels avx512 = avx512_table();
  return make_table<PairProducts, CodeProducts>("avx512_bf16", avx512_bf16::linear_bf16, avx512.linear[int(LinearKind::kI8)],
                                  avx512.linear[int(LinearKind::kI4)]);
}

}  // namespace trivet
