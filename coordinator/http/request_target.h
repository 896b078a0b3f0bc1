// What a request's target says.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace expertmesh {

// Path of a target: no scheme and host, no query, no doubled or trailing slash; decoded.
std::string path_of(std::string_view target);

// The value of the query's parameter of that name, not decoded; none: it is not there.
std::optional<std::string> query_value(std::string_view target, std::string_view name);

}  // namespace expertmesh
