// Products without VNNI: int8 as 16-bit pairs, int4 as nibbles times bytes, bf16 by f32 fma in the tile's order.
//
// vpmaddubsw multiplies bytes, but its sums of two saturate at 16 bits. Nibbles never get there, and sixteen of their
// products still fit 16 bits: int4 costs 2.25 instructions for 32 products. For int8 both operands are widened, which
// costs four (vpmaddwd and vpaddd, for 16); giving the activations' signs to the weights instead (vpsignb, vpmaddubsw,
// vpmaddwd, vpaddd) costs four as well, three of them on the two ports that multiply.
//
// Rows are first brought to the form that a block broadcasts from: prepare. A block is R rows by Q times 8 outputs, half
// a panel; its sums fill at most twelve of the sixteen registers. One row takes two panels at once, because two streams
// of weights keep more loads in flight than one does.
#include <algorithm>

#include "kernels/avx2/unit.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/stream.h"
#include "kernels/tables.h"

namespace trivet::avx2 {
namespace {

// One row runs through two panels once, at the speed of memory: each of the two streams asks ahead of itself.
template <Into kInto>
struct Near {
  const uint8_t* panels;
  size_t panel_bytes;
  [[gnu::always_inline]] inline void at(size_t line, bool) const {
    fetch_ahead<kInto>(panels, 64 * line, panel_bytes, 2);
    fetch_ahead<kInto>(panels + panel_bytes, 64 * line, panel_bytes, 2);
  }
};

// A share of the next two panels in equal steps, rounded up: some lines are asked for more than once, but of sixteen registers it
// takes fewer than Ahead, which counts lines.
struct Share {
  const uint8_t *first, *second;
  size_t step;
  [[gnu::always_inline]] inline void at(size_t line, bool odd) const {
    _mm_prefetch(reinterpret_cast<const char*>((odd ? second : first) + line * step), _MM_HINT_T1);
  }
};

TRIVET_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
TRIVET_INLINE __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
TRIVET_INLINE __m256i broadcast32(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
TRIVET_INLINE __m256i broadcast64(const void* p) {
  int64_t v;
  __builtin_memcpy(&v, p, 8);
  return _mm256_set1_epi64x(v);
}

// acc + the sums of two products of 16-bit numbers, or of unsigned by signed bytes. In assembly, since GCC 12 computes all
// products of a step before it adds them, and keeps the sums in memory for want of registers.
TRIVET_INLINE __m256i add_products16(__m256i acc, __m256i a, __m256i b) {
  __m256i products;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(products) : "x"(a), "x"(b));
  return acc;
}
TRIVET_INLINE __m256i add_products8(__m256i acc, __m256i u, __m256i s) {
  __m256i products;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(products) : "x"(u), "x"(s));
  return acc;
}

constexpr size_t kLd = 32;  // sums of one row of a block: two panels

// A kind of product holds one call's operands, and prepared rows in its scratch:
//   prepare(row, num)                      num (at most kRowsAtOnce) rows of x from `row` on; a block knows them by 0..
//   block<R, Q>(panel, half, row, ahead, sums)
//                                          sums[kLd r + c] of R prepared rows and 8 Q outputs, from that half panel on
class I8 {
 public:
  using Sum = int32_t;
  static constexpr size_t kRowsAtOnce = 30;

  I8(const Linear& w, const Rows& x, uint8_t* scratch)
      : w_(w), x_(x), wide_(reinterpret_cast<int16_t*>(scratch)), ld_(w.kp + 32) {}

  void prepare(size_t row, size_t num) const {
    for (size_t r = 0; r < num; ++r) {
      const int8_t* from = x_.at<int8_t>(row + r);
      for (size_t k = 0; k < w_.kp; k += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(wide_ + r * ld_ + k), _mm256_cvtepi8_epi16(load128(from + k)));
    }
  }

  template <int R, int Q, class A>
  void block(size_t panel, size_t half, size_t row, const A& ahead, int32_t* sums) const {
    constexpr int kParts = 2 * Q;  // of four outputs, each with two sums: of k 0 and 1 of every four, and of 2 and 3
    const size_t panel_bytes = w_.panel_bytes();
    const uint8_t* codes = w_.codes + panel * panel_bytes + 32 * half;
    const int16_t* x = wide_ + row * ld_;
    __m256i acc[R][kParts];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < kParts; ++p) acc[r][p] = _mm256_setzero_si256();
    for (size_t line = 0; line < w_.kp / 4; line += 2)
#pragma GCC unroll 2
      for (size_t odd = 0; odd < 2; ++odd) {
        const auto weights = [&](int p) {
          return _mm256_cvtepi8_epi16(load128(codes + size_t(p / 4) * panel_bytes + 64 * (line + odd) + 16 * (p % 4)));
        };
        ahead.at(line + odd, odd);
        __m256i v[kParts];
        if constexpr (R > 1) {
#pragma GCC unroll 8
          for (int p = 0; p < kParts; ++p) v[p] = weights(p);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          const __m256i u = broadcast64(x + r * ld_ + 4 * (line + odd));
#pragma GCC unroll 8
          for (int p = 0; p < kParts; ++p) acc[r][p] = add_products16(acc[r][p], u, R > 1 ? v[p] : weights(p));
        }
      }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const __m256i pairs = _mm256_hadd_epi32(acc[r][2 * q], acc[r][2 * q + 1]);  // outputs 0 1 4 5 2 3 6 7
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + kLd * r + 8 * q), _mm256_permute4x64_epi64(pairs, 0xD8));
      }
  }

 private:
  const Linear& w_;
  const Rows& x_;
  int16_t* wide_;  // [kRowsAtOnce][ld_]: rows a power of two apart would fall into the same few lines of L1
  size_t ld_;
};

// sum x q over a group of 32 = sum x (q + 8) - 8 sum x, both of 16-bit sums that may wrap around: the difference cannot.
class I4 {
 public:
  using Sum = int32_t;
  static constexpr size_t kRowsAtOnce = 30;

  I4(const Linear& w, const Rows& x, uint8_t* scratch)
      : w_(w), x_(x), starts_(reinterpret_cast<int32_t*>(scratch)), groups_(w.kp / 32) {}

  void prepare(size_t row, size_t num) {
    rows_ = x_.at<int8_t>(row);
    const __m256i ones = _mm256_set1_epi8(1);
    for (size_t r = 0; r < num; ++r)
      for (size_t g = 0; g < groups_; ++g) {
        const __m256i pairs = _mm256_maddubs_epi16(ones, load256(rows_ + r * x_.stride + 32 * g));
        __m128i s = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4E));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0xB1));
        starts_[g * kRowsAtOnce + r] = _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), _mm_slli_epi16(s, 3)));
      }
  }

  template <int R, int Q, class A>
  void block(size_t panel, size_t half, size_t row, const A& ahead, int32_t* sums) const {
    const size_t panel_bytes = w_.panel_bytes();
    const uint8_t* codes = w_.codes + panel * panel_bytes + 32 * half;
    const int8_t* multipliers = w_.multipliers + panel * (w_.kp / 2) + 8 * half;
    const int8_t* x = rows_ + row * x_.stride;
    const int32_t* starts = starts_ + row;
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i to_high_halves = _mm256_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3,  //
                                                    -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7);
    __m256i acc[R][Q];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) acc[r][q] = _mm256_setzero_si256();
    for (size_t k = 0; k < w_.kp; k += 64) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {  // low nibbles, then high ones: a group each
        __m256i part[R][Q];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int q = 0; q < Q; ++q) part[r][q] = broadcast32(starts + (k / 32 + h) * kRowsAtOnce + r);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
          if (h == 0) ahead.at(k / 8 + j, j % 2);
          __m256i n[Q];
#pragma GCC unroll 4
          for (int q = 0; q < Q; ++q) {
            const uint8_t* stream = codes + q / 2 * panel_bytes;
            const __m256i v = load256(stream + 8 * k + 64 * j + 32 * (q % 2));
            n[q] = _mm256_and_si256(h ? _mm256_srli_epi16(v, 4) : v, low);
          }
#pragma GCC unroll 6
          for (int r = 0; r < R; ++r) {
            const __m256i u = broadcast32(x + r * x_.stride + k + 32 * h + 4 * j);
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q) part[r][q] = add_products8(part[r][q], n[q], u);
          }
        }
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          const int8_t* at = multipliers + q / 2 * (w_.kp / 2) + k / 2 + 16 * h + 8 * (q % 2);
          const __m256i m = _mm256_srai_epi16(_mm256_shuffle_epi8(broadcast64(at), to_high_halves), 8);
#pragma GCC unroll 6
          for (int r = 0; r < R; ++r) acc[r][q] = add_products16(acc[r][q], part[r][q], m);
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + kLd * r + 8 * q), acc[r][q]);
  }

 private:
  const Linear& w_;
  const Rows& x_;
  const int8_t* rows_ = nullptr;
  int32_t* starts_;  // [groups_][kRowsAtOnce]: two 16-bit numbers each, -8 sum x over k 0 and 1 of every four, and 2 and 3
  size_t groups_;
};

class Bf16 {
 public:
  using Sum = float;
  static constexpr size_t kRowsAtOnce = 12;

  Bf16(const Linear& w, const Rows& x, uint8_t* scratch)
      : w_(w), x_(x), wide_(reinterpret_cast<float*>(scratch)), ld_(w.kp + 16) {}

  void prepare(size_t row, size_t num) const {
    for (size_t r = 0; r < num; ++r)
      widen<Unit>(x_.at<uint16_t>(row + r), w_.kp, wide_ + r * ld_);
  }

  template <int R, int Q, class A>
  void block(size_t panel, size_t half, size_t row, const A& ahead, float* sums) const {
    const size_t panel_bytes = w_.panel_bytes();
    const uint8_t* codes = w_.codes + panel * panel_bytes + 32 * half;
    const auto at = [&](size_t i, int j, int q) {
      if (q == 0) ahead.at(16 * i + size_t(j), j % 2);
      return codes + size_t(q / 2) * panel_bytes + 1024 * i + 64 * size_t(j) + 32 * size_t(q % 2);
    };
    chain<Unit, false, R, Q>(wide_ + row * ld_, ld_, at, w_.kp / 32, sums, kLd);
  }

 private:
  const Linear& w_;
  const Rows& x_;
  float* wide_;  // [kRowsAtOnce][ld_]
  size_t ld_;
};

// R prepared rows, from x's `row` on, against one panel or two: the run-th run of rows of `runs` to do so, which bring in what
// is at `next`.
template <class Kind, int R>
void rows_by_panels(const Kind& kind, const Linear& w, const Rows& x, size_t row, size_t prepared, size_t panel,
                    size_t panels, const uint8_t* next, size_t run, size_t runs, const Output& out) {
  alignas(64) typename Kind::Sum sums[R * kLd];
  constexpr size_t kParts = R == 1 ? 1 : R == 2 ? 2 : 4;  // blocks that two panels are cut into
  const auto ahead = [&](size_t part) {
    const size_t parts = kParts * runs;
    const uint8_t* from = next + w.panel_bytes() * (kParts * run + part) / parts;
    return Share{from, from + w.panel_bytes(), (64 + parts - 1) / parts};
  };
  if constexpr (R == 1) {
    const uint8_t* codes = w.codes + panel * w.panel_bytes();
    if (panels == 2 && streams_into_l2())
      kind.template block<1, 4>(panel, 0, prepared, Near<Into::kL2>{codes, w.panel_bytes()}, sums);
    else if (panels == 2)
      kind.template block<1, 4>(panel, 0, prepared, Near<Into::kL1>{codes, w.panel_bytes()}, sums);
    else
      kind.template block<1, 2>(panel, 0, prepared, ahead(0), sums);
  } else if constexpr (R == 2) {
    for (size_t p = 0; p < panels; ++p) kind.template block<2, 2>(panel + p, 0, prepared, ahead(p), sums + 16 * p);
  } else {
    for (size_t h = 0; h < 2 * panels; ++h)
      kind.template block<R, 1>(panel + h / 2, h % 2, prepared, ahead(h), sums + 8 * h);
  }
  for (int r = 0; r < R; ++r) {
    if (out.epilogue == Epilogue::kSiluMul)
      finish_gate_up(w, x, panel, row + r, load(sums + kLd * r), load(sums + kLd * r + 16), out);
    else
      for (size_t p = 0; p < panels; ++p) finish(w, x, panel + p, row + r, load(sums + kLd * r + 16 * p), out);
  }
}

// More rows than are prepared at once pass by groups of panels that stay in L2.
constexpr size_t kGroupBytes = 256 * 1024;

template <class Kind>
void linear(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  static constexpr decltype(&rows_by_panels<Kind, 1>) by_rows[Unit::kMostRows] = {
      rows_by_panels<Kind, 1>, rows_by_panels<Kind, 2>, rows_by_panels<Kind, 3>,
      rows_by_panels<Kind, 4>, rows_by_panels<Kind, 5>, rows_by_panels<Kind, 6>};
  Kind kind(w, x, scratch);
  const bool one_pass = x.num <= Kind::kRowsAtOnce;
  const size_t group = one_pass ? end - begin : std::max<size_t>(kGroupBytes / w.panel_bytes() / 2 * 2, 2);
  for (size_t first = begin; first < end; first += group) {
    const size_t last = std::min(first + group, end);
    for (size_t row = 0; row < x.num; row += Kind::kRowsAtOnce) {
      const size_t num = std::min(x.num - row, Kind::kRowsAtOnce);
      kind.prepare(row, num);
      for (size_t p = first; p < last; p += 2) {
        const size_t panels = std::min<size_t>(last - p, 2);
        const uint8_t* next = w.codes + (p + 2 < end ? p + 2 : p) * w.panel_bytes();  // at the end, what is there
        for_runs(num, Unit::kMostRows, [&](size_t at, size_t length, size_t run, size_t runs) {
          by_rows[length - 1](kind, w, x, row + at, at, p, panels, next, run, runs, out);
        });
      }
    }
  }
}

}  // namespace

void linear_i8(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  linear<I8>(w, x, begin, end, out, scratch);
}
void linear_i4(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  linear<I4>(w, x, begin, end, out, scratch);
}
void linear_bf16(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  linear<Bf16>(w, x, begin, end, out, scratch);
}

}  // namespace trivet::avx2
