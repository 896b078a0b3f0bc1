#include "coordinator/model/query_temperature.h"

#include <cmath>
#include <vector>

#include "common/kernels/rows.h"

namespace expertmesh {

void apply_temperature(Exec const& exec, TemperatureTuning const& tuning, std::span<std::uint32_t const> positions,
                       MatrixView<float> q) {
  auto const floor = static_cast<float>(tuning.floor);
  auto const scale = static_cast<float>(tuning.scale);
  auto const factor = [&](std::size_t t) {
    float const stretches = std::floor((static_cast<float>(positions[t]) + 1.0F) / floor);
    return std::log1p(stretches) * scale + 1.0F;
  };
  if (exec.device()) {
    std::vector<float> factors(q.rows);
    for (std::size_t t = 0; t < q.rows; ++t) factors[t] = factor(t);
    return scale_rows(exec, q, factors);
  }
  exec.pool().parallel_for(q.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      float const stretched = factor(t);
      for (std::size_t i = 0; i < q.cols; ++i) q.row(t)[i] *= stretched;
    }
  });
}

}  // namespace expertmesh
