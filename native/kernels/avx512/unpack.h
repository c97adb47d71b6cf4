// int4 panels as int8 panels, for products of many rows on VNNI or tiles.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// w8 + kOffset of `panels` panels, in the layout of int8 panels. nibble n = q + 8: m * q = m * n - 8 m modulo 256, exact
// because |m * q| <= 120; multiplying 16-bit halves gives each byte's product in its low 8 bits.
template <int kOffset>
void unpack_i4(const Linear& w, size_t panel, size_t panels, uint8_t* out) {
  const __m512i low = _mm512_set1_epi8(15), even = _mm512_set1_epi16(255);
  const __m512i four_times = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
  for (size_t p = 0; p < panels; ++p) {
    const uint8_t* code = w.codes + (panel + p) * w.panel_bytes();
    const int8_t* m = w.multipliers + (panel + p) * (w.kp / 2);
    for (size_t k = 0; k < w.kp; k += 64, code += 512, m += 32, out += 1024) {
      _mm_prefetch(reinterpret_cast<const char*>(m + 512), _MM_HINT_T0);
      __m512i m16[2], m8[2];
      for (int h = 0; h < 2; ++h) {
        const __m512i m32 = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(m + 16 * h)));
        m16[h] = _mm512_or_si512(m32, _mm512_slli_epi32(m32, 16));
        m8[h] = _mm512_shuffle_epi8(_mm512_slli_epi32(m32, 3), four_times);
        if (kOffset) m8[h] = _mm512_sub_epi8(m8[h], _mm512_set1_epi8(int8_t(kOffset)));
      }
      for (int j = 0; j < 8; ++j) {
        const __m512i v = _mm512_load_si512(code + 64 * j);
        _mm_prefetch(reinterpret_cast<const char*>(code + 64 * j + 4096), _MM_HINT_T0);
        const __m512i n[2] = {_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16(v, 4), low)};
        for (int h = 0; h < 2; ++h) {
          const __m512i e = _mm512_and_si512(_mm512_mullo_epi16(n[h], m16[h]), even);
          const __m512i o = _mm512_slli_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(n[h], 8), m16[h]), 8);
          _mm512_store_si512(out + 512 * h + 64 * j, _mm512_sub_epi8(_mm512_or_si512(e, o), m8[h]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace trivet
