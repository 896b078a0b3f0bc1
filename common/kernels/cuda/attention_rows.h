// Attention over a bfloat16 cache on tensor cores. Private to attention.cu; the rest of it is in attention_tiles.h.
//
// A row is one query head of one token. A block of threads takes the rows of neighbouring tokens of a sequence that
// share a KV head, as many as fit, and walks the tiles of a unit: 256 absolute positions, or a stripe of 8 tiles. So a
// tile's keys and values are read once for up to 64 rows: 16 tokens of a prompt where 4 heads share them, or the one
// token of a sequence that decodes, padded to 16 rows.
//
// Bits: a row's depend on that row alone. Each tile is computed from zero, by all rows alike:
//   scores   sums over the spans of the key in order (tensor_core.h), of each the terms of the query from the smaller
//            to the larger: 4 DK / 32 products of tensor cores behind each other
//   weights  e^(score - the tile's largest); their sum over a lane's 8 positions, 4 lanes, 8 warps, in this order
//   values   sums over 16 positions at a time in order, of each the terms of the weights from the smaller to the larger
// and the tiles of a stripe are folded in order (fold_number). Whether a block has done that or merge_units does it,
// which rows are beside this one, and which tiles they need that this one does not, changes nothing: a row's own
// weights are zeros where it does not look, and so are its products, unless a value is infinite or NaN. Where another
// row's is, the tile's values are computed for each row by itself.
//
// Queries and weights are two bfloat16 terms, rounded: x to 2^-17 of itself, so that a score is off by 2^-17 of the sum
// of its products' magnitudes and a result by 2^-17 of the mean magnitude of its values, besides what tensor cores cut
// off. Keys and values were rounded to 2^-9 of themselves when they were written.
#pragma once
#include "common/kernels/cuda/attention_tiles.h"
#include "common/kernels/cuda/tensor_core.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kTerms = 2;
constexpr unsigned kRowTile = 16;                    // rows of an mma
constexpr unsigned kWarpPositions = kTile / kWarps;  // whose scores a warp has
constexpr unsigned kKeyTiles = kWarpPositions / 8;   // of an mma
constexpr unsigned kStep = 16;                       // positions of an mma with values
constexpr unsigned kWarpColumns = 16;                // of the values that a warp takes at a time
constexpr std::size_t kNoPartial = ~std::size_t{0};
constexpr unsigned kMostKeyDim = 1024;  // elements
constexpr unsigned kMostValueDim = 4 * kWarps * kWarpColumns;
static_assert(kStep == kBlock && kWarpPositions % kStep == 0);

// What a launch of attend_rows is made for. kThreads threads are a team, with kRowTiles tiles of rows of its own; its
// warps take kGroups times kWarpColumns columns of the values each.
template <unsigned kRowTilesOfTeam, unsigned kGroupsOfWarp, unsigned kTeamsOfBlock>
struct RowShape {
  static constexpr unsigned kRowTiles = kRowTilesOfTeam;
  static constexpr unsigned kGroups = kGroupsOfWarp;
  static constexpr unsigned kTeams = kTeamsOfBlock;
  static constexpr unsigned kTeamRows = kRowTiles * kRowTile;
  static constexpr unsigned kRows = kTeams * kTeamRows;
  static constexpr unsigned kBlocks = kTeams == 1 && kGroups < 4 ? 2 : 1;       // in a multiprocessor
  static constexpr unsigned kStepsAhead = kBlocks == 1 && kTeams == 1 ? 4 : 2;  // of values on their way to a warp
  static constexpr unsigned kQueryUnits = kRows * kSpanUnits * kTerms;          // of a span
  static constexpr unsigned kWeightUnits = kRows * (kTile / 8) * kTerms;
  static constexpr std::size_t shared_bytes(std::size_t key_dim) {
    return sizeof(Words4) * ((key_dim + kSpan - 1) / kSpan * kQueryUnits + kWeightUnits);
  }
};

// Places of a tile.
struct Range {
  unsigned begin, end;
};
__device__ inline Range range_in_tile(std::uint32_t first, std::uint32_t last, std::uint32_t start) {
  return {first > start ? first - start : 0, last < start ? 0 : (last - start < kTile ? last - start + 1 : kTile)};
}
// Of a row that there is not: in no tile.
__device__ inline Reach no_reach() {
  return {0, 1, 0};
}

// What some rows reach together: all of it, and what each of them does.
struct ReachOfAll {
  std::uint32_t first, last;
  std::uint32_t common_first, common_last;
};
__device__ inline ReachOfAll reach_of_all(Reach const* reaches, unsigned rows) {
  ReachOfAll out{0xffffffffU, 0, 0, 0xffffffffU};
  auto const take = [&](ReachOfAll const& other) {
    out.first = other.first < out.first ? other.first : out.first;
    out.last = other.last > out.last ? other.last : out.last;
    out.common_first = other.common_first > out.common_first ? other.common_first : out.common_first;
    out.common_last = other.common_last < out.common_last ? other.common_last : out.common_last;
  };
  for (unsigned row = threadIdx.x % kWarp; row < rows; row += kWarp)
    take({reaches[row].first, reaches[row].last, reaches[row].first, reaches[row].last});
  for (unsigned apart = kWarp / 2; apart > 0; apart /= 2)
    take({__shfl_xor_sync(kAllLanes, out.first, apart), __shfl_xor_sync(kAllLanes, out.last, apart),
          __shfl_xor_sync(kAllLanes, out.common_first, apart), __shfl_xor_sync(kAllLanes, out.common_last, apart)});
  return out;
}

// How many tokens from t on are of its sequence, at most `most`.
__device__ inline unsigned tokens_from(AttendArguments const& a, unsigned t, unsigned most) {
  std::uint32_t const sequence = a.sequences[t];
  unsigned count = 0;
  for (unsigned base = 0; base < most; base += kWarp) {
    unsigned const i = base + threadIdx.x % kWarp;
    unsigned same = __ballot_sync(kAllLanes, i < most && a.sequences[t + i] == sequence);
    for (; (same & 1U) != 0; same >>= 1) ++count;
    if (count < base + kWarp) break;
  }
  return count;
}

// Queries as terms: [span][term][tile of rows][row][unit]. of_row(row): where its query lies, or null.
template <class Shape, class OfRow>
__device__ inline void stage_queries(OfRow const& of_row, unsigned key_dim, Words4* to) {
  unsigned const spans = (key_dim + kSpan - 1) / kSpan;
  constexpr unsigned kSpanOfRows = Shape::kRows * kSpanUnits;
  for (unsigned i = threadIdx.x; i < spans * kSpanOfRows; i += Shape::kTeams * kThreads) {
    unsigned const span = i / kSpanOfRows;
    unsigned const first = (span * kSpanUnits + i % kSpanUnits) * 8;
    float const* const query = of_row(i % kSpanOfRows / kSpanUnits);
    Words4 high, low;
#pragma unroll
    for (unsigned word = 0; word < 4; ++word) {
      float x = query && first < key_dim ? query[first + 2 * word] : 0.0F;
      float y = query && first < key_dim ? query[first + 2 * word + 1] : 0.0F;
      std::uint32_t const term = take_rounded(x);
      high.w[word] = term | take_rounded(y) << 16;
      low.w[word] = two_bf16(x, y);
    }
    to[span * kTerms * kSpanOfRows + i % kSpanOfRows] = low;
    to[(span * kTerms + 1) * kSpanOfRows + i % kSpanOfRows] = high;
  }
}

// Of values: whether one of the two is infinite or NaN.
__device__ inline bool any_unbounded(std::uint32_t two_bf16) {
  return (two_bf16 & 0x7f80U) == 0x7f80U || (two_bf16 & 0x7f800000U) == 0x7f800000U;
}

// Grid: units x parts, KV heads, tokens. A block with the first token of `tokens_each`, or of a sequence among them,
// has the rows of all that follow; the others have nothing to do. The units of a block's tokens may be more than the
// grid has. Shared: the queries' terms, then the weights' [16 positions][term][tile of rows][lane].
template <class Shape>
__global__ void __launch_bounds__(kThreads* Shape::kTeams, Shape::kBlocks) attend_rows(AttendArguments a) {
  constexpr unsigned kRowTiles = Shape::kRowTiles;
  constexpr unsigned kAllTiles = kRowTiles * Shape::kTeams;
  constexpr unsigned kRows = Shape::kRows;
  EM_DYNAMIC_SHARED(Words4, queries);
  EM_SHARED(std::uint32_t, blocks, kStripeTiles * kTile / kBlock);
  EM_SHARED(Reach, reaches, kRows);
  EM_SHARED(float, largest_of_warps, (kRows * kWarps));
  EM_SHARED(float, sum_of_warps, (kRows * kWarps));
  EM_SHARED(Folding, foldings, kRows);

  unsigned const t = blockIdx.z;
  unsigned const in_group = t % a.tokens_each;
  if (in_group != 0 && a.sequences[t - 1] == a.sequences[t]) return;
  unsigned const tokens =
      tokens_from(a, t, gridDim.z - t < a.tokens_each - in_group ? gridDim.z - t : a.tokens_each - in_group);
  unsigned const g = blockIdx.y;
  unsigned const part = blockIdx.x % a.parts;
  unsigned const first_head = g * a.heads + part * a.heads_each;
  unsigned const heads = a.heads - part * a.heads_each < a.heads_each ? a.heads - part * a.heads_each : a.heads_each;
  unsigned const rows = tokens * heads;  // row: token, then head

  unsigned const spans = (a.key_dim + kSpan - 1) / kSpan;
  Words4* const weights = queries + spans * Shape::kQueryUnits;
  if (threadIdx.x < kRows)
    reaches[threadIdx.x] = threadIdx.x < rows ? reach_of(a, t + threadIdx.x / heads) : no_reach();
  stage_queries<Shape>(
      [&](unsigned row) {
        return row < rows ? a.q + (t + row / heads) * a.q_stride + (first_head + row % heads) * std::size_t{a.key_dim}
                          : nullptr;
      },
      a.key_dim, queries);
  __syncthreads();
  ReachOfAll const all = reach_of_all(reaches, rows);

  unsigned const lane = threadIdx.x % kWarp;
  unsigned const warp = threadIdx.x % kThreads / kWarp;
  unsigned const first_row = threadIdx.x / kThreads * Shape::kTeamRows;  // of the team
  unsigned const first_tile = threadIdx.x / kThreads * kRowTiles;
  auto const row_at = [&](unsigned r, unsigned half) { return first_row + r * kRowTile + half * 8 + lane / 4; };
  auto const* const keys = static_cast<std::uint16_t const*>(a.keys);
  auto const* const values = static_cast<std::uint16_t const*>(a.values);

  std::uint32_t const unit_positions = a.unit_tiles * kTile;
  unsigned const num_units = gridDim.x / a.parts;
  for (std::uint32_t unit = all.first / unit_positions + blockIdx.x / a.parts; unit <= all.last / unit_positions;
       unit += num_units) {
    std::uint32_t const unit_start = unit * unit_positions;
    __syncthreads();                              // all have done with the blocks before
    if (threadIdx.x < unit_positions / kBlock) {  // blocks that no position is attended to of: others in their place
      std::uint32_t block = unit_start / kBlock + threadIdx.x;
      if (block < all.first / kBlock) block = all.first / kBlock;
      if (block > all.last / kBlock) block = all.last / kBlock;
      blocks[threadIdx.x] = a.block_tables[a.table_offsets[a.sequences[t]] + block];
    }
    __syncthreads();
    Folded mine{};  // of row threadIdx.x
    float sums[Shape::kGroups][kRowTiles][2][4] = {};
    for (unsigned tile = 0; tile < a.unit_tiles; ++tile) {
      std::uint32_t const start = unit_start + tile * kTile;
      Range const attended = range_in_tile(all.first, all.last, start);  // by some row
      if (attended.begin >= attended.end) continue;
      auto const first_of_block = [&](unsigned block) {  // of the tile: its first position's row in keys and values
        return (std::size_t{blocks[tile * (kTile / kBlock) + block]} * a.num_kv_heads + g) * kBlock;
      };

      // Scores of this warp's positions.
      float score[kRowTiles][kKeyTiles][4] = {};
      unsigned const warp_start = warp * kWarpPositions;
      if (warp_start < attended.end && warp_start + kWarpPositions > attended.begin) {
        std::uint16_t const* key[kWarpPositions / kBlock];
#pragma unroll
        for (unsigned b = 0; b < kWarpPositions / kBlock; ++b)
          key[b] = keys + (first_of_block(warp_start / kBlock + b) + lane / 4) * a.key_dim + lane % 4 * 8;
        auto const load = [&](unsigned span, Words4(&into)[kKeyTiles]) {
          bool const there = span * kSpan + lane % 4 * 8 < a.key_dim;
#pragma unroll
          for (unsigned j = 0; j < kKeyTiles; ++j)
            into[j] =
                there ? *reinterpret_cast<Words4 const*>(key[j / 2] + j % 2 * 8 * a.key_dim + span * kSpan) : Words4{};
        };
        Words4 ahead[kKeyTiles];
        load(0, ahead);
        for (unsigned span = 0; span < spans; ++span) {
          Words4 now[kKeyTiles];
#pragma unroll
          for (unsigned j = 0; j < kKeyTiles; ++j) now[j] = ahead[j];
          if (span + 1 < spans) load(span + 1, ahead);
#pragma unroll
          for (unsigned term = 0; term < kTerms; ++term)
#pragma unroll
            for (unsigned r = 0; r < kRowTiles; ++r) {
              Words4 const* const query =
                  queries + ((span * kTerms + term) * kAllTiles + first_tile + r) * (kRowTile * kSpanUnits) + lane;
              Words4 const low = query[0];
              Words4 const high = query[kWarp];
#pragma unroll
              for (unsigned j = 0; j < kKeyTiles; ++j) multiply_span(low, high, now[j], score[r][j]);
            }
        }
      }

      // Their largest.
#pragma unroll
      for (unsigned r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
          Reach const reach = reaches[row_at(r, half)];
          Range const own = range_in_tile(reach.first, reach.last, start);
          float largest = -INFINITY;
#pragma unroll
          for (unsigned j = 0; j < kKeyTiles; ++j)
#pragma unroll
            for (unsigned c = 0; c < 2; ++c) {
              unsigned const p = warp_start + j * 8 + lane % 4 * 2 + c;
              float& x = score[r][j][half * 2 + c];
              x = own.begin <= p && p < own.end ? x * a.scale : -INFINITY;
              largest = fmaxf(largest, x);
            }
          largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
          largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
          if (lane % 4 == 0) largest_of_warps[row_at(r, half) * kWarps + warp] = largest;
        }
      __syncthreads();  // and all have done with the weights before
      auto const largest_of = [&](unsigned row) {
        float largest = largest_of_warps[row * kWarps];
#pragma unroll
        for (unsigned w = 1; w < kWarps; ++w) largest = fmaxf(largest, largest_of_warps[row * kWarps + w]);
        return largest;
      };

      // Weights.
#pragma unroll
      for (unsigned r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
          float const shift = shift_of(largest_of(row_at(r, half)));
          float sum = 0;
#pragma unroll
          for (unsigned j = 0; j < kKeyTiles; ++j)
#pragma unroll
            for (unsigned c = 0; c < 2; ++c) {
              float& x = score[r][j][half * 2 + c];
              x = expf(x - shift);
              sum += x;
            }
          sum += __shfl_xor_sync(kAllLanes, sum, 1);
          sum += __shfl_xor_sync(kAllLanes, sum, 2);
          if (lane % 4 == 0) sum_of_warps[row_at(r, half) * kWarps + warp] = sum;
        }
#pragma unroll
      for (unsigned r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (unsigned step = 0; step < kWarpPositions / kStep; ++step) {  // where an mma has them as its rows
          Words4 high, low;
#pragma unroll
          for (unsigned word = 0; word < 4; ++word) {
            float& x = score[r][2 * step + word / 2][word % 2 * 2];
            float& y = score[r][2 * step + word / 2][word % 2 * 2 + 1];
            high.w[word] = take_two_rounded(x, y);
            low.w[word] = two_bf16(x, y);
          }
          unsigned const at = (warp_start / kStep + step) * kTerms * kAllTiles + first_tile + r;
          weights[at * kWarp + lane] = low;
          weights[(at + kAllTiles) * kWarp + lane] = high;
        }
      bool own_row = false;  // threadIdx.x has a row that looks at this tile
      if (threadIdx.x < kRows) {
        Range const own = range_in_tile(reaches[threadIdx.x].first, reaches[threadIdx.x].last, start);
        own_row = own.begin < own.end;
        foldings[threadIdx.x] = own_row ? fold_largest(mine.largest, largest_of(threadIdx.x)) : not_folded();
      }
      __syncthreads();
      if (own_row) {
        float sum = sum_of_warps[threadIdx.x * kWarps];
        for (unsigned w = 1; w < kWarps; ++w) sum += sum_of_warps[threadIdx.x * kWarps + w];
        mine.sum = fold_number(foldings[threadIdx.x], mine.sum, sum);
      }

      // Values.
      Range const common = range_in_tile(all.common_first, all.common_last, start);  // looked at by every row
      bool const mixed = common.begin > attended.begin || common.end < attended.end;
#pragma unroll
      for (unsigned group = 0; group < Shape::kGroups; ++group) {
        unsigned const column = (group * kWarps + warp) * kWarpColumns;
        if (column >= a.value_dim) break;
        std::uint16_t const* const of_lane = values + column + lane / 4 * 2;
        // All rows, or one by itself.
        constexpr unsigned kAllRows = kRows;
        unsigned only = kAllRows;
        while (true) {
          Range const places =
              only == kAllRows ? attended : range_in_tile(reaches[only].first, reaches[only].last, start);
          float d[kRowTiles][2][4] = {};
          bool unbounded = false;  // what a row does not look at
          // Of four positions two columns each.
          auto const place_of = [&](unsigned i) { return lane % 4 * 2 + i % 2 + i / 2 * 8; };
          auto const load = [&](unsigned step, std::uint32_t(&into)[4]) {
            std::uint16_t const* const block = of_lane + first_of_block(step) * a.value_stride;
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
              bool const there = step * kStep + place_of(i) - places.begin < places.end - places.begin;
              into[i] = there ? *reinterpret_cast<std::uint32_t const*>(block + place_of(i) * a.value_stride) : 0;
            }
          };
          constexpr unsigned kAhead = Shape::kStepsAhead;
          unsigned const end = (places.end + kStep - 1) / kStep;
          std::uint32_t ahead[kAhead][4];
#pragma unroll
          for (unsigned i = 0; i < kAhead; ++i)
            if (places.begin / kStep + i < end) load(places.begin / kStep + i, ahead[i]);
          for (unsigned from = places.begin / kStep; from < end; from += kAhead)
#pragma unroll
            for (unsigned i = 0; i < kAhead; ++i) {
              unsigned const step = from + i;
              if (step >= end) continue;
              if (mixed) {
#pragma unroll
                for (unsigned n = 0; n < 4; ++n) {
                  unsigned const p = step * kStep + place_of(n);
                  if (p < common.begin || p >= common.end) unbounded |= any_unbounded(ahead[i][n]);
                }
              }
              // The even columns and the odd ones: of each two positions side by side.
              std::uint32_t even[2], odd[2];
#pragma unroll
              for (unsigned n = 0; n < 2; ++n) {
                even[n] = (ahead[i][2 * n] & 0xffffU) | ahead[i][2 * n + 1] << 16;
                odd[n] = ahead[i][2 * n] >> 16 | (ahead[i][2 * n + 1] & 0xffff0000U);
              }
              if (step + kAhead < end) load(step + kAhead, ahead[i]);
#pragma unroll
              for (unsigned term = 0; term < kTerms; ++term)
#pragma unroll
                for (unsigned r = 0; r < kRowTiles; ++r) {
                  Words4 const w = weights[((step * kTerms + term) * kAllTiles + first_tile + r) * kWarp + lane];
                  mma_16x8x16(d[r][0], w.w[0], w.w[1], w.w[2], w.w[3], even[0], even[1]);
                  mma_16x8x16(d[r][1], w.w[0], w.w[1], w.w[2], w.w[3], odd[0], odd[1]);
                }
            }
          bool const again = only == kAllRows && __ballot_sync(kAllLanes, unbounded) != 0;
          if (!again) {
#pragma unroll
            for (unsigned r = 0; r < kRowTiles; ++r)
#pragma unroll
              for (unsigned half = 0; half < 2; ++half) {
                Folding const folding = foldings[row_at(r, half)];
                if (folding.kept < 0 || (only != kAllRows && only != row_at(r, half))) continue;
#pragma unroll
                for (unsigned n = 0; n < 4; ++n) {
                  float& sum = sums[group][r][n / 2][half * 2 + n % 2];
                  sum = fold_number(folding, sum, d[r][n / 2][half * 2 + n % 2]);
                }
              }
          }
          if (only == kAllRows && !again) break;
          only = only == kAllRows ? first_row : only + 1;
          if (only == first_row + Shape::kTeamRows) break;
        }
      }
    }

    // What this unit came to.
    auto const partial_of = [&](unsigned row) {  // or none, where the row looks at nothing of it
      Reach const& reach = reaches[row];
      bool const there = row < rows && reach.first / unit_positions <= unit && unit <= reach.last / unit_positions;
      std::size_t const of_head = (t + row / heads) * std::size_t{a.num_kv_heads} * a.heads + first_head + row % heads;
      return there ? of_head * a.units + (unit - reach.first / unit_positions) : kNoPartial;
    };
#pragma unroll
    for (unsigned r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        std::size_t const partial = partial_of(row_at(r, half));
        if (partial == kNoPartial) continue;
#pragma unroll
        for (unsigned group = 0; group < Shape::kGroups; ++group) {
          unsigned const column = (group * kWarps + warp) * kWarpColumns + lane % 4 * 4;
          if (column >= a.value_dim) break;
          auto const& sum = sums[group][r];
          *reinterpret_cast<Floats<4>*>(a.sums + partial * a.value_dim + column) = {
              {sum[0][half * 2], sum[1][half * 2], sum[0][half * 2 + 1], sum[1][half * 2 + 1]}};
        }
      }
    if (threadIdx.x < kRows && partial_of(threadIdx.x) != kNoPartial) {
      a.stats[2 * partial_of(threadIdx.x)] = mine.largest;
      a.stats[2 * partial_of(threadIdx.x) + 1] = mine.sum;
    }
  }
}

}  // namespace
}  // namespace expertmesh::EM_DEVICE_NAMESPACE
