#include "common/kernels/isa/decode_scalar.h"
#include "common/kernels/isa/vec_scalar.h"
// What is above decides what the loops below compile to.
#include "common/kernels/isa/kernels_impl.h"

namespace expertmesh {
KernelTable const& scalar_kernels() {
  return kTable;
}
}  // namespace expertmesh
