#include "common/experts/packed_weights.h"

#include <algorithm>
#include <vector>

#include "common/base/error.h"

namespace expertmesh {

namespace {

// Rows of a weight [N,K] that begins at row `begin` of w.
void pack(WeightRows const& rows, std::size_t begin, PackedMatrix& w, ThreadPool* pool) {
  std::size_t const row_bytes = w.k() * size_of(rows.type);
  auto const pack_part = [&](std::size_t first, std::size_t last, std::size_t) {
    w.set_rows(begin + rows.first + first, last - first, rows.type, rows.data + first * row_bytes);
  };
  if (pool && !w.device())
    pool->parallel_for(rows.count, pack_part);
  else
    pack_part(0, rows.count, 0);
}

}  // namespace

PackedLinear load_linear(WeightReader& reader, WeightFormat const& format, std::span<LinearPart const> parts,
                         std::size_t k, PackingPlace const& place) {
  std::size_t total = 0;
  for (LinearPart const& part : parts) total += part.rows;
  PackedLinear out{.w = PackedMatrix(format, total, k, place.device), .bias = {}};
  std::vector<float> bias;
  if (std::ranges::any_of(parts, [](LinearPart const& part) { return part.bias.has_value(); })) bias.resize(total);
  std::size_t row = 0;
  for (LinearPart const& part : parts) {
    reader.read(part.weight, part.rows, k, [&](WeightRows const& rows) { pack(rows, row, out.w, place.pool); });
    if (part.bias)
      std::ranges::copy(reader.read(*part.bias, part.rows), bias.begin() + static_cast<std::ptrdiff_t>(row));
    row += part.rows;
  }
  out.bias = AlignedBuffer<float>(std::span<float const>(bias), place.device);
  return out;
}

FfnWeights load_ffn(WeightReader& reader, WeightFormat const& format, FfnTensors const& t, FfnShape const& shape,
                    ActivationSpec const& activation, PackingPlace const& place) {
  if (auto const problem = problem_of(activation, t.gate.has_value()); !problem.empty())
    throw ModelError("the FFN of tensor '" + t.up.name + "': " + problem);
  std::vector<LinearPart> gate_up;
  if (t.gate) gate_up.push_back({*t.gate, shape.intermediate, t.gate_bias});
  gate_up.push_back({t.up, shape.intermediate, t.up_bias});
  LinearPart const down{t.down, shape.hidden, t.down_bias};
  return {.gate_up = load_linear(reader, format, gate_up, shape.hidden, place),
          .down = load_linear(reader, format, {&down, 1}, shape.intermediate, place),
          .activation = activation};
}

std::size_t packed_ffn_bytes(WeightFormat const& format, FfnTensors const& t, FfnShape const& shape) {
  std::size_t const up_rows = (t.gate ? 2 : 1) * shape.intermediate;
  std::size_t const biases = (t.gate_bias || t.up_bias ? up_rows : 0) + (t.down_bias ? shape.hidden : 0);
  return packed_bytes(format, up_rows, shape.hidden) + packed_bytes(format, shape.hidden, shape.intermediate) +
         biases * sizeof(float);
}

}  // namespace expertmesh
