#include "coordinator/model/norm.h"

#include "common/kernels/layer_norm.h"
#include "common/kernels/rms_norm.h"

namespace expertmesh {

Norm::Norm(NormSpec const& spec, std::size_t columns, WeightLoader const& loader)
    : kind_(spec.kind), epsilon_(spec.epsilon), weight_(loader.floats(spec.weight, columns)) {
  if (spec.bias) bias_ = loader.floats(*spec.bias, columns);
}

void Norm::forward(Exec const& exec, MatrixView<float const> x, MatrixView<float> out) const {
  if (kind_ == NormKind::rms)
    rms_norm(exec, x, weight_.span(), epsilon_, out);
  else
    layer_norm(exec, x, weight_.span(), bias_.span(), epsilon_, out);
}

}  // namespace expertmesh
