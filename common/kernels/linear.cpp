#include "common/kernels/linear.h"

#include "common/base/check.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/gemm.h"

namespace expertmesh {

void linear(Exec const& exec, MatrixView<float const> x, PackedMatrix const& w, std::span<float const> bias,
            MatrixView<float> y) {
  EM_CHECK(x.cols == w.k() && y.cols == w.n() && x.rows == y.rows && (bias.empty() || bias.size() == w.n()),
           "x [" << x.rows << "," << x.cols << "], w [" << w.n() << "," << w.k() << "], bias [" << bias.size()
                 << "], y [" << y.rows << "," << y.cols << "]");
  EM_CHECK(x.rows <= exec.limits().max_rows && x.cols <= exec.limits().max_columns, "M " << x.rows << ", K " << x.cols);
  if (Device* device = exec.device()) return device->linear(x, w.on_device(), bias, y);
  auto& scratch = exec.scratch();
  bool const as_is = meets_as_is(w.format(), DType::f32);
  if (!as_is)
    exec.pool().parallel_for(x.rows, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t m = begin; m < end; ++m) prepare_row(exec, w.format(), x.row(m), x.cols, scratch.input_row(m));
    });
  for (std::size_t m = 0; m < x.rows; ++m) {
    scratch.x_rows[m] = as_is ? x.row(m) : static_cast<void const*>(scratch.input_row(m));
    scratch.y_rows[m] = y.row(m);
  }
  run_gemms(exec, 1, [&](std::size_t) {
    return GemmJob{.w = w,
                   .bias = bias.empty() ? nullptr : bias.data(),
                   .x = scratch.x_rows.data(),
                   .y = scratch.y_rows.data(),
                   .m = x.rows};
  });
}

}  // namespace expertmesh
