#include "common/kernels/swiglu.h"

#include "common/base/check.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

void swiglu(Exec const& exec, Activation activation, MatrixView<float const> gate_up, MatrixView<float> out) {
  EM_CHECK(activation == Activation::silu && gate_up.cols == 2 * out.cols && gate_up.rows == out.rows,
           "gate and up [" << gate_up.rows << "," << gate_up.cols << "], out [" << out.rows << "," << out.cols << "]");
  exec.pool().parallel_for(out.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t)
      exec.table().swiglu(gate_up.row(t), gate_up.row(t) + out.cols, out.cols, out.row(t));
  });
}

}  // namespace expertmesh
