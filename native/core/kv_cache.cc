#include "trivet/kv_cache.h"

#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <new>

namespace trivet {
namespace {

// NaN becomes 0, infinity the largest finite bf16.
void make_finite(uint16_t* x, size_t p) {
  for (size_t i = 0; i < p; ++i) {
    const uint16_t magnitude = x[i] & 0x7fff;
    const uint16_t finite = magnitude == 0x7f80 ? uint16_t(x[i] - 1) : uint16_t(0);
    x[i] = magnitude >= 0x7f80 ? finite : x[i];
  }
}

// Codes in -127..127 and their scale, of p values.
float to_int8(const float* x, size_t p, int8_t* codes) {
  float absmax = 0;
  for (size_t i = 0; i < p; ++i) {
    const float a = std::fabs(x[i]);
    absmax = a > absmax ? a : absmax;
  }
  if (!(absmax <= 3.0e38f)) absmax = 3.0e38f;
  const float inverse = absmax > 1e-30f ? 127.0f / absmax : 0.0f;
  for (size_t i = 0; i < p; ++i) {
    const float q = x[i] * inverse;
    const float cut = q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q == q ? q : 0.0f;
    codes[i] = int8_t(int((cut + 12582912.0f) - 12582912.0f));
  }
  return absmax / 127.0f;
}

}  // namespace

KvCache::KvCache(const std::vector<KvShape>& layers, size_t num_blocks, size_t block_size, bool int8)
    : num_blocks_(num_blocks), block_size_(block_size), int8_(int8) {
  for (const KvShape& shape : layers) {
    const size_t head_bytes = kv_head_bytes(block_size, shape.pp, int8);
    layers_.push_back({shape, block_bytes_, head_bytes});
    block_bytes_ += head_bytes * shape.num_kv_heads;
  }
  block_bytes_ += kBlockPadBytes;
  mapped_ = block_bytes_ * num_blocks_;
  void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<uint8_t*>(p);
}

KvCache::~KvCache() { munmap(base_, mapped_); }

KvView KvCache::view(size_t layer, size_t head) const {
  const Layer& l = layers_[layer];
  return {base_ + l.offset + head * l.head_bytes, block_bytes_, block_size_, l.shape.pp, int8_};
}

void KvCache::write(const Kernels& k, size_t layer, size_t head, int64_t slot, const float* key, const float* value) const {
  const Layer& l = layers_[layer];
  const size_t p = l.shape.head_dim, pp = l.shape.pp, at = size_t(slot) % block_size_;
  uint8_t* block = base_ + size_t(slot) / block_size_ * block_bytes_ + l.offset + head * l.head_bytes;
  const size_t k0 = at / 16 * 16 * pp + at % 16 * 2, v0 = block_size_ * pp + at / 2 * 2 * pp + at % 2;
  if (!int8_) {
    uint16_t* to = reinterpret_cast<uint16_t*>(block);
    uint16_t half[kMaxHeadDim];
    k.to_bf16(key, p, pp, half);
    make_finite(half, p);
    for (size_t i = 0; i < p; i += 2) std::memcpy(to + k0 + i * 16, half + i, 4);
    k.to_bf16(value, p, pp, half);
    make_finite(half, p);
    for (size_t i = 0; i < p; ++i) to[v0 + 2 * i] = half[i];
    return;
  }
  int8_t* to = reinterpret_cast<int8_t*>(block);
  float* scales = reinterpret_cast<float*>(block + 2 * block_size_ * pp);
  int8_t codes[kMaxHeadDim];
  scales[at] = to_int8(key, p, codes);
  for (size_t i = 0; i < p; ++i) to[k0 + i / 2 * 32 + i % 2] = codes[i];
  scales[block_size_ + at] = to_int8(value, p, codes);
  for (size_t i = 0; i < p; ++i) to[v0 + 2 * i] = codes[i];
}

}  // namespace trivet
