#include "common/kernels/layer_norm.h"

#include "common/base/check.h"
#include "common/kernels/device.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

void layer_norm(Exec const& exec, MatrixView<float const> x, std::span<float const> weight, std::span<float const> bias,
                float epsilon, MatrixView<float> out) {
  EM_CHECK(
      x.cols == weight.size() && (bias.empty() || bias.size() == x.cols) && out.cols == x.cols && out.rows == x.rows,
      "x [" << x.rows << "," << x.cols << "], weight " << weight.size() << ", bias " << bias.size());
  if (Device* device = exec.device()) return device->layer_norm(x, weight, bias, epsilon, out);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t)
      exec.table().layer_norm(x.row(t), weight.data(), bias.empty() ? nullptr : bias.data(), x.cols, epsilon,
                              out.row(t));
  });
}

}  // namespace expertmesh
