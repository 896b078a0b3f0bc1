// A weight of its own for each head. Row-invariant as linear() is.
#pragma once
#include <cstddef>
#include <span>

#include "common/kernels/exec.h"
#include "common/kernels/packed_matrix.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

// Columns [i * stride, i * stride + count) of a matrix belong to head i; count is K or N of the weights.
struct HeadColumns {
  std::size_t x_stride = 0;
  std::size_t y_stride = 0;
};

// y of head i = x of head i times w[i]^T. x: fp32 (converted as the weights' activation rule says), y: fp32, both with
// as many rows. w: [Q] matrices [N,K] of one format. x and y may not overlap.
void headwise_linear(Exec const& exec, MatrixView<float const> x, std::span<PackedMatrix const> w,
                     HeadColumns const& columns, MatrixView<float> y);

}  // namespace expertmesh
