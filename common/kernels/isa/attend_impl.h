// The inner loop of paged attention, written once over Vec like those of kernels_impl.h.
#pragma once
#include <cstring>

#include "common/kernels/isa/vec_math.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// Blocks lie anywhere in the cache, so no hardware sees the next one coming.
void prefetch(void const* data, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(static_cast<char const*>(data) + i);
}

// Online softmax (Milakov and Gimelshein 2018) over the KV blocks, which lie at absolute positions.
// A block's keys and values are read for all heads of the part, HN heads at a time; each head's arithmetic is its own.

// Positions of a block that are attended to; what lies in the others may never have been written.
struct Lanes {
  std::size_t begin, end;
};

Vec only(Lanes lanes, Vec const& scores) {
  float score[kLanes];
  store(score, scores);
  for (std::size_t j = 0; j < kLanes; ++j)
    if (j < lanes.begin || j >= lanes.end) score[j] = kNegativeInfinity;
  return load(score);
}

struct AttendState {
  float largest[kHeadsPerPart];  // score so far
  float sum[kHeadsPerPart];      // of e^(score - largest)
  // Of the current block:
  float correction[kHeadsPerPart];      // of what was added up before
  float weight[kHeadsPerPart][kLanes];  // e^(score - largest), 0 outside the lanes
};

// body.operator()<HN>(head) for all heads, at most kHeadsAtOnce together.
template <std::size_t HN, class Body>
void last_heads(std::size_t head, std::size_t heads, Body const& body) {
  if (heads - head == HN) return body.template operator()<HN>(head);
  if constexpr (HN > 1) last_heads<HN - 1>(head, heads, body);
}
template <class Body>
void for_heads(std::size_t heads, Body const& body) {
  std::size_t head = 0;
  for (; head + kHeadsAtOnce <= heads; head += kHeadsAtOnce) body.template operator()<kHeadsAtOnce>(head);
  last_heads<kHeadsAtOnce - 1>(head, heads, body);
}

// Where the biases of this block lie in a head's row.
std::int64_t bias_offset(AttendPart const& a, std::uint32_t block) {
  std::int64_t const distance = static_cast<std::int64_t>(block) * static_cast<std::int64_t>(kLanes) - a.query;
  std::int64_t const reach = a.bias_reach;
  std::int64_t const least = -reach - static_cast<std::int64_t>(kLanes) + 1;
  return distance < least ? least : (distance > reach ? reach : distance);
}

// bias: of the block's first position, for the first head; null: none.
template <std::size_t HN, class T>
void score_block(AttendPart const& a, std::size_t head, T const* keys, Lanes lanes, float const* bias,
                 AttendState& state) {
  float const* const q = a.q + head * a.key_dim;
  Vec dots[HN];
  for (Vec& dot : dots) dot = zero();
  for (std::size_t d = 0; d < a.key_dim; ++d) {
    Vec const key = load(keys + d * kLanes);
    for (std::size_t h = 0; h < HN; ++h) dots[h] = fma(broadcast(q[h * a.key_dim + d]), key, dots[h]);
  }
  float before[kLanes] = {};  // the heads' largest scores, less those with this block
  float sums[HN];
  for (std::size_t h = 0; h < HN; ++h) {
    Vec scores = dots[h] * broadcast(a.scale);
    if (bias) scores = scores + load(bias + (head + h) * a.bias_stride);
    if (lanes.begin != 0 || lanes.end != kLanes) scores = only(lanes, scores);
    float& largest = state.largest[head + h];
    float const tile_max = max_lanes(scores);
    float const new_max = tile_max > largest ? tile_max : largest;
    // Subtracting -inf from -inf would spoil what later blocks can still mend.
    float const shift = new_max > kNegativeInfinity ? new_max : 0.0F;
    Vec const weights = exponential(scores - broadcast(shift));
    store(state.weight[head + h], weights);
    before[h] = largest - shift;
    sums[h] = sum_lanes(weights);
    largest = new_max;
  }
  float corrections[kLanes];
  store(corrections, exponential(load(before)));  // of all heads at once
  for (std::size_t h = 0; h < HN; ++h) {
    state.correction[head + h] = corrections[h];
    state.sum[head + h] = state.sum[head + h] * corrections[h] + sums[h];
  }
}

// values: [16] rows of `columns` numbers, `stride` apart. accumulator: [heads][padded].
template <std::size_t HN, class T>
void add_values(std::size_t head, T const* values, std::size_t columns, std::size_t stride, Lanes lanes,
                AttendState const& state, std::size_t padded, float* accumulator) {
  for (std::size_t d = 0; d < columns; d += kLanes) {
    Vec total[HN];
    for (std::size_t h = 0; h < HN; ++h)
      total[h] = load(accumulator + (head + h) * padded + d) * broadcast(state.correction[head + h]);
    for (std::size_t j = lanes.begin; j < lanes.end; ++j) {
      Vec const value = load_some(values + j * stride + d, columns - d);
      for (std::size_t h = 0; h < HN; ++h) total[h] = fma(broadcast(state.weight[head + h][j]), value, total[h]);
    }
    for (std::size_t h = 0; h < HN; ++h) store(accumulator + (head + h) * padded + d, total[h]);
  }
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

template <class T>
void attend(AttendPart const& a) {
  std::size_t const padded = (a.value_dim + kLanes - 1) / kLanes * kLanes;
  float* const accumulator = a.scratch;                    // [heads][padded]
  float* const own_values = a.scratch + a.heads * padded;  // [16][padded]
  AttendState state;
  for (std::size_t h = 0; h < a.heads; ++h) {
    state.largest[h] = a.sinks ? a.sinks[h] : kNegativeInfinity;
    state.sum[h] = a.sinks ? 1.0F : 0.0F;
  }
  std::memset(accumulator, 0, a.heads * padded * sizeof(float));

  std::uint32_t const last_block = a.last / kLanes;
  for (std::uint32_t block = a.first / kLanes; block <= last_block; ++block) {
    T const* keys = reinterpret_cast<T const*>(a.keys) + a.blocks[block] * a.key_stride;
    T const* values = a.values ? reinterpret_cast<T const*>(a.values) + a.blocks[block] * a.value_stride : nullptr;
    if (block < last_block) {
      std::size_t const next = a.blocks[block + 1];
      prefetch(reinterpret_cast<T const*>(a.keys) + next * a.key_stride, a.key_dim * kLanes * sizeof(T));
      if (values)
        prefetch(reinterpret_cast<T const*>(a.values) + next * a.value_stride, a.value_dim * kLanes * sizeof(T));
    }
    Lanes const lanes{.begin = block == a.first / kLanes ? a.first % kLanes : 0,
                      .end = block == last_block ? a.last % kLanes + 1 : kLanes};
    float const* const bias = a.bias ? a.bias + bias_offset(a, block) : nullptr;
    for_heads(a.heads, [&]<std::size_t HN>(std::size_t head) { score_block<HN>(a, head, keys, lanes, bias, state); });
    if (values) {
      for_heads(a.heads, [&]<std::size_t HN>(std::size_t head) {
        add_values<HN>(head, values, a.value_dim, a.value_dim, lanes, state, padded, accumulator);
      });
    } else {
      values_of_keys(keys, a.value_dim, padded, own_values);
      for_heads(a.heads, [&]<std::size_t HN>(std::size_t head) {
        add_values<HN>(head, own_values, padded, padded, lanes, state, padded, accumulator);
      });
    }
  }

  for (std::size_t h = 0; h < a.heads; ++h)
    for (std::size_t d = 0; d < a.value_dim; d += kLanes)
      store_some(a.out + h * a.value_dim + d, load(accumulator + h * padded + d) / broadcast(state.sum[h]),
                 a.value_dim - d);
}

}  // namespace
}  // namespace expertmesh
