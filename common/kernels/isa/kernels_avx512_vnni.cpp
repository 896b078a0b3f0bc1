// AVX-512's kernels with products of bytes by VNNI.
#include "common/kernels/isa/dots_avx512_vnni.h"
#include "common/kernels/isa/whole_numbers_impl.h"

namespace expertmesh {
KernelTable const& avx512_vnni_kernels() {
  static KernelTable const table = with_whole_numbers(avx512_kernels());
  return table;
}
}  // namespace expertmesh
