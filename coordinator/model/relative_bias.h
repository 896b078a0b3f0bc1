// The relative position biases of an attention, by distance.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/kernels/paged_attention.h"
#include "coordinator/model/model_spec.h"
#include "coordinator/model/weight_loader.h"

namespace expertmesh {

// Which bucket a distance (key position less query position) is in. Of n buckets for one direction (half of them if
// there are two: those of later keys come second) the first n/2 hold distances 0, 1, …; n/2 + floor(ln(d / (n/2)) /
// ln(max_distance / (n/2)) * n/2), at most n - 1, holds distance d from n/2 on; in float32 as transformers computes it.
std::size_t bucket_of(RelativeBiasSpec const& spec, std::int64_t distance);

RelativeBias load_relative_bias(RelativeBiasSpec const& spec, std::size_t num_heads, WeightLoader const& loader);

}  // namespace expertmesh
