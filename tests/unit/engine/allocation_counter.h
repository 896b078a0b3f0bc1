// Counts this thread's calls of operator new, which the test program replaces.
#pragma once
#include <cstddef>

namespace expertmesh::test {
std::size_t allocations_so_far();
}  // namespace expertmesh::test
