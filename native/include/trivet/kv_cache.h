// The paged KV cache: address space is reserved at load, a page is touched when its block is first used, or by `touch`.
//
// Order in memory: block, layer, key/value head, then what kernels.h says of one head. So one block's pages are together,
// and memory grows with the blocks in use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "trivet/kernels.h"

namespace trivet {

// Between blocks, so that the same place of all blocks does not fall into the same cache sets.
constexpr size_t kBlockPadBytes = 4160;

struct KvShape {  // of one layer
  size_t num_kv_heads, head_dim, pp;
};

class KvCache {
 public:
  // Throws std::bad_alloc when the address space cannot be reserved.
  KvCache(const std::vector<KvShape>& layers, size_t num_blocks, size_t block_size, bool int8);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  size_t num_blocks() const { return num_blocks_; }
  size_t block_size() const { return block_size_; }
  size_t block_bytes() const { return block_bytes_; }
  size_t bytes() const { return block_bytes_ * num_blocks_; }
  bool int8() const { return int8_; }
  KvView view(size_t layer, size_t head) const;
  // Writes to every page of these bytes without changing them, so that they are in memory; a step may run meanwhile.
  void touch(size_t begin, size_t end) const;

 private:
  struct Layer {
    KvShape shape;
    size_t offset, head_bytes;
  };
  std::vector<Layer> layers_;
  size_t num_blocks_, block_size_, block_bytes_ = 0, mapped_ = 0;
  bool int8_;
  uint8_t *map_ = nullptr, *base_ = nullptr;
};

}  // namespace trivet
