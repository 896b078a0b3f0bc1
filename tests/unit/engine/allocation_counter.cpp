#include "tests/unit/engine/allocation_counter.h"

#include <cstdlib>
#include <new>

namespace {
thread_local std::size_t count = 0;
}  // namespace

namespace expertmesh::test {
std::size_t allocations_so_far() {
  return count;
}
}  // namespace expertmesh::test

void* operator new(std::size_t bytes) {
  ++count;
  if (void* p = std::malloc(bytes != 0 ? bytes : 1)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
