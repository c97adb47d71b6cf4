#include "core/attention.h"

#include <algorithm>
#include <cstring>

#include "core/faults.h"
#include "trivet/threads.h"

namespace trivet {
namespace {

constexpr size_t kMostShared = 256;    // tokens of a step that may share keys; each keeps (2 Pp + 16) H floats
constexpr size_t kMostOfSequence = 8;  // tokens of a sequence: more fill tiles of their own

size_t widest(const Model& model) {
  size_t pp = 0;
  for (const LayerWeights& l : model.layers) pp = std::max(pp, l.pp());
  return pp;
}
size_t most_heads(const Model& model) {
  size_t heads = 0;
  for (const LayerWeights& l : model.layers) heads = std::max(heads, l.num_heads);
  return heads;
}

size_t scratch_bytes(size_t pp) { return (attend_scratch_bytes(pp) + 63) / 64 * 64; }

// What the rows of a tile have come to in a thread's memory: in all whole segments, merged, or in the one under way.
struct State {
  float *out, *max, *sum;
  State(float* at, size_t pp) : out(at), max(at + kQueryTile * pp), sum(max + kQueryTile) {}
};

}  // namespace

struct StepAttention::Call {
  const Kernels& k;
  const LayerWeights& l;
  size_t layer;
  const uint16_t* q;
  uint16_t* out;
  size_t out_ld;
  size_t group() const { return l.num_heads / l.num_kv_heads; }
};

StepAttention::StepAttention(const Model& model, const KvCache& cache, size_t max_tokens, int threads)
    : model_(model),
      cache_(cache),
      threads_(threads),
      pp_(widest(model)),
      state_floats_(2 * pp_ + 16),
      max_shared_(std::min(max_tokens, kMostShared)),
      limit_(max_tokens),
      shared_keys_(max_tokens),
      shared_row_(max_tokens),
      kept_(max_shared_ * most_heads(model) * state_floats_),
      partial_(size_t(threads) * 2 * kQueryTile * (pp_ + 32)),
      gathered_(size_t(threads) * kQueryTile * pp_),
      scratch_(size_t(threads) * scratch_bytes(pp_)),
      taken_(size_t(threads)) {
  groups_.reserve(max_tokens);
  order_.reserve(max_tokens);
  common_.reserve(max_tokens);
  shared_tokens_.reserve(max_shared_);
}

size_t StepAttention::bytes() const { return kept_.bytes() + partial_.bytes() + gathered_.bytes() + scratch_.bytes(); }

double StepAttention::kv_bytes(const LayerWeights& l) const {
  const size_t block = kv_head_bytes(cache_.block_size(), l.pp(), cache_.int8());
  return double(num_keys_) * double(l.num_kv_heads) * double(block) / double(cache_.block_size());
}
double StepAttention::operations(const LayerWeights& l) const {
  return 4.0 * double(num_pairs_) * double(l.num_heads) * double(l.head_dim);
}

// --- what is shared ---------------------------------------------------------------------------------------------------

void StepAttention::plan(const StepInput& in, const int32_t* position) {
  in_ = &in;
  position_ = position;
  groups_.clear();
  order_.clear();
  shared_tokens_.clear();
  num_keys_ = num_pairs_ = 0;
  const size_t block = cache_.block_size();
  for (size_t seq = 0; seq < in.num_seqs; ++seq) {
    const size_t tokens = size_t(in.seq_starts[seq + 1] - in.seq_starts[seq]), before = size_t(in.context_lens[seq]) - tokens;
    shared_keys_[seq] = 0;
    num_keys_ += before + tokens;
    num_pairs_ += tokens * before + tokens * (tokens + 1) / 2;
    limit_[seq] = before / kKeyStep * kKeyStep;
    if (tokens <= kMostOfSequence && limit_[seq] > 0) order_.push_back(seq);
  }
  if (order_.size() < 2) return;
  const auto table = [&](size_t seq) { return in.block_tables + seq * in.table_width; };
  std::sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {  // what shares most stands together
    const size_t least = std::min(limit_[a], limit_[b]) / block;
    const auto [x, y] = std::mismatch(table(a), table(a) + least, table(b));
    if (x != table(a) + least) return *x < *y;
    return limit_[a] != limit_[b] ? limit_[a] < limit_[b] : a < b;
  });
  common_.clear();
  for (size_t i = 0; i + 1 < order_.size(); ++i) common_.push_back(keys_shared(order_[i], order_[i + 1]));
  make_groups(0, order_.size(), true);
}

// Groups order_[begin..end), either all together, as far as all share, or in parts: those that share more than that, and
// the runs of single ones between them. What spares more keys is done, if `add`; gives how many it spares.
size_t StepAttention::make_groups(size_t begin, size_t end, bool add) {
  if (end - begin < 2) return 0;
  const size_t fewest = *std::min_element(common_.begin() + ptrdiff_t(begin), common_.begin() + ptrdiff_t(end) - 1);
  const auto share_fewest = [&](size_t first, size_t last, bool add_it) {
    if (last - first < 2 || fewest == 0) return size_t(0);
    if (add_it) add_group(first, last, fewest);
    return fewest * (last - first - 1);
  };
  const auto for_parts = [&](bool add_parts) {
    size_t spared = 0, singles = begin;  // those from `singles` on belong to no part
    for (size_t first = begin, last; first < end; first = last) {
      for (last = first + 1; last < end && common_[last - 1] > fewest; ++last) {
      }
      if (last == first + 1) continue;
      spared += share_fewest(singles, first, add_parts) + make_groups(first, last, add_parts);
      singles = last;
    }
    return spared + share_fewest(singles, end, add_parts);
  };
  const size_t together = fewest * (end - begin - 1), apart = for_parts(false);
  if (add && together >= apart) share_fewest(begin, end, true);
  if (add && together < apart) for_parts(true);
  return std::max(together, apart);
}

// How many tokens from the first on lie in the same blocks, whole steps of keys.
size_t StepAttention::keys_shared(size_t one, size_t two) const {
  const size_t block = cache_.block_size(), most = std::min(limit_[one], limit_[two]);
  const int32_t *a = in_->block_tables + one * in_->table_width, *b = in_->block_tables + two * in_->table_width;
  size_t same = 0;
  while (same < most / block && a[same] == b[same]) ++same;
  return same * block / kKeyStep * kKeyStep;
}

void StepAttention::add_group(size_t begin, size_t end, size_t keys) {
  Group group{begin, begin, keys, shared_tokens_.size(), 0};
  for (; group.end < end; ++group.end) {
    const size_t seq = order_[group.end], first = size_t(in_->seq_starts[seq]), last = size_t(in_->seq_starts[seq + 1]);
    if (shared_tokens_.size() + last - first > max_shared_) break;
    shared_row_[seq] = shared_tokens_.size();
    for (size_t token = first; token < last; ++token) shared_tokens_.push_back(token);
  }
  group.num_rows = shared_tokens_.size() - group.first_row;
  if (group.end - group.begin < 2) return;
  for (size_t i = group.begin; i < group.end; ++i) shared_keys_[order_[i]] = keys;
  groups_.push_back(group);
  num_keys_ -= keys * (group.end - group.begin - 1);
}

// --- tiles ------------------------------------------------------------------------------------------------------------

// Of one key/value head.
size_t StepAttention::tiles_of(const Call& call, size_t seq) const {
  return (size_t(in_->seq_starts[seq + 1] - in_->seq_starts[seq]) * call.group() + kQueryTile - 1) / kQueryTile;
}

// A tile without rows, against keys [begin, end) of the sequence.
StepAttention::Tile StepAttention::tile_of(const Call& call, size_t seq, size_t kv_head, size_t begin, size_t end) const {
  Tile tile;
  tile.kv_head = kv_head;
  tile.begin = begin;
  tile.end = end;
  tile.item = {nullptr, 0, nullptr, in_->block_tables + seq * in_->table_width, cache_.view(call.layer, kv_head),
               call.l.softmax_scale, begin, std::min(begin / kKeySegment * kKeySegment + kKeySegment, end)};
  return tile;
}

// Rows of one sequence, from the first-th on.
StepAttention::Tile StepAttention::own_tile(const Call& call, size_t seq, size_t kv_head, size_t first) const {
  const size_t group = call.group(), from = size_t(in_->seq_starts[seq]) * group + first;
  const size_t rows = std::min(kQueryTile, size_t(in_->seq_starts[seq + 1]) * group - from);
  const size_t end = size_t(position_[(from + rows - 1) / group]) + 1;
  Tile tile = tile_of(call, seq, kv_head, shared_keys_[seq], end);
  tile.is_shared = false;
  tile.item.num_rows = tile.num_rows = rows;
  tile.item.q = call.q + (kv_head * in_->num_tokens * group + from) * call.l.pp();
  size_t token = from / group, head = from % group;
  for (size_t r = 0; r < rows; ++r) {
    tile.row[r] = from + r;
    tile.position[r] = position_[token];
    const size_t place = shared_row_[seq] + token - size_t(in_->seq_starts[seq]);  // of no meaning where nothing is shared
    tile.kept[r] = place * call.l.num_heads + kv_head * group + head;
    if (++head < group) continue;
    head = 0;
    ++token;
  }
  return tile;
}

// Rows of a group, from the first-th on.
StepAttention::Tile StepAttention::shared_tile(const Call& call, const Group& g, size_t kv_head, size_t first,
                                               size_t most_rows) const {
  const size_t group = call.group();
  Tile tile = tile_of(call, order_[g.begin], kv_head, 0, g.keys);
  tile.is_shared = true;
  tile.item.num_rows = tile.num_rows = std::min(most_rows, g.num_rows * group - first);
  for (size_t r = 0; r < tile.num_rows; ++r) {
    const size_t place = g.first_row + (first + r) / group, head = (first + r) % group;
    tile.row[r] = shared_tokens_[place] * group + head;
    tile.position[r] = position_[shared_tokens_[place]];
    tile.kept[r] = place * call.l.num_heads + kv_head * group + head;
  }
  return tile;
}

// As many as there are, unless that leaves threads without work: bits do not depend on it.
size_t StepAttention::rows_of_shared_tiles(const Call& call) const {
  const auto num_tiles = [&](size_t rows) {
    size_t num = 0;
    for (const Group& g : groups_) num += (g.num_rows * call.group() + rows - 1) / rows * call.l.num_kv_heads;
    return num;
  };
  size_t rows = kQueryTile;
  while (rows > 4 && num_tiles(rows) < size_t(threads_)) rows /= 2;
  return rows;
}

// What the rows have come to, from the thread's memory to where it is kept, or back.
void StepAttention::move_kept(const Call& call, const Tile& tile, int thread, bool keep) {
  const size_t pp = call.l.pp();
  float* memory = partial_.get() + size_t(thread) * 2 * kQueryTile * (pp_ + 32);
  const State states[] = {{memory, pp}, {memory + kQueryTile * (pp_ + 32), pp}};
  for (size_t r = 0; r < tile.num_rows; ++r) {
    float* kept = kept_.get() + tile.kept[r] * state_floats_;
    for (const State& state : states) {
      const auto move = [&](float* mine, size_t num) {
        std::memcpy(keep ? kept : mine, keep ? mine : kept, 4 * num);
        kept += num;
      };
      move(state.out + r * pp, pp);
      move(state.max + r, 1);
      move(state.sum + r, 1);
    }
  }
}

// `next` is what this thread computes then, or null; is_asked_for: this was somebody's `next`.
void StepAttention::attend(const Call& call, const Tile& tile, const Tile* next, bool is_asked_for, int thread) {
  const size_t pp = call.l.pp(), rows = tile.num_rows, group = call.group();
  float* memory = partial_.get() + size_t(thread) * 2 * kQueryTile * (pp_ + 32);
  const State whole(memory, pp), under_way(memory + kQueryTile * (pp_ + 32), pp);
  size_t segment = kKeySegment;
#ifdef TRIVET_FAULTS
  if (planted_fault == Fault::kSplitAttention && in_->num_seqs > 1) segment = kKeyStep;
#endif
  AttendItem item = tile.item;
  item.position = tile.position;
  if (tile.is_shared) {
    uint16_t* queries = gathered_.get() + size_t(thread) * kQueryTile * pp_;
    for (size_t r = 0; r < rows; ++r)
      std::memcpy(queries + r * pp, call.q + (tile.kv_head * in_->num_tokens * group + tile.row[r]) * pp, 2 * pp);
    item.q = queries;
  }
  if (tile.begin > 0) move_kept(call, tile, thread, false);

  uint8_t* scratch = scratch_.get() + size_t(thread) * scratch_bytes(pp_);
  for (size_t key = tile.begin; key < tile.end; key = item.key_end) {
    const size_t segment_begin = key / segment * segment, segment_end = segment_begin + segment;
    item.key_begin = key;
    item.key_end = std::min(segment_end, tile.end);
    item.resume = key > segment_begin;
    item.is_asked_for = is_asked_for || key > tile.begin;
    AttendItem following = item;  // the next segment
    following.key_begin = item.key_end;
    following.key_end = std::min(item.key_end + segment, tile.end);
    item.next = item.key_end < tile.end ? &following : next ? &next->item : nullptr;
    const State& state = segment_begin == 0 ? whole : under_way;
    call.k.attend(item, state.out, state.max, state.sum, scratch);
    if (tile.is_shared && item.key_end < segment_end) break;  // to be gone on with
    for (size_t r = 0; r < rows; ++r) state.max[r] *= item.scale * kLog2E;
    if (segment_begin > 0) call.k.merge(rows, pp, whole.out, whole.max, whole.sum, state.out, state.max, state.sum);
  }
  if (tile.is_shared) return move_kept(call, tile, thread, true);
  size_t token = tile.row[0] / group, head = tile.row[0] % group;
  for (size_t r = 0; r < rows; ++r) {
    uint16_t* out = call.out + token * call.out_ld + (tile.kv_head * group + head) * call.l.head_dim;
    call.k.divide(whole.out + r * pp, whole.sum[r], call.l.head_dim, out);
    if (++head < group) continue;
    head = 0;
    ++token;
  }
}

// --- who computes what ------------------------------------------------------------------------------------------------

// Each thread has a share of the tiles, and helps the others when it is through. Of its own share it takes the next tile
// before it computes what it has, to ask for its keys in time. tiles() makes a function from a number to a tile that is
// asked for rising numbers.
template <class F>
void StepAttention::deal(const Call& call, size_t count, F&& tiles) {
  for (int t = 0; t < threads_; ++t) taken_[size_t(t)].num = share(count, t, threads_).begin;
  parallel(threads_, [&](int t, int n) {
    Tile pair[2];
    for (int i = 0; i < n; ++i) {
      const int from = (t + i) % n;
      const size_t end = share(count, from, n).end;
      auto tile_at = tiles();
      size_t number, num = 0;
      while ((number = taken_[size_t(from)].num.fetch_add(1)) < end) {
        Tile& tile = pair[num % 2];
        tile = tile_at(number);
        if (i > 0)
          attend(call, tile, nullptr, false, t);
        else if (num++ > 0)
          attend(call, pair[num % 2], &tile, num > 2, t);
      }
      if (num > 0) attend(call, pair[(num - 1) % 2], nullptr, num > 1, t);
    }
  });
}

void StepAttention::layer(const Kernels& k, const LayerWeights& l, size_t index, const uint16_t* q, uint16_t* out,
                          size_t out_ld) {
  const Call call{k, l, index, q, out, out_ld};
  const size_t kv_heads = l.num_kv_heads, most_rows = rows_of_shared_tiles(call);
  const auto shared_tiles = [&](const Group& g) { return (g.num_rows * call.group() + most_rows - 1) / most_rows; };
  size_t num_shared = 0, num_own = 0;
  for (const Group& g : groups_) num_shared += shared_tiles(g) * kv_heads;
  for (size_t seq = 0; seq < in_->num_seqs; ++seq) num_own += tiles_of(call, seq) * kv_heads;
  if (num_shared > 0)
    deal(call, num_shared, [&] {  // group by group, head by head
      return [&, g = groups_.begin(), before = size_t(0)](size_t number) mutable {
        for (; number >= before + shared_tiles(*g) * kv_heads; ++g) before += shared_tiles(*g) * kv_heads;
        const size_t at = number - before, per_head = shared_tiles(*g);
        return shared_tile(call, *g, at / per_head, at % per_head * most_rows, most_rows);
      };
    });
  // Sequence by sequence, so that a thread finds in its L2 what it wrote to the cache; head by head, whose keys and values
  // stay there; the last and longest tiles first.
  deal(call, num_own, [&] {
    return [&, seq = size_t(0), before = size_t(0)](size_t number) mutable {
      for (; number >= before + tiles_of(call, seq) * kv_heads; ++seq) before += tiles_of(call, seq) * kv_heads;
      const size_t at = number - before, per_head = tiles_of(call, seq);
      return own_tile(call, seq, at / per_head, (per_head - 1 - at % per_head) * kQueryTile);
    };
  });
}

}  // namespace trivet
