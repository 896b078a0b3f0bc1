// ExpertModelSpec as JSON, for `assign`: fields at their default are left out, and a weight that is a whole tensor of
// plain numbers is its name alone (a model of 58 layers and 256 experts has 45,000 of them). Private to
// common/protocol.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "common/config/expert_spec.h"

namespace expertmesh::control {

nlohmann::json model_to_json(ExpertModelSpec const& model);
// where: path for error messages. Throws MessageError: see decode().
ExpertModelSpec model_from_json(nlohmann::json const& object, std::string const& where);

}  // namespace expertmesh::control
