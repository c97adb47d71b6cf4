#include "core/faults.h"

#ifdef TRIVET_FAULTS
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace trivet {

Fault planted_fault = Fault::kNone;
std::atomic<size_t> step_allocations{0};

namespace {

thread_local bool counting = false;

float from_bf16(uint16_t h) {
  const uint32_t u = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

uint16_t to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

}  // namespace

void count_allocations(bool on) { counting = on; }

bool faulty_product(const Linear& w, const Rows& x, const Output& out, int threads) {
  if (w.kind != LinearKind::kBF16) return false;
  const uint16_t* codes = reinterpret_cast<const uint16_t*>(w.codes);
  const size_t part = (w.kp + size_t(threads) - 1) / size_t(threads);
  auto dot = [&](size_t t, size_t n) {
    float total = 0;
    for (size_t begin = 0; begin < w.kp; begin += part) {
      float sum = 0;
      for (size_t k = begin; k < begin + part && k < w.kp; ++k)
        sum += from_bf16(x.at<uint16_t>(t)[k]) * from_bf16(codes[n / 16 * 16 * w.kp + k / 2 * 32 + n % 16 * 2 + k % 2]);
      total += sum;
    }
    return total + (w.bias && n < w.n ? w.bias[n] : 0.0f);
  };
  for (size_t t = 0; t < x.num; ++t)
    for (size_t n = 0; n < w.n; ++n) {
      float* wide = static_cast<float*>(out.data) + t * out.ld;
      uint16_t* half = static_cast<uint16_t*>(out.data) + t * out.ld;
      if (out.epilogue == Epilogue::kStore) wide[n] = dot(t, n);
      if (out.epilogue == Epilogue::kAdd) wide[n] += dot(t, n);
      if (out.epilogue == Epilogue::kStoreBf16) half[n] = to_bf16(dot(t, n));
      if (out.epilogue == Epilogue::kSiluMul && n % 32 < 16) {
        const float gate = dot(t, n);
        half[n / 32 * 16 + n % 16] = to_bf16(gate / (1.0f + std::exp(-gate)) * dot(t, n + 16));
      }
    }
  return true;
}

bool faulty_attention(const LayerWeights& l, const StepInput& in, const uint16_t* qkv, size_t qkv_ld, const uint16_t* q,
                      size_t num_tokens, const int32_t* position, const KvCache& cache, size_t layer, uint16_t* attn,
                      size_t attn_ld) {
  if (!cache.int8()) return false;
  const size_t p = l.head_dim, pp = l.pp(), heads = l.num_heads, kv_heads = l.num_kv_heads, group = heads / kv_heads;
  for (size_t seq = 0; seq < in.num_seqs; ++seq)
    for (int32_t row = in.seq_starts[seq]; row < in.seq_starts[seq + 1]; ++row)
      for (size_t h = 0; h < heads; ++h) {
        const size_t g = h / group, bs = cache.block_size();
        const KvView view = cache.view(layer, g);
        const uint16_t* query = q + (g * num_tokens * group + size_t(row) * group + h % group) * pp;
        const int32_t first_fresh = position[in.seq_starts[seq]];
        std::vector<float> weight(size_t(position[row]) + 1), value(p, 0.0f);
        auto read = [&](int32_t key, bool want_value, size_t i) {
          if (key >= first_fresh) {
            const size_t fresh = size_t(in.seq_starts[seq] + key - first_fresh);
            return from_bf16(qkv[fresh * qkv_ld + (heads + (want_value ? kv_heads : 0) + g) * p + i]);
          }
          const size_t at = size_t(key) % bs;
          const uint8_t* block = view.base + size_t(in.block_tables[seq * in.table_width + size_t(key) / bs]) * view.block_stride;
          const float* scales = reinterpret_cast<const float*>(block + 2 * bs * pp);
          return want_value ? float(block[value_at(at, i, pp, bs, true)] - 128) * scales[bs + at]
                            : float(block[key_at(at, i, pp, true)] - 128) * scales[at];
        };
        float most = -INFINITY, sum = 0;
        for (int32_t key = 0; key <= position[row]; ++key) {
          float s = 0;
          for (size_t i = 0; i < p; ++i) s += from_bf16(query[i]) * read(key, false, i);
          weight[size_t(key)] = s * l.softmax_scale;
          most = std::fmax(most, weight[size_t(key)]);
        }
        for (int32_t key = 0; key <= position[row]; ++key) {
          const float e = std::exp(weight[size_t(key)] - most);
          sum += e;
          for (size_t i = 0; i < p; ++i) value[i] += e * read(key, true, i);
        }
        for (size_t i = 0; i < p; ++i) attn[size_t(row) * attn_ld + h * p + i] = to_bf16(value[i] / sum);
      }
  return true;
}

}  // namespace trivet

void* operator new(size_t size) {
  if (trivet::counting) trivet::step_allocations.fetch_add(1);
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
#endif
