// NEON's kernels with products of bytes by sdot.
#include "common/kernels/isa/dots_neon.h"
#include "common/kernels/isa/whole_numbers_impl.h"

namespace expertmesh {
KernelTable const& neon_dot_kernels() {
  static KernelTable const table = with_whole_numbers(neon_kernels());
  return table;
}
}  // namespace expertmesh
