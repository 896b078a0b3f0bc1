// What this process may still allocate.
#pragma once
#include <cstddef>

namespace expertmesh {

std::size_t available_memory_bytes();  // MemAvailable, bounded by what is left of the cgroup's limit

}  // namespace expertmesh
