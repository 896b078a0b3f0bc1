#include "coordinator/model/weight_loader.h"

#include <algorithm>
#include <array>

namespace expertmesh {

template <class Read>
auto WeightLoader::counted(Read read) const {
  WeightReader reader(source_);
  auto out = read(reader);
  on_bytes_(reader.bytes_read());
  return out;
}

PackedLinear WeightLoader::linear(std::initializer_list<LinearPart> parts, std::size_t k) const {
  return counted([&](WeightReader& reader) { return load_linear(reader, format_, parts, k, place_); });
}

PackedLinear WeightLoader::linear_float32(LinearPart const& part, std::size_t k) const {
  return counted([&](WeightReader& reader) { return load_linear(reader, kFloat32Weights, {&part, 1}, k, place_); });
}

FfnWeights WeightLoader::ffn(FfnTensors const& tensors, FfnShape const& shape, ActivationSpec const& activation) const {
  return counted([&](WeightReader& reader) { return load_ffn(reader, format_, tensors, shape, activation, place_); });
}

AlignedBuffer<float> WeightLoader::floats(VectorSlice const& slice, std::size_t n) const {
  std::vector<float> const numbers = counted([&](WeightReader& reader) { return reader.read(slice, n); });
  return AlignedBuffer<float>(std::span(numbers), place_.home.device);
}

Matrix<float> WeightLoader::numbers(WeightSlice const& slice, std::size_t n, std::size_t k) const {
  Matrix<float> out(n, k);
  counted([&](WeightReader& reader) {
    reader.read(slice, n, k, [&](WeightRows const& rows) {
      auto const floats = to_floats({.name = slice.name,
                                     .dtype = rows.type,
                                     .shape = {rows.count, k},
                                     .bytes = {rows.data, rows.count * k * size_of(rows.type)},
                                     .owned = {}});
      std::ranges::copy(floats, out.view().row(rows.first));
    });
    return 0;
  });
  return out;
}

PackedMatrix WeightLoader::packed(MatrixView<float const> numbers) const {
  PackedMatrix out(format_, numbers.rows, numbers.cols, place_.home);
  bool const adjoin = numbers.stride == numbers.cols;  // then at once: a copy to a device has its price
  std::size_t const at_once = adjoin ? std::max<std::size_t>(numbers.rows, 1) : 1;
  for (std::size_t row = 0; row < numbers.rows; row += at_once)
    out.set_rows(row, at_once, DType::f32, reinterpret_cast<std::byte const*>(numbers.row(row)));
  return out;
}

StoredTensor WeightLoader::stored(std::string const& name, std::size_t rows, std::size_t k) const {
  std::array const shape{rows, k};
  StoredTensor tensor = source_.load(name, shape);
  on_bytes_(tensor.bytes.size());
  return tensor;
}

}  // namespace expertmesh
