// What this process may use of the machine.
#pragma once
#include <cstddef>
#include <string>

namespace expertmesh {

std::size_t available_memory_bytes();  // MemAvailable, bounded by what is left of the cgroup's limit
std::string host_name();

}  // namespace expertmesh
