// Mixtral (Jiang et al. 2024): a mixture in every layer, softmax over all experts, top-k, renormalised.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_mixtral(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 1e6, .norm_epsilon = 1e-5F});
  RouterSpec const router = read_router_size(config);
  auto const spans = read_spans(config, f.layers, {.rule = WindowRule::every_layer, .obeys_layer_types = false});
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  config.without_effect({"router_jitter_noise"});  // multiplies the input in training only
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.span = spans[l]});
    std::string const prefix = layer_prefix(l) + "block_sparse_moe.";
    layer.ffn = MoeFfnSpec{.router = router,
                           .router_weight = prefix + "gate.weight",
                           .intermediate = intermediate,
                           .activation = f.activation,
                           .experts = experts_of(f, prefix, router.num_experts, {"w1", "w3", "w2"})};
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
