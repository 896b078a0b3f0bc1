// The GEMMs of weights that have fewer bits than the bfloat16 numbers they are: a stretch of K becomes bfloat16 in the
// nearest cache and meets the rows there as bfloat16 weights do, in the same order and so to the same bits. Over the
// ISA's decode functions, included before.
#pragma once
#include "common/kernels/isa/coded_strips_impl.h"
#include "common/kernels/isa/gemm_bf16_impl.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// Where one register tile has all rows: its sums stay there, and a stretch is decoded while the one before it is
// multiplied.
template <class Codes>
struct GemmFewRows : RegisterTiles {
  static constexpr std::size_t kAheadFrom = 1;
  static std::size_t panel_bytes(GemmPart const& g) { return Codes::panel_bytes(g); }
  static std::size_t ticks(std::size_t k) { return (k + kStretch - 1) / kStretch * (kStretch / 2 / kStepsATick); }

  template <std::size_t MR, std::size_t NV>
  static void tile(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t vector) {
    // As parts of bfloat16 panels.
    alignas(kLineBytes) std::uint16_t stretch[(NV + kPanelVectors - 1) / kPanelVectors][kStretch * kPanelColumns];
    auto const place = [&](std::size_t j) { return stretch[j / kPanelVectors] + j % kPanelVectors * 2 * kLanes; };
    std::uint16_t const* w[NV];
    EM_UNROLL
    for (std::size_t j = 0; j < NV; ++j) w[j] = place(j);
    std::uint16_t const* x[MR];
    EM_UNROLL
    for (std::size_t i = 0; i < MR; ++i) x[i] = static_cast<std::uint16_t const*>(g.x[row + i]);
    Vec acc[MR][NV];
    start_tile<MR, NV>(g, row, vector, acc);
    for (std::size_t k = 0; k < g.k; k += kStretch) {
      std::size_t const count = g.k - k < kStretch ? g.k - k : kStretch;
      for (std::size_t j = 0; j < NV; ++j) Codes::decode(g, vector + j, k, count, place(j));
      multiply_bf16<MR, NV>(acc, w, x, count, ahead);
      EM_UNROLL
      for (std::size_t i = 0; i < MR; ++i) x[i] += count;
    }
    store_tile<MR, NV>(g, row, vector, acc);
  }
};

// Where there are more, in strips.
template <class Codes>
void gemm_coded(GemmPart const& g) {
  if (g.m <= kFewRows) return gemm<GemmFewRows<Codes>>(g);
  gemm_strips<Codes, gemm<GemmBf16>>(g);
}

}  // namespace
}  // namespace expertmesh
