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

struct AttendState {
  float largest[kRowsPerPart];  // score so far
  float sum[kRowsPerPart];      // of e^(score - largest)
  float const* q[kRowsPerPart];
  // Of the current block:
  float correction[kRowsPerPart];      // of what was added up before
  float weight[kRowsPerPart][kLanes];  // e^(score - largest), 0 outside the lanes
  // Of the block that comes next: blocks lie anywhere in the cache, so no hardware sees it coming.
  Ahead keys, values;
};

// body.operator()<RN>(row) for rows [begin, end), RN of them at a time: kAttendRows, then less.
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

template <std::size_t RN, class T>
void score_block(AttendPart const& a, std::size_t row, T const* keys, std::uint32_t block, Lanes lanes,
                 AttendState& state) {
  float const* q[RN];
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) q[r] = state.q[row + r];
  Vec dots[RN];
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) dots[r] = zero();
  for (std::size_t d = 0; d < a.key_dim; ++d) {
    if (d % kStepsATick == 0) {
      state.keys.tick();
      state.values.tick();
    }
    Vec const key = load(keys + d * kLanes);
    EM_UNROLL
    for (std::size_t r = 0; r < RN; ++r) dots[r] = fma(broadcast(q[r][d]), key, dots[r]);
  }
  float before[kLanes] = {};  // the rows' largest scores, less those with this block
  static_assert(RN <= kLanes);
  EM_UNROLL
  for (std::size_t r = 0; r < RN; ++r) {
    Vec scores = dots[r] * broadcast(a.scale);
    if (a.bias) {
      std::size_t const token = (row + r) / a.heads;
      std::size_t const head = (row + r) % a.heads;
      scores = scores + load(a.bias + head * a.bias_stride + bias_offset(a, block, a.token[token].position));
    }
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
    store(state.weight[row + r], weights);
    state.correction[row + r] = corrections[r];
    state.sum[row + r] = state.sum[row + r] * corrections[r] + sum_lanes(weights);
  }
}

// CN vectors of columns from d on, or what there is of one. values: [16] rows, `stride` apart. accumulator:
// [rows][padded].
template <std::size_t RN, std::size_t CN, bool kWhole, class T>
void add_columns(std::size_t row, T const* values, std::size_t d, std::size_t columns, std::size_t stride, Lanes lanes,
                 AttendState const& state, std::size_t padded, float* accumulator) {
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

// One block, which tokens [begin, end) of the part attend to in the same lanes.
template <class T>
void attend_block(AttendPart const& a, std::size_t begin, std::size_t end, T const* keys, T const* values,
                  float const* own_values, std::uint32_t block, Lanes lanes, std::size_t padded, float* accumulator,
                  AttendState& state) {
  for_rows<kAttendRows>(begin * a.heads, end * a.heads,
                        [&]<std::size_t RN>(std::size_t row) { score_block<RN>(a, row, keys, block, lanes, state); });
  for_rows<kAttendRows>(begin * a.heads, end * a.heads, [&]<std::size_t RN>(std::size_t row) {
    if (values)
      add_values<RN>(row, values, a.value_dim, a.value_dim, lanes, state, padded, accumulator);
    else
      add_values<RN>(row, own_values, padded, padded, lanes, state, padded, accumulator);
  });
}

template <class T>
void attend(AttendPart const& a) {
  std::size_t const padded = (a.value_dim + kLanes - 1) / kLanes * kLanes;
  std::size_t const rows = a.tokens * a.heads;
  float* const accumulator = a.scratch;                 // [rows][padded]
  float* const own_values = a.scratch + rows * padded;  // [16][padded]
  AttendState state;
  std::uint32_t first = a.token[0].first;
  std::uint32_t last = a.token[0].last;
  for (std::size_t t = 0; t < a.tokens; ++t) {
    AttendToken const& token = a.token[t];
    first = token.first < first ? token.first : first;
    last = token.last > last ? token.last : last;
    for (std::size_t h = 0; h < a.heads; ++h) {
      std::size_t const row = t * a.heads + h;
      state.largest[row] = a.sinks ? a.sinks[h] : kNegativeInfinity;
      state.sum[row] = a.sinks ? 1.0F : 0.0F;
      state.q[row] = a.q + t * a.q_stride + h * a.key_dim;
    }
  }
  std::memset(accumulator, 0, rows * padded * sizeof(float));

  auto const keys_of = [&](std::uint32_t block) {
    return reinterpret_cast<T const*>(a.keys) + a.blocks[block] * a.key_stride;
  };
  auto const values_of = [&](std::uint32_t block) {
    return a.values ? reinterpret_cast<T const*>(a.values) + a.blocks[block] * a.value_stride : nullptr;
  };
  auto const ahead = [](T const* data, std::size_t elements, std::size_t ticks) {
    auto const* begin = reinterpret_cast<std::byte const*>(data);
    std::size_t const lines = (elements * sizeof(T) + kLineBytes - 1) / kLineBytes;
    return Ahead{.line = begin, .end = begin + elements * sizeof(T), .lines_a_tick = (lines + ticks - 1) / ticks};
  };
  std::uint32_t const last_block = last / kLanes;
  for (std::uint32_t block = first / kLanes; block <= last_block; ++block) {
    T const* const keys = keys_of(block);
    T const* const values = values_of(block);
    state.keys = state.values = {};
    if (block < last_block) {
      std::size_t const ticks = (a.key_dim + kStepsATick - 1) / kStepsATick;
      state.keys = ahead(keys_of(block + 1), a.key_dim * kLanes, ticks);
      if (values) state.values = ahead(values_of(block + 1), a.value_dim * kLanes, ticks);
    }
    if (!values) values_of_keys(keys, a.value_dim, padded, own_values);
    for (std::size_t t = 0; t < a.tokens;) {
      Lanes const lanes = lanes_of(a.token[t], block);
      std::size_t end = t + 1;
      while (end < a.tokens && lanes_of(a.token[end], block) == lanes) ++end;
      if (lanes.begin < lanes.end)
        attend_block(a, t, end, keys, values, own_values, block, lanes, padded, accumulator, state);
      t = end;
    }
  }

  for (std::size_t row = 0; row < rows; ++row) {
    float* const out = a.out + row / a.heads * a.out_stride + row % a.heads * a.value_dim;
    for (std::size_t d = 0; d < a.value_dim; d += kLanes)
      store_some(out + d, load(accumulator + row * padded + d) / broadcast(state.sum[row]), a.value_dim - d);
  }
}

}  // namespace
}  // namespace expertmesh
