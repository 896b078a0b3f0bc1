#include "common/tensor/dtype.h"

#include <array>

namespace expertmesh {
namespace {

struct Row {
  DType type;
  std::size_t bytes;
  std::string_view name;
  std::string_view safetensors;
};
constexpr std::array<Row, 15> kRows = {{
    {DType::f64, 8, "float64", "F64"},
    {DType::f32, 4, "float32", "F32"},
    {DType::f16, 2, "float16", "F16"},
    {DType::bf16, 2, "bfloat16", "BF16"},
    {DType::i64, 8, "int64", "I64"},
    {DType::i32, 4, "int32", "I32"},
    {DType::i16, 2, "int16", "I16"},
    {DType::i8, 1, "int8", "I8"},
    {DType::u8, 1, "uint8", "U8"},
    {DType::boolean, 1, "bool", "BOOL"},
    {DType::f8_e4m3, 1, "float8_e4m3fn", "F8_E4M3"},
    {DType::f8_e5m2, 1, "float8_e5m2", "F8_E5M2"},
    {DType::i4, 0, "int4", ""},
    {DType::f4_e2m1, 0, "float4_e2m1fn", ""},
    {DType::f8_e8m0, 1, "float8_e8m0fnu", ""},
}};

Row const& row_of(DType type) {
  return kRows[static_cast<std::size_t>(type)];
}

}  // namespace

std::size_t size_of(DType type) {
  return row_of(type).bytes;
}
std::string_view name_of(DType type) {
  return row_of(type).name;
}
std::string_view safetensors_name_of(DType type) {
  return row_of(type).safetensors;
}

std::optional<DType> dtype_from_safetensors(std::string_view name) {
  for (auto const& row : kRows)
    if (!name.empty() && row.safetensors == name) return row.type;
  return std::nullopt;
}

}  // namespace expertmesh
