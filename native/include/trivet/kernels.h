// The kernel table: one a tier, chosen once. Every function gives the same bits whatever the number of rows in a call, and
// those of the tier's plain twin (twin_of; a test proves it). Twins differ in the order of bf16 sums alone: `baseline` has
// that of tdpbf16ps, `baseline_pairs` that of vdpbf16ps. Two conditions: the calling thread
// flushes denormals (FlushDenormals below), as the tile unit always does; and sums of products below 1.2e-38, where fma
// and multiply-then-add flush at different points, may differ between tiers (never between row counts).
//
// Letters: T rows (tokens), N outputs, K inputs, P head width; Kp, Np, Pp are padded (docs/design/packed-layout.md).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace trivet {

enum class LinearKind : int { kBF16 = 0, kI8 = 1, kI4 = 2 };

// A packed weight matrix in the memory map: y[t, n] = sum_k x[t, k] w[n, k] + bias[n].
struct Linear {
  LinearKind kind = LinearKind::kBF16;
  size_t n = 0, k = 0, np = 0, kp = 0;
  const uint8_t* codes = nullptr;
  const int8_t* multipliers = nullptr;  // int4
  const float* scales = nullptr;         // int8, int4: [Np]
  const int32_t* colsum = nullptr;       // int8, int4: [Np], sum_k w8
  const float* bias = nullptr;           // [N], or null
  size_t panel_bytes() const { return kind == LinearKind::kBF16 ? 32 * kp : kind == LinearKind::kI8 ? 16 * kp : 8 * kp; }
  size_t bytes() const {  // that a product reads, scales included
    return np / 16 * panel_bytes() + (kind == LinearKind::kI4 ? np * kp / 32 : 0) + (kind == LinearKind::kBF16 ? 0 : np * 8);
  }
};

// Bytes from a row of so many to the next that make it an odd number of cache lines: else the same column of all rows
// would share few cache sets.
constexpr size_t spread_bytes(size_t bytes) { return ((bytes + 63) / 64 | 1) * 64; }

// Activations ready for a product: bf16 [T, Kp], or int8 [T, Kp] with one scale a row, `stride` bytes apart. Columns K..Kp
// are zero; memory for T rounded up to a multiple of 32 rows must be readable.
struct Rows {
  size_t num = 0;
  size_t stride = 0;
  const void* data = nullptr;
  const float* scales = nullptr;
  template <class T>
  const T* at(size_t t) const { return reinterpret_cast<const T*>(static_cast<const uint8_t*>(data) + t * stride); }
  Rows part(size_t begin, size_t end) const { return {end - begin, stride, at<uint8_t>(begin), scales + begin}; }
};

enum class Epilogue : int {
  kStore,      // f32 out = y
  kAdd,        // f32 out += y
  kStoreBf16,  // bf16 out = y
  kSiluMul,    // panels alternate gate and up: bf16 out[t, 16 j + c] = silu(gate) * up, for panel pairs j
};

// Where a product goes: column n of row t stands at data[t * ld + n] (kSiluMul: n / 2 rounded to panels).
struct Output {
  Epilogue epilogue;
  void* data;
  size_t ld;
  bool is_bf16() const { return epilogue == Epilogue::kStoreBf16 || epilogue == Epilogue::kSiluMul; }
  Output from_row(size_t t) const { return {epilogue, static_cast<uint8_t*>(data) + t * ld * (is_bf16() ? 2 : 4), ld}; }
};

// Scratch of a product: rows in the form that a tier multiplies, 1 MiB of them or, if that is more, 64 rows of bytes (tiles keep sums
// there); and two panels of int8.
constexpr size_t prepared_bytes(size_t kp) { return std::max<size_t>(64 * spread_bytes(kp), 1024 * 1024); }
constexpr size_t linear_scratch_bytes(size_t kp) { return prepared_bytes(kp) + 32 * kp; }

// Computes panels [begin, end) of 16 outputs each. kSiluMul needs an even `begin` and `end`.
//   scratch  64-byte aligned, linear_scratch_bytes(kp) for this thread alone
// int8, int4: y = (float(acc) * scales[n]) * x.scales[t] + bias[n] with one exact int32 acc over all of K.
// bf16: for each 32 k, even and odd k are summed apart in order (f32), added, and that is added to the sum so far: what
// the tile instruction tdpbf16ps does. In avx512_bf16 and its twin: one sum over all k in pairs, the odd one first, as
// vdpbf16ps does. What is stored as bf16 is rounded half to even.
using LinearFn = void (*)(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch);

// One attention work item: up to kQueryTile query rows of one key/value head, against keys that they all have in the same
// blocks: rows of one sequence, or of several that begin alike.
constexpr size_t kQueryTile = 32;
constexpr size_t kKeyStep = 128;     // the online softmax moves in steps of this many keys, at fixed multiples of position
constexpr size_t kKeySegment = 1024;  // partial results of a segment are merged in order
constexpr float kLog2E = 1.44269504f;  // powers of two throughout

struct KvView {  // one layer and one key/value head of the cache
  uint8_t* base;             // block 0
  size_t block_stride;       // bytes from one block to the next
  size_t block_size;         // tokens, a multiple of 32
  size_t pp;                 // padded head width
  bool int8;
};
// Inside a block and head, bf16: keys [block_size/16][Pp/2][16][2], values [block_size/2][Pp][2]. int8, moved up by 128: keys
// [block_size/16][Pp/4][16][4], values [block_size/4][Pp][4], then key scales f32 [block_size] and value scales f32 [block_size].
constexpr size_t kv_woven(bool int8) { return int8 ? 4 : 2; }  // numbers of a key, or keys of a value, that lie together
// Where number p of the token in a slot stands, in numbers from the start of its block and head.
inline size_t key_at(size_t slot, size_t p, size_t pp, bool int8) {
  const size_t n = kv_woven(int8);
  return slot / 16 * 16 * pp + p / n * 16 * n + slot % 16 * n + p % n;
}
inline size_t value_at(size_t slot, size_t p, size_t pp, size_t block_size, bool int8) {
  const size_t n = kv_woven(int8);
  return (block_size + slot / n * n) * pp + p * n + slot % n;
}
inline size_t kv_head_bytes(size_t block_size, size_t pp, bool int8) {
  return int8 ? 2 * block_size * pp + 8 * block_size : 4 * block_size * pp;
}

struct AttendItem {
  const uint16_t* q;        // bf16 [kQueryTile][Pp], rows past num_rows readable
  size_t num_rows;          // 1..kQueryTile
  const int32_t* position;  // [num_rows]: row r sees keys 0..position[r]
  const int32_t* block_table;
  KvView kv;
  float scale;              // of the scores
  size_t key_begin, key_end;  // keys looked at, all of one segment: key_begin a multiple of kKeyStep
  bool resume = false;        // goes on from what it finds in out, row_max and row_sum: the keys before key_begin
  const AttendItem* next = nullptr;  // what this thread computes then: its first keys and values are asked for in time
  bool is_asked_for = false;         // its own were, as somebody's `next`
};
// out: f32 [kQueryTile][Pp] (rows past num_rows are of no meaning) not yet divided, max and sum f32 [num_rows]; exact
// meaning in common/attention.h and the two forms it names. The maximum is one of scores without `scale`.
//   scratch  64-byte aligned, attend_scratch_bytes(pp): the most that a form of a tier says it takes
using AttendFn = void (*)(const AttendItem& item, float* out, float* row_max, float* row_sum, uint8_t* scratch);
constexpr size_t attend_scratch_bytes(size_t pp) { return kQueryTile * (12 * kKeyStep + 6 * pp + 64) + 4096 + 2 * kKeyStep * pp; }

// Adds the partial (out2, max2, sum2) of the next segment into (out, max, sum); rows with max2 = -inf are left alone.
// Both maxima are times scale log2(e) here.
using MergeFn = void (*)(size_t num_rows, size_t pp, float* out, float* row_max, float* row_sum, const float* out2,
                         const float* max2, const float* sum2);

// Keys and values of up to 16 tokens in a row of one head, to the slots in_block.. of one block, all of one group of 16.
// Values that are not finite are stored as 0 or the largest bf16: a block must never poison a sequence that reuses it.
//   keys    f32 [num][ld], from the first token on
//   values  bf16 [num][value_ld]
// int8: one scale a token, absmax / 127.
struct KvRows {
  uint8_t* block;  // of this layer and head
  size_t block_size, p, pp, in_block, num;
  bool int8;
  const float* keys;
  size_t key_ld;
  const uint16_t* values;
  size_t value_ld;
};
using WriteKvFn = void (*)(const KvRows& rows);
constexpr size_t kMaxHeadDim = 256;

// One head of a query or key: normed as rms_norm does where there is a weight, then its halves (x1, x2) turned to
// (x1 cos - x2 sin, x2 cos + x1 sin).
struct HeadTurn {
  const uint16_t* x;         // bf16 [head_dim]
  const float* norm_weight;  // [head_dim], or null
  float eps;
  const float *cos, *sin;    // [head_dim / 2]
  size_t head_dim;
};

// What the search for a row of int4 weights (common/quantize_int4.h) keeps of a group.
struct Int4Group {
  static constexpr int kGrid = 8;
  float error[kGrid];  // squared, at the steps of a grid
  float top, step;     // the largest magnitude; the ideal step, 0 for a group of zeros
  bool is_flipped;     // its sign is the multiplier's
  uint8_t tried[2];    // the best multiplier for each of the two scales tried
};

struct Kernels {
  const char* name;
  LinearFn linear[3];  // by LinearKind
  AttendFn attend;
  MergeFn merge;
  // out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; 64 lanes of f32, added in a fixed order. May be in place.
  void (*rms_norm)(const float* x, const float* weight, float eps, size_t dim, float* out);
  // Codes in -127..127 = round-half-even(x * (127 / absmax)), scale = absmax / 127; zeros from k to kp.
  void (*quantize)(const float* x, size_t k, size_t kp, int8_t* out, float* scale);
  // The same from bf16.
  void (*quantize_bf16)(const uint16_t* x, size_t k, size_t kp, int8_t* out, float* scale);
  // bf16, round half to even; zeros from k to kp. NaN stays NaN.
  void (*to_bf16)(const float* x, size_t k, size_t kp, uint16_t* out);
  // See HeadTurn; as f32, or rounded to bf16.
  void (*turn)(const HeadTurn& head, float* out);
  void (*turn_bf16)(const HeadTurn& head, uint16_t* out);
  // x[i] (1 / sum) for the head's row, written as bf16 [p].
  void (*divide)(const float* x, float sum, size_t p, uint16_t* out);
  WriteKvFn write_kv;
  // A row of weights as int4: w ~ scale * m * q, q in -8..7, m in 1..16 or -16..-1 a group, |m q| <= 120, one scale a row,
  // which is given back. `size`, a multiple of 8, divides k. x [k] is scaled in place and overlaps nothing; groups
  // [k / size] is scratch. A row of next to nothing: scale 1, multipliers 1, codes left as they are. Denormals count here.
  float (*quantize_int4)(float* x, size_t k, size_t size, int8_t* codes, int8_t* multipliers, Int4Group* groups);
};

const Kernels& kernels();                 // of the tier in use
const Kernels* kernels_of(const char* isa);  // null: not on this CPU or not in this build

// While it lives, denormals are flushed to zero and read as zero on the calling thread.
class FlushDenormals {
 public:
  FlushDenormals() : mode_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(mode_ | 0x8040); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(mode_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned mode_;
};

// Tile state of the calling thread (amx tier; nothing elsewhere): once a step on each thread, released at its end.
void tiles_begin();
void tiles_end();

}  // namespace trivet
