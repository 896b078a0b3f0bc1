// The inner loop of paged attention, written once over Vec like those of kernels_impl.h.
#pragma once
#include <cstring>

#include "common/kernels/isa/gemm_tile.h"
#include "common/kernels/isa/vec_math.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// Online softmax (Milakov and Gimelshein 2018) over the KV blocks, which lie at absolute positions. A row is a query
// head of a token. A block's keys and values are read for all rows of the part, RN rows at a time: as many independent
// sums as the multiply-add units need. Each row's arithmetic is its own, whatever the others of its part are.

// Positions of a block that a token attends to; what lies in the others may never have been written.
struct Lanes {
  std::size_t begin, end;
  bool operator==(Lanes const&) const = default;
};

Lanes lanes_of(AttendToken const& token, std::uint32_t block) {
  std::uint32_t const first = block * std::uint32_t{kLanes};
  if (token.last < first || token.first >= first + kLanes) return {0, 0};
  return {token.first > first ? token.first - first : 0, token.last - first < kLanes ? token.last - first + 1 : kLanes};
}

Vec only(Lanes lanes, Vec const& scores) {
  float score[kLanes];
  store(score, scores);
  for (std::size_t j = 0; j < kLanes; ++j)
    if (j < lanes.begin || j >= lanes.end) score[j] = kNegativeInfinity;
  return load(score);
}

constexpr std::size_t kDimsATick = 8;  // of a head's, while they meet a block, from tick to tick

// Numbers that are whole ones times the scale of their position: of a block's scales [2][16] the first are of its keys,
// the second of its values; where values lie in the keys, of the values and of what the keys have behind them. Products
// are added up unscaled, so that a block's scales meet its scores and weights, not its numbers.
template <class T>
constexpr bool kScaled = false;
template <>
constexpr bool kScaled<std::int8_t> = true;

// Rows that meet a block's keys at a time: scaled ones have two sums a row.
template <class T>
constexpr std::size_t kScoredRows = kScaled<T> ? kAttendSums / 2 : kAttendRows;

struct AttendState {
  float largest[kRowsPerPart];      // score so far
  float sum[kRowsPerPart];          // of e^(score - largest)
  float const* q;                   // [key_dim][q_stride], a column a row: what is multiplied at once lies side by side
  std::size_t q_stride;             // whole vectors
  float const* bias[kRowsPerPart];  // of its head
  // Of the current block:
  float correction[kRowsPerPart];      // of what was added up before
  float weight[kRowsPerPart][kLanes];  // e^(score - largest), 0 outside the lanes; times the values' scales
  // Of the block that comes next: blocks lie anywhere in the cache, so no hardware sees it coming.
  Ahead keys, values;
};

// body.operator()<RN>(row) for rows [begin, end), RN of them at a time, then less.
template <std::size_t RN, class Body>
void for_rows(std::size_t begin, std::size_t end, Body const& body) {
  for (; end - begin >= RN; begin += RN) body.template operator()<RN>(begin);
  if constexpr (RN > 1) for_rows<RN / 2>(begin, end, body);
}

// Where a block's biases lie in a head's row.
std::int64_t bias_offset(AttendPart const& a, std::uint32_t block, std::uint32_t query) {
  std::int64_t const distance = static_cast<std::int64_t>(block) * static_cast<std::int64_t>(kLanes) - query;
  std::int64_t const reach = a.bias_reach;
  std::int64_t const least = -reach - static_cast<std::int64_t>(kLanes) + 1;
  return distance < least ? least : (distance > reach ? reach : distance);
}

// += elements [begin, end) of the queries times those of the keys, times the scales. Even and odd ones are added up
// apart, since there may be one row alone: twice as many sums that do not wait for each other.
template <std::size_t RN>
void add_scaled_dots(std::size_t row, std::int8_t const* keys, std::size_t begin, std::size_t end, Vec const& scales,
                     AttendState& state, Vec (&dots)[RN]) {
  Vec even[RN], odd[RN];
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) even[r] = odd[r] = zero();
  float const* q = state.q + begin * state.q_stride + row;
  static_assert(kDimsATick % 2 == 0);
  for (std::size_t d = begin; d < end;) {
    state.keys.tick();
    state.values.tick();
    std::size_t const stop = end - d < kDimsATick ? end : d + kDimsATick;
    for (; d + 2 <= stop; d += 2, q += 2 * state.q_stride) {
      Vec const first = load(keys + d * kLanes);
      Vec const second = load(keys + (d + 1) * kLanes);
      EM_UNROLL
      for (std::size_t r = 0; r < RN; ++r) {
        even[r] = fma(broadcast(q[r]), first, even[r]);
        odd[r] = fma(broadcast(q[state.q_stride + r]), second, odd[r]);
      }
    }
    if (d == stop) continue;
    Vec const last = load(keys + d * kLanes);
    EM_UNROLL
    for (std::size_t r = 0; r < RN; ++r) even[r] = fma(broadcast(q[r]), last, even[r]);
    ++d;
  }
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) dots[r] = fma(even[r] + odd[r], scales, dots[r]);
}

template <std::size_t RN, class T>
void add_dots(AttendPart const& a, std::size_t row, T const* keys, AttendState& state, Vec (&dots)[RN]) {
  float const* q = state.q + row;
  for (std::size_t d = 0; d < a.key_dim;) {
    state.keys.tick();
    state.values.tick();
    std::size_t const end = a.key_dim - d < kDimsATick ? a.key_dim : d + kDimsATick;
    for (; d < end; ++d, q += state.q_stride) {
      Vec const key = load(keys + d * kLanes);
      EM_UNROLL
      for (std::size_t r = 0; r < RN; ++r) dots[r] = fma(broadcast(q[r]), key, dots[r]);
    }
  }
}

// scales: of the block, if its numbers have any.
template <std::size_t RN, class T>
[[gnu::noinline]] void score_block(AttendPart const& a, std::size_t row, T const* keys, float const* scales,
                                   std::uint32_t block, Lanes lanes, AttendState& state) {
  Vec dots[RN];
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) dots[r] = zero();
  if constexpr (kScaled<T>) {
    std::size_t const end = a.values ? a.key_dim : a.value_dim;
    add_scaled_dots<RN>(row, keys, 0, end, load(scales), state, dots);
    if (end < a.key_dim) add_scaled_dots<RN>(row, keys, end, a.key_dim, load(scales + kLanes), state, dots);
  } else {
    add_dots<RN>(a, row, keys, state, dots);
  }
  float before[kLanes] = {};  // the rows' largest scores, less those with this block
  static_assert(RN <= kLanes);
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) {
    Vec scores = dots[r] * broadcast(a.scale);
    if (a.bias)
      scores =
          scores + load(state.bias[row + r] + bias_offset(a, block, a.token[(row + r) / a.heads % a.tokens].position));
    if (lanes.begin != 0 || lanes.end != kLanes) scores = only(lanes, scores);
    float& largest = state.largest[row + r];
    float const tile_max = max_lanes(scores);
    float const new_max = tile_max > largest ? tile_max : largest;
    // Subtracting -inf from -inf would spoil what later blocks can still mend.
    float const shift = new_max > kNegativeInfinity ? new_max : 0.0F;
    dots[r] = scores - broadcast(shift);
    before[r] = largest - shift;
    largest = new_max;
  }
  float corrections[kLanes];
  store(corrections, exponential(load(before)));  // of all rows at once
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) {
    Vec const weights = exponential(dots[r]);
    if constexpr (kScaled<T>)
      store(state.weight[row + r], weights * load(a.values ? scales + kLanes : scales));
    else
      store(state.weight[row + r], weights);
    state.correction[row + r] = corrections[r];
    state.sum[row + r] = state.sum[row + r] * corrections[r] + sum_lanes(weights);
  }
}

// CN vectors of columns from d on, or what there is of one. values: [16] rows, `stride` apart. accumulator:
// [rows][padded].
template <std::size_t RN, std::size_t CN, bool kWhole, class T>
[[gnu::noinline]] void add_columns(std::size_t row, T const* values, std::size_t d, std::size_t columns,
                                   std::size_t stride, Lanes lanes, AttendState const& state, std::size_t padded,
                                   float* accumulator) {
  float const* weight[RN];
  Vec total[RN][CN];
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) {
    weight[r] = state.weight[row + r];
    Vec const correction = broadcast(state.correction[row + r]);
    EM_UNROLL
    for (std::size_t c = 0; c < CN; ++c)
      total[r][c] = load(accumulator + (row + r) * padded + d + c * kLanes) * correction;
  }
  for (std::size_t j = lanes.begin; j < lanes.end; ++j) {
    Vec value[CN];
    EM_UNROLL
    for (std::size_t c = 0; c < CN; ++c) {
      T const* const of_position = values + j * stride + d + c * kLanes;
      if constexpr (kWhole)
        value[c] = load(of_position);
      else
        value[c] = load_some(of_position, columns - d);
    }
    EM_UNROLL
    for (std::size_t r = 0; r < RN; ++r) {
      Vec const w = broadcast(weight[r][j]);
      EM_UNROLL
      for (std::size_t c = 0; c < CN; ++c) total[r][c] = fma(w, value[c], total[r][c]);
    }
  }
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) {
    EM_UNROLL
    for (std::size_t c = 0; c < CN; ++c) store(accumulator + (row + r) * padded + d + c * kLanes, total[r][c]);
  }
}

template <std::size_t RN, class T>
void add_values(std::size_t row, T const* values, std::size_t columns, std::size_t stride, Lanes lanes,
                AttendState const& state, std::size_t padded, float* accumulator) {
  constexpr std::size_t kAtOnce = kAttendSums / RN < 4 ? kAttendSums / RN : 4;
  std::size_t d = 0;
  for (; d + kAtOnce * kLanes <= columns; d += kAtOnce * kLanes)
    add_columns<RN, kAtOnce, true>(row, values, d, columns, stride, lanes, state, padded, accumulator);
  for (; d < columns; d += kLanes)
    add_columns<RN, 1, false>(row, values, d, columns, stride, lanes, state, padded, accumulator);
}

// Columns [0, columns) of a block's keys [..][16] as rows: values [16][padded], the padding 0.
template <class T>
void values_of_keys(T const* keys, std::size_t columns, std::size_t padded, float* values) {
  for (std::size_t d = 0; d < columns; d += kLanes) {
    Vec tile[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) tile[i] = d + i < columns ? load(keys + (d + i) * kLanes) : zero();
    transpose(tile);
    for (std::size_t j = 0; j < kLanes; ++j) store(values + j * padded + d, tile[j]);
  }
}

// Tokens and KV heads of a part, whose rows lie as [KV heads][tokens][heads].
template <class T>
class Attend {
 public:
  explicit Attend(AttendPart const& a)
      : a_(a),
        padded_((a.value_dim + kLanes - 1) / kLanes * kLanes),
        rows_(a.kv_heads * a.tokens * a.heads),
        queries_(a.scratch),
        accumulator_(queries_ + a.key_dim * whole_rows()),
        own_values_(accumulator_ + rows_ * padded_) {
    for (std::size_t row = 0; row < rows_; ++row) {
      std::size_t const head = head_of(row);
      state_.largest[row] = a.sinks ? a.sinks[head] : kNegativeInfinity;
      state_.sum[row] = a.sinks ? 1.0F : 0.0F;
      state_.bias[row] = a.bias ? a.bias + head * a.bias_stride : nullptr;
      q_[row] = a.q + token_of(row) * a.q_stride + head * a.key_dim;
      out_[row] = a.out + token_of(row) * a.out_stride + head * a.value_dim;
    }
    std::memset(accumulator_, 0, rows_ * padded_ * sizeof(float));
    state_.q = queries_;
    state_.q_stride = whole_rows();
    for (std::size_t row = 0; row < rows_; row += kLanes)
      for (std::size_t d = 0; d < a.key_dim; d += kLanes) turn_queries(row, d);
  }

  void run() {
    std::uint32_t first = a_.token[0].first;
    std::uint32_t last = a_.token[0].last;
    for (std::size_t t = 1; t < a_.tokens; ++t) {
      first = a_.token[t].first < first ? a_.token[t].first : first;
      last = a_.token[t].last > last ? a_.token[t].last : last;
    }
    std::uint32_t const last_block = last / std::uint32_t{kLanes};
    for (std::uint32_t block = first / std::uint32_t{kLanes}; block <= last_block; ++block)
      for (std::size_t g = 0; g < a_.kv_heads; ++g) {
        if (!values_of(block, g)) values_of_keys(keys_of(block, g), a_.value_dim, padded_, own_values_);
        state_.keys = state_.values = {};
        if (block < last_block) fetch_ahead(block + 1, g);
        for (std::size_t t = 0; t < a_.tokens;) {
          Lanes const lanes = lanes_of(a_.token[t], block);
          std::size_t end = t + 1;
          while (end < a_.tokens && lanes_of(a_.token[end], block) == lanes) ++end;
          if (lanes.begin < lanes.end) attend_block(block, g, t, end, lanes);
          t = end;
        }
      }
    for (std::size_t row = 0; row < rows_; ++row)
      for (std::size_t d = 0; d < a_.value_dim; d += kLanes)
        store_some(out_[row] + d, load(accumulator_ + row * padded_ + d) / broadcast(state_.sum[row]),
                   a_.value_dim - d);
  }

 private:
  [[nodiscard]] std::size_t whole_rows() const { return (rows_ + kLanes - 1) / kLanes * kLanes; }
  [[nodiscard]] std::size_t token_of(std::size_t row) const { return row / a_.heads % a_.tokens; }
  [[nodiscard]] std::size_t head_of(std::size_t row) const {  // counted over the KV heads
    return row / (a_.heads * a_.tokens) * a_.heads + row % a_.heads;
  }
  [[nodiscard]] T const* keys_of(std::uint32_t block, std::size_t g) const {
    return reinterpret_cast<T const*>(a_.keys) + a_.blocks[block] * a_.key_stride + g * a_.key_dim * kLanes;
  }
  [[nodiscard]] T const* values_of(std::uint32_t block, std::size_t g) const {
    if (!a_.values) return nullptr;
    return reinterpret_cast<T const*>(a_.values) + a_.blocks[block] * a_.value_stride + g * a_.value_dim * kLanes;
  }
  [[nodiscard]] float const* scales_of(std::uint32_t block, std::size_t g) const {
    return kScaled<T> ? a_.scales + a_.blocks[block] * a_.scale_stride + g * 2 * kLanes : nullptr;
  }

  // A vector of rows, from d on.
  void turn_queries(std::size_t row, std::size_t d) {
    Vec tile[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i)
      tile[i] = row + i < rows_ ? load_some(q_[row + i] + d, a_.key_dim - d) : zero();
    transpose(tile);
    for (std::size_t i = 0; i < kLanes && d + i < a_.key_dim; ++i)
      store(queries_ + (d + i) * whole_rows() + row, tile[i]);
  }

  void fetch_ahead(std::uint32_t block, std::size_t g) {
    std::size_t const ticks = (a_.key_dim + kDimsATick - 1) / kDimsATick;
    auto const ahead = [&](T const* data, std::size_t elements) {
      auto const* begin = reinterpret_cast<std::byte const*>(data);
      std::size_t const lines = (elements * sizeof(T) + kLineBytes - 1) / kLineBytes;
      return Ahead{.line = begin, .end = begin + elements * sizeof(T), .lines_a_tick = (lines + ticks - 1) / ticks};
    };
    state_.keys = ahead(keys_of(block, g), a_.key_dim * kLanes);
    if (a_.values) state_.values = ahead(values_of(block, g), a_.value_dim * kLanes);
    if (kScaled<T>)
      for (std::size_t line : {0, 1}) __builtin_prefetch(scales_of(block, g) + line * kLanes);
  }

  // Of KV head g, for tokens [begin, end), which attend to the same lanes.
  void attend_block(std::uint32_t block, std::size_t g, std::size_t begin, std::size_t end, Lanes lanes) {
    std::size_t const first = g * a_.tokens * a_.heads;
    for_rows<kScoredRows<T>>(first + begin * a_.heads, first + end * a_.heads, [&]<std::size_t RN>(std::size_t row) {
      score_block<RN>(a_, row, keys_of(block, g), scales_of(block, g), block, lanes, state_);
    });
    for_rows<kAttendRows>(first + begin * a_.heads, first + end * a_.heads, [&]<std::size_t RN>(std::size_t row) {
      if (T const* const values = values_of(block, g))
        add_values<RN>(row, values, a_.value_dim, a_.value_dim, lanes, state_, padded_, accumulator_);
      else
        add_values<RN>(row, own_values_, padded_, padded_, lanes, state_, padded_, accumulator_);
    });
  }

  AttendPart const& a_;
  float const* q_[kRowsPerPart];
  float* out_[kRowsPerPart];
  std::size_t const padded_;  // columns of values, whole vectors
  std::size_t const rows_;
  float* const queries_;      // [key_dim][whole_rows]
  float* const accumulator_;  // [rows][padded]
  float* const own_values_;   // [16][padded]
  AttendState state_;
};

template <class T>
void attend(AttendPart const& a) {
  Attend<T>(a).run();
}

}  // namespace
}  // namespace expertmesh
