// How rows of a weight become a panel of a PackedMatrix (packed_matrix.h says how it lies). Private to common/kernels.
#pragma once
#include <cstddef>
#include <vector>

#include "common/config/weight_format.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

std::size_t panel_bytes(WeightFormat const& format, std::size_t k);

// Some of a panel's columns: the rows [first, first + count) of its thirty-two, one behind the other. f32, bf16 or f16;
// they need not be aligned.
struct PanelRows {
  DType type = DType::f32;
  std::byte const* data = nullptr;  // [count][K]
  std::size_t first = 0;
  std::size_t count = 0;  // first + count: at most kPanelColumns
};

// Writes these columns of the panel and leaves the others. A column's bytes are a function of its row alone, on any
// processor. All thirty-two at once take little more time than one.
void pack_panel(WeightFormat const& format, PanelRows const& rows, std::size_t k, std::byte* panel);

// The same, as it is compiled for each of the instruction sets that this processor has; the fastest last.
using PackPanel = void (*)(WeightFormat const& format, PanelRows const& rows, std::size_t k, std::byte* panel);
std::vector<PackPanel> runnable_packers();

}  // namespace expertmesh
