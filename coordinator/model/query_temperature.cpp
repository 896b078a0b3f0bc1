#include "coordinator/model/query_temperature.h"

#include <cmath>
#include <vector>

#include "common/kernels/rows.h"

namespace expertmesh {

void apply_temperature(Exec const& exec, TemperatureTuning const& tuning, std::span<std::uint32_t const> positions,
                       MatrixView<float> q) {
  auto const floor = static_cast<float>(tuning.floor);
  auto const scale = static_cast<float>(tuning.scale);
  std::vector<float> factors(q.rows);
  for (std::size_t t = 0; t < q.rows; ++t) {
    float const stretches = std::floor((static_cast<float>(positions[t]) + 1.0F) / floor);
    factors[t] = std::log1p(stretches) * scale + 1.0F;
  }
  scale_rows(exec, q, factors);
}

}  // namespace expertmesh
