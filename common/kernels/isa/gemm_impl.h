// The GEMMs: register tiles of MR rows x NV vectors of columns, k in order, over Vec of whichever ISA was included
// before. The tile shape never changes a result.
#pragma once
#include "common/kernels/isa/gemm_tile.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

template <std::size_t MR, std::size_t NV>
void store_tile(GemmPart const& g, std::size_t row, std::size_t vector, Vec const (&acc)[MR][NV]) {
  EM_UNROLL
  for (std::size_t i = 0; i < MR; ++i) {
    EM_UNROLL
    for (std::size_t j = 0; j < NV; ++j) {
      std::size_t const column = (vector + j) * kLanes;
      store_some(g.y[row + i] + column, acc[i][j], g.n - column);
    }
  }
}

// What the sums of a tile begin with.
template <std::size_t MR, std::size_t NV>
void start_tile(GemmPart const& g, std::size_t row, std::size_t vector, Vec (&acc)[MR][NV]) {
  EM_UNROLL
  for (std::size_t i = 0; i < MR; ++i) {
    EM_UNROLL
    for (std::size_t j = 0; j < NV; ++j) {
      std::size_t const column = (vector + j) * kLanes;
      acc[i][j] = g.continues ? load_some(g.y[row + i] + column, g.n - column) : zero();
    }
  }
}

struct GemmF32 : RegisterTiles {
  static constexpr std::size_t kAheadFrom = 4;
  static std::size_t panel_bytes(GemmPart const& g) { return g.k * kPanelColumns * sizeof(float); }
  static std::size_t ticks(std::size_t k) { return k / kStepsATick; }

  template <std::size_t MR, std::size_t NV>
  static void tile(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t vector) {
    float const* w[NV];
    EM_UNROLL
    for (std::size_t j = 0; j < NV; ++j)
      w[j] = reinterpret_cast<float const*>(g.panels) + (vector + j) / kPanelVectors * g.k * kPanelColumns +
             (vector + j) % kPanelVectors * kLanes;
    float const* x[MR];
    EM_UNROLL
    for (std::size_t i = 0; i < MR; ++i) x[i] = static_cast<float const*>(g.x[row + i]);
    Vec acc[MR][NV];
    EM_UNROLL
    for (std::size_t i = 0; i < MR; ++i) {
      EM_UNROLL
      for (std::size_t j = 0; j < NV; ++j) acc[i][j] = zero();
    }
    each_step(
        g.k, ahead, [&](std::size_t k) __attribute__((always_inline)) {
          Vec column[NV];
          EM_UNROLL
          for (std::size_t j = 0; j < NV; ++j) column[j] = load(w[j] + k * kPanelColumns);
          EM_UNROLL
          for (std::size_t i = 0; i < MR; ++i) {
            Vec const xi = broadcast(x[i][k]);
            EM_UNROLL
            for (std::size_t j = 0; j < NV; ++j) acc[i][j] = fma(xi, column[j], acc[i][j]);
          }
        });
    store_tile<MR, NV>(g, row, vector, acc);
  }
};

// Vectors that a tile of this many rows takes at once: as many as there are registers for, up to 4 (at M = 1 they are
// the independent sums that hide the latency of a multiply-add), but no second panel, which is another stream of
// memory, where one has sums enough; 4, 2 or 1, so that none of a part's 4 is left over.
template <class Kernel>
constexpr std::size_t vectors_at_once(std::size_t rows) {
  constexpr std::size_t kEnoughSums = 10;
  std::size_t vectors = rows * kPanelVectors < kEnoughSums ? 2 * kPanelVectors : kPanelVectors;
  while (vectors > 1 && rows * vectors > Kernel::kMostSums) vectors /= 2;
  return vectors;
}

// Tiles of so many vectors and, of what is left, of half as many, down to one.
constexpr std::size_t tiles_of(std::size_t vectors, std::size_t at_once) {
  return at_once == 1 ? vectors : vectors / at_once + tiles_of(vectors % at_once, at_once / 2);
}
template <class Kernel, std::size_t MR, std::size_t NV>
void gemm_vectors(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t vector, std::size_t end) {
  for (; vector + NV <= end; vector += NV) Kernel::template tile<MR, NV>(g, ahead, row, vector);
  if constexpr (NV > 1) gemm_vectors<Kernel, MR, NV / 2>(g, ahead, row, vector, end);
}

// The part's vectors: none is all padding.
inline std::size_t first_vector(GemmPart const& g) {
  return g.panel_begin * kPanelVectors;
}
inline std::size_t end_vector(GemmPart const& g) {
  std::size_t const all = (g.n + kLanes - 1) / kLanes;
  return g.panel_end * kPanelVectors < all ? g.panel_end * kPanelVectors : all;
}

// Rows [row, row + rows), at most MR, against all columns of the part.
template <class Kernel, std::size_t MR>
void gemm_rows(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t rows) {
  if (rows == MR)
    return gemm_vectors<Kernel, MR, vectors_at_once<Kernel>(MR)>(g, ahead, row, first_vector(g), end_vector(g));
  if constexpr (MR > 1) gemm_rows<Kernel, MR - 1>(g, ahead, row, rows);
}

// The part's next weights, spread over so many ticks.
inline Ahead spread(GemmPart const& g, std::size_t ticks) {
  std::size_t const lines = (g.next_bytes + kLineBytes - 1) / kLineBytes;
  return {.line = g.next, .end = g.next + g.next_bytes, .lines_a_tick = ticks == 0 ? 0 : (lines + ticks - 1) / ticks};
}

// Where one tile has all rows and reads panel after panel, memory is what it waits for: weights are fetched a little
// ahead of their use (from 8 KiB on: a tick has whole lines, so where a format's do not divide evenly the distance
// grows), and at last the first of what is read then. A tile ahead, as where many rows meet the weights in cache, int8
// is up to a tenth slower on Zen 5, int4 nearly as much.
template <class Kernel>
Ahead ahead_in_stream(GemmPart const& g, std::size_t ticks) {
  constexpr std::size_t kBytesAhead = 8192;
  std::size_t const bytes = (g.panel_end - g.panel_begin) * Kernel::panel_bytes(g);
  std::byte const* const begin = g.panels + g.panel_begin * Kernel::panel_bytes(g);
  std::size_t const of_next = g.next_bytes < kBytesAhead ? g.next_bytes : kBytesAhead;
  std::size_t const lines = (bytes + kLineBytes - 1) / kLineBytes;
  return {.line = begin + (bytes < kBytesAhead ? bytes : kBytesAhead),
          .end = begin + bytes,
          .lines_a_tick = ticks == 0 ? 0 : (lines + ticks - 1) / ticks,
          .then = g.next,
          .then_end = g.next + of_next};
}

// Rows in as few tiles as there can be, of nearly the same size: one of few rows would read the weights for little.
template <class Kernel>
void gemm(GemmPart const& g) {
  std::size_t const row_tiles = g.m <= Kernel::kMostRows ? 1 : (g.m + Kernel::kManyRows - 1) / Kernel::kManyRows;
  auto const first_row = [&](std::size_t tile) { return g.m * tile / row_tiles; };
  // Nothing is fetched ahead below Kernel::kAheadFrom rows: where the memory is all that is waited for, the processor's
  // own prefetchers keep more lines under way than instructions can (measured on Zen 5).
  Ahead ahead;
  if (g.m >= Kernel::kAheadFrom) {
    std::size_t tiles = 0;
    for (std::size_t i = 0; i < row_tiles; ++i)
      tiles += tiles_of(end_vector(g) - first_vector(g), vectors_at_once<Kernel>(first_row(i + 1) - first_row(i)));
    std::size_t const ticks = tiles * Kernel::ticks(g.k);
    bool const one_stream = row_tiles == 1 && vectors_at_once<Kernel>(g.m) == kPanelVectors;
    ahead = one_stream ? ahead_in_stream<Kernel>(g, ticks) : spread(g, ticks);
  }
  for (std::size_t i = 0; i < row_tiles; ++i)
    gemm_rows<Kernel, Kernel::kMostRows>(g, ahead, first_row(i), first_row(i + 1) - first_row(i));
}

// Independent sums on registers alone, as many as a GEMM's register tile has: what no GEMM can exceed. T: of a sum's
// lanes, float or int32.
template <class T, class MultiplyAdd>
float peak(std::size_t rounds, MultiplyAdd multiply_add) {
  decltype(broadcast(T{})) sums[kAccumulators];
  for (std::size_t i = 0; i < kAccumulators; ++i) sums[i] = broadcast(static_cast<T>(i));  // all different
  for (std::size_t round = 0; round < rounds; ++round) {
    EM_UNROLL
    for (std::size_t i = 0; i < kAccumulators; ++i) sums[i] = multiply_add(sums[i], round, i);
  }
  Vec total = zero();
  for (auto const& sum : sums) total = total + to_floats(sum);
  return sum_lanes(total);
}

}  // namespace
}  // namespace expertmesh
