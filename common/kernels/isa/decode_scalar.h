// MXFP4 and FP8 as bfloat16, the portable implementation: see mxfp4_panels.h, fp8_panels.h. Included by one .cpp only.
#pragma once
#include "common/kernels/fp8_panels.h"
#include "common/kernels/mxfp4_panels.h"

namespace expertmesh {
namespace {

// out: [16 pairs][16][2], from pair to pair 2 kPanelColumns
inline void decode_mxfp4(Mxfp4Group const& in, std::uint16_t* out) {
  decode_mxfp4_exactly(in, out);
}
// out: [2 steps][16][2], the same
inline void decode_fp8(Fp8Steps const& in, std::uint16_t* out) {
  decode_fp8_exactly(in, out);
}

}  // namespace
}  // namespace expertmesh
