#include "trivet/kv_cache.h"

#include <sys/mman.h>

#include <new>

#include "core/buffer.h"

namespace trivet {
KvCache::KvCache(const std::vector<KvShape>& layers, size_t num_blocks, size_t block_size, bool int8)
    : num_blocks_(num_blocks), block_size_(block_size), int8_(int8) {
  for (const KvShape& shape : layers) {
    const size_t head_bytes = kv_head_bytes(block_size, shape.pp, int8);
    layers_.push_back({shape, block_bytes_, head_bytes});
    block_bytes_ += head_bytes * shape.num_kv_heads;
  }
  block_bytes_ += kBlockPadBytes;
  mapped_ = bytes() + kHugePage;
  void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  map_ = static_cast<uint8_t*>(p);
  base_ = map_ + (kHugePage - reinterpret_cast<uintptr_t>(map_) % kHugePage) % kHugePage;
  // A run of keys is four small pages, and each would be looked up anew in every step. Where there are none, small ones do.
  madvise(base_, bytes(), MADV_HUGEPAGE);
}

KvCache::~KvCache() { munmap(map_, mapped_); }

void KvCache::touch(size_t begin, size_t end) const {
  constexpr size_t kPage = 4096;
  for (size_t i = begin; i < end; i = (i / kPage + 1) * kPage) asm volatile("lock orb $0, %0" : "+m"(base_[i]));
}

KvView KvCache::view(size_t layer, size_t head) const {
  const Layer& l = layers_[layer];
  return {base_ + l.offset + head * l.head_bytes, block_bytes_, block_size_, l.shape.pp, int8_};
}

}  // namespace trivet
