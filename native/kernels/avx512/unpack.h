// int4 panels as int8 panels, for products of many rows on VNNI or tiles.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// w8 of 64 k of a panel, in the layout of int8 panels: 512 bytes of codes become 1 KiB. A nibble is n = q + 8, and
// n |m| <= 240, so one product of 16 bits holds those of both its bytes; then |m| q = n |m| - 8 |m|, and where m is
// negative that is turned around: -x = ~x + 1.
TRIVET_INLINE void unpack_tile(const uint8_t* code, const int8_t* m, uint8_t* out) {
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i four_times = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
  __m512i times[2], flip[2], plus[2];
  for (int h = 0; h < 2; ++h) {
    const __m512i m32 = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(m + 16 * h)));
    const __m512i top = _mm512_abs_epi32(m32);
    times[h] = _mm512_or_si512(top, _mm512_slli_epi32(top, 16));
    flip[h] = _mm512_srai_epi32(m32, 31);
    // -8 |m|, or 8 |m| + 1, which is -8 m + 1
    const __m512i m8 = _mm512_shuffle_epi8(_mm512_slli_epi32(m32, 3), four_times);
    plus[h] = _mm512_sub_epi8(_mm512_setzero_si512(), _mm512_add_epi8(m8, flip[h]));
  }
  for (int j = 0; j < 8; ++j) {
    const __m512i v = _mm512_load_si512(code + 64 * j);
    const __m512i n[2] = {_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16(v, 4), low)};
    for (int h = 0; h < 2; ++h) {
      const __m512i product = _mm512_xor_si512(_mm512_mullo_epi16(n[h], times[h]), flip[h]);
      _mm512_store_si512(out + 512 * h + 64 * j, _mm512_add_epi8(product, plus[h]));
    }
  }
}

// The same of inputs [begin, end) of `panels` panels, one after the other.
TRIVET_INLINE void unpack_i4(const Linear& w, size_t panel, size_t panels, size_t begin, size_t end, uint8_t* out) {
  for (size_t p = 0; p < panels; ++p) {
    const uint8_t* code = w.codes + (panel + p) * w.panel_bytes() + 8 * begin;
    const int8_t* m = w.multipliers + (panel + p) * (w.kp / 2) + begin / 2;
    for (size_t k = begin; k < end; k += 64, code += 512, m += 32, out += 1024) {
      _mm_prefetch(reinterpret_cast<const char*>(m + 512), _MM_HINT_T0);
      for (int j = 0; j < 8; ++j) _mm_prefetch(reinterpret_cast<const char*>(code + 64 * j + 4096), _MM_HINT_T0);
      unpack_tile(code, m, out);
    }
  }
}
TRIVET_INLINE void unpack_i4(const Linear& w, size_t panel, size_t panels, uint8_t* out) { unpack_i4(w, panel, panels, 0, w.kp, out); }

}  // namespace
}  // namespace trivet
