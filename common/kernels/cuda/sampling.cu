// Tokens from logits. All sums are of whole numbers (token_choice.h), so threads, blocks and atomics add in any order.
// A weight is 50 operations in double: 0.5 G for 64 rows of 150,000 logits, and a H100 does 17 T a second that are not
// fused. The passes over all logits that every row takes are spread over the device, a part of a row for each block;
// the cuts, which few rows take and which look at few weights, are one block's for a row.
#include "common/base/check.h"
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/each.h"
#include "common/kernels/token_choice.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

using Wide = unsigned long long;

constexpr unsigned kPart = Device::kLogitsPart;  // logits
constexpr unsigned kPartThreads = 256;
constexpr unsigned kRowThreads = 512;
constexpr unsigned kRowWarps = kRowThreads / kWarp;
constexpr unsigned kLoads = 8;  // on their way at once, of a thread
static_assert(kMostTokens <= std::size_t{kPart} * kRowThreads, "a thread for each part");

struct Choices {
  Rows<float> logits;
  unsigned vocab;
  unsigned parts;
  RowChoice const* rows;
  TokenAdjustment* adjustments;
  RowChosen* chosen;
  Wide* ranked;     // [R][kMostRanked]
  Wide* part_sums;  // [R][parts]
};

// A row's logits as usable_logit() has them.
struct Logits {
  float const* data;
  unsigned vocab;
  float lowest;
  __device__ float at(unsigned id) const { return usable_logit(data[id], lowest); }
};
__device__ inline Logits logits_of(Choices const& a, unsigned row, float lowest = -INFINITY) {
  return {a.logits.at(row, 0), a.vocab, lowest};
}

__device__ inline Wide best_of(Choices const& a, unsigned row) {
  return a.rows[row].num_adjustments > 0 ? a.chosen[row].best_adjusted : a.chosen[row].best;
}
__device__ inline TokenWeights weights_of(Choices const& a, unsigned row) {
  RowChoice const& c = a.rows[row];
  return {logit_of_rank(best_of(a, row)), c.inverse_temperature, static_cast<double>(c.min_p)};
}

__device__ inline Wide from_lane(Wide x, unsigned lane) {
  std::uint32_t const high = __shfl_sync(kAllLanes, static_cast<std::uint32_t>(x >> 32), lane);
  return static_cast<Wide>(high) << 32 | __shfl_sync(kAllLanes, static_cast<std::uint32_t>(x), lane);
}
struct Sum {
  __device__ Wide operator()(Wide a, Wide b) const { return a + b; }
};
struct Largest {
  __device__ Wide operator()(Wide a, Wide b) const { return a > b ? a : b; }
};
// Of the lanes; all get it.
template <class Op>
__device__ Wide over_warp(Wide x, Op op) {
  for (unsigned step = kWarp / 2; step > 0; step /= 2) x = op(x, from_lane(x, threadIdx.x % kWarp ^ step));
  return x;
}
// Of the threads; all get it. of_warps: shared, one for each.
template <class Op>
__device__ Wide over_block(Wide x, Wide* of_warps, Op op) {
  x = over_warp(x, op);
  __syncthreads();  // what was there has been read
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = of_warps[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) x = op(x, of_warps[warp]);
  return x;
}

// ---- a block for each part of each row: f(logit, id)
template <class F>
__device__ void for_part(Logits const& row, unsigned part, F f) {
  for (unsigned i = threadIdx.x; i < kPart; i += kPartThreads) {
    unsigned const id = part * kPart + i;
    if (id < row.vocab) f(row.at(id), id);
  }
}

template <bool kAdjusted>
__global__ void __launch_bounds__(kPartThreads) best_of_parts(Choices a) {
  unsigned const r = blockIdx.x;
  RowChoice const& c = a.rows[r];
  if (c.choice == TokenChoice::none || (kAdjusted && c.num_adjustments == 0)) return;
  EM_SHARED(Wide, of_warps, kWarp);
  Wide best = 0;
  for_part(logits_of(a, r), blockIdx.y, [&](float x, unsigned id) { best = Largest()(best, rank_of(x, id)); });
  best = over_block(best, of_warps, Largest());
  if (threadIdx.x == 0) atomicMax(kAdjusted ? &a.chosen[r].best_adjusted : &a.chosen[r].best, best);
}

__global__ void __launch_bounds__(kPartThreads) sum_fine_weights(Choices a) {
  unsigned const r = blockIdx.x;
  if (!a.rows[r].log_sum) return;
  EM_SHARED(Wide, of_warps, kWarp);
  double const largest = usable_logit(logit_of_rank(a.chosen[r].best), -FLT_MAX);
  Wide high = 0;
  Wide low = 0;
  for_part(logits_of(a, r, -FLT_MAX), blockIdx.y, [&](float x, unsigned) {
    FineWeight const weight = fine_weight(x, largest);
    high += weight.high;
    low += weight.low;
  });
  high = over_block(high, of_warps, Sum());
  low = over_block(low, of_warps, Sum());
  if (threadIdx.x == 0) {
    atomicAdd(&a.chosen[r].sum_high, high);
    atomicAdd(&a.chosen[r].sum_low, low);
  }
}

__global__ void __launch_bounds__(kPartThreads) sum_weights(Choices a) {
  unsigned const r = blockIdx.x;
  if (a.rows[r].choice != TokenChoice::drawn) return;
  EM_SHARED(Wide, of_warps, kWarp);
  TokenWeights const weights = weights_of(a, r);
  Wide sum = 0;
  for_part(logits_of(a, r), blockIdx.y, [&](float x, unsigned) { sum += weights.of(x); });
  sum = over_block(sum, of_warps, Sum());
  if (threadIdx.x == 0) a.part_sums[static_cast<std::size_t>(r) * a.parts + blockIdx.y] = sum;
}

__global__ void __launch_bounds__(kPartThreads) adjust(Choices a) {
  RowChoice const& c = a.rows[blockIdx.x];
  for (unsigned i = threadIdx.x; i < c.num_adjustments; i += kPartThreads) {
    TokenAdjustment& adjustment = a.adjustments[c.first_adjustment + i];
    float* const logit = a.logits.at(blockIdx.x, adjustment.token);
    adjustment.logit = *logit;
    *logit = adjusted_logit(*logit, adjustment, c.repetition_penalty);
  }
}

// ---- a block for each row
constexpr unsigned kDigitBits = 11;
constexpr unsigned kBins = 1U << kDigitBits;

struct Found {
  unsigned index;
  Wide before;  // the sum of what comes before it
  Wide value;
};

struct Room {
  std::uint32_t low[kBins], high[kBins];  // of the sum in each bin
  Wide sums[kRowThreads];                 // of the row's parts
  Wide of_warps[kRowWarps];
  Found found;
};

// f(logit, id) for all of them.
template <class F>
__device__ void for_row(Logits const& row, F f) {
  for (unsigned first = threadIdx.x; first < row.vocab; first += kRowThreads * kLoads) {
    float x[kLoads];
#pragma unroll
    for (unsigned j = 0; j < kLoads; ++j)
      x[j] = first + j * kRowThreads < row.vocab ? row.data[first + j * kRowThreads] : 0.0F;
#pragma unroll
    for (unsigned j = 0; j < kLoads; ++j)
      if (first + j * kRowThreads < row.vocab) f(usable_logit(x[j], row.lowest), first + j * kRowThreads);
  }
}

// The first i of n with reached(value(0) + … + value(i)). There is one; sums that are greater are reached too.
template <class Value, class Reached>
__device__ Found first_to_reach(Room& room, unsigned n, Value value, Reached reached) {
  unsigned const each = (n + kRowThreads - 1) / kRowThreads;
  unsigned const begin = threadIdx.x * each < n ? threadIdx.x * each : n;
  unsigned const end = begin + each < n ? begin + each : n;
  Wide own = 0;
  for (unsigned i = begin; i < end; ++i) own += value(i);
  unsigned const lane = threadIdx.x % kWarp;
  Wide sum = own;  // of this warp's up to this lane
  for (unsigned step = 1; step < kWarp; step *= 2) {
    Wide const other = from_lane(sum, lane >= step ? lane - step : lane);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // what was found last has been read
  if (lane == kWarp - 1) room.of_warps[threadIdx.x / kWarp] = sum;
  __syncthreads();
  Wide before = sum - own;
  for (unsigned warp = 0; warp < threadIdx.x / kWarp; ++warp) before += room.of_warps[warp];
  if (!reached(before) && reached(before + own)) {
    unsigned i = begin;
    for (; !reached(before + value(i)); ++i) before += value(i);
    room.found = {i, before, value(i)};
  }
  __syncthreads();
  return room.found;
}

// room.sums: of value(logit, id), for each part; a warp's each.
template <class Value>
__device__ void sum_parts(Room& room, Logits const& row, Value value) {
  __syncthreads();
  unsigned const lane = threadIdx.x % kWarp;
  for (unsigned part = threadIdx.x / kWarp; part * kPart < row.vocab; part += kRowWarps) {
    Wide sum = 0;
    for (unsigned first = lane; first < kPart; first += kWarp * kLoads) {
      float x[kLoads];
#pragma unroll
      for (unsigned j = 0; j < kLoads; ++j) {
        unsigned const id = part * kPart + first + j * kWarp;
        x[j] = id < row.vocab ? row.data[id] : 0.0F;
      }
#pragma unroll
      for (unsigned j = 0; j < kLoads; ++j) {
        unsigned const id = part * kPart + first + j * kWarp;
        if (id < row.vocab) sum += value(usable_logit(x[j], row.lowest), id);
      }
    }
    sum = over_warp(sum, Sum());
    if (lane == 0) room.sums[part] = sum;
  }
  __syncthreads();
}

// The first id with which the sum of value(logit, id) in order of id is greater than `target`; room.sums is of value.
template <class Value>
__device__ unsigned first_above(Room& room, Logits const& row, Value value, Wide target) {
  Found const part = first_to_reach(
      room, (row.vocab + kPart - 1) / kPart, [&](unsigned i) { return room.sums[i]; },
      [&](Wide sum) { return sum > target; });
  unsigned const first = part.index * kPart;
  unsigned const count = row.vocab - first < kPart ? row.vocab - first : kPart;
  return first + first_to_reach(
                     room, count, [&](unsigned i) -> Wide { return value(row.at(first + i), first + i); },
                     [&](Wide sum) { return part.before + sum > target; })
                     .index;
}

// Tokens by falling rank, down to `last`: the rank of the first with which reached(the sum of value(logit) of these). A
// search over the digits of the logits' order, and over the ids of those that are equal.
template <class Value, class Reached>
__device__ Wide last_to_reach(Room& room, Logits const& row, Wide last, Value value, Reached reached) {
  std::uint32_t order = 0;  // its digits so far
  unsigned rest = 32;       // bits
  Wide before = 0;          // of the tokens with greater ones
  Wide equal = 0;           // of those with the same
  while (rest > 0) {
    unsigned const bits = rest < kDigitBits ? rest : kDigitBits;
    unsigned const bins = 1U << bits;
    unsigned const known = rest;
    rest -= bits;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < bins; i += kRowThreads) room.low[i] = room.high[i] = 0;
    __syncthreads();
    for_row(row, [&](float x, unsigned id) {
      Wide const rank = rank_of(x, id);
      auto const own = static_cast<std::uint32_t>(rank >> 32);
      if (rank < last || (known < 32 && own >> known != order)) return;
      Wide const weight = value(x);
      if (weight == 0) return;
      unsigned const bin = (own >> rest) % bins;
      auto const low = static_cast<std::uint32_t>(weight);
      bool const carry = atomicAdd(&room.low[bin], low) > 0xffffffffU - low;
      auto const high = static_cast<std::uint32_t>(weight >> 32) + (carry ? 1U : 0U);
      if (high > 0) atomicAdd(&room.high[bin], high);
    });
    __syncthreads();
    Found const found = first_to_reach(
        room, bins,
        [&](unsigned i) {
          unsigned const bin = bins - 1 - i;
          return static_cast<Wide>(room.high[bin]) << 32 | room.low[bin];
        },
        [&](Wide sum) { return reached(before + sum); });
    order = order << bits | (bins - 1 - found.index);
    before += found.before;
    equal = found.value;
  }
  Wide const one = value(logit_of_order(order));
  Wide few = 0;  // of the equal ones do not reach it, and as many as `many` do
  Wide many = equal / one;
  if (reached(before + (many - 1) * one)) {
    while (many - few > 1) {
      Wide const middle = few + (many - few) / 2;
      (reached(before + middle * one) ? many : few) = middle;
    }
    auto const is_equal = [&](float x, unsigned) -> Wide { return order_of_logit(x) == order ? 1 : 0; };
    sum_parts(room, row, is_equal);
    return rank_of(logit_of_order(order), first_above(room, row, is_equal, many - 1));
  }
  return Largest()(last, static_cast<Wide>(order) << 32);  // all of them
}

__device__ inline Wide last_of_best(Room& room, Logits const& row, Wide count) {
  return last_to_reach(
      room, row, 0, [](float) -> Wide { return 1; }, [&](Wide sum) { return sum >= count; });
}

__global__ void __launch_bounds__(kRowThreads) list_best(Choices a) {
  unsigned const r = blockIdx.x;
  unsigned const count = a.rows[r].num_ranked;
  if (count == 0) return;
  EM_SHARED(Room, room, 1);
  EM_SHARED(Wide, ranks, kMostRanked);
  EM_SHARED(unsigned, num_ranks, 1);
  Logits const row = logits_of(a, r, -FLT_MAX);
  Wide const last = count < a.vocab ? last_of_best(room[0], row, count) : 0;
  if (threadIdx.x == 0) num_ranks[0] = 0;
  __syncthreads();
  for_row(row, [&](float x, unsigned id) {
    Wide const rank = rank_of(x, id);
    if (rank >= last) ranks[atomicAdd(&num_ranks[0], 1U)] = rank;
  });
  __syncthreads();
  if (threadIdx.x >= count) return;
  unsigned better = 0;
  for (unsigned i = 0; i < count; ++i) better += ranks[i] > ranks[threadIdx.x] ? 1U : 0U;
  a.ranked[static_cast<std::size_t>(r) * kMostRanked + better] = ranks[threadIdx.x];
}

__device__ unsigned draw(Choices const& a, unsigned r, Room& room) {
  RowChoice const& c = a.rows[r];
  Logits const row = logits_of(a, r);
  TokenWeights const weights = weights_of(a, r);
  Wide last = 0;
  auto const kept = [&](float x, unsigned id) -> Wide { return rank_of(x, id) >= last ? weights.of(x) : 0; };
  auto const mass = [&] {
    return over_block(threadIdx.x < a.parts ? room.sums[threadIdx.x] : 0, room.of_warps, Sum());
  };
  if (c.top_k != 0 && c.top_k < a.vocab) {
    last = last_of_best(room, row, c.top_k);
    sum_parts(room, row, kept);
  } else {
    if (threadIdx.x < a.parts)
      room.sums[threadIdx.x] = a.part_sums[static_cast<std::size_t>(r) * a.parts + threadIdx.x];
    __syncthreads();
  }
  if (c.top_p < 1.0F) {
    Wide const total = mass();
    double const least = log_of_surely_cut(total, c.top_p, a.vocab);
    last = last_to_reach(
        room, row, last, [&](float x) -> Wide { return weights.log_of(x) < least ? 0 : weights.of(x); },
        [&](Wide sum) { return reaches(sum, total, c.top_p); });
    sum_parts(room, row, kept);
  }
  return first_above(room, row, kept, drawn_weight(mass(), c.uniform));
}

__global__ void __launch_bounds__(kRowThreads) choose(Choices a) {
  unsigned const r = blockIdx.x;
  RowChoice const& c = a.rows[r];
  if (c.choice == TokenChoice::none) return;
  EM_SHARED(Room, room, 1);
  Wide const best = best_of(a, r);
  unsigned token = c.choice == TokenChoice::given ? static_cast<unsigned>(c.token) : id_of_rank(best);
  if (c.choice == TokenChoice::drawn && logit_of_rank(best) != -INFINITY) token = draw(a, r, room[0]);
  if (threadIdx.x == 0) {
    a.chosen[r].token = static_cast<TokenId>(token);
    a.chosen[r].logit = *a.logits.at(r, token);
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < c.num_adjustments; i += kRowThreads) {
    TokenAdjustment const& adjustment = a.adjustments[c.first_adjustment + i];
    if (adjustment.token == token) a.chosen[r].logit = adjustment.logit;
  }
}

}  // namespace

void CudaDevice::choose_tokens(MatrixView<float> logits, RowChoices const& choices) {
  EM_CHECK(logits.cols <= kMostTokens, "a vocabulary of " << logits.cols);
  auto const parts = static_cast<unsigned>((logits.cols + kPart - 1) / kPart);
  Choices const all{.logits = rows_of(logits),
                    .vocab = static_cast<unsigned>(logits.cols),
                    .parts = parts,
                    .rows = choices.rows,
                    .adjustments = choices.adjustments,
                    .chosen = choices.chosen,
                    .ranked = choices.ranked,
                    .part_sums = choices.part_sums};
  Grid const rows{.x = static_cast<unsigned>(logits.rows)};
  Grid const each_part{.x = rows.x, .y = parts};
  launch(best_of_parts<false>, each_part, kPartThreads, 0, *stream_, all);
  if (choices.any_log_sum) launch(sum_fine_weights, each_part, kPartThreads, 0, *stream_, all);
  if (choices.any_ranked) launch(list_best, rows, kRowThreads, 0, *stream_, all);
  if (choices.any_adjusted) {
    launch(adjust, rows, kPartThreads, 0, *stream_, all);
    launch(best_of_parts<true>, each_part, kPartThreads, 0, *stream_, all);
  }
  if (choices.any_drawn) launch(sum_weights, each_part, kPartThreads, 0, *stream_, all);
  launch(choose, rows, kRowThreads, 0, *stream_, all);
  check_launch(*stream_, "choose_tokens");
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
