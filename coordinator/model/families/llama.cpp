// Dense Llama (Touvron et al. 2023): no experts, the FFN runs on the coordinator.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_llama(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .rms_norm_eps = 1e-6F});
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {});
    layer.ffn = dense_ffn_of(layer_prefix(l) + "mlp.", intermediate);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
