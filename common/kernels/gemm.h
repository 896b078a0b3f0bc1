// The GEMM of a weight's format over rows that are already in its activation type. Private to common/kernels.
#pragma once
#include "common/kernels/exec.h"
#include "common/kernels/kernel_table.h"
#include "common/kernels/packed_matrix.h"

namespace expertmesh {

// Panels a thread takes at a time: enough independent sums to keep the units busy at M = 1.
constexpr std::size_t kTilePanels = 4;

inline std::size_t num_panels(PackedMatrix const& w) {
  return (w.n() + kPanelColumns - 1) / kPanelColumns;
}
inline std::size_t num_tiles(PackedMatrix const& w) {
  return (num_panels(w) + kTilePanels - 1) / kTilePanels;
}

// Element type of the rows that meet this weight.
inline DType activation_type(WeightFormat const& format) {
  return format.activation == ActivationRule::round_to_bf16 ? DType::bf16 : DType::f32;
}

// Tiles [tile_begin, tile_end) of y = x W^T for m rows.
inline void gemm_tiles(Exec const& exec, PackedMatrix const& w, void const* const* x, float* const* y, std::size_t m,
                       std::size_t tile_begin, std::size_t tile_end) {
  std::size_t const panels = num_panels(w);
  GemmPart const part{.x = x,
                      .y = y,
                      .m = m,
                      .n = w.n(),
                      .k = w.k(),
                      .panels = w.data(),
                      .panel_begin = tile_begin * kTilePanels,
                      .panel_end = tile_end * kTilePanels < panels ? tile_end * kTilePanels : panels};
  (activation_type(w.format()) == DType::bf16 ? exec.table().gemm_bf16 : exec.table().gemm_f32)(part);
}

}  // namespace expertmesh
