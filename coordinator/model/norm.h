// A normalisation with its weights, of whichever kind the spec says.
#pragma once
#include <cstddef>

#include "common/kernels/exec.h"
#include "common/tensor/tensor.h"
#include "coordinator/model/model_spec.h"
#include "coordinator/model/weight_loader.h"

namespace expertmesh {

class Norm {
 public:
  Norm(NormSpec const& spec, std::size_t columns, WeightLoader const& loader);
  // x, out: [T,columns]; out may be x.
  void forward(Exec const& exec, MatrixView<float const> x, MatrixView<float> out) const;
  [[nodiscard]] std::size_t size_bytes() const { return (weight_.size() + bias_.size()) * sizeof(float); }

 private:
  NormKind kind_;
  float epsilon_;
  AlignedBuffer<float> weight_;  // [columns]
  AlignedBuffer<float> bias_;    // [columns] or empty
};

}  // namespace expertmesh
