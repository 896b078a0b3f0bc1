// The bodies of answers, as OpenAI's API has them. Pure.
#pragma once
#include <string>

#include "common/base/error.h"
#include "coordinator/http/api_types.h"
#include "coordinator/http/http_server.h"
#include "coordinator/observe/metrics.h"

namespace expertmesh {

HttpResponse error_response(ApiError const& error);
std::string error_body(ApiError const& error);
std::string models_body(ApiModel const& model);
std::string model_body(ApiModel const& model);
std::string version_body(std::string const& version);
std::string activity_body(Metrics::Activity const& now);

}  // namespace expertmesh
