#include "common/kernels/rms_norm.h"

#include "common/base/check.h"
#include "common/kernels/device.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

void rms_norm(Exec const& exec, MatrixView<float const> x, std::span<float const> weight, float epsilon,
              MatrixView<float> out) {
  EM_CHECK(x.cols == weight.size() && out.cols == x.cols && out.rows == x.rows,
           "x [" << x.rows << "," << x.cols << "], weight " << weight.size());
  if (Device* device = exec.device()) return device->rms_norm(x, 1, weight, epsilon, out);
  exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = begin; t < end; ++t)
      exec.table().rms_norm(x.row(t), weight.data(), x.cols, epsilon, out.row(t));
  });
}

void rms_norm_heads(Exec const& exec, MatrixView<float> x, std::size_t num_heads, std::span<float const> weight,
                    float epsilon) {
  std::size_t const head_dim = x.cols / num_heads;
  EM_CHECK(x.cols == num_heads * head_dim && (weight.empty() || weight.size() == head_dim),
           "x [" << x.rows << "," << x.cols << "], " << num_heads << " heads, weight " << weight.size());
  if (Device* device = exec.device()) return device->rms_norm(x, num_heads, weight, epsilon, x);
  exec.pool().parallel_for(x.rows * num_heads, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t i = begin; i < end; ++i) {
      float* head = x.row(i / num_heads) + i % num_heads * head_dim;
      exec.table().rms_norm(head, weight.empty() ? nullptr : weight.data(), head_dim, epsilon, head);
    }
  });
}

}  // namespace expertmesh
