// The tile instructions, and in a build with TRIVET_EMULATE_TILES the same in software: the amx tier then runs, to the bit
// and slowly, on any CPU with AVX-512 and bf16. That build is for tests: what is written for tiles shall not rot where
// there are none. Emulated tiles all have 16 rows of 64 bytes; one used outside of begin and end of a step traps, as a
// real one does.
#pragma once

#include <immintrin.h>

#ifdef TRIVET_EMULATE_TILES

#include <cstddef>
#include <cstdint>

namespace trivet::amx {

struct alignas(64) EmulatedTile {
  uint8_t row[16][64];
};
// Of the calling thread. __thread and not thread_local: no wrapper function that tiers would share through the linker.
extern __thread EmulatedTile emulated_tiles[8];
extern __thread bool emulated_tiles_ready;

static inline EmulatedTile& emulated_tile(int i) {
  if (!emulated_tiles_ready) __builtin_trap();
  return emulated_tiles[i];
}

static inline void emulated_zero(int t) { __builtin_memset(&emulated_tile(t), 0, sizeof(EmulatedTile)); }
static inline void emulated_load(int t, const void* from, size_t stride) {
  for (size_t r = 0; r < 16; ++r) __builtin_memcpy(emulated_tile(t).row[r], static_cast<const char*>(from) + r * stride, 64);
}
static inline void emulated_store(int t, void* to, size_t stride) {
  for (size_t r = 0; r < 16; ++r) __builtin_memcpy(static_cast<char*>(to) + r * stride, emulated_tile(t).row[r], 64);
}

// c[m][n] += sum over k, e of a[m][4 k + e] b[k][4 n + e], int8 (b: or uint8) to int32.
template <bool kSigned>
static inline void emulated_dpbsxd(int tc, int ta, int tb) {
  const EmulatedTile &a = emulated_tile(ta), &b = emulated_tile(tb);
  for (int m = 0; m < 16; ++m) {
    __m512i sums[2] = {};  // of pairs: those of column n stand in lanes 2 n and 2 n + 1, eight columns a vector
    for (int k = 0; k < 16; ++k) {
      int32_t four;
      __builtin_memcpy(&four, a.row[m] + 4 * k, 4);
      const __m512i x = _mm512_set1_epi64(_mm_cvtsi128_si64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four))));
      for (int h = 0; h < 2; ++h) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b.row[k] + 32 * h));
        sums[h] = _mm512_add_epi32(sums[h], _mm512_madd_epi16(kSigned ? _mm512_cvtepi8_epi16(codes) : _mm512_cvtepu8_epi16(codes), x));
      }
    }
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_permutex2var_epi32(sums[0], even, sums[1]),
                                         _mm512_permutex2var_epi32(sums[0], odd, sums[1]));
    uint8_t* c = emulated_tile(tc).row[m];
    _mm512_store_si512(c, _mm512_add_epi32(_mm512_load_si512(c), sum));
  }
}

// c[m][n] += (sum over k of a[m][2 k] b[k][2 n]) + (sum over k of a[m][2 k + 1] b[k][2 n + 1]), bf16 to f32, in order.
static inline void emulated_dpbf16ps(int tc, int ta, int tb) {
  const EmulatedTile &a = emulated_tile(ta), &b = emulated_tile(tb);
  const __m512i high = _mm512_set1_epi32(int32_t(0xffff0000));
  for (int m = 0; m < 16; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < 16; ++k) {
      int32_t two;
      __builtin_memcpy(&two, a.row[m] + 4 * k, 4);
      const __m512i x = _mm512_set1_epi32(two), y = _mm512_load_si512(b.row[k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, high)), _mm512_castsi512_ps(_mm512_and_si512(y, high)), odd);
    }
    uint8_t* c = emulated_tile(tc).row[m];
    _mm512_store_ps(c, _mm512_add_ps(_mm512_load_ps(c), _mm512_add_ps(even, odd)));
  }
}

}  // namespace trivet::amx

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_zero(t) ::trivet::amx::emulated_zero(t)
#define _tile_loadd(t, from, stride) ::trivet::amx::emulated_load(t, from, stride)
#define _tile_stream_loadd(t, from, stride) ::trivet::amx::emulated_load(t, from, stride)
#define _tile_stored(t, to, stride) ::trivet::amx::emulated_store(t, to, stride)
#define _tile_dpbssd(c, a, b) ::trivet::amx::emulated_dpbsxd<true>(c, a, b)
#define _tile_dpbsud(c, a, b) ::trivet::amx::emulated_dpbsxd<false>(c, a, b)
#define _tile_dpbf16ps(c, a, b) ::trivet::amx::emulated_dpbf16ps(c, a, b)

#endif
