// How a checkpoint stores the weights of its linear modules, as quantization_config says.
#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "common/config/weight_slice.h"
#include "coordinator/model/config_reader.h"
#include "coordinator/model/families/module_pattern.h"

namespace expertmesh {

class StoredWeights {
 public:
  StoredWeights() = default;  // all as numbers
  // Reads quantization_config: none, fp8 in blocks, mxfp4, awq, gptq, compressed-tensors. Throws ModelError for any
  // other, and naming the field for what is not supported of these.
  explicit StoredWeights(ConfigReader& config);

  // The weight of a linear module: "<module>.weight", or the module where its weights are integers. Throws ModelError
  // if the config says two things of it.
  [[nodiscard]] WeightSlice weight(std::string const& module) const;
  // The same for the LM head, which most methods leave alone.
  [[nodiscard]] WeightSlice head(std::string const& module) const;
  // Whether this module's weights are quantised.
  [[nodiscard]] bool quantises(std::string const& module) const { return form_of(module).has_value(); }
  // Of quantised modules, of the first kind of them if there are several; numbers: none is quantised.
  [[nodiscard]] WeightStorage storage() const;

 private:
  // The modules that a pattern names are stored like `form`, which has no name; none: as numbers.
  struct Rule {
    ModulePattern modules;
    std::optional<WeightSlice> form;
  };
  void read_fp8(ConfigReader& config);
  void read_awq(ConfigReader& config);
  void read_gptq(ConfigReader& config);
  void read_compressed(ConfigReader& config);
  void keep(ConfigReader& config, std::vector<std::string_view> const& fields, PatternKind kind);
  void add_all(WeightSlice form);
  [[nodiscard]] std::optional<WeightSlice> form_of(std::string const& module) const;

  std::vector<Rule> rules_;        // the first one that matches decides
  std::size_t num_unordered_ = 0;  // of them, from the front: no two of these may contradict each other
  bool head_like_the_others_ = false;
};

}  // namespace expertmesh
