// Element types of checkpoints, activations and wire rows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace expertmesh {

enum class DType : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  i64,
  i32,
  i16,
  i8,
  u8,
  boolean,
  f8_e4m3,
  f8_e5m2,
  i4,
  f4_e2m1,
  f8_e8m0
};

std::size_t size_of(DType type);                   // bytes of one element; 0 for i4 and f4_e2m1, two of which share one
std::string_view name_of(DType type);              // "float32", "bfloat16", …: as --dtype and JSON have it
std::string_view safetensors_name_of(DType type);  // "F32", "BF16", …; none of i4, f4_e2m1, f8_e8m0
std::optional<DType> dtype_from_safetensors(std::string_view name);

}  // namespace expertmesh
