// AVX2's kernels with products of bytes by AVX-VNNI.
#include "common/kernels/isa/dots_avx_vnni.h"
#include "common/kernels/isa/whole_numbers_impl.h"

namespace expertmesh {
KernelTable const& avx_vnni_kernels() {
  static KernelTable const table = with_whole_numbers(avx2_kernels());
  return table;
}
}  // namespace expertmesh
