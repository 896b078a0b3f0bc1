#include "common/experts/packed_weights.h"

#include <algorithm>
#include <vector>

#include "common/base/error.h"

namespace expertmesh {

PackedLinear load_linear(WeightReader& reader, WeightFormat const& format, std::span<LinearPart const> parts,
                         std::size_t k, DeviceMemory* device) {
  std::size_t total = 0;
  for (LinearPart const& part : parts) total += part.rows;
  PackedLinear out{.w = PackedMatrix(format, total, k, device), .bias = {}};
  std::vector<float> bias;
  if (std::ranges::any_of(parts, [](LinearPart const& part) { return part.bias.has_value(); })) bias.resize(total);
  std::size_t row = 0;
  for (LinearPart const& part : parts) {
    reader.read(part.weight, part.rows, k,
                [&](WeightRows const& rows) { out.w.set_rows(row + rows.first, rows.count, rows.type, rows.data); });
    if (part.bias)
      std::ranges::copy(reader.read(*part.bias, part.rows), bias.begin() + static_cast<std::ptrdiff_t>(row));
    row += part.rows;
  }
  out.bias = AlignedBuffer<float>(std::span<float const>(bias), device);
  return out;
}

FfnWeights load_ffn(WeightReader& reader, WeightFormat const& format, FfnTensors const& t, FfnShape const& shape,
                    ActivationSpec const& activation, DeviceMemory* device) {
  if (auto const problem = problem_of(activation, t.gate.has_value()); !problem.empty())
    throw ModelError("the FFN of tensor '" + t.up.name + "': " + problem);
  std::vector<LinearPart> gate_up;
  if (t.gate) gate_up.push_back({*t.gate, shape.intermediate, t.gate_bias});
  gate_up.push_back({t.up, shape.intermediate, t.up_bias});
  LinearPart const down{t.down, shape.hidden, t.down_bias};
  return {.gate_up = load_linear(reader, format, gate_up, shape.hidden, device),
          .down = load_linear(reader, format, {&down, 1}, shape.intermediate, device),
          .activation = activation};
}

std::size_t packed_ffn_bytes(WeightFormat const& format, FfnTensors const& t, FfnShape const& shape) {
  std::size_t const up_rows = (t.gate ? 2 : 1) * shape.intermediate;
  std::size_t const biases = (t.gate_bias || t.up_bias ? up_rows : 0) + (t.down_bias ? shape.hidden : 0);
  return packed_bytes(format, up_rows, shape.hidden) + packed_bytes(format, shape.hidden, shape.intermediate) +
         biases * sizeof(float);
}

}  // namespace expertmesh
