#include "common/kernels/ffn_activation.h"

#include "common/base/check.h"
#include "common/kernels/device.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

void ffn_activation(Exec const& exec, ActivationSpec const& f, MatrixView<float const> in, MatrixView<float> out) {
  bool const gated = in.cols == 2 * out.cols;
  EM_CHECK((gated || (in.cols == out.cols && f.kind != Activation::clamped_silu)) && in.rows == out.rows,
           "in [" << in.rows << "," << in.cols << "], out [" << out.rows << "," << out.cols << "], activation "
                  << static_cast<int>(f.kind));
  if (Device* device = exec.device()) return device->ffn_activation(f, gated, in, out);
  exec.pool().parallel_for(out.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t) {
      float const* row = in.row(t);
      exec.table().activate(f, gated ? row : nullptr, gated ? row + out.cols : row, out.cols, out.row(t));
    }
  });
}

}  // namespace expertmesh
