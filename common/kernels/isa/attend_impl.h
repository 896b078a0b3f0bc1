// The inner loops of paged attention, written once over Vec like those of kernels_impl.h.
#pragma once
#include <cstring>

#include "common/kernels/bf16_bits.h"
#include "common/kernels/isa/gemm_tile.h"
#include "common/kernels/isa/vec_math.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// Online softmax (Milakov and Gimelshein 2018) over tiles of four KV blocks at absolute positions. A row is
// a query head of a token. A tile's keys and values are read for all rows of the part, a few rows at a time: as many
// independent sums as the multiply-add units need. Each row's arithmetic is its own, whatever the others of its part
// are.
constexpr std::size_t kTileBlocks = kTilePositions / kLanes;

// Positions of a tile, or of its blocks, that are attended to; what lies in the others may never have been written.
struct Lanes {
  std::size_t begin, end;
  bool operator==(Lanes const&) const = default;
  [[nodiscard]] bool empty() const { return begin >= end; }
  [[nodiscard]] std::size_t first_block() const { return begin / kLanes; }
  [[nodiscard]] std::size_t end_block() const { return (end + kLanes - 1) / kLanes; }
  [[nodiscard]] Lanes of_block(std::size_t block) const {
    std::size_t const first = block * kLanes;
    return {begin > first ? begin - first : 0, end - first < kLanes ? end - first : kLanes};
  }
};

constexpr Lanes kWhole{0, kTilePositions};

Lanes lanes_of(AttendToken const& token, std::size_t tile) {
  std::size_t const first = tile * kTilePositions;
  if (token.last < first || token.first >= first + kTilePositions) return {0, 0};
  return {token.first > first ? token.first - first : 0,
          token.last - first < kTilePositions ? token.last - first + 1 : kTilePositions};
}

// What lanes' scores are at most, so that those of others are nothing: +inf at [kTilePositions], a tile's positions
// after it, -inf on either side.
struct Limits {
  float at[3 * kTilePositions];
  constexpr Limits() : at() {
    for (std::size_t i = 0; i < 3 * kTilePositions; ++i)
      at[i] = i / kTilePositions == 1 ? -kNegativeInfinity : kNegativeInfinity;
  }
};
constexpr Limits kLimits;

// How numbers of the cache, T, meet those of queries and weights: a vector of them at a time, kStep numbers of each of
// its lanes. int8: whole numbers, to be multiplied by the scale of their position: of a block's scales [2][16] the
// first are of its keys, the second of its values; where values lie in the keys, of the values and of what the keys
// have behind them. Products are added up unscaled, so that a block's scales meet its scores and weights, not its
// numbers.
template <class T>
struct Cached {
  using Other = float;  // queries and weights
  static constexpr std::size_t kStep = 1;
  static constexpr bool kScaled = false;
  static Vec dot(Vec const& sum, T const* numbers, Other const* others) {
    return fma(broadcast(*others), load(numbers), sum);
  }
  static Other other(float x) { return x; }
  static void store_others(Other* to, Vec const& x) { store(to, x); }
};
template <>
struct Cached<std::int8_t> : Cached<float> {
  static constexpr bool kScaled = true;
  static Vec dot(Vec const& sum, std::int8_t const* numbers, Other const* others) {
    return fma(broadcast(*others), load(numbers), sum);
  }
};
// bfloat16 meets what is rounded to bfloat16.
template <>
struct Cached<std::uint16_t> {
  using Other = std::uint16_t;
  static constexpr std::size_t kStep = 2;
  static constexpr bool kScaled = false;
  static Vec dot(Vec const& sum, std::uint16_t const* numbers, Other const* others) {
    std::uint32_t both;
    std::memcpy(&both, others, sizeof both);
    return dot_bf16(sum, numbers, both);
  }
  static Other other(float x) { return bf16_bits(x); }
  static void store_others(Other* to, Vec const& x) { store_bf16(to, x); }
};
template <class T>
constexpr std::size_t steps_of(std::size_t n) {
  return (n + Cached<T>::kStep - 1) / Cached<T>::kStep;
}

// What is read next: blocks lie anywhere in the cache, so no hardware sees them coming. It is little enough for the
// nearest cache, and fetched evenly: what waits for the memory keeps others from the second-level cache.
class AheadOfTile {
 public:
  void add(std::byte const* begin, std::size_t bytes) { stretches_[count_++] = {begin, begin + bytes}; }
  void spread(std::size_t ticks) {
    std::size_t lines = 0;
    for (Stretch const& s : stretches_)
      lines += (static_cast<std::size_t>(s.end - s.line) + kLineBytes - 1) / kLineBytes;
    lines_a_tick_ = (lines + ticks - 1) / ticks;
  }
  [[gnu::always_inline]] void tick() {
    if (current_ == count_) return;
    Stretch& s = stretches_[current_];
    for (std::size_t i = 0; i < lines_a_tick_; ++i) __builtin_prefetch(s.line + i * kLineBytes, 0, 3);
    s.line += lines_a_tick_ * kLineBytes;
    if (s.line >= s.end) ++current_;
  }

 private:
  struct Stretch {
    std::byte const* line = nullptr;
    std::byte const* end = nullptr;
  };
  Stretch stretches_[kTileBlocks];
  std::size_t count_ = 0;
  std::size_t current_ = 0;
  std::size_t lines_a_tick_ = 0;
};
constexpr std::size_t kStepsATickOfTile = 2;
constexpr std::size_t ticks_of(std::size_t steps) {
  return (steps + kStepsATickOfTile - 1) / kStepsATickOfTile;
}

template <class T>
struct AttendState {
  using Other = typename Cached<T>::Other;
  alignas(kLineBytes) float sum[kRowsPerPart][kLanes];  // of e^(score - largest) so far, lane by lane
  float largest[kRowsPerPart];                          // score so far
  Other const* q;                                       // [rows][q_stride]
  std::size_t q_stride;                                 // whole steps
  // Of the current tile:
  float correction[kRowsPerPart];  // of what was added up before
  alignas(kLineBytes) float score[kRowsPerPart][kTilePositions];
  // e^(score - largest), times the values' scales; 0 outside the row's lanes
  alignas(kLineBytes) Other weight[kRowsPerPart][kTilePositions];
  AheadOfTile ahead;
};

// body.operator()<N>(first) for [begin, end), N at a time, then fewer.
template <std::size_t N, class Body>
void for_each_few(std::size_t begin, std::size_t end, Body const& body) {
  for (; end - begin >= N; begin += N) body.template operator()<N>(begin);
  if constexpr (N > 1) for_each_few<N / 2>(begin, end, body);
}

// Where a block's biases lie in a head's row.
std::int64_t bias_offset(AttendPart const& a, std::size_t block, std::uint32_t query) {
  std::int64_t const distance = static_cast<std::int64_t>(block * kLanes) - query;
  std::int64_t const reach = a.bias_reach;
  std::int64_t const least = -reach - static_cast<std::int64_t>(kLanes) + 1;
  return distance < least ? least : (distance > reach ? reach : distance);
}

// RN rows' products with the keys of BN blocks over steps [begin, end).
template <std::size_t RN, std::size_t BN, class T>
[[gnu::always_inline]] inline void add_dots(T const* const (&keys)[BN], typename Cached<T>::Other const* q,
                                            std::size_t q_stride, std::size_t begin, std::size_t end,
                                            AheadOfTile& ahead, Vec (&dots)[RN][BN]) {
  constexpr std::size_t kStep = Cached<T>::kStep;
  for (std::size_t s = begin; s < end;) {
    ahead.tick();
    std::size_t const stop = end - s < kStepsATickOfTile ? end : s + kStepsATickOfTile;
    for (; s < stop; ++s) {
      EM_UNROLL
      for (std::size_t r = 0; r < RN; ++r) {
        EM_UNROLL
        for (std::size_t b = 0; b < BN; ++b)
          dots[r][b] = Cached<T>::dot(dots[r][b], keys[b] + s * kStep * kLanes, q + r * q_stride + s * kStep);
      }
    }
  }
}

// A tile's keys of a KV head. Of blocks before and behind what the part attends to there are none.
template <class T>
struct KeyTile {
  T const* of_block[kTileBlocks];    // [key steps][16][kStep]
  float const* scales[kTileBlocks];  // [2][16], of what has scales
};

// Scores of RN rows with blocks [block, block + BN).
template <std::size_t RN, std::size_t BN, class T>
[[gnu::noinline]] void score_blocks(AttendPart const& a, KeyTile<T> const& tile, std::size_t row, std::size_t block,
                                    AttendState<T>& state) {
  T const* keys[BN];
  EM_UNROLL
  for (std::size_t b = 0; b < BN; ++b) keys[b] = tile.of_block[block + b];
  auto const dots_of = [&](std::size_t begin, std::size_t end, Vec(&dots)[RN][BN]) __attribute__((always_inline)) {
    EM_UNROLL
    for (std::size_t r = 0; r < RN; ++r) {
      EM_UNROLL
      for (std::size_t b = 0; b < BN; ++b) dots[r][b] = zero();
    }
    add_dots<RN, BN, T>(keys, state.q + row * state.q_stride, state.q_stride, begin, end, state.ahead, dots);
  };
  auto const each = [&](auto body) __attribute__((always_inline)) {
    EM_UNROLL
    for (std::size_t r = 0; r < RN; ++r) {
      EM_UNROLL
      for (std::size_t b = 0; b < BN; ++b) body(r, b, state.score[row + r] + (block + b) * kLanes);
    }
  };
  Vec dots[RN][BN];
  if constexpr (!Cached<T>::kScaled) {
    dots_of(0, steps_of<T>(a.key_dim), dots);
    each([&](std::size_t r, std::size_t b, float* score) { store(score, dots[r][b] * broadcast(a.scale)); });
  } else {
    std::size_t const end = a.values_in_keys ? a.value_dim : a.key_dim;
    dots_of(0, end, dots);
    each([&](std::size_t r, std::size_t b, float* score) { store(score, dots[r][b] * load(tile.scales[block + b])); });
    if (end < a.key_dim) {
      dots_of(end, a.key_dim, dots);
      each([&](std::size_t r, std::size_t b, float* score) {
        store(score, fma(dots[r][b], load(tile.scales[block + b] + kLanes), load(score)));
      });
    }
    each([&](std::size_t, std::size_t, float* score) { store(score, load(score) * broadcast(a.scale)); });
  }
}

// CN vectors of columns from d on, or what there is of one. values: of each block [steps][stride][kStep], kStep
// positions a step. accumulator: [rows][padded].
template <std::size_t RN, std::size_t CN, bool kWholeVectors, class V, class T>
[[gnu::noinline]] void add_columns(std::size_t row, V const* const* values, std::size_t d, std::size_t columns,
                                   std::size_t stride, Lanes lanes, AttendState<T>& state, std::size_t padded,
                                   float* accumulator) {
  constexpr std::size_t kStep = Cached<V>::kStep;
  Vec total[RN][CN];
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) {
    Vec const correction = broadcast(state.correction[row + r]);
    EM_UNROLL
    for (std::size_t c = 0; c < CN; ++c)
      total[r][c] = load(accumulator + (row + r) * padded + d + c * kLanes) * correction;
  }
  auto const add = [&](V const* of_step, std::size_t position) __attribute__((always_inline)) {
    EM_UNROLL
    for (std::size_t r = 0; r < RN; ++r) {
      EM_UNROLL
      for (std::size_t c = 0; c < CN; ++c)
        total[r][c] = Cached<V>::dot(total[r][c], of_step + c * kLanes * kStep, state.weight[row + r] + position);
    }
  };
  for (std::size_t block = lanes.first_block(); block < lanes.end_block(); ++block) {
    Lanes const of_block = lanes.of_block(block);
    V const* of_step = values[block] + (of_block.begin / kStep * stride + d) * kStep;
    for (std::size_t j = of_block.begin / kStep * kStep; j < of_block.end; j += kStep, of_step += stride * kStep) {
      if (j / kStep % kStepsATickOfTile == 0) state.ahead.tick();
      bool const all = j >= of_block.begin && j + kStep <= of_block.end;
      if (kWholeVectors && (kStep == 1 || all)) {
        add(of_step, block * kLanes + j);
        continue;
      }
      V some[CN * kLanes * kStep] = {};  // without what is outside the lanes or behind the last column
      std::size_t const there = kWholeVectors ? CN * kLanes : columns - d;
      for (std::size_t i = 0; i < there * kStep; ++i)
        if (std::size_t const position = j + i % kStep; position >= of_block.begin && position < of_block.end)
          some[i] = of_step[i];
      add(some, block * kLanes + j);
    }
  }
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) {
    EM_UNROLL
    for (std::size_t c = 0; c < CN; ++c) store(accumulator + (row + r) * padded + d + c * kLanes, total[r][c]);
  }
}

template <std::size_t RN, class V, class T>
void add_values(std::size_t row, V const* const* values, std::size_t columns, std::size_t stride, Lanes lanes,
                AttendState<T>& state, std::size_t padded, float* accumulator) {
  constexpr std::size_t kAtOnce = kAttendSums / RN < 4 ? kAttendSums / RN : 4;
  std::size_t d = 0;
  for (; d + kAtOnce * kLanes <= columns; d += kAtOnce * kLanes)
    add_columns<RN, kAtOnce, true>(row, values, d, columns, stride, lanes, state, padded, accumulator);
  for (; d + kLanes <= columns; d += kLanes)
    add_columns<RN, 1, true>(row, values, d, columns, stride, lanes, state, padded, accumulator);
  if (d < columns) add_columns<RN, 1, false>(row, values, d, columns, stride, lanes, state, padded, accumulator);
}

// Columns [0, columns) of a block's keys as rows of values: [16][padded] of numbers as the products have them, or
// [8][padded][2] of bfloat16. What is in the padding, nobody asks for.
template <class T>
void values_of_keys(T const* keys, std::size_t columns, std::size_t padded, float* values) {
  for (std::size_t d = 0; d < columns; d += kLanes) {
    Vec tile[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) tile[i] = d + i < columns ? load(keys + (d + i) * kLanes) : zero();
    transpose(tile);
    for (std::size_t j = 0; j < kLanes; ++j) store(values + j * padded + d, tile[j]);
  }
}
inline void values_of_keys(std::uint16_t const* keys, std::size_t columns, std::size_t padded, std::uint16_t* values) {
  constexpr std::size_t kAtOnce = 2 * kLanes;  // columns: a vector of a position's pairs of numbers
  for (std::size_t d = 0; d < columns; d += kAtOnce) {
    Vec tile[kLanes];  // whose bits are pairs, not floats
    for (std::size_t i = 0; i < kLanes; ++i) {
      float pairs[kLanes] = {};
      if (d + 2 * i < columns) std::memcpy(pairs, keys + (d + 2 * i) * kLanes, sizeof pairs);
      tile[i] = load(pairs);
    }
    transpose(tile);
    std::size_t const count = padded - d < kAtOnce ? padded - d : kAtOnce;
    for (std::size_t j = 0; j < kLanes; j += 2) {
      float pairs[2][kLanes];
      std::uint16_t numbers[2][kAtOnce];
      for (std::size_t i = 0; i < 2; ++i) store(pairs[i], tile[j + i]);
      std::memcpy(numbers, pairs, sizeof numbers);
      std::uint16_t* const out = values + (j / 2 * padded + d) * 2;
      for (std::size_t i = 0; i < count; ++i) {
        out[2 * i] = numbers[0][i];
        out[2 * i + 1] = numbers[1][i];
      }
    }
  }
}

// Where the keys and values of a part lie.
template <class T>
class PartBlocks {
 public:
  explicit PartBlocks(AttendPart const& a) : a_(a) {
    std::uint32_t first = a.token[0].first;
    std::uint32_t last = a.token[0].last;
    for (std::size_t t = 1; t < a.tokens; ++t) {
      first = a.token[t].first < first ? a.token[t].first : first;
      last = a.token[t].last > last ? a.token[t].last : last;
    }
    begin_ = first / kLanes;
    end_ = last / kLanes + 1;
  }
  [[nodiscard]] std::size_t first_tile() const { return begin_ / kTileBlocks; }
  [[nodiscard]] std::size_t end_tile() const { return (end_ + kTileBlocks - 1) / kTileBlocks; }
  // Blocks of a tile that the part attends to, counted from the tile's first.
  [[nodiscard]] Lanes of_tile(std::size_t tile) const {
    std::size_t const first = tile * kTileBlocks;
    return {begin_ > first ? begin_ - first : 0, end_ - first < kTileBlocks ? end_ - first : kTileBlocks};
  }
  [[nodiscard]] T const* keys(std::size_t block, std::size_t g) const {
    return reinterpret_cast<T const*>(head(block, g));
  }
  [[nodiscard]] T const* values(std::size_t block, std::size_t g) const {
    return reinterpret_cast<T const*>(head(block, g) + a_.value_offset);
  }
  [[nodiscard]] float const* scales(std::size_t block, std::size_t g) const {  // [2][16]
    return reinterpret_cast<float const*>(head(block, g) + a_.scale_offset);
  }
  // Those of a tile and head.
  [[nodiscard]] AheadOfTile fetch(std::size_t tile, std::size_t g) const {
    AheadOfTile out;
    Lanes const blocks = of_tile(tile);
    for (std::size_t b = blocks.begin; b < blocks.end; ++b) out.add(head(tile * kTileBlocks + b, g), a_.head_bytes);
    return out;
  }

 private:
  [[nodiscard]] std::byte const* head(std::size_t block, std::size_t g) const {
    return a_.kv + a_.blocks[block] * a_.block_bytes + g * a_.head_bytes;
  }

  AttendPart const& a_;
  std::size_t begin_, end_;
};

// Tokens and KV heads of a part, whose rows lie as [KV heads][tokens][heads].
template <class T>
class Attend {
  using Other = typename Cached<T>::Other;
  static constexpr std::size_t kStep = Cached<T>::kStep;
  static constexpr bool kScaled = Cached<T>::kScaled;

 public:
  explicit Attend(AttendPart const& a)
      : a_(a),
        blocks_(a),
        padded_((a.value_dim + kLanes - 1) / kLanes * kLanes),
        rows_(a.kv_heads * a.tokens * a.heads),
        accumulator_(a.scratch),
        own_values_(reinterpret_cast<Other*>(accumulator_ + rows_ * padded_)),
        queries_(own_values_ + kTilePositions * padded_) {
    state_.q = queries_;
    state_.q_stride = steps_of<T>(a.key_dim) * kStep;
    std::size_t row = 0;
    for (std::size_t g = 0; g < a.kv_heads; ++g)
      for (std::size_t t = 0; t < a.tokens; ++t)
        for (std::size_t h = 0; h < a.heads; ++h) start_row(row++, t, g * a.heads + h);
    std::memset(accumulator_, 0, rows_ * padded_ * sizeof(float));
  }

  void run() {
    for (std::size_t tile = blocks_.first_tile(); tile < blocks_.end_tile(); ++tile) {
      for (std::size_t t = 0; t < a_.tokens; ++t) lanes_[t] = lanes_of(a_.token[t], tile);
      for (std::size_t g = 0; g < a_.kv_heads; ++g) {
        fetch_after(tile, g);
        attend_head(tile, g);
      }
    }
    for (std::size_t row = 0; row < rows_; ++row) {
      float* const out = a_.out + of_[row].token * a_.out_stride + of_[row].head * a_.value_dim;
      Vec const inverse = broadcast(1.0F / sum_lanes(load(state_.sum[row])));
      for (std::size_t d = 0; d < a_.value_dim; d += kLanes)
        store_some(out + d, load(accumulator_ + row * padded_ + d) * inverse, a_.value_dim - d);
    }
  }

 private:
  void start_row(std::size_t row, std::size_t token, std::size_t head) {
    of_[row] = {.token = token, .head = head};
    state_.largest[row] = a_.sinks ? a_.sinks[head] : kNegativeInfinity;
    store(state_.sum[row], zero());
    if (a_.sinks) state_.sum[row][0] = 1.0F;
    float const* const q = a_.q + token * a_.q_stride + head * a_.key_dim;
    Other* const to = queries_ + row * state_.q_stride;
    std::size_t d = 0;
    for (; d + kLanes <= a_.key_dim; d += kLanes) Cached<T>::store_others(to + d, load(q + d));
    for (; d < state_.q_stride; ++d) to[d] = Cached<T>::other(d < a_.key_dim ? q[d] : 0.0F);
  }

  // What is read after a tile of a KV head is fetched, spread over the time that it takes.
  void fetch_after(std::size_t tile, std::size_t g) {
    if (g + 1 < a_.kv_heads) {
      state_.ahead = blocks_.fetch(tile, g + 1);
    } else if (tile + 1 < blocks_.end_tile()) {
      state_.ahead = blocks_.fetch(tile + 1, 0);
    } else if (a_.next) {
      PartBlocks<T> const next(*a_.next);
      state_.ahead = next.fetch(next.first_tile(), 0);
    } else {
      state_.ahead = {};
    }
    Lanes const blocks = blocks_.of_tile(tile);
    constexpr std::size_t kAtOnce = kAttendSums / kAttendRows;
    std::size_t const row_groups = (a_.tokens * a_.heads + kAttendRows - 1) / kAttendRows;
    std::size_t const block_groups = (blocks.end - blocks.begin + kAtOnce - 1) / kAtOnce;
    std::size_t const column_groups = (padded_ / kLanes + kAtOnce - 1) / kAtOnce;
    state_.ahead.spread(row_groups * (block_groups * ticks_of(steps_of<T>(a_.key_dim)) +
                                      column_groups * (blocks.end - blocks.begin) * ticks_of(kLanes / kStep)));
  }

  void attend_head(std::size_t tile, std::size_t g) {
    Lanes const blocks = blocks_.of_tile(tile);
    std::size_t const rows = a_.tokens * a_.heads;
    std::size_t const row = g * rows;
    KeyTile<T> keys{};
    for (std::size_t b = blocks.begin; b < blocks.end; ++b) {
      keys.of_block[b] = blocks_.keys(tile * kTileBlocks + b, g);
      if constexpr (kScaled) keys.scales[b] = blocks_.scales(tile * kTileBlocks + b, g);
    }
    for_each_few<kAttendRows>(row, row + rows, [&]<std::size_t RN>(std::size_t r) {
      constexpr std::size_t kBlocksAtOnce = kAttendSums / RN < kTileBlocks ? kAttendSums / RN : kTileBlocks;
      for_each_few<kBlocksAtOnce>(blocks.begin, blocks.end, [&]<std::size_t BN>(std::size_t block) {
        score_blocks<RN, BN>(a_, keys, r, block, state_);
      });
    });
    for (std::size_t r = 0; r < rows; r += kLanes) weigh(tile, g, row + r, rows - r < kLanes ? rows - r : kLanes);
    if (a_.values_in_keys) {
      Other const* values[kTileBlocks];
      for (std::size_t b = blocks.begin; b < blocks.end; ++b) {
        Other* const of_block = own_values_ + b * kLanes * padded_;
        values_of_keys(keys.of_block[b], a_.value_dim, padded_, of_block);
        values[b] = of_block;
      }
      add_weighted(row, values, padded_, padded_);
    } else {
      T const* values[kTileBlocks];
      for (std::size_t b = blocks.begin; b < blocks.end; ++b) values[b] = blocks_.values(tile * kTileBlocks + b, g);
      add_weighted(row, values, a_.value_dim, a_.value_dim);
    }
  }

  // Scores of at most 16 rows become weights.
  void weigh(std::size_t tile, std::size_t g, std::size_t row, std::size_t rows) {
    float shift[kLanes];
    float before[kLanes] = {};  // the rows' largest scores, less those with this tile
    for (std::size_t r = 0; r < rows; ++r) {
      Lanes const lanes = lanes_[of_[row + r].token];
      float* const score = state_.score[row + r];
      if (a_.bias) add_bias(tile, row + r, lanes, score);
      float& largest = state_.largest[row + r];
      float const tile_max = max_lanes(lanes == kWhole ? most<true>(lanes, score) : most<false>(lanes, score));
      float const new_max = tile_max > largest ? tile_max : largest;
      // Subtracting -inf from -inf would spoil what later tiles can still mend.
      shift[r] = new_max > kNegativeInfinity ? new_max : 0.0F;
      before[r] = largest - shift[r];
      largest = new_max;
    }
    float corrections[kLanes];
    store(corrections, exponential(load(before)));  // of all rows at once
    for (std::size_t r = 0; r < rows; ++r) {
      Lanes const lanes = lanes_[of_[row + r].token];
      Vec const sum = lanes == kWhole ? weights<true>(tile, g, row + r, lanes, shift[r])
                                      : weights<false>(tile, g, row + r, lanes, shift[r]);
      state_.correction[row + r] = corrections[r];
      float* const so_far = state_.sum[row + r];
      store(so_far, fma(load(so_far), broadcast(corrections[r]), sum));
    }
  }

  // body(vector) for those of a tile's that have some of the lanes.
  template <bool kAll, class Body>
  [[gnu::always_inline]] static void each_vector(Lanes lanes, Body body) {
    if constexpr (kAll) {
      EM_UNROLL
      for (std::size_t b = 0; b < kTileBlocks; ++b) body(b);
    } else {
      for (std::size_t b = lanes.first_block(); b < lanes.end_block(); ++b) body(b);
    }
  }

  // The largest scores; those outside the lanes become -inf.
  template <bool kAll>
  static Vec most(Lanes lanes, float* score) {
    Vec out = broadcast(kNegativeInfinity);
    each_vector<kAll>(
        lanes, [&](std::size_t b) __attribute__((always_inline)) {
          Vec scores = load(score + b * kLanes);
          if constexpr (!kAll) {
            Lanes const of_block = lanes.of_block(b);
            scores = min(scores, load(kLimits.at + kTilePositions - of_block.begin));
            scores = min(scores, load(kLimits.at + 2 * kTilePositions - of_block.end));
            store(score + b * kLanes, scores);
          }
          out = max(scores, out);
        });
    return out;
  }

  // e^(score - shift), times the values' scales; returns the sum over the vectors, without scales.
  template <bool kAll>
  Vec weights(std::size_t tile, std::size_t g, std::size_t row, Lanes lanes, float shift) {
    Vec sum = zero();
    auto const take = [&](std::size_t b, Vec weight) __attribute__((always_inline)) {
      sum = sum + weight;
      if constexpr (kScaled)
        weight = weight * load(blocks_.scales(tile * kTileBlocks + b, g) + (a_.values_in_keys ? 0 : kLanes));
      Cached<T>::store_others(state_.weight[row] + b * kLanes, weight);
    };
    float const* const score = state_.score[row];
    if constexpr (kAll) {
      Vec all[kTileBlocks];
      each_vector<kAll>(
          lanes, [&](std::size_t b)
                     __attribute__((always_inline)) { all[b] = load(score + b * kLanes) - broadcast(shift); });
      exponential(all);
      each_vector<kAll>(
          lanes, [&](std::size_t b) __attribute__((always_inline)) { take(b, all[b]); });
    } else {
      each_vector<kAll>(
          lanes, [&](std::size_t b) __attribute__((always_inline)) {
            take(b, exponential(load(score + b * kLanes) - broadcast(shift)));
          });
    }
    return sum;
  }

  void add_bias(std::size_t tile, std::size_t row, Lanes lanes, float* score) const {
    float const* const bias = a_.bias + of_[row].head * a_.bias_stride;
    std::uint32_t const position = a_.token[of_[row].token].position;
    for (std::size_t b = lanes.first_block(); b < lanes.end_block(); ++b)
      store(score + b * kLanes,
            load(score + b * kLanes) + load(bias + bias_offset(a_, tile * kTileBlocks + b, position)));
  }

  // A KV head's values times the weights of its rows, from `row` on: of tokens that attend to the same positions
  // together.
  template <class V>
  void add_weighted(std::size_t row, V const* const* values, std::size_t columns, std::size_t stride) {
    for (std::size_t t = 0; t < a_.tokens;) {
      std::size_t end = t + 1;
      while (end < a_.tokens && lanes_[end] == lanes_[t]) ++end;
      if (!lanes_[t].empty())
        for_each_few<kAttendRows>(row + t * a_.heads, row + end * a_.heads, [&]<std::size_t RN>(std::size_t r) {
          add_values<RN>(r, values, columns, stride, lanes_[t], state_, padded_, accumulator_);
        });
      t = end;
    }
  }

  struct Row {
    std::size_t token, head;  // head: counted over the KV heads
  };

  AttendPart const& a_;
  PartBlocks<T> const blocks_;
  std::size_t const padded_;  // columns of values, whole vectors
  std::size_t const rows_;
  float* const accumulator_;  // [rows][padded]
  Other* const own_values_;   // of a tile's blocks, where they lie in the keys: values_of_keys()
  Other* const queries_;      // [rows][whole steps]
  Row of_[kRowsPerPart];
  Lanes lanes_[kRowsPerPart];  // of each token, in the current tile
  AttendState<T> state_;
};

template <class T>
void attend(AttendPart const& a) {
  Attend<T>(a).run();
}

}  // namespace
}  // namespace expertmesh
