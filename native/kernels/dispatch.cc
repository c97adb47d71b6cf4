// Which tier serves: detected once, self-tested, and forced lower with TRIVET_ISA or set_isa.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/tables.h"
#include "trivet/cpu.h"

namespace trivet {
namespace {

struct Tier {
  const char* name;
  Kernels table;
  const char* twin;  // the plain table that it must equal to the bit
};

// A small product of each kind, of as many rows as each path of a tier takes, must equal its twin's to the bit.
bool self_test(const Kernels& candidate, const Kernels& twin, bool amx) {
  constexpr size_t k = 128, rows = 50, panels = 4, outputs = 16 * panels;
  alignas(64) static uint8_t codes[panels * 32 * k];
  alignas(64) static uint8_t x[64 * k * 2];
  alignas(64) static uint8_t scratch[linear_scratch_bytes(k)];
  static int8_t multipliers[panels * k / 2];
  static float scales[outputs], row_scales[64], want[rows * outputs], got[rows * outputs];
  static int32_t colsum[outputs];
  uint32_t state = 1;
  auto random = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
  for (auto& s : scales) s = 0.01f;
  for (auto& s : row_scales) s = 0.02f;
  for (auto& m : multipliers) m = int8_t((1 + random() % 15) * (random() % 2 ? 1 : -1));
  for (int kind = 0; kind < 3; ++kind) {
    Linear w{LinearKind(kind), outputs, k, outputs, k, codes, multipliers, scales, colsum, nullptr};
    uint16_t* half = reinterpret_cast<uint16_t*>(codes);
    uint16_t* half_x = reinterpret_cast<uint16_t*>(x);
    if (kind == 0) {  // bf16 numbers in +-[0.5, 2)
      for (size_t i = 0; i < panels * 16 * k; ++i) half[i] = uint16_t(0x3f00 + random() % 256 + (random() % 2 << 15));
      for (size_t i = 0; i < 64 * k; ++i) half_x[i] = uint16_t(0x3f00 + random() % 256 + (random() % 2 << 15));
    } else {
      for (auto& c : codes) c = uint8_t(random());
      if (kind == 1)
        for (auto& c : codes) c = uint8_t(int(random() % 241) - 120);
      for (auto& v : x) v = uint8_t(int(random() % 255) - 127);
      for (size_t n = 0; n < outputs; ++n) {
        int32_t sum = 0;
        for (size_t i = 0; i < k; ++i) {
          const size_t panel = n / 16, chunk = i / 64, r = i % 64 / 4, c = n % 16, e = i % 4;
          if (kind == 1) {
            sum += int8_t(codes[panel * 16 * k + chunk * 1024 + r * 64 + c * 4 + e]);
          } else {
            const uint8_t byte = codes[panel * 8 * k + chunk * 512 + (r % 8) * 64 + c * 4 + e];
            sum += ((r < 8 ? byte & 15 : byte >> 4) - 8) * multipliers[panel * k / 2 + chunk * 32 + r / 8 * 16 + c];
          }
        }
        colsum[n] = sum;
      }
    }
    for (size_t num : {size_t(1), size_t(2), size_t(7), size_t(20), size_t(33), rows}) {
      const Rows in{num, kind == 0 ? 2 * k : k, x, row_scales};
      twin.linear[kind](w, in, 0, panels, {Epilogue::kStore, want, outputs}, scratch);
      std::memset(got, 0, sizeof got);
      if (amx) amx_tiles_begin();
      candidate.linear[kind](w, in, 0, panels, {Epilogue::kStore, got, outputs}, scratch);
      if (amx) amx_tiles_end();
      if (std::memcmp(want, got, num * outputs * sizeof(float)) != 0) return false;
    }
  }
  return true;
}

// Attention of few rows and of many over two key steps, in bf16 and int8, the same way.
bool self_test_attention(const Kernels& candidate, const Kernels& twin, bool amx) {
  constexpr size_t pp = 32, keys = 160, blocks = keys / 32, most_rows = 21;
  alignas(64) static uint16_t q[kQueryTile * pp], kv[blocks * 64 * pp];
  alignas(64) static uint8_t scratch[attend_scratch_bytes(pp)];
  static float want[kQueryTile * pp], got[kQueryTile * pp], most[2][kQueryTile], sum[2][kQueryTile];
  uint32_t state = 7;
  auto random = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
  for (auto& v : q) v = uint16_t(0x3e00 + random() % 256 + (random() % 2 << 15));
  for (auto& v : kv) v = uint16_t(0x3e00 + random() % 256 + (random() % 2 << 15));
  const int32_t table[blocks] = {4, 2, 0, 3, 1};
  int32_t position[most_rows] = {3, 40, 127, 128, 159};
  for (size_t r = 5; r < most_rows; ++r) position[r] = int32_t(random() % keys);
  for (const bool int8 : {false, true}) {  // the same bytes, read as codes
    const KvView view{reinterpret_cast<uint8_t*>(kv), 64 * pp * 2, 32, pp, int8};
    for (size_t b = 0; int8 && b < blocks; ++b) {
      float scales[64];
      for (float& s : scales) s = float(1 + random() % 256) / 128;
      std::memcpy(view.base + b * view.block_stride + 64 * pp, scales, sizeof scales);
    }
    for (const size_t rows : {size_t(5), most_rows}) {
      AttendItem item{q, rows, position, table, view, 0.25f, 0, keys};
      const AttendItem same = item;
      item.next = &same;
      twin.attend(item, want, most[0], sum[0], scratch);
      if (amx) amx_tiles_begin();
      item.key_end = kKeyStep;  // in two parts
      candidate.attend(item, got, most[1], sum[1], scratch);
      item.key_begin = kKeyStep;
      item.key_end = keys;
      item.resume = true;
      candidate.attend(item, got, most[1], sum[1], scratch);
      if (amx) amx_tiles_end();
      if (std::memcmp(want, got, rows * pp * 4) != 0 || std::memcmp(most[0], most[1], rows * 4) != 0 ||
          std::memcmp(sum[0], sum[1], rows * 4) != 0)
        return false;
    }
  }
  return true;
}

// Rows of weights to int4, with groups of next to nothing and of either sign: packed weights stay on disk.
bool self_test_int4(const Kernels& candidate, const Kernels& twin) {
  constexpr size_t k = 256, size = 32;
  uint32_t state = 11;
  for (int row = 0; row < 4; ++row) {
    float x[2][k], scale[2];
    int8_t codes[2][k] = {}, multipliers[2][k / size] = {};
    for (size_t i = 0; i < k; ++i) {
      state = state * 1664525u + 1013904223u;
      x[0][i] = x[1][i] = (float(state >> 8) / float(1 << 23) - 1) * (i / size == 3 ? 1e-5f : float(1 + i % 7));
    }
    for (int i = 0; i < 2; ++i) {
      Int4Group groups[k / size];
      scale[i] = (i ? candidate : twin).quantize_int4(x[i], k, size, codes[i], multipliers[i], groups);
    }
    if (std::memcmp(&scale[0], &scale[1], 4) != 0 || std::memcmp(codes[0], codes[1], k) != 0 ||
        std::memcmp(multipliers[0], multipliers[1], k / size) != 0)
      return false;
  }
  return true;
}

struct Tiers {
  std::vector<Tier> list;
  std::vector<std::string> notes;
  Tier pairs{"baseline_pairs", baseline_pairs_table(), "baseline_pairs"};  // a twin, never offered
  const Tier* current;
  Tiers() {
    list.reserve(5);
    list.push_back({"baseline", baseline_table(), "baseline"});
    if (cpu_has_avx2()) take("avx2", avx2_table(), list[0].table);
    // Intel's Granite Rapids takes two cycles for vdpbf16ps, so it does less than fma: there the tier stands below.
    if (cpu_has_avx512_bf16() && !cpu_is_amd()) take("avx512_bf16", avx512_bf16_table(), pairs.table);
    if (cpu_has_avx512() && take("avx512", avx512_table(), list[0].table)) {
      if (cpu_has_avx512_bf16() && cpu_is_amd()) take("avx512_bf16", avx512_bf16_table(), pairs.table);
      if (cpu_has_amx()) {
        if (amx_permitted())
          take("amx", amx_table(), list[0].table, true);
        else
          notes.push_back("tier amx is off: the operating system does not let this process use tile registers");
      }
    }
#ifdef TRIVET_EMULATE_TILES
    notes.push_back("tier amx is emulated in software: this build is for tests");
#endif
    current = &list.back();
  }
  bool take(const char* name, const Kernels& table, const Kernels& twin, bool amx = false) {
    const bool good = self_test(table, twin, amx) && self_test_attention(table, twin, amx) && self_test_int4(table, twin);
    if (good)
      list.push_back({name, table, twin.name});
    else
      notes.push_back(std::string("tier ") + name + " is off: its self-test gave other bits than its plain twin");
    return good;
  }
  const Tier* find(const std::string& name) const {
    for (const Tier& t : list)
      if (name == t.name) return &t;
    return name == pairs.name ? &pairs : nullptr;
  }
};

Tiers& tiers() {
  static Tiers t;
  return t;
}

}  // namespace

bool cpu_has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  __builtin_cpu_init();
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (c >> 29 & 1);  // f16c
}

bool cpu_has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

bool cpu_is_amd() {
  static const bool is_amd = [] {
    __builtin_cpu_init();
    return bool(__builtin_cpu_is("amd"));
  }();
  return is_amd;
}

bool cpu_has_avx512_bf16() { return cpu_has_avx512() && __builtin_cpu_supports("avx512bf16"); }

#ifdef TRIVET_EMULATE_TILES
bool cpu_has_amx() { return cpu_has_avx512_bf16(); }
bool amx_permitted() { return true; }
#else
bool cpu_has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!cpu_has_avx512_bf16() || !__builtin_cpu_supports("avx512vbmi") || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned wanted = 1u << 22 | 1u << 24 | 1u << 25;  // amx-bf16, amx-tile, amx-int8
  return (d & wanted) == wanted;
}

bool amx_permitted() {
  constexpr int kGet = 0x1022, kRequest = 0x1023, kTileData = 18;
  unsigned long granted = 0;
  if (syscall(SYS_arch_prctl, kGet, &granted) == 0 && (granted >> kTileData & 1)) return true;
  if (syscall(SYS_arch_prctl, kRequest, kTileData) != 0) return false;
  return syscall(SYS_arch_prctl, kGet, &granted) == 0 && (granted >> kTileData & 1);
}
#endif

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Tier& t : tiers().list) names.push_back(t.name);
  return names;
}

std::vector<std::string> isa_notes() { return tiers().notes; }

std::string isa() { return tiers().current->name; }

std::string twin_of(const std::string& name) {
  const Tier* tier = tiers().find(name);
  return tier ? tier->twin : "";
}

bool set_isa(const std::string& name) {
  const Tier* tier = tiers().find(name);
  if (tier) tiers().current = tier;
  return tier != nullptr;
}

const Kernels& kernels() { return tiers().current->table; }

const Kernels* kernels_of(const char* name) {
  const Tier* tier = tiers().find(name);
  return tier ? &tier->table : nullptr;
}

void tiles_begin() {
  if (std::strcmp(kernels().name, "amx") == 0) amx_tiles_begin();
}
void tiles_end() {
  if (std::strcmp(kernels().name, "amx") == 0) amx_tiles_end();
}

}  // namespace trivet
