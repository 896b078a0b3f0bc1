// How a checkpoint stores the weights of its linear modules, as quantization_config says.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "common/config/weight_slice.h"
#include "coordinator/model/config_reader.h"

namespace expertmesh {

class StoredWeights {
 public:
  StoredWeights() = default;  // all as numbers
  // Reads quantization_config: none, fp8 in blocks, mxfp4. Throws ModelError for any other.
  explicit StoredWeights(ConfigReader& config);

  // "<module>.weight" of a linear module.
  [[nodiscard]] WeightSlice weight(std::string const& module) const;
  // Whether this module's weights are quantised.
  [[nodiscard]] bool quantises(std::string const& module) const;
  [[nodiscard]] WeightStorage storage() const { return storage_; }

 private:
  WeightStorage storage_ = WeightStorage::numbers;
  std::size_t block_rows_ = 0;  // fp8
  std::size_t block_columns_ = 0;
  std::vector<std::string> kept_;  // modules_to_not_convert: components of names, * for anything
};

}  // namespace expertmesh
