#include "coordinator/model/relative_bias.h"

#include <algorithm>
#include <cmath>

namespace expertmesh {

std::size_t bucket_of(RelativeBiasSpec const& spec, std::int64_t distance) {
  std::size_t const buckets = spec.bidirectional ? spec.buckets / 2 : spec.buckets;
  std::size_t const first = spec.bidirectional && distance > 0 ? buckets : 0;
  if (!spec.bidirectional) distance = std::min<std::int64_t>(distance, 0);
  auto const length = static_cast<std::size_t>(std::abs(distance));
  std::size_t const exact = buckets / 2;
  if (length < exact) return first + length;
  float const steps =
      std::log(static_cast<float>(length) / static_cast<float>(exact)) /
      static_cast<float>(std::log(static_cast<double>(spec.max_distance) / static_cast<double>(exact))) *
      static_cast<float>(buckets - exact);
  return first + std::min(exact + static_cast<std::size_t>(steps), buckets - 1);
}

RelativeBias load_relative_bias(RelativeBiasSpec const& spec, std::size_t num_heads, WeightLoader const& loader) {
  Matrix<float> const weight = loader.numbers({.name = spec.weight}, spec.buckets, num_heads);
  auto const reach = static_cast<std::int64_t>(spec.max_distance);
  RelativeBias bias(num_heads, static_cast<std::uint32_t>(spec.max_distance));
  for (std::int64_t distance = -reach; distance <= reach; ++distance)
    for (std::size_t head = 0; head < num_heads; ++head)
      bias.set(head, distance, weight.view().row(bucket_of(spec, distance))[head]);
  return bias;
}

}  // namespace expertmesh
