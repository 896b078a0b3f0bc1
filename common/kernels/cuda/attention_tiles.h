// The kernels of attention over the paged cache. Private to attention.cu.
//
// A sequence's positions are cut into tiles of kTile, aligned to absolute positions, so that a token's sums do not
// depend on the batch. attend_tile: a block of threads takes one tile of one token's span for up to kMostHeads of the
// query heads that share a KV head, and leaves each head's largest score, sum of e^(score - largest), and values
// weighted with these. merge_units brings what a head has of its units, which are tiles here, to one largest score. A
// tile's keys and values are read from DRAM once: where more query heads share them, the blocks of the other heads run
// beside this one and find them in L2.
//
// attend_tile takes every cache, dimension and bias, with two multiply-adds of CUDA cores for each head, position and
// element, and reads all keys anew for each token. attention_rows.h has what is taken for bfloat16 caches.
#pragma once
#include "common/config/attention_span.h"
#include "common/kernels/cuda/numbers.h"
#include "common/kernels/paged_attention.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarps = kThreads / kWarp;
constexpr unsigned kTile = kThreads;  // positions: a thread finishes the scores of one
constexpr unsigned kBlock = kKvBlockTokens;
constexpr unsigned kStripeTiles = 8;
constexpr unsigned kMostHeads = 8;   // of a block of threads of attend_tile
constexpr unsigned kKeysAtOnce = 4;  // whose products with the queries a lane adds up; as many lanes share a key
static_assert(kTile % kBlock == 0 && kBlock % kKeysAtOnce == 0);

struct Span {
  SpanKind kind;
  std::uint32_t tokens;
};

// AttentionSpan::first.
EM_BOTH inline std::uint32_t first_position(Span span, std::uint32_t position) {
  switch (span.kind) {
    case SpanKind::full:
      return 0;
    case SpanKind::window:
      return position >= span.tokens ? position + 1 - span.tokens : 0;
    case SpanKind::chunked:
      return position / span.tokens * span.tokens;
  }
  return 0;
}

// Of all kernels. T: tokens of this launch.
struct AttendArguments {
  float const* q;  // [T,Q*DK]
  std::size_t q_stride;
  float* out;  // [T,Q*DV]
  std::size_t out_stride;
  std::uint32_t const *positions, *sequences, *block_tables, *table_offsets;
  std::uint32_t const* last;  // or null
  void const *keys, *values;
  unsigned num_kv_heads;        // G
  unsigned heads;               // Q/G
  unsigned parts, heads_each;   // of these heads, in blocks of threads of their own
  unsigned key_dim, value_dim;  // elements
  unsigned value_stride;        // elements from one position's values to the next one's
  float scale;
  Span span;
  float const* sinks;  // [Q] or null
  float const* bias;   // of head 0 and distance 0, or null
  std::size_t bias_stride;
  std::int64_t bias_reach;
  unsigned tokens_each;  // of a block of attend_rows
  unsigned unit_tiles;   // of one block of threads: 1, or kStripeTiles
  unsigned fold_units;   // that merge_units folds to one, as many as lie in so many tiles from an absolute position on
  unsigned units;        // room for so many of each head
  float* sums;           // [T][Q][units][DV] values weighted
  float* stats;          // [T][Q][units][2] largest score, sum of weights
};

// A token's positions.
struct Reach {
  std::uint32_t query, first, last;
};
__device__ inline Reach reach_of(AttendArguments const& a, unsigned t) {
  std::uint32_t const query = a.positions[t];
  return {query, first_position(a.span, query), a.last ? a.last[t] : query};
}

template <unsigned N>
struct alignas(N < 4 ? N * sizeof(float) : 16) Floats {
  float x[N];
};

// What one load brings, as floats: 16 bytes, or one number where rows have no whole 16 bytes.
EM_BOTH inline Floats<8> widened(Words4 const& two_each, Floats<8>*) {
  Floats<8> out;
  for (unsigned i = 0; i < 4; ++i) {
    out.x[2 * i] = low_bf16(two_each.w[i]);
    out.x[2 * i + 1] = high_bf16(two_each.w[i]);
  }
  return out;
}
EM_BOTH inline Floats<4> widened(Words4 const& floats, Floats<4>*) {
  Floats<4> out;
  for (unsigned i = 0; i < 4; ++i) out.x[i] = float_of_bits(floats.w[i]);
  return out;
}
EM_BOTH inline Floats<1> widened(float x, Floats<1>*) {
  return {{x}};
}
EM_BOTH inline Floats<1> widened(std::uint16_t x, Floats<1>*) {
  return {{float_of_bf16(x)}};
}

struct Larger {
  EM_BOTH float operator()(float a, float b) const { return fmaxf(a, b); }  // a NaN is passed over
};
struct Sum {
  EM_BOTH float operator()(float a, float b) const { return a + b; }
};

// Two lanes `apart` put their N numbers together; the lower one keeps the first half of the results.
template <unsigned N, class Operation>
__device__ inline void fold(float* x, unsigned apart, Operation operation) {
  bool const upper = threadIdx.x & apart;
  for (unsigned i = 0; i < N / 2; ++i) {
    float const mine = upper ? x[i + N / 2] : x[i];
    float const others = upper ? x[i] : x[i + N / 2];
    x[i] = operation(mine, __shfl_xor_sync(kAllLanes, others, apart));
  }
}

// Each of N numbers over the lanes of a warp; number i ends in x[0] of the lanes from i * 32 / N on.
template <unsigned N, unsigned kApart, class Operation>
__device__ inline void over_warp(float* x, Operation operation) {
  if constexpr (kApart > 0) {
    if constexpr (N > 1)
      fold<N>(x, kApart, operation);
    else
      x[0] = operation(x[0], __shfl_xor_sync(kAllLanes, x[0], kApart));
    over_warp<(N + 1) / 2, kApart / 2>(x, operation);
  }
}

// The same of a block of threads, x being lost: of_warps [kWarps][N] is what each warp came to.
template <unsigned N, class Operation>
__device__ inline void over_warps(float* x, float* of_warps, Operation operation) {
  over_warp<N, kWarp / 2>(x, operation);
  unsigned const lane = threadIdx.x % kWarp;
  if (lane % (kWarp / N) == 0) of_warps[threadIdx.x / kWarp * N + lane / (kWarp / N)] = x[0];
  __syncthreads();
}
template <unsigned N, class Operation>
__device__ inline float of_block(float const* of_warps, unsigned i, Operation operation) {
  float out = of_warps[i];
  for (unsigned w = 1; w < kWarps; ++w) out = operation(out, of_warps[w * N + i]);
  return out;
}

// How the threads of a block share rows: `groups` of them a row each, a thread one column of `columns`.
struct Sharing {
  unsigned columns, groups, group, column;
};
__device__ inline Sharing sharing_of(unsigned columns) {
  return {columns, kThreads / columns, threadIdx.x / columns, threadIdx.x % columns};
}
// Adds x [N] of all groups into that of group 0. buffer: [N][kThreads / 2], free for use.
template <unsigned N>
__device__ inline void add_groups(Sharing const& s, float* x, float* buffer) {
  for (unsigned left = s.groups; left > 1;) {
    unsigned const half = (left + 1) / 2;
    if (s.group >= half && s.group < left)
      for (unsigned i = 0; i < N; ++i) buffer[i * (kThreads / 2) + (s.group - half) * s.columns + s.column] = x[i];
    __syncthreads();
    if (s.group + half < left)
      for (unsigned i = 0; i < N; ++i) x[i] += buffer[i * (kThreads / 2) + s.group * s.columns + s.column];
    __syncthreads();
    left = half;
  }
}

// What a largest score is taken off as: subtracting -inf from -inf would spoil what other positions can still mend.
EM_BOTH inline float shift_of(float largest) {
  return largest > -INFINITY ? largest : 0.0F;
}

// Grid: tiles x parts, KV heads, tokens. Load: V numbers of keys and values; kHeads: at least heads_each.
// Shared: [kTile][kHeads] weights, then the larger of [kHeads][DK] queries and [kHeads * V][kThreads / 2] sums.
template <class Load, unsigned V, unsigned kHeads>
__global__ void __launch_bounds__(kThreads, 2) attend_tile(AttendArguments a) {
  EM_DYNAMIC_SHARED(Floats<kHeads>, weights);
  EM_SHARED(std::uint32_t, blocks, kTile / kBlock);
  EM_SHARED(float, largest_of_warps, (kWarps * kHeads));
  EM_SHARED(float, sum_of_warps, (kWarps * kHeads));
  auto* const queries = reinterpret_cast<Floats<V>*>(weights + kTile);

  unsigned const thread = threadIdx.x;
  unsigned const t = blockIdx.z;
  unsigned const g = blockIdx.y;
  unsigned const part = blockIdx.x % a.parts;
  unsigned const tile = blockIdx.x / a.parts;  // from the first one of the token on
  Reach const reach = reach_of(a, t);
  std::uint32_t const start = (reach.first / kTile + tile) * kTile;
  if (start > reach.last) return;
  // What is attended to of the tile. What lies in other places may never have been written.
  unsigned const begin = reach.first > start ? reach.first - start : 0;
  unsigned const end = reach.last - start < kTile ? reach.last - start + 1 : kTile;

  unsigned const first_head = g * a.heads + part * a.heads_each;
  unsigned const heads = a.heads - part * a.heads_each < a.heads_each ? a.heads - part * a.heads_each : a.heads_each;
  if (thread < kTile / kBlock) {  // blocks that no position is attended to of: others in their place
    std::uint32_t block = start / kBlock + thread;
    if (block < reach.first / kBlock) block = reach.first / kBlock;
    if (block > reach.last / kBlock) block = reach.last / kBlock;
    blocks[thread] = a.block_tables[a.table_offsets[a.sequences[t]] + block];
  }
  float const* const q = a.q + t * a.q_stride + first_head * std::size_t{a.key_dim};
  for (unsigned i = thread; i < kHeads * a.key_dim; i += kThreads)
    reinterpret_cast<float*>(queries)[i] = i < heads * a.key_dim ? q[i] : 0.0F;
  __syncthreads();
  auto const row_of = [&](unsigned p) {  // of position start + p, in keys and values
    return (std::size_t{blocks[p / kBlock]} * a.num_kv_heads + g) * kBlock + p % kBlock;
  };

  // Scores. Four lanes go along four keys together.
  float score[kKeysAtOnce * kHeads] = {};  // [key][head], then those of position `thread` alone
  unsigned const warp_start = thread / kWarp * kWarp;
  if (warp_start < end && warp_start + kWarp > begin) {
    constexpr unsigned kAhead = kHeads * V > 32 ? 1 : 2;  // loads of each key under way
    unsigned const row_loads = a.key_dim / V;
    Load const* const keys = static_cast<Load const*>(a.keys) + row_of(thread / kKeysAtOnce * kKeysAtOnce) * row_loads;
    for (unsigned from = thread % kKeysAtOnce; from < row_loads; from += kKeysAtOnce * kAhead) {
      Load loaded[kAhead][kKeysAtOnce];
      for (unsigned n = 0; n < kAhead; ++n)
        for (unsigned k = 0; k < kKeysAtOnce; ++k)
          if (from + n * kKeysAtOnce < row_loads) loaded[n][k] = keys[k * row_loads + from + n * kKeysAtOnce];
      for (unsigned n = 0; n < kAhead; ++n) {
        unsigned const at = from + n * kKeysAtOnce;
        if (at >= row_loads) break;
        Floats<V> key[kKeysAtOnce];
        for (unsigned k = 0; k < kKeysAtOnce; ++k) key[k] = widened(loaded[n][k], key);
        for (unsigned h = 0; h < kHeads; ++h) {
          Floats<V> const query = queries[h * row_loads + at];
          for (unsigned k = 0; k < kKeysAtOnce; ++k)
            for (unsigned i = 0; i < V; ++i)
              score[k * kHeads + h] = fmaf(query.x[i], key[k].x[i], score[k * kHeads + h]);
        }
      }
    }
    fold<4 * kHeads>(score, 2, Sum{});
    fold<2 * kHeads>(score, 1, Sum{});
  }
  bool const attended = begin <= thread && thread < end;
  std::int64_t distance = std::int64_t{start} + thread - reach.query;
  if (distance > a.bias_reach) distance = a.bias_reach;
  if (distance < -a.bias_reach) distance = -a.bias_reach;
  for (unsigned h = 0; h < kHeads; ++h) {
    score[h] *= a.scale;
    if (a.bias && h < heads) score[h] += a.bias[(first_head + h) * a.bias_stride + distance];
    if (!attended) score[h] = -INFINITY;
  }

  // Weights.
  float folded[kHeads];
  for (unsigned h = 0; h < kHeads; ++h) folded[h] = score[h];
  over_warps<kHeads>(folded, largest_of_warps, Larger{});
  Floats<kHeads> weight;
  for (unsigned h = 0; h < kHeads; ++h) {
    weight.x[h] = expf(score[h] - shift_of(of_block<kHeads>(largest_of_warps, h, Larger{})));
    folded[h] = weight.x[h];
  }
  weights[thread] = weight;
  over_warps<kHeads>(folded, sum_of_warps, Sum{});

  // Values. Each thread adds up one column of some of the positions.
  std::size_t const partial = (t * std::size_t{a.num_kv_heads} * a.heads + first_head) * a.units + tile;
  unsigned const value_loads = a.value_dim / V;
  for (unsigned column = 0; column < value_loads; column += kThreads) {
    Sharing const s = sharing_of(value_loads - column < kThreads ? value_loads - column : kThreads);
    Load const* const values = static_cast<Load const*>(a.values) + column + s.column;
    float sum[kHeads * V] = {};
    constexpr unsigned kRows = kHeads * V > 32 ? 4 : 8;  // whose loads are under way
    for (unsigned from = begin + s.group; s.group < s.groups && from < end; from += s.groups * kRows) {
      Load loaded[kRows];
      for (unsigned n = 0; n < kRows; ++n) {  // without branches between them
        unsigned const p = from + n * s.groups;
        loaded[n] = values[row_of(p < end ? p : end - 1) * (a.value_stride / V)];
      }
      for (unsigned n = 0; n < kRows; ++n) {
        unsigned const p = from + n * s.groups;
        if (p >= end) break;
        Floats<V> value;
        value = widened(loaded[n], &value);
        Floats<kHeads> const w = weights[p];
        for (unsigned h = 0; h < kHeads; ++h)
          for (unsigned i = 0; i < V; ++i) sum[h * V + i] = fmaf(w.x[h], value.x[i], sum[h * V + i]);
      }
    }
    add_groups<kHeads * V>(s, sum, reinterpret_cast<float*>(queries));
    if (s.group == 0)
      for (unsigned h = 0; h < kHeads; ++h) {
        Floats<V> out;
        for (unsigned i = 0; i < V; ++i) out.x[i] = sum[h * V + i];
        if (h < heads)
          reinterpret_cast<Floats<V>*>(a.sums)[(partial + h * a.units) * value_loads + column + s.column] = out;
      }
  }
  if (thread < heads) {
    float* const stats = a.stats + 2 * (partial + thread * a.units);
    stats[0] = of_block<kHeads>(largest_of_warps, thread, Larger{});
    stats[1] = of_block<kHeads>(sum_of_warps, thread, Sum{});
  }
}

// ---- bringing together
// Some of a head's tiles: their largest score, the sum of e^(score - largest).
struct Folded {
  float largest = -INFINITY;
  float sum = 0;
};
// How another tile is added to them: what becomes of a sum so far, and of the tile's.
struct Folding {
  float kept, added;
};
// Of a tile in which nothing is attended to.
__device__ inline Folding not_folded() {
  return {-1, 0};
}
__device__ inline Folding fold_largest(float& largest, float of_tile) {
  float const before = largest;
  largest = fmaxf(before, of_tile);
  float const shift = shift_of(largest);
  return {expf(before - shift), expf(of_tile - shift)};
}
// The zero that is added makes no difference between the two zeros, whoever has stored one of them in between.
__device__ inline float fold_number(Folding folding, float so_far, float of_tile) {
  return fmaf(of_tile + 0.0F, folding.added, so_far * folding.kept);
}

// Grid: query heads, tokens. V: divides DV.
template <unsigned V>
__global__ void merge_units(AttendArguments a) {
  EM_SHARED(float, largest_of_warps, kWarps);
  EM_SHARED(float, sum_of_warps, kWarps);
  EM_SHARED(float, buffer, (V * kThreads / 2));
  unsigned const thread = threadIdx.x;
  unsigned const head = blockIdx.x;
  unsigned const t = blockIdx.y;
  Reach const reach = reach_of(a, t);
  unsigned const first_unit = reach.first / (kTile * a.unit_tiles);
  unsigned const units = reach.last / (kTile * a.unit_tiles) - first_unit + 1;
  unsigned const first_stripe = first_unit / a.fold_units;
  unsigned const stripes = (first_unit + units - 1) / a.fold_units - first_stripe + 1;
  std::size_t const partial = (t * std::size_t{gridDim.x} + head) * a.units;
  float const* const stats = a.stats + 2 * partial;
  bool const sink = a.sinks && thread == 0;
  // for_unit(index, how it is folded) of a stripe's units in order.
  auto const fold_stripe = [&](unsigned stripe, auto const& for_unit) {
    unsigned const from = (first_stripe + stripe) * a.fold_units;
    unsigned const begin = from > first_unit ? from - first_unit : 0;
    unsigned const end = from + a.fold_units - first_unit < units ? from + a.fold_units - first_unit : units;
    float largest = -INFINITY;
    for (unsigned i = begin; i < end; ++i) for_unit(i, fold_largest(largest, stats[2 * i]));
    return largest;
  };

  float largest = sink ? a.sinks[head] : -INFINITY;
  for (unsigned i = thread; i < units; i += kThreads) largest = fmaxf(largest, stats[2 * i]);
  over_warps<1>(&largest, largest_of_warps, Larger{});
  float const shift = shift_of(of_block<1>(largest_of_warps, 0, Larger{}));
  float sum = sink ? expf(a.sinks[head] - shift) : 0.0F;
  for (unsigned i = thread; i < stripes; i += kThreads) {
    float of_stripe = 0;
    float const weight = expf(
        fold_stripe(i, [&](unsigned unit,
                           Folding folding) { of_stripe = fold_number(folding, of_stripe, stats[2 * unit + 1]); }) -
        shift);
    sum = fmaf(weight, of_stripe, sum);
  }
  over_warps<1>(&sum, sum_of_warps, Sum{});
  float const divisor = of_block<1>(sum_of_warps, 0, Sum{});

  auto const* const sums = reinterpret_cast<Floats<V> const*>(a.sums) + partial * (a.value_dim / V);
  for (unsigned column = 0; column < a.value_dim / V; column += kThreads) {
    Sharing const s = sharing_of(a.value_dim / V - column < kThreads ? a.value_dim / V - column : kThreads);
    float total[V] = {};
    for (unsigned i = s.group; s.group < s.groups && i < stripes; i += s.groups) {
      Floats<V> of_stripe{};
      float const weight = expf(fold_stripe(i,
                                            [&](unsigned unit, Folding folding) {
                                              Floats<V> const values =
                                                  sums[unit * std::size_t{a.value_dim / V} + column + s.column];
                                              for (unsigned n = 0; n < V; ++n)
                                                of_stripe.x[n] = fold_number(folding, of_stripe.x[n], values.x[n]);
                                            }) -
                                shift);
      for (unsigned n = 0; n < V; ++n) total[n] = fmaf(weight, of_stripe.x[n] + 0.0F, total[n]);
    }
    add_groups<V>(s, total, buffer);
    if (s.group == 0) {
      float* const out = a.out + t * a.out_stride + head * std::size_t{a.value_dim} + (column + s.column) * V;
      for (unsigned n = 0; n < V; ++n) out[n] = total[n] / divisor;
    }
  }
}

}  // namespace
}  // namespace expertmesh::EM_DEVICE_NAMESPACE
