// What this process runs on.
#pragma once
#include <string>

namespace expertmesh {

std::string host_name();

}  // namespace expertmesh
