// Products for few rows, and for CPUs without tiles: VNNI for int8 and int4, f32 fma in the tile's order for bf16.
//
// R rows times P panels are computed at once: P streams of weights keep more loads in flight than one does, and each
// weight is used R times from a register. vpdpbusd takes one unsigned operand: the activations, moved up by 128 once for all
// panels; what that adds is 128 * colsum.
#include <immintrin.h>

#include "kernels/avx512/moved_up.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/stream.h"
#include "kernels/tables.h"

namespace trivet::avx512 {
namespace {

TRIVET_INLINE __m512i broadcast4(const uint8_t* x) {
  int32_t v;
  __builtin_memcpy(&v, x, 4);
  return _mm512_set1_epi32(v);
}

// acc += u8 . s8 by fours. In assembly, since GCC 12 copies the accumulator of the intrinsic around at every use.
TRIVET_INLINE __m512i dpbusd(__m512i acc, __m512i u, __m512i s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "vm"(s));
  return acc;
}

// Acc: vi or vf, what the registers of `sums` hold.
template <class Acc, int R, int P, class Register>
TRIVET_INLINE void finish_block(const Linear& w, const Rows& x, size_t row, size_t panel, const Register (&sums)[R][P],
                                const Output& out) {
  Acc acc[R][P];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) __builtin_memcpy(&acc[r][p], &sums[r][p], 64);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    if constexpr (P % 2 == 0)
      if (out.epilogue == Epilogue::kSiluMul) {
#pragma GCC unroll 4
        for (int p = 0; p < P; p += 2) finish_gate_up(w, x, panel + p, row + r, acc[r][p], acc[r][p + 1], out);
        continue;
      }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) finish(w, x, panel + p, row + r, acc[r][p], out);
  }
}

// What sums begin with; and asks for what the panel P farther on needs beside its codes, a line or two that nothing foresees.
template <int P>
TRIVET_INLINE __m512i start_of(const Linear& w, size_t panel) {
  _mm_prefetch(reinterpret_cast<const char*>(w.colsum + 16 * (panel + P)), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(w.scales + 16 * (panel + P)), _MM_HINT_T0);
  return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(_mm512_loadu_si512(w.colsum + 16 * panel), 7));
}

template <Into kInto, int R, int P>
void block_i8(const Linear& w, const Rows& x, size_t row, size_t panel, const Output& out) {
  __m512i acc[R][P];
  const int8_t* codes[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    codes[p] = reinterpret_cast<const int8_t*>(w.codes) + (panel + p) * w.panel_bytes();
    const __m512i start = start_of<P>(w, panel + p);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r][p] = start;
  }
  const size_t panel_bytes = w.panel_bytes();
  const uint8_t* a = x.at<uint8_t>(row);  // moved up
  for (size_t k = 0; k < w.kp; k += 4) {
    __m512i v[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      v[p] = _mm512_load_si512(codes[p] + 16 * k);
      fetch_ahead<kInto>(codes[p], 16 * k, panel_bytes, P);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512i u = broadcast4(a + r * x.stride + k);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[r][p] = dpbusd(acc[r][p], u, v[p]);
    }
  }
  finish_block<vi>(w, x, row, panel, acc, out);
}

template <Into kInto, int R, int P>
void block_i4(const Linear& w, const Rows& x, size_t row, size_t panel, const Output& out) {
  __m512i acc[R][P];
  const uint8_t* codes[P];
  const int8_t* multipliers[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    codes[p] = w.codes + (panel + p) * w.panel_bytes();
    multipliers[p] = w.multipliers + (panel + p) * (w.kp / 2);
    const __m512i start = start_of<P>(w, panel + p);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r][p] = start;
  }
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i to_q = _mm512_broadcast_i32x4(_mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
  const size_t panel_bytes = w.panel_bytes();
  const uint8_t* a = x.at<uint8_t>(row);  // moved up
  for (size_t k = 0; k < w.kp; k += 64) {
    __m512i lo[R][P], hi[R][P];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) lo[r][p] = hi[r][p] = _mm512_setzero_si512();
    for (int j = 0; j < 8; ++j) {
      __m512i vl[P], vh[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const uint8_t* at = codes[p] + 8 * k + 64 * j;
        const __m512i v = _mm512_load_si512(at);
        fetch_ahead<kInto>(codes[p], 8 * k + 64 * j, panel_bytes, P);
        vl[p] = _mm512_shuffle_epi8(to_q, _mm512_and_si512(v, low));
        vh[p] = _mm512_shuffle_epi8(to_q, _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512i ul = broadcast4(a + r * x.stride + k + 4 * j), uh = broadcast4(a + r * x.stride + k + 32 + 4 * j);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          lo[r][p] = dpbusd(lo[r][p], ul, vl[p]);
          hi[r][p] = dpbusd(hi[r][p], uh, vh[p]);
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const int8_t* m = multipliers[p] + k / 2;
      if (k % 128 == 0) _mm_prefetch(reinterpret_cast<const char*>(m + P * (w.kp / 2)), _MM_HINT_T0);
      const __m512i ml = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(m)));
      const __m512i mh = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(m + 16)));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        acc[r][p] = _mm512_add_epi32(acc[r][p], _mm512_add_epi32(_mm512_mullo_epi32(lo[r][p], ml),
                                                                 _mm512_mullo_epi32(hi[r][p], mh)));
    }
  }
  finish_block<vi>(w, x, row, panel, acc, out);
}

template <Into kInto, int R, int P>
void block_bf16(const Linear& w, const Rows& x, size_t row, size_t panel, const Output& out) {
  __m512 acc[R][P];
  const uint16_t* codes[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    codes[p] = reinterpret_cast<const uint16_t*>(w.codes) + (panel + p) * (w.panel_bytes() / 2);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r][p] = _mm512_setzero_ps();
  }
  const __m512i high = _mm512_set1_epi32(int32_t(0xffff0000));
  const size_t panel_bytes = w.panel_bytes();
  const uint16_t* a = x.at<uint16_t>(row);
  for (size_t k = 0; k < w.kp; k += 32) {
    __m512 even[R][P], odd[R][P];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) even[r][p] = odd[r][p] = _mm512_setzero_ps();
    for (int j = 0; j < 16; ++j) {
      __m512 we[P], wo[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const uint16_t* at = codes[p] + 16 * k + 32 * j;
        const __m512i v = _mm512_load_si512(at);
        fetch_ahead<kInto>(codes[p], 32 * k + 64 * j, panel_bytes, P);
        we[p] = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        wo[p] = _mm512_castsi512_ps(_mm512_and_si512(v, high));
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512 xe = _mm512_set1_ps(bf16_to_float(a[r * x.stride / 2 + k + 2 * j]));
        const __m512 xo = _mm512_set1_ps(bf16_to_float(a[r * x.stride / 2 + k + 2 * j + 1]));
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          even[r][p] = _mm512_fmadd_ps(we[p], xe, even[r][p]);
          odd[r][p] = _mm512_fmadd_ps(wo[p], xo, odd[r][p]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[r][p] = _mm512_add_ps(acc[r][p], _mm512_add_ps(even[r][p], odd[r][p]));
  }
  finish_block<vf>(w, x, row, panel, acc, out);
}

using Block = void (*)(const Linear&, const Rows&, size_t, size_t, const Output&);

// Panels in runs of 4, then 2, then 1; rows in runs of up to 4 inside each, so that a run's weights are read once from
// memory and again from cache.
void blocks(const Block (&table)[4][3], const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out) {
  for (size_t p = begin; p < end;) {
    const size_t left = end - p;
    const int width = left >= 4 ? 2 : left >= 2 ? 1 : 0;
    for (size_t r = 0; r < x.num;) {
      const size_t rows = x.num - r < 4 ? x.num - r : 4;
      table[rows - 1][width](w, x, r, p, out);
      r += rows;
    }
    p += size_t(1) << width;
  }
}

#define TRIVET_BLOCKS(f, into)                                           \
  {{f<into, 1, 1>, f<into, 1, 2>, f<into, 1, 4>},                        \
   {f<into, 2, 1>, f<into, 2, 2>, f<into, 2, 4>},                        \
   {f<into, 3, 1>, f<into, 3, 2>, f<into, 3, 4>},                        \
   {f<into, 4, 1>, f<into, 4, 2>, f<into, 4, 4>}}
#define TRIVET_LINEAR(f, rows)                                                    \
  static constexpr Block to_l1[4][3] = TRIVET_BLOCKS(f, Into::kL1);               \
  static constexpr Block to_l2[4][3] = TRIVET_BLOCKS(f, Into::kL2);               \
  blocks(streams_into_l2() ? to_l2 : to_l1, w, rows, begin, end, out)

}  // namespace

void linear_i8(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  TRIVET_LINEAR(block_i8, moved_up(x, w.kp, scratch));
}
void linear_i4(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  TRIVET_LINEAR(block_i4, moved_up(x, w.kp, scratch));
}
void linear_bf16(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t*) {
  TRIVET_LINEAR(block_bf16, x);
}

}  // namespace trivet::avx512
