#include "core/source_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace trivet {
namespace {

size_t source_bytes(SourceType type) { return type == SourceType::kF32 ? 4 : 2; }

template <class T>
T load(const char* p, size_t i) {  // sources may be unaligned in their file
  T value;
  std::memcpy(&value, p + i * sizeof(T), sizeof(T));
  return value;
}

uint16_t round_to_bf16(float x) {  // nearest, half to even
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace

std::vector<Row> list_rows(const RowSource* sources, size_t num_sources, size_t k) {
  std::vector<Row> rows;
  for (size_t s = 0; s < num_sources; ++s)
    for (size_t r = 0; r < sources[s].num_rows; ++r) {
      const char* base = static_cast<const char*>(sources[s].data);
      rows.push_back({base ? base + r * k * source_bytes(sources[s].type) : nullptr, sources[s].type});
    }
  rows.resize((rows.size() + kPanel - 1) / kPanel * kPanel, Row{nullptr, SourceType::kF32});
  return rows;
}

bool load_row(const Row& row, size_t k, float* out) {
  if (!row.data) {
    std::fill(out, out + k, 0.0f);
    return true;
  }
  if (row.type == SourceType::kF32) {
    int32_t top = 0;
    for (size_t i = 0; i < k; ++i) {
      const uint32_t bits = load<uint32_t>(row.data, i);
      top = std::max(top, int32_t(bits & 0x7FFFFFFF));
      out[i] = std::bit_cast<float>(bits);
    }
    return top < 0x7F800000;
  }
  int16_t top = 0;
  if (row.type == SourceType::kBF16) {
    for (size_t i = 0; i < k; ++i) {
      const uint16_t bits = load<uint16_t>(row.data, i);
      top = std::max(top, int16_t(bits & 0x7FFF));
      out[i] = std::bit_cast<float>(uint32_t(bits) << 16);
    }
    return top < 0x7F80;
  }
  for (size_t i = 0; i < k; ++i) {  // float16: exponent and fraction moved in place, then rebiased by 2^112
    const uint32_t bits = load<uint16_t>(row.data, i);
    top = std::max(top, int16_t(bits & 0x7FFF));
    const float magnitude = std::bit_cast<float>((bits & 0x7FFF) << 13) * 0x1p112f;
    out[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | (bits & 0x8000) << 16);
  }
  return top < 0x7C00;
}

bool load_bf16_row(const Row& row, size_t k, float* scratch, uint16_t* out) {
  int16_t top = 0;
  if (row.data && row.type == SourceType::kBF16) {
    std::memcpy(out, row.data, 2 * k);
    for (size_t i = 0; i < k; ++i) top = std::max(top, int16_t(out[i] & 0x7FFF));
    return top < 0x7F80;
  }
  if (!load_row(row, k, scratch)) return false;
  for (size_t i = 0; i < k; ++i) {
    out[i] = round_to_bf16(scratch[i]);
    top = std::max(top, int16_t(out[i] & 0x7FFF));
  }
  return top < 0x7F80;  // a float32 above the largest bf16 would round to infinity
}

}  // namespace trivet
