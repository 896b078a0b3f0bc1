// Qwen1.5 and Qwen2 MoE (Qwen team 2024): biases of q, k and v; beside the routed experts a shared one, whose output a
// gate of its own weighs.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_qwen2_moe(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F});
  RouterSpec router = read_router_size(config);
  router.normalisation =
      config.flag_or("norm_topk_prob", false) ? RouterNormalisation::sum_to_one : RouterNormalisation::none;
  auto const spans = read_spans(
      config, f.layers, {.rule = WindowRule::even_below_max_window_layers, .needs_switch = true, .window = 4096});
  std::size_t const dense_intermediate = config.count("intermediate_size", kMostColumns);
  std::size_t const intermediate = config.count("moe_intermediate_size", kMostColumns);
  std::size_t const shared_intermediate = config.count("shared_expert_intermediate_size", kMostColumns);
  auto const sparse = read_sparse_layers(config, f.layers);
  bool const bias = config.flag_or("qkv_bias", true);
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .span = spans[l]});
    std::string const prefix = layer_prefix(l) + "mlp.";
    if (sparse[l])
      layer.ffn =
          MoeFfnSpec{.router = router,
                     .router_weight = prefix + "gate.weight",
                     .intermediate = intermediate,
                     .activation = f.activation,
                     .experts = experts_of(f, prefix, router.num_experts, {"gate_proj", "up_proj", "down_proj"}),
                     .shared = SharedExpertSpec{
                         .ffn = dense_ffn_of(f, prefix + "shared_expert.", {.intermediate = shared_intermediate}),
                         .gate = prefix + "shared_expert_gate.weight"}};
    else
      layer.ffn = dense_ffn_of(f, prefix, {.intermediate = dense_intermediate});
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
