// Takes the coordinator's own tensors out of a WeightSource: packed for the GEMMs, or as floats, counting bytes.
#pragma once
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "common/kernels/packed_matrix.h"

namespace expertmesh {

class WeightLoader {
 public:
  // on_bytes hears the checkpoint bytes read since the last call.
  WeightLoader(WeightSource const& source, WeightFormat format, std::function<void(std::size_t)> on_bytes)
      : source_(source), format_(format), on_bytes_(std::move(on_bytes)) {}

  struct Part {
    std::string const& name;
    std::size_t rows;
  };
  // Stacks parts of [rows,K] each into one [sum of rows, K] matrix in the profile's format.
  [[nodiscard]] PackedMatrix packed(std::initializer_list<Part> parts, std::size_t k) const {
    return packed(format_, parts, k);
  }
  // Routers stay in fp32 whatever the profile: their logits decide, and they are small.
  [[nodiscard]] PackedMatrix packed_float32(Part part, std::size_t k) const {
    return packed(kFloat32Weights, {part}, k);
  }
  [[nodiscard]] std::vector<float> floats(std::string const& name, std::size_t n) const;
  // [rows,K] as stored, for row lookups.
  [[nodiscard]] StoredTensor stored(std::string const& name, std::size_t rows, std::size_t k) const;

 private:
  [[nodiscard]] PackedMatrix packed(WeightFormat format, std::initializer_list<Part> parts, std::size_t k) const;
  WeightSource const& source_;
  WeightFormat format_;
  std::function<void(std::size_t)> on_bytes_;
};

}  // namespace expertmesh
