// Attention of a step: which rows are computed together, in which order and by whom. What a row comes to depends on
// none of that (law 1): it goes through its keys in fixed steps and segments, alone or beside others.
//
// Sequences that generate from a common beginning have the same blocks there, and the keys of these are read once for all
// of them: their rows fill tiles together as far as the blocks are the same, and each goes on alone from where it stands.
#pragma once

#include <atomic>
#include <vector>

#include "core/buffer.h"
#include "trivet/step.h"

namespace trivet {

class StepAttention {
 public:
  StepAttention(const Model& model, const KvCache& cache, size_t max_tokens, int threads);

  // Once a step, before its layers: finds what is shared. `in` and `position` [num_tokens] must live as long as the step.
  void plan(const StepInput& in, const int32_t* position);
  //   q    bf16 [K][T * G][Pp], T tokens, K key/value heads, G query heads for each
  //   out  bf16 [T][out_ld]
  void layer(const Kernels& k, const LayerWeights& l, size_t index, const uint16_t* q, uint16_t* out, size_t out_ld);
  size_t bytes() const;
  // Of one layer: what must be read of the cache, common keys once; multiplications and additions of both products.
  double kv_bytes(const LayerWeights& l) const;
  double operations(const LayerWeights& l) const;

 private:
  // Sequences order_[begin..end) have the blocks of their first `keys` tokens in common.
  struct Group {
    size_t begin, end, keys;
    size_t first_row, num_rows;  // tokens: places in shared_tokens_
  };
  // Rows are numbered token * G + head of the group. Up to kQueryTile of them and one key/value head, against keys
  // [begin, end).
  struct Tile {
    size_t kv_head, num_rows, begin, end;
    bool is_shared;       // then it ends where the rows part, and what they have come to is kept
    size_t kept[kQueryTile];  // where that is; of a tile that begins later: where each row goes on from
    size_t row[kQueryTile];
    int32_t position[kQueryTile];
    AttendItem item;  // its first segment
  };
  struct Call;  // of `layer`
  // How far a thread's share of the work is handed out; on a line of its own.
  struct alignas(64) Taken {
    std::atomic<size_t> num;
  };

  size_t keys_shared(size_t one, size_t two) const;
  size_t make_groups(size_t begin, size_t end, bool add);
  void add_group(size_t begin, size_t end, size_t keys);
  size_t tiles_of(const Call& call, size_t seq) const;
  Tile tile_of(const Call& call, size_t seq, size_t kv_head, size_t begin, size_t end) const;
  Tile own_tile(const Call& call, size_t seq, size_t kv_head, size_t first) const;
  Tile shared_tile(const Call& call, const Group& group, size_t kv_head, size_t first, size_t most_rows) const;
  size_t rows_of_shared_tiles(const Call& call) const;
  void move_kept(const Call& call, const Tile& tile, int thread, bool keep);
  void attend(const Call& call, const Tile& tile, const Tile* next, bool is_asked_for, int thread);
  // Deals `count` tiles out: tiles() gives a function that makes a tile from its number and is asked for rising ones.
  template <class F>
  void deal(const Call& call, size_t count, F&& tiles);

  const Model& model_;
  const KvCache& cache_;
  const int threads_;
  const size_t pp_, state_floats_, max_shared_;
  const StepInput* in_ = nullptr;
  const int32_t* position_ = nullptr;
  size_t num_keys_ = 0, num_pairs_ = 0;  // tokens whose keys and values are read; pairs of a token and a key that it sees
  std::vector<Group> groups_;
  std::vector<size_t> order_, shared_tokens_;
  std::vector<size_t> common_;  // keys that order_[i] and order_[i + 1] share
  std::vector<size_t> limit_, shared_keys_, shared_row_;  // of each sequence
  Buffer<float> kept_;     // [max_shared_][H][state_floats_]
  Buffer<float> partial_;  // of a thread: two of out, max, sum of kQueryTile rows
  Buffer<uint16_t> gathered_;  // of a thread: queries of a shared tile
  Buffer<uint8_t> scratch_;    // of a thread
  std::vector<Taken> taken_;   // of a thread
};

}  // namespace trivet
