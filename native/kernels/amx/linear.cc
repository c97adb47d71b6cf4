// Products on the tile unit, for more than a few rows.
//
// All eight tile registers are 16 rows of 64 bytes: 0-3 accumulate, 4-5 hold activations, 6-7 weights. A packed tile of
// 1 KiB is 16 outputs times 64 int8 (or 32 bf16) inputs, so int8 and bf16 differ only in the instruction. int4 panels
// are unpacked to int8 first (w8 = m * q, exactly).
#include <immintrin.h>

#include "kernels/common/epilogue.h"
#include "kernels/tables.h"
#include "kernels/amx/amx.h"

namespace trivet {
namespace {

// A macro, since the intrinsics paste their register numbers into the assembly text.
#define TRIVET_DOT(c, a, b)       \
  do {                            \
    if constexpr (kInt8)          \
      _tile_dpbssd(c, a, b);      \
    else                          \
      _tile_dpbf16ps(c, a, b);    \
  } while (0)

template <bool kInt8>
using Acc = std::conditional_t<kInt8, vi, vf>;

TRIVET_INLINE void prefetch_tile(const uint8_t* at) {
  for (int i = 0; i < 16; ++i) _mm_prefetch(reinterpret_cast<const char*>(at + 64 * i), _MM_HINT_T0);
}
constexpr size_t kAhead = 8192;  // bytes of each weight stream that are asked for ahead

// Rows [row, row + 16) against 4 panels: each weight tile is used once, so four streams come from memory.
template <bool kInt8>
void block_1x4(const uint8_t* a, size_t lda, const uint8_t* b, size_t panel_bytes, size_t chunks, uint8_t* c) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t i = 0; i < chunks; ++i, a += 64, b += 1024) {
    _tile_loadd(4, a, lda);
    prefetch_tile(b + kAhead);
    _tile_loadd(6, b, 64);
    TRIVET_DOT(0, 4, 6);
    prefetch_tile(b + panel_bytes + kAhead);
    _tile_loadd(7, b + panel_bytes, 64);
    TRIVET_DOT(1, 4, 7);
    prefetch_tile(b + 2 * panel_bytes + kAhead);
    _tile_loadd(6, b + 2 * panel_bytes, 64);
    TRIVET_DOT(2, 4, 6);
    prefetch_tile(b + 3 * panel_bytes + kAhead);
    _tile_loadd(7, b + 3 * panel_bytes, 64);
    TRIVET_DOT(3, 4, 7);
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + 1024, 64);
  _tile_stored(2, c + 2048, 64);
  _tile_stored(3, c + 3072, 64);
}

// Rows [row, row + 32) against 2 panels; accumulator 2 i + j is row tile i, panel j. kCold: the weights come from memory.
template <bool kInt8, bool kCold>
void block_2x2(const uint8_t* a, size_t lda, const uint8_t* b, size_t panel_bytes, size_t chunks, uint8_t* c) {
  const uint8_t* a1 = a + 16 * lda;
  const uint8_t* b1 = b + panel_bytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t i = 0; i < chunks; ++i, a += 64, a1 += 64, b += 1024, b1 += 1024) {
    if (kCold) {
      prefetch_tile(b + kAhead);
      prefetch_tile(b1 + kAhead);
    }
    _tile_loadd(4, a, lda);
    _tile_loadd(6, b, 64);
    TRIVET_DOT(0, 4, 6);
    _tile_loadd(7, b1, 64);
    TRIVET_DOT(1, 4, 7);
    _tile_loadd(5, a1, lda);
    TRIVET_DOT(2, 5, 6);
    TRIVET_DOT(3, 5, 7);
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + 1024, 64);
  _tile_stored(2, c + 2048, 64);
  _tile_stored(3, c + 3072, 64);
}

// 16 rows of one panel, for the odd panel at the end.
template <bool kInt8>
void block_1x1(const uint8_t* a, size_t lda, const uint8_t* b, size_t chunks, uint8_t* c) {
  _tile_zero(0);
  for (size_t i = 0; i < chunks; ++i, a += 64, b += 1024) {
    _tile_loadd(4, a, lda);
    _tile_loadd(6, b, 64);
    TRIVET_DOT(0, 4, 6);
  }
  _tile_stored(0, c, 64);
}

template <bool kInt8>
TRIVET_INLINE void finish_rows(const Linear& w, const Rows& x, size_t row, size_t panel, const uint8_t* c, size_t panels,
                               Epilogue epilogue, float* out, size_t ld) {
  const size_t rows = x.num - row < 16 ? x.num - row : 16;
  Acc<kInt8> acc[4];
  for (size_t r = 0; r < rows; ++r) {
    for (size_t p = 0; p < panels; ++p) __builtin_memcpy(&acc[p], c + 1024 * p + 64 * r, 64);
    if (epilogue == Epilogue::kSiluMul)
      for (size_t p = 0; p < panels; p += 2) finish_gate_up(w, x, panel + p, row + r, acc[p], acc[p + 1], out, ld);
    else
      for (size_t p = 0; p < panels; ++p) finish(w, x, panel + p, row + r, acc[p], epilogue, out, ld);
  }
}

// w8 of `panels` panels, in the layout of int8 panels. nibble n = q + 8: m * q = m * n - 8 m modulo 256, which is exact
// because |m * q| <= 120; multiplying 16-bit halves gives each byte's product in its low 8 bits.
void unpack_i4(const Linear& w, size_t panel, size_t panels, uint8_t* out) {
  const __m512i low = _mm512_set1_epi8(15), even = _mm512_set1_epi16(255);
  for (size_t p = 0; p < panels; ++p) {
    const uint8_t* code = w.codes + (panel + p) * w.panel_bytes();
    const uint8_t* m = w.multipliers + (panel + p) * (w.kp / 2);
    for (size_t k = 0; k < w.kp; k += 64, code += 512, m += 32, out += 1024) {
      _mm_prefetch(reinterpret_cast<const char*>(m + 512), _MM_HINT_T0);
      __m512i m16[2], m8[2];
      for (int h = 0; h < 2; ++h) {
        const __m512i m32 = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(m + 16 * h)));
        m16[h] = _mm512_or_si512(m32, _mm512_slli_epi32(m32, 16));
        m8[h] = _mm512_slli_epi16(_mm512_or_si512(m16[h], _mm512_slli_epi16(m16[h], 8)), 3);
      }
      for (int j = 0; j < 8; ++j) {
        const __m512i v = _mm512_load_si512(code + 64 * j);
        _mm_prefetch(reinterpret_cast<const char*>(code + 64 * j + kAhead / 2), _MM_HINT_T0);
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

template <bool kInt8, bool kUnpack>
void tiles(const Linear& w, const Rows& x, size_t begin, size_t end, Epilogue epilogue, float* out, size_t ld,
           uint8_t* scratch) {
  const size_t row_bytes = w.kp * (kInt8 ? 1 : 2), chunks = row_bytes / 64, panel_bytes = 16 * row_bytes;
  const uint8_t* a = static_cast<const uint8_t*>(x.data);
  uint8_t* c = scratch;
  uint8_t* unpacked = scratch + 4096;
  for (size_t p = begin; p < end;) {
    const size_t most = x.num <= 16 ? 4 : 2, panels = end - p >= most ? most : end - p >= 2 ? 2 : 1;
    const uint8_t* b = w.codes + p * panel_bytes;
    if (kUnpack) {
      unpack_i4(w, p, panels, unpacked);
      b = unpacked;
    }
    for (size_t row = 0; row < x.num;) {
      const uint8_t* rows = a + row * row_bytes;
      if (panels == 4) {
        block_1x4<kInt8>(rows, row_bytes, b, panel_bytes, chunks, c);
        finish_rows<kInt8>(w, x, row, p, c, 4, epilogue, out, ld);
        row += 16;
      } else if (panels == 2) {
        if (row == 0 && !kUnpack)
          block_2x2<kInt8, true>(rows, row_bytes, b, panel_bytes, chunks, c);
        else
          block_2x2<kInt8, false>(rows, row_bytes, b, panel_bytes, chunks, c);
        finish_rows<kInt8>(w, x, row, p, c, 2, epilogue, out, ld);
        if (row + 16 < x.num) finish_rows<kInt8>(w, x, row + 16, p, c + 2048, 2, epilogue, out, ld);
        row += 32;
      } else {
        block_1x1<kInt8>(rows, row_bytes, b, chunks, c);
        finish_rows<kInt8>(w, x, row, p, c, 1, epilogue, out, ld);
        row += 16;
      }
    }
    p += panels;
  }
}

}  // namespace

namespace amx {

// Below these many rows the few-row kernels of avx512 are quicker (docs/lab.md); the bits are the same.
constexpr size_t kFewInt8 = 4, kFewInt4 = 4, kFewBf16 = 2;

void linear_i8(const Linear& w, const Rows& x, size_t begin, size_t end, Epilogue epilogue, float* out, size_t ld,
               uint8_t* scratch) {
  (x.num <= kFewInt8 ? avx512::linear_i8 : tiles<true, false>)(w, x, begin, end, epilogue, out, ld, scratch);
}
void linear_i4(const Linear& w, const Rows& x, size_t begin, size_t end, Epilogue epilogue, float* out, size_t ld,
               uint8_t* scratch) {
  (x.num <= kFewInt4 ? avx512::linear_i4 : tiles<true, true>)(w, x, begin, end, epilogue, out, ld, scratch);
}
void linear_bf16(const Linear& w, const Rows& x, size_t begin, size_t end, Epilogue epilogue, float* out, size_t ld,
                 uint8_t* scratch) {
  (x.num <= kFewBf16 ? avx512::linear_bf16 : tiles<false, false>)(w, x, begin, end, epilogue, out, ld, scratch);
}

}  // namespace amx
}  // namespace trivet
