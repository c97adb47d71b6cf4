// Packing of linear weights into panels of 16 output rows (docs/design/packed-layout.md).
//
// A panel is packed by one thread from start to end and depends on nothing else, so the bytes are the same for any
// thread count. Loops are plain C++ in lanes of fixed width, written so that the compiler vectorizes them for any x86-64.
#include "trivet/pack.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <vector>

#include "core/source_rows.h"
#include "trivet/kernels.h"
#include "trivet/threads.h"

namespace trivet {
namespace {

constexpr float kTiny = 1e-30f;     // a row whose largest magnitude is below this is packed as zeros
constexpr float kMagic = 12582912;  // 1.5 * 2^23: adding it rounds to an integer, half to even, in the low bits
constexpr int32_t kMagicBits = 0x4B400000;

float abs_max(const float* x, size_t n) {
  int32_t top = 0;  // magnitudes of floats order as integers
  for (size_t i = 0; i < n; ++i) top = std::max(top, std::bit_cast<int32_t>(x[i]) & 0x7FFFFFFF);
  return std::bit_cast<float>(top);
}

// While it lives, denormals count on the calling thread, whatever it computed before: threads of the pool that were in a step
// flush them.
class KeepDenormals {
 public:
  KeepDenormals() : mode_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(mode_ & ~0x8040u); }
  ~KeepDenormals() { __builtin_ia32_ldmxcsr(mode_); }
  KeepDenormals(const KeepDenormals&) = delete;
  KeepDenormals& operator=(const KeepDenormals&) = delete;

 private:
  unsigned mode_;
};

// out[w][c] = rows[c][w] for 32-bit words: the 16 rows of a panel, interleaved as the tiles want them.
void interleave(const char* rows, size_t num_words, size_t row_bytes, char* out) {
  for (size_t w = 0; w < num_words; ++w)
    for (size_t c = 0; c < kPanel; ++c) std::memcpy(out + (w * kPanel + c) * 4, rows + c * row_bytes + w * 4, 4);
}

int32_t sum(const int8_t* x, size_t n) {
  int32_t total = 0;
  for (size_t i = 0; i < n; ++i) total += x[i];
  return total;
}

// out[i] = round(x[i] * 127 / absmax); returns the scale.
float i8_row(const float* x, size_t k, int8_t* out) {
  const float top = abs_max(x, k);
  if (top < kTiny) return 1.0f;  // out is zero already
  const float inverse = 127.0f / top;
  for (size_t i = 0; i < k; ++i)
    out[i] = int8_t(std::bit_cast<int32_t>(x[i] * inverse + kMagic) - kMagicBits);
  return top / 127.0f;
}

// Runs panel(nb, rows of the panel) of a Worker(of...) for each panel on the pool. Workers are made here, one a thread:
// what runs on the pool allocates nothing and throws nothing. Returns false as soon as a panel does.
template <class Worker, class... Of>
bool for_each_panel(const RowSource* sources, size_t num_sources, size_t k, int num_threads, const Of&... of) {
  const std::vector<Row> rows = list_rows(sources, num_sources, k);
  const size_t num_panels = rows.size() / kPanel;
  const size_t num_workers = std::clamp<size_t>(num_panels, 1, size_t(std::clamp(num_threads, 1, 1023)));
  std::vector<Worker> workers;
  workers.reserve(num_workers);
  for (size_t i = 0; i < num_workers; ++i) workers.emplace_back(k, of...);
  std::atomic<size_t> next{0};
  std::atomic<bool> finite{true};
  parallel(int(num_workers), [&](int thread, int) noexcept {
    const KeepDenormals keep;
    for (size_t nb; finite.load(std::memory_order_relaxed) && (nb = next.fetch_add(1)) < num_panels;)
      if (!workers[size_t(thread)].panel(nb, &rows[nb * kPanel])) finite.store(false);
  });
  return finite.load();
}

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

class Bf16Worker {
 public:
  Bf16Worker(size_t k, const PackedParts& out)
      : k_(k), kp_(round_up(k, 32)), out_(out), x_(kp_), codes_(kPanel * kp_) {}

  bool panel(size_t nb, const Row* rows) {
    for (size_t c = 0; c < kPanel; ++c)  // the pads stay zero
      if (!load_bf16_row(rows[c], k_, x_.data(), &codes_[c * kp_])) return false;
    interleave(reinterpret_cast<const char*>(codes_.data()), kp_ / 2, kp_ * 2,
               static_cast<char*>(out_.codes) + nb * kPanel * kp_ * 2);
    return true;
  }

 private:
  size_t k_, kp_;
  PackedParts out_;
  std::vector<float> x_;
  std::vector<uint16_t> codes_;
};

class I8Worker {
 public:
  I8Worker(size_t k, const PackedParts& out)
      : k_(k), kp_(round_up(k, 64)), out_(out), x_(kp_), codes_(kPanel * kp_) {}

  bool panel(size_t nb, const Row* rows) {
    std::fill(codes_.begin(), codes_.end(), int8_t(0));
    for (size_t c = 0; c < kPanel; ++c) {
      if (!load_row(rows[c], k_, x_.data())) return false;
      out_.scales[nb * kPanel + c] = i8_row(x_.data(), k_, &codes_[c * kp_]);
      out_.colsum[nb * kPanel + c] = sum(&codes_[c * kp_], kp_);
    }
    interleave(reinterpret_cast<const char*>(codes_.data()), kp_ / 4, kp_,
               static_cast<char*>(out_.codes) + nb * kPanel * kp_);
    return true;
  }

 private:
  size_t k_, kp_;
  PackedParts out_;
  std::vector<float> x_;
  std::vector<int8_t> codes_;
};

class I4Worker {
 public:
  I4Worker(size_t k, size_t group, const PackedParts& out)
      : k_(k), kp_(round_up(k, 64)), group_(group), out_(out), groups_(k / group), x_(kp_), codes_(kp_),
        bytes_(kPanel * kp_ / 2), multipliers_(k / group) {}

  bool panel(size_t nb, const Row* rows) {
    for (size_t c = 0; c < kPanel; ++c) {
      if (!load_row(rows[c], k_, x_.data())) return false;
      std::fill(codes_.begin(), codes_.end(), int8_t(0));
      out_.scales[nb * kPanel + c] =
          kernels().quantize_int4(x_.data(), k_, group_, codes_.data(), multipliers_.data(), groups_.data());
      int32_t colsum = 0;
      int8_t* m = out_.multipliers + nb * (kp_ / 32) * kPanel + c;
      for (size_t kb = 0; kb < kp_ / 32; ++kb) {
        m[kb * kPanel] = kb * 32 < k_ ? multipliers_[kb * 32 / group_] : int8_t(1);
        colsum += m[kb * kPanel] * sum(&codes_[kb * 32], 32);
      }
      out_.colsum[nb * kPanel + c] = colsum;
      for (size_t low = 0; low < kp_; low += 64)  // 32 low nibbles, then the 32 high ones of each 64 values
        for (size_t i = low; i < low + 32; ++i)
          bytes_[(c * kp_ + low) / 2 + i - low] = uint8_t((codes_[i] + 8) | (codes_[i + 32] + 8) << 4);
    }
    interleave(reinterpret_cast<const char*>(bytes_.data()), kp_ / 8, kp_ / 2,
               static_cast<char*>(out_.codes) + nb * kPanel * kp_ / 2);
    return true;
  }

 private:
  size_t k_, kp_, group_;
  PackedParts out_;
  std::vector<Int4Group> groups_;
  std::vector<float> x_;
  std::vector<int8_t> codes_;
  std::vector<uint8_t> bytes_;
  std::vector<int8_t> multipliers_;
};

}  // namespace

bool pack_bf16(const RowSource* sources, size_t num_sources, size_t k, const PackedParts& out, int num_threads) {
  return for_each_panel<Bf16Worker>(sources, num_sources, k, num_threads, out);
}

bool pack_i8(const RowSource* sources, size_t num_sources, size_t k, const PackedParts& out, int num_threads) {
  return for_each_panel<I8Worker>(sources, num_sources, k, num_threads, out);
}

bool pack_i4(const RowSource* sources, size_t num_sources, size_t k, size_t group, const PackedParts& out,
             int num_threads) {
  return for_each_panel<I4Worker>(sources, num_sources, k, num_threads, group, out);
}

}  // namespace trivet
