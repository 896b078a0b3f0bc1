// OLMoE (Muennighoff et al. 2024): q/k norm over the whole projection, q, k and v held within +-clip_qkv.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_olmoe(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-5F});
  RouterSpec router = read_router_size(config);
  router.normalisation =
      config.flag_or("norm_topk_prob", false) ? RouterNormalisation::sum_to_one : RouterNormalisation::none;
  auto const spans = read_spans(config, f.layers, {});
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  bool const bias = config.flag_or("attention_bias", false);
  std::optional<float> clip;
  if (config.has("clip_qkv")) {
    clip = static_cast<float>(config.number_or("clip_qkv", 0));
    if (!(*clip > 0)) config.refuse("clip_qkv", "must be positive");
  }
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer =
        layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .qk_norm = QkNormScope::projection, .span = spans[l]});
    std::get<GroupedProjection>(layer.attention.projection).clip = clip;
    std::string const prefix = layer_prefix(l) + "mlp.";
    layer.ffn = MoeFfnSpec{.router = router,
                           .router_weight = prefix + "gate.weight",
                           .intermediate = intermediate,
                           .activation = f.activation,
                           .experts = experts_of(f, prefix, router.num_experts, {"gate_proj", "up_proj", "down_proj"})};
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
