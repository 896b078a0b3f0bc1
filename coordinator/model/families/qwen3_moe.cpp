// Qwen3 MoE (Qwen team 2025): q/k norm per head, dense layers where `mlp_only_layers` or `decoder_sparse_step` say so.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_qwen3_moe(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F});
  RouterSpec router = read_router_size(config);
  router.normalisation =
      config.flag_or("norm_topk_prob", false) ? RouterNormalisation::sum_to_one : RouterNormalisation::none;
  auto const spans =
      read_spans(config, f.layers,
                 {.rule = WindowRule::every_layer, .needs_switch = true, .obeys_layer_types = false, .window = 4096});
  config.without_effect({"max_window_layers"});  // the reference implementation slides in all layers or none
  std::size_t const dense_intermediate = config.count("intermediate_size", kMostColumns);
  std::size_t const intermediate = config.count("moe_intermediate_size", kMostColumns);
  auto const sparse = read_sparse_layers(config, f.layers);
  bool const bias = config.flag_or("attention_bias", false);
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer =
        layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .qk_norm = QkNormScope::head, .span = spans[l]});
    std::string const prefix = layer_prefix(l) + "mlp.";
    if (sparse[l])
      layer.ffn =
          MoeFfnSpec{.router = router,
                     .router_weight = prefix + "gate.weight",
                     .intermediate = intermediate,
                     .activation = f.activation,
                     .experts = experts_of(f, prefix, router.num_experts, {"gate_proj", "up_proj", "down_proj"})};
    else
      layer.ffn = dense_ffn_of(f, prefix, {.intermediate = dense_intermediate});
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
