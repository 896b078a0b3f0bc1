#include "common/kernels/headwise_linear.h"

#include <algorithm>
#include <vector>

#include "common/base/check.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/gemm.h"

namespace expertmesh {

void headwise_linear(Exec const& exec, MatrixView<float const> x, std::span<PackedMatrix const> w,
                     HeadColumns const& columns, MatrixView<float> y) {
  if (w.empty() || x.rows == 0) return;
  std::size_t const n = w.front().n();
  std::size_t const k = w.front().k();
  EM_CHECK(x.rows == y.rows && columns.x_stride >= k && columns.y_stride >= n &&
               (w.size() - 1) * columns.x_stride + k <= x.cols && (w.size() - 1) * columns.y_stride + n <= y.cols,
           "x [" << x.rows << "," << x.cols << "], y [" << y.rows << "," << y.cols << "], " << w.size() << " weights ["
                 << n << "," << k << "]");
  if (Device* device = exec.device()) {
    std::vector<DeviceWeight> weights;
    for (PackedMatrix const& head : w) weights.push_back(head.on_device());
    return device->headwise_linear(x, weights, columns, y);
  }
  bool const rounds = activation_type(w.front().format()) == DType::bf16;
  // Rows of a tile: those that fit a thread's scratch once they are rounded.
  std::size_t const fitting = exec.scratch().attention_row * sizeof(float) / (k * sizeof(std::uint16_t));
  EM_CHECK(!rounds || fitting > 0, "K " << k);
  std::size_t const tile_rows = rounds ? std::min(kTileRowsMax, fitting) : kTileRowsMax;
  std::size_t const panels = divided_up(n, kPanelColumns);
  std::size_t const row_blocks = divided_up(x.rows, tile_rows);
  // All panels of a head meet the rows once they are rounded, unless threads would have nothing to do.
  bool const enough = w.size() * row_blocks >= 2 * exec.pool().num_threads();
  std::size_t const tile_panels = enough ? panels : kTilePanels;
  std::size_t const head_tiles = divided_up(panels, tile_panels) * row_blocks;
  exec.pool().parallel_for(w.size() * head_tiles, [&](std::size_t begin, std::size_t end, std::size_t thread) {
    auto* const rounded = reinterpret_cast<std::uint16_t*>(exec.scratch().attention_of(thread));
    void const* x_rows[kTileRowsMax];
    float* y_rows[kTileRowsMax];
    for (std::size_t i = begin; i < end; ++i) {
      std::size_t const head = i / head_tiles;
      std::size_t const first_panel = i % head_tiles / row_blocks * tile_panels;
      std::size_t const last_panel = std::min(first_panel + tile_panels, panels);
      std::size_t const row = i % row_blocks * tile_rows;
      std::size_t const m = std::min(tile_rows, x.rows - row);
      for (std::size_t r = 0; r < m; ++r) {
        float const* const in = x.row(row + r) + head * columns.x_stride;
        if (rounds) exec.table().round_bf16(in, k, rounded + r * k);
        x_rows[r] = rounds ? static_cast<void const*>(rounded + r * k) : in;
        y_rows[r] = y.row(row + r) + head * columns.y_stride;
      }
      for (std::size_t panel = first_panel; panel < last_panel; panel += kTilePanels) {
        GemmPart const part{.x = x_rows,
                            .y = y_rows,
                            .m = m,
                            .n = n,
                            .k = k,
                            .panels = w[head].data(),
                            .panel_begin = panel,
                            .panel_end = std::min(panel + kTilePanels, last_panel)};
        (rounds ? exec.table().gemm_bf16 : exec.table().gemm_f32)(part);
      }
    }
  });
}

}  // namespace expertmesh
