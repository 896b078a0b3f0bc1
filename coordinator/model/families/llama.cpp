// Dense Llama (Touvron et al. 2023): no experts, the FFN runs on the coordinator.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_llama(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F});
  bool const bias = config.flag_or("attention_bias", false);
  DenseFfnOptions const ffn{.intermediate = config.count("intermediate_size", kMostColumns),
                            .bias = config.flag_or("mlp_bias", false)};
  auto const spans = read_spans(config, f.layers, {});
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .span = spans[l]});
    layer.ffn = dense_ffn_of(f, layer_prefix(l) + "mlp.", ffn);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
