#include "coordinator/model/weight_loader.h"

#include <array>

namespace expertmesh {

PackedMatrix WeightLoader::packed(WeightFormat format, std::initializer_list<Part> parts, std::size_t k) const {
  std::size_t total = 0;
  for (auto const& part : parts) total += part.rows;
  PackedMatrix matrix(format, total, k);
  std::size_t row = 0;
  for (auto const& part : parts) {
    StoredTensor const tensor = stored(part.name, part.rows, k);
    matrix.set_rows(row, part.rows, tensor.dtype, tensor.bytes.data());
    row += part.rows;
  }
  return matrix;
}

std::vector<float> WeightLoader::floats(std::string const& name, std::size_t n) const {
  std::array const shape{n};
  StoredTensor const tensor = source_.load(name, shape);
  on_bytes_(tensor.bytes.size());
  return to_floats(tensor);
}

StoredTensor WeightLoader::stored(std::string const& name, std::size_t rows, std::size_t k) const {
  std::array const shape{rows, k};
  StoredTensor tensor = source_.load(name, shape);
  on_bytes_(tensor.bytes.size());
  return tensor;
}

}  // namespace expertmesh
