// How one weight tensor is stored and multiplied.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/tensor/dtype.h"

namespace expertmesh {

// What happens to an activation row before it meets the weight.
enum class ActivationRule : std::uint8_t {
  none,           // fp32 as it is
  round_to_bf16,  // rounded to nearest even
};

struct WeightFormat {
  DType storage = DType::f32;     // f32 or bf16
  std::size_t group_size = 0;     // elements of K that share a scale; 0: no scales
  DType scale_type = DType::f32;  // of the scales where there are any
  bool has_zero_point = false;
  ActivationRule activation = ActivationRule::none;  // depends on one row (and one K-group) only
  bool operator==(WeightFormat const&) const = default;
};

constexpr WeightFormat kFloat32Weights{};
constexpr WeightFormat kBfloat16Weights{.storage = DType::bf16, .activation = ActivationRule::round_to_bf16};

}  // namespace expertmesh
