#include "coordinator/model/query_temperature.h"

#include <cmath>

#include "common/kernels/device.h"

namespace expertmesh {

void apply_temperature(Exec const& exec, TemperatureTuning const& tuning, TokenPlaces const& places,
                       MatrixView<float> q) {
  auto const floor = static_cast<float>(tuning.floor);
  auto const scale = static_cast<float>(tuning.scale);
  if (Device* device = exec.device()) return device->scale_by_position(q, places.for_device().positions, floor, scale);
  exec.pool().parallel_for(q.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      float const stretches = std::floor((static_cast<float>(places.positions[t]) + 1.0F) / floor);
      float const factor = std::log1p(stretches) * scale + 1.0F;
      for (std::size_t i = 0; i < q.cols; ++i) q.row(t)[i] *= factor;
    }
  });
}

}  // namespace expertmesh
