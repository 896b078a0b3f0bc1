// MXFP4 and FP8 as bfloat16, the portable implementation: see mxfp4_panels.h, fp8_panels.h. Included by one .cpp only.
#pragma once
#include "common/kernels/fp8_panels.h"
#include "common/kernels/mxfp4_panels.h"

namespace expertmesh {
namespace {

// A group of 32 k; out: [16][16][2].
inline void decode_mxfp4(std::byte const* group, std::uint16_t* out) {
  decode_mxfp4_exactly(group, out);
}
// out: [2 steps][16][2]
inline void decode_fp8(Fp8Steps const& in, std::uint16_t* out) {
  decode_fp8_exactly(in, out);
}

}  // namespace
}  // namespace expertmesh
