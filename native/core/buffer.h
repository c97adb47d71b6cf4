// Scratch memory of steps.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

namespace trivet {

constexpr size_t kHugePage = size_t(1) << 21;

// Memory whose pages are touched when first used, huge pages where there is much of it: a product goes down the rows, and
// each row of a large matrix lies in another small page.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : bytes_((count * sizeof(T) + 4159) / 64 * 64) {
    const size_t alignment = bytes_ >= kHugePage ? kHugePage : 64;
    data_ = static_cast<T*>(std::aligned_alloc(alignment, (bytes_ + alignment - 1) / alignment * alignment));
    if (!data_) throw std::bad_alloc();
    if (alignment == kHugePage) madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: without it, small pages do
    std::memset(static_cast<void*>(data_), 0, std::min<size_t>(bytes_, 4096));
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  T* data_;
};

}  // namespace trivet
