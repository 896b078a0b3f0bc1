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
  WeightFormat const& format = w.front().format();
  bool const as_is = meets_as_is(format, DType::f32);
  // Rows of a tile: those that fit a thread's scratch once they are ready for the weight.
  std::size_t const row_bytes = activation_row_bytes(format, k);
  std::size_t const fitting = exec.scratch().attention_row * sizeof(float) / row_bytes;
  EM_CHECK(as_is || fitting > 0, "K " << k);
  std::size_t const tile_rows = as_is ? kTileRowsMax : std::min(kTileRowsMax, fitting);
  std::size_t const panels = divided_up(n, kPanelColumns);
  std::size_t const row_blocks = divided_up(x.rows, tile_rows);
  // All panels of a head meet the rows once they are ready, unless threads would have nothing to do.
  bool const enough = w.size() * row_blocks >= 2 * exec.pool().num_threads();
  std::size_t const tile_panels = enough ? panels : kTilePanels;
  std::size_t const head_tiles = divided_up(panels, tile_panels) * row_blocks;
  exec.pool().parallel_for(w.size() * head_tiles, [&](std::size_t begin, std::size_t end, std::size_t thread) {
    auto* const ready = reinterpret_cast<std::byte*>(exec.scratch().attention_of(thread));
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
        if (!as_is) prepare_row(exec, format, in, k, ready + r * row_bytes);
        x_rows[r] = as_is ? static_cast<void const*>(in) : ready + r * row_bytes;
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
                            .panel_end = std::min(panel + kTilePanels, last_panel),
                            .group = format.group_size};
        gemm_of(exec, format, part);
      }
    }
  });
}

}  // namespace expertmesh
