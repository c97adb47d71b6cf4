// Products on the tile unit, for more than a few rows.
//
// All eight tile registers are 16 rows of 64 bytes: 0-3 accumulate, 4-5 hold activations, 6-7 weights. A packed tile of
// 1 KiB is 16 outputs times 64 int8 (or 32 bf16) inputs, so int8 and bf16 differ only in the instruction. int4 panels
// are unpacked to int8 first (w8 = m * q, exactly).
#include <algorithm>

#include "kernels/amx/many_rows.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

// Up to 16 rows: four panels at a time, since weights come from memory and each is used once; what follows them is done
// beside the next four, by a finisher for each pair, so their sums take turns in the first 8 KiB. Then the last panels.
template <bool kInt8, bool kUnpack, Epilogue kEpilogue>
void one_tile_of_rows(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  const size_t row_bytes = w.kp * (kInt8 ? 1 : 2), chunks = row_bytes / 64, panel_bytes = 16 * row_bytes;
  const uint8_t* a = x.at<uint8_t>(0);
  uint8_t* const unpacked = scratch + 8192;
  Finisher<kInt8, kEpilogue> first(w, x, out, 4), second(w, x, out, 4);
  const auto each = [&] {
    if (first.left() > 0) first.template some<1>();
    if (second.left() > 0) second.template some<1>();
  };
  const auto rest = [&] {
    first.rest();
    second.rest();
  };
  size_t p = begin;
  for (; p + 4 <= end; p += 4) {
    uint8_t* const sums = scratch + (p - begin) / 4 % 2 * 4096;
    if (kUnpack)
      block_i4<false>(a, x.stride, w, p, chunks, unpacked, sums, each);
    else
      block_1x4<kInt8>(a, x.stride, w.codes + p * panel_bytes, panel_bytes, chunks, sums, each);
    rest();
    first.begin(sums, 0, p);
    second.begin(sums + 2048, 0, p + 2);
  }
  rest();
  while (p < end) {
    const size_t panels = end - p >= 2 ? 2 : 1;
    const uint8_t* b = w.codes + p * panel_bytes;
    if (kUnpack) {
      unpack_i4(w, p, panels, unpacked);
      stored();
      b = unpacked;
    }
    for (size_t i = 0; i < panels; ++i) block_1x1<kInt8>(a, x.stride, b + i * panel_bytes, chunks, scratch + 1024 * i);
    finish_rows<kInt8>(w, x, 0, p, scratch, panels, out);
    p += panels;
  }
}

template <bool kInt8, bool kUnpack, Epilogue kEpilogue>
void some_rows(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  if (x.num <= 16)
    one_tile_of_rows<kInt8, kUnpack, kEpilogue>(w, x, begin, end, out, scratch);
  else
    ManyRows<kInt8, kUnpack, kEpilogue>(w, x, end, out, scratch).panels(begin);
}

template <bool kInt8, bool kUnpack>
void tiles(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  const size_t blocks = (x.num + 31) / 32, batches = (blocks + kMostBlocks - 1) / kMostBlocks;
  for (size_t batch = 0; batch < batches; ++batch) {  // of as many rows each: all weights are read for every one
    const size_t row = blocks * batch / batches * 32, end_row = std::min(blocks * (batch + 1) / batches * 32, x.num);
    const Rows part = x.part(row, end_row);
    const Output to = out.from_row(row);
    switch (out.epilogue) {
      case Epilogue::kStore: some_rows<kInt8, kUnpack, Epilogue::kStore>(w, part, begin, end, to, scratch); break;
      case Epilogue::kAdd: some_rows<kInt8, kUnpack, Epilogue::kAdd>(w, part, begin, end, to, scratch); break;
      case Epilogue::kStoreBf16: some_rows<kInt8, kUnpack, Epilogue::kStoreBf16>(w, part, begin, end, to, scratch); break;
      case Epilogue::kSiluMul: some_rows<kInt8, kUnpack, Epilogue::kSiluMul>(w, part, begin, end, to, scratch); break;
    }
  }
}

}  // namespace

namespace amx {

// Below these many rows the few-row kernels of avx512 are quicker (docs/lab.md); the bits are the same.
constexpr size_t kFewInt8 = 4, kFewInt4 = 4, kFewBf16 = 2;

void linear_i8(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= kFewInt8 ? avx512::linear_i8 : tiles<true, false>)(w, x, begin, end, out, scratch);
}
void linear_i4(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= kFewInt4 ? avx512::linear_i4 : tiles<true, true>)(w, x, begin, end, out, scratch);
}
void linear_bf16(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= kFewBf16 ? avx512::linear_bf16 : tiles<false, false>)(w, x, begin, end, out, scratch);
}

}  // namespace amx
}  // namespace trivet
