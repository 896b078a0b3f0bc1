#include "common/kernels/isa/decode_scalar.h"
#include "common/kernels/isa/dots_neon.h"
// What is above decides what the loops below compile to.
#include "common/kernels/isa/kernels_impl.h"

namespace expertmesh {
KernelTable const& neon_kernels() {
  return kTable;
}
}  // namespace expertmesh
