#include "common/checkpoint/weight_source.h"

#include <cstring>

#include "common/base/bf16.h"
#include "common/base/check.h"

namespace expertmesh {

bool is_of(DType dtype, TensorKind kind) {
  switch (kind) {
    case TensorKind::numbers:
      return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
    case TensorKind::fp8:
      return dtype == DType::f8_e4m3;
    case TensorKind::bytes:
      return dtype == DType::u8;
    case TensorKind::words:
    case TensorKind::indices:
      return dtype == DType::i32;
    case TensorKind::int8:
      return dtype == DType::i8;
    case TensorKind::sizes:
      return dtype == DType::i64 || dtype == DType::i32;
  }
  return false;
}

StoredTensor WeightSource::load(std::string_view name, std::span<std::size_t const> shape) const {
  return load(TensorInfo{std::string(name), {shape.begin(), shape.end()}});
}

StoredTensor WeightSource::load_entry(TensorInfo const& tensor, std::size_t index) const {
  EM_CHECK(!tensor.shape.empty() && index < tensor.shape.front(), "entry " << index << " of '" << tensor.name << "'");
  return counted(read(tensor, index));
}

float element(StoredTensor const& tensor, std::size_t index) {
  std::byte const* at = tensor.bytes.data() + index * size_of(tensor.dtype);
  auto const read = [&](auto x) {
    std::memcpy(&x, at, sizeof x);
    return x;
  };
  switch (tensor.dtype) {
    case DType::f32:
      return read(float{});
    case DType::bf16:
      return to_float(read(bf16{}));
    case DType::f16:
      return to_float(read(fp16{}));
    default:
      EM_CHECK(false, "tensor '" << tensor.name << "' of " << name_of(tensor.dtype));
  }
  return 0;
}

std::vector<float> to_floats(StoredTensor const& tensor) {
  std::vector<float> values(tensor.bytes.size() / size_of(tensor.dtype));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = element(tensor, i);
  return values;
}

}  // namespace expertmesh
