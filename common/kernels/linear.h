// y = x W^T with W packed. Row-invariant: row m of y depends on row m of x and on W alone, bit for bit, whatever M, the
// thread count and the split are: each output is one sum over k = 0, 1, … K-1 in order.
#pragma once
#include "common/kernels/exec.h"
#include "common/kernels/packed_matrix.h"
#include "common/tensor/tensor.h"

namespace expertmesh {
// x: [M,K] fp32 (converted as W's activation rule says), w: [N,K], y: [M,N] fp32. x and y may not overlap.
void linear(Exec const& exec, MatrixView<float const> x, PackedMatrix const& w, MatrixView<float> y);
}  // namespace expertmesh
