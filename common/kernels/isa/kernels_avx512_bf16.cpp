#include "common/kernels/isa/decode_avx512_bf16.h"
#include "common/kernels/isa/vec_avx512_bf16.h"
// The Vec above decides what the loops below compile to.
#include "common/kernels/isa/kernels_impl.h"

namespace expertmesh {
KernelTable const& avx512_bf16_kernels() {
  return kTable;
}
}  // namespace expertmesh
