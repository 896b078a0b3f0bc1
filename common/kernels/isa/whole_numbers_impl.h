// The kernels that multiply whole numbers, of whichever ISA was included before.
#pragma once
#include "common/kernels/isa/gemm_int4_impl.h"
#include "common/kernels/isa/gemm_int8_impl.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// Those of another ISA that has the same accumulators, but for these.
inline KernelTable with_whole_numbers(KernelTable table) {
  table.gemm_int8 = gemm<GemmInt8>;
  table.gemm_int4 = gemm<GemmInt4>;
  table.quantise_int8 = quantise_int8;
  table.quantise_for_int4 = quantise_for_int4;
  table.peak_int8 = peak_int8;
  table.peak_int4 = peak_int4;
  return table;
}

}  // namespace
}  // namespace expertmesh
