// The GEMMs: register tiles of MR rows x NP panels, k in order, over Vec of whichever ISA was included before. The tile
// shape never changes a result.
#pragma once
#include "common/kernels/isa/gemm_tile.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

template <std::size_t MR, std::size_t NP>
void store_tile(GemmPart const& g, std::size_t row, std::size_t panel, Vec const (&acc)[MR][NP]) {
  EM_UNROLL
  for (std::size_t i = 0; i < MR; ++i) {
    EM_UNROLL
    for (std::size_t j = 0; j < NP; ++j) {
      std::size_t const column = (panel + j) * kLanes;
      store_some(g.y[row + i] + column, acc[i][j], g.n - column);
    }
  }
}

// What the sums of a tile begin with.
template <std::size_t MR, std::size_t NP>
void start_tile(GemmPart const& g, std::size_t row, std::size_t panel, Vec (&acc)[MR][NP]) {
  EM_UNROLL
  for (std::size_t i = 0; i < MR; ++i) {
    EM_UNROLL
    for (std::size_t j = 0; j < NP; ++j) {
      std::size_t const column = (panel + j) * kLanes;
      acc[i][j] = g.continues ? load_some(g.y[row + i] + column, g.n - column) : zero();
    }
  }
}

struct GemmF32 {
  static constexpr std::size_t kAheadFrom = 4;
  static std::size_t ticks(std::size_t k) { return (k + kStepsATick - 1) / kStepsATick; }

  template <std::size_t MR, std::size_t NP>
  static void tile(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t panel) {
    float const* w[NP];
    EM_UNROLL
    for (std::size_t j = 0; j < NP; ++j) w[j] = reinterpret_cast<float const*>(g.panels) + (panel + j) * g.k * kLanes;
    float const* x[MR];
    EM_UNROLL
    for (std::size_t i = 0; i < MR; ++i) x[i] = static_cast<float const*>(g.x[row + i]);
    Vec acc[MR][NP];
    EM_UNROLL
    for (std::size_t i = 0; i < MR; ++i) {
      EM_UNROLL
      for (std::size_t j = 0; j < NP; ++j) acc[i][j] = zero();
    }
    for (std::size_t k = 0; k < g.k; ++k) {
      if (k % kStepsATick == 0) ahead.tick();
      Vec column[NP];
      EM_UNROLL
      for (std::size_t j = 0; j < NP; ++j) column[j] = load(w[j] + k * kLanes);
      EM_UNROLL
      for (std::size_t i = 0; i < MR; ++i) {
        Vec const xi = broadcast(x[i][k]);
        EM_UNROLL
        for (std::size_t j = 0; j < NP; ++j) acc[i][j] = fma(xi, column[j], acc[i][j]);
      }
    }
    store_tile<MR, NP>(g, row, panel, acc);
  }
};

// Panels that a tile of this many rows takes at once: as many as there are registers for, up to 4 (at M = 1 they are
// the independent sums that hide the latency of a multiply-add); 4, 2 or 1, so that none of a part's 4 is left over.
constexpr std::size_t panels_at_once(std::size_t rows) {
  std::size_t panels = 4;
  while (panels > 1 && rows * panels > kAccumulators) panels /= 2;
  return panels;
}

// MR rows against all panels of the part.
template <class Kernel, std::size_t MR>
void gemm_rows(GemmPart const& g, Ahead& ahead, std::size_t row) {
  constexpr std::size_t kPanels = panels_at_once(MR);
  std::size_t panel = g.panel_begin;
  for (; panel + kPanels <= g.panel_end; panel += kPanels) Kernel::template tile<MR, kPanels>(g, ahead, row, panel);
  for (; panel < g.panel_end; ++panel) Kernel::template tile<MR, 1>(g, ahead, row, panel);
}

// The last, at most MR, rows.
template <class Kernel, std::size_t MR>
void gemm_last_rows(GemmPart const& g, Ahead& ahead, std::size_t row) {
  if (g.m - row == MR) return gemm_rows<Kernel, MR>(g, ahead, row);
  if constexpr (MR > 1) gemm_last_rows<Kernel, MR - 1>(g, ahead, row);
}

// The part's next weights, spread over so many ticks.
inline Ahead spread(GemmPart const& g, std::size_t ticks) {
  std::size_t const lines = (g.next_bytes + kLineBytes - 1) / kLineBytes;
  return {.line = g.next, .end = g.next + g.next_bytes, .lines_a_tick = ticks == 0 ? 0 : (lines + ticks - 1) / ticks};
}

// The same over all ticks of its tiles. Nothing below Kernel::kAheadFrom rows: where the memory is all that is waited
// for, the processor's own prefetchers keep more lines under way than instructions can (measured on Zen 5: a third more
// bytes a second at one row).
template <class Kernel>
Ahead ahead_of(GemmPart const& g) {
  if (g.m < Kernel::kAheadFrom) return {};
  std::size_t const panels = g.panel_end - g.panel_begin;
  std::size_t tiles = 0;
  for (std::size_t row = 0; row < g.m; row += kTileRows) {
    std::size_t const at_once = panels_at_once(g.m - row < kTileRows ? g.m - row : kTileRows);
    tiles += panels / at_once + panels % at_once;
  }
  return spread(g, tiles * Kernel::ticks(g.k));
}

template <class Kernel>
void gemm(GemmPart const& g) {
  Ahead ahead = ahead_of<Kernel>(g);
  std::size_t row = 0;
  for (; row + kTileRows <= g.m; row += kTileRows) gemm_rows<Kernel, kTileRows>(g, ahead, row);
  gemm_last_rows<Kernel, kTileRows>(g, ahead, row);
}

// Independent sums on registers alone, as many as a GEMM's register tile has: what no GEMM can exceed. T: of a sum's
// lanes, float or int32.
template <class T, class MultiplyAdd>
float peak(std::size_t rounds, MultiplyAdd multiply_add) {
  decltype(broadcast(T{})) sums[kAccumulators];
  for (std::size_t i = 0; i < kAccumulators; ++i) sums[i] = broadcast(static_cast<T>(i));  // all different
  for (std::size_t round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < kAccumulators; ++i) sums[i] = multiply_add(sums[i], round, i);
  Vec total = zero();
  for (auto const& sum : sums) total = total + to_floats(sum);
  return sum_lanes(total);
}

}  // namespace
}  // namespace expertmesh
