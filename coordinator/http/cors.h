// What a browser needs to hear before it lets a page of another origin use an API.
#pragma once
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace expertmesh {

// Headers of every answer. allowed_origin: "*", or one origin; none: there are none.
std::vector<std::pair<std::string, std::string>> cors_headers(std::optional<std::string> const& allowed_origin);

}  // namespace expertmesh
