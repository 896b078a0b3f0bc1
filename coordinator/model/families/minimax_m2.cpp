// MiniMax-M2 (2025): sigmoid scores with a bias for the choice, half of each head rotated, q/k norm over all heads.
#include <algorithm>

#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

// What published configs say and this family cannot do otherwise.
void check_fixed_fields(ConfigReader& config) {
  auto const types = config.indices("attn_type_list");
  if (std::ranges::any_of(types, [](std::size_t type) { return type != 1; }))
    config.refuse("attn_type_list", "only layers of type 1 (softmax attention) are supported");
  if (!config.flag_or("use_qk_norm", true)) config.refuse("use_qk_norm", "false is not supported");
  if (auto const type = config.text_or("qk_norm_type", "per_layer"); type != "per_layer")
    config.refuse("qk_norm_type", "'" + type + "' is not supported");
  if (!config.flag_or("use_routing_bias", true)) config.refuse("use_routing_bias", "false is not supported");
  for (auto const field : {"layernorm_full_attention_beta", "layernorm_linear_attention_beta", "layernorm_mlp_beta"})
    if (config.number_or(field, 1.0) != 1.0) config.refuse(field, "only 1 is supported");
  // Layers that predict further tokens are not in the published checkpoints; nor is there a dense FFN.
  config.without_effect(
      {"use_mtp", "num_mtp_modules", "mtp_transformer_layers", "mlp_intermediate_size", "router_jitter_noise"});
}

}  // namespace

ModelSpec build_minimax_m2(ConfigReader& config, ModelOptions const& /*options*/) {
  FamilyDefaults defaults{.rope_theta = 5e6, .norm_epsilon = 1e-6F, .head_dim = 128, .partial_rotation = true};
  if (auto const rotary = config.optional_count("rotary_dim"))
    defaults.partial_rotary_factor =
        static_cast<double>(*rotary) / static_cast<double>(config.count_or("head_dim", *defaults.head_dim));
  CommonFields const f = read_common_fields(config, defaults);
  check_fixed_fields(config);
  RouterSpec router = read_router_size(config, {.scoring = "sigmoid"});
  router.scoring = RouterScoring::sigmoid;
  auto const spans = read_spans(config, f.layers, {});
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qk_norm = QkNormScope::projection, .span = spans[l]});
    std::string const prefix = layer_prefix(l) + "block_sparse_moe.";
    layer.ffn = MoeFfnSpec{.router = router,
                           .router_weight = prefix + "gate.weight",
                           .selection_bias = VectorSlice{prefix + "e_score_correction_bias"},
                           .intermediate = intermediate,
                           .activation = f.activation,
                           .experts = experts_of(f, prefix, router.num_experts, {"w1", "w3", "w2"})};
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
