// Dense Mistral (Jiang et al. 2023): Llama with a sliding window.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_mistral(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F});
  auto const spans =
      read_spans(config, f.layers, {.rule = WindowRule::every_layer, .obeys_layer_types = false, .window = 4096});
  DenseFfnOptions const ffn{.intermediate = config.count("intermediate_size", kMostColumns)};
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.span = spans[l]});
    layer.ffn = dense_ffn_of(f, layer_prefix(l) + "mlp.", ffn);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
