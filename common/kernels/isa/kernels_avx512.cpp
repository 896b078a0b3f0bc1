#include "common/kernels/isa/decode_avx2.h"
#include "common/kernels/isa/dots_avx512.h"
// What is above decides what the loops below compile to.
#include "common/kernels/isa/kernels_impl.h"

namespace expertmesh {
KernelTable const& avx512_kernels() {
  return kTable;
}
}  // namespace expertmesh
