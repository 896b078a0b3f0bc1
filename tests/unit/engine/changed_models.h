// Checkpoints with one thing changed: each has to be another model than the reference's, or none.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>
#include <string>

#include "tests/support/model_copy.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh::test {

// Literals only: lists of a hundred JSON values take a minute to compile.
struct Knob {
  char const* model;
  char const* what;   // JSON pointer to a value of config.json
  char const* value;  // JSON text
};
struct LoneTensor {
  char const* model;
  char const* what;  // the tensor's name
};

class ChangedModel : public ModelCopy {
 public:
  explicit ChangedModel(Knob const& knob) : ModelCopy(knob.model) {
    edit_config([&](nlohmann::json& config) {
      config.at(nlohmann::json::json_pointer(knob.what)) = nlohmann::json::parse(knob.value);
    });
  }
  explicit ChangedModel(LoneTensor const& tensor) : ModelCopy(tensor.model) { zero_tensor(tensor.what); }
};

inline void PrintTo(Knob const& knob, std::ostream* out) {
  *out << knob.model << " " << knob.what << " = " << knob.value;
}
inline void PrintTo(LoneTensor const& tensor, std::ostream* out) {
  *out << tensor.model << " " << tensor.what;
}

// What must not stay as it was: the checkpoint fits no more, or the logits are others. logit_error: of a model that is
// made of it.
template <class LogitError>
void expect_other_model(LogitError const& logit_error) {
  try {
    EXPECT_GT(logit_error(), 2 * kTolerance);
  } catch (ModelError const& refused) {
    SUCCEED() << refused.what();
  }
}

// As GoogleTest takes names.
template <class Change>
std::string name_of_change(testing::TestParamInfo<Change> const& info) {
  std::string name = std::string(info.param.model) + "_" + info.param.what + "_" + std::to_string(info.index);
  std::ranges::replace_if(
      name, [](char c) { return c == '-' || c == '.' || c == '/'; }, '_');
  return name;
}

}  // namespace expertmesh::test
