// JSON bodies -> ApiRequest, or a 4xx that names the field. Pure.
#pragma once
#include <string>

#include "common/base/error.h"
#include "coordinator/http/api_types.h"

namespace expertmesh {
Result<ApiRequest> parse_completion(std::string const& body, ApiModel const& model);
Result<ApiRequest> parse_chat(std::string const& body, ApiModel const& model);
}  // namespace expertmesh
