// The measurements run on every ISA with every thread; what they give is the machine's own business.
#include "common/kernels/machine_ceilings.h"

#include <cmath>

#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

class MachineCeilings : public EachIsa {};
EM_FOR_EACH_ISA(MachineCeilings);

TEST_P(MachineCeilings, AreFiniteAndPositive) {
  Rig rig(GetParam(), 3);
  for (std::size_t bytes : {std::size_t{1}, std::size_t{100'000}}) {
    double const read = measure_read_bandwidth(rig.exec, bytes, 2);
    EXPECT_TRUE(std::isfinite(read) && read > 0) << read;
  }
  for (DType type : {DType::f32, DType::bf16, DType::i8, DType::i4}) {
    double const flops = measure_peak_flops(rig.exec, type, 1);
    EXPECT_TRUE(std::isfinite(flops) && flops > 0) << flops;
  }
}

}  // namespace
}  // namespace expertmesh
