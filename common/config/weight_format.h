// How one weight tensor is stored and multiplied.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/tensor/dtype.h"

namespace expertmesh {

// What happens to an activation row before it meets the weight.
enum class ActivationRule : std::uint8_t {
  none,              // fp32 as it is
  round_to_bf16,     // rounded to nearest even
  quantise_to_int8,  // each group of 128 elements to int8 with a scale of its own: see int8_group.h
};

struct WeightFormat {
  DType storage = DType::f32;     // f32, bf16, i8, i4, f8_e4m3 or f4_e2m1
  std::size_t group_size = 0;     // elements of K that share a scale; 0: no scales
  DType scale_type = DType::f32;  // of the scales where there are any
  bool has_zero_point = false;
  ActivationRule activation = ActivationRule::none;  // depends on one row (and one K-group) only
  bool operator==(WeightFormat const&) const = default;
};

constexpr WeightFormat kFloat32Weights{};
constexpr WeightFormat kBfloat16Weights{.storage = DType::bf16, .activation = ActivationRule::round_to_bf16};
// 128: the scales are 3% of the bytes and their arithmetic 3% of the multiply-adds, and a tile's weights of a group
// stay in the nearest cache. The published models' widths are multiples of it, or leave a half.
constexpr WeightFormat kInt8Weights{
    .storage = DType::i8, .group_size = 128, .scale_type = DType::f32, .activation = ActivationRule::quantise_to_int8};
// 32: what a step of sixteen-bit sums holds in AVX2, and a quarter of an activation's group.
constexpr WeightFormat kInt4Weights{
    .storage = DType::i4, .group_size = 32, .scale_type = DType::bf16, .activation = ActivationRule::quantise_to_int8};
// bfloat16 numbers in the bits of a checkpoint that has them so: the products of code and scale, rounded. Multiplied as
// those numbers are, to the same bits; but devices do not round those of FP8 (cuda/tensor_rows.h).
constexpr WeightFormat kMxfp4Weights{.storage = DType::f4_e2m1,
                                     .group_size = 32,
                                     .scale_type = DType::f8_e8m0,
                                     .activation = ActivationRule::round_to_bf16};
constexpr std::size_t kFp8GroupStep = 32;
constexpr WeightFormat fp8_weights(std::size_t group_size) {  // a multiple of kFp8GroupStep
  return {.storage = DType::f8_e4m3,
          .group_size = group_size,
          .scale_type = DType::f32,
          .activation = ActivationRule::round_to_bf16};
}
// Whether these are codes of a checkpoint, each with a scale of its group, for numbers of bfloat16.
constexpr bool from_codes(WeightFormat const& format) {
  return format.storage == DType::f4_e2m1 || format.storage == DType::f8_e4m3;
}

}  // namespace expertmesh
