// What this processor can run. Private to common/kernels.
#pragma once
#include "common/kernels/exec.h"

namespace expertmesh {

// Whether it has the instructions of the ISA, and the system lets this process use them.
bool processor_runs(Isa isa);

}  // namespace expertmesh
