// y = x W^T + bias with W packed. Row-invariant: row m of y depends on row m of x and on W alone, bit for bit, whatever
// M, the thread count and the split are: each output is one sum over k = 0, 1, … K-1 in order, and then the bias.
#pragma once
#include <span>

#include "common/kernels/exec.h"
#include "common/kernels/packed_matrix.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

struct PackedLinear {
  PackedMatrix w;             // [N,K]
  AlignedBuffer<float> bias;  // [N]; empty: none
  [[nodiscard]] std::size_t size_bytes() const { return w.size_bytes() + bias.size_bytes(); }
};

// x: [M,K] fp32 (converted as W's activation rule says), w: [N,K], bias: [N] or empty, y: [M,N] fp32. x and y may not
// overlap.
void linear(Exec const& exec, MatrixView<float const> x, PackedMatrix const& w, std::span<float const> bias,
            MatrixView<float> y);
inline void linear(Exec const& exec, MatrixView<float const> x, PackedMatrix const& w, MatrixView<float> y) {
  linear(exec, x, w, {}, y);
}
inline void linear(Exec const& exec, MatrixView<float const> x, PackedLinear const& l, MatrixView<float> y) {
  linear(exec, x, l.w, l.bias.span(), y);
}

}  // namespace expertmesh
