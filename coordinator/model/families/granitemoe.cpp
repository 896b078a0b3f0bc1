// Granite MoE (IBM 2024), and with a shared expert: Mixtral's layers with four multipliers and the experts of a layer
// stacked in two tensors, gate and up fused.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

float multiplier(ConfigReader& config, std::string_view field) {
  double const value = config.number_or(field, 1.0);
  if (value == 0) config.refuse(field, "must not be 0");
  return static_cast<float>(value);
}

// Rows [0,F) of a fused input_linear are the gate, [F,2F) up.
FfnTensors fused_ffn(std::string const& prefix, std::size_t intermediate, std::size_t stack, std::size_t index) {
  WeightSlice const gate{
      .name = prefix + "input_linear.weight", .stack = stack, .index = index, .stored_rows = 2 * intermediate};
  WeightSlice up = gate;
  up.first_row = intermediate;
  return {.gate = gate, .up = up, .down = {.name = prefix + "output_linear.weight", .stack = stack, .index = index}};
}

ModelSpec build(ConfigReader& config, std::size_t shared_intermediate) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F});
  RouterSpec router = read_router_size(config);
  router.scoring = RouterScoring::none;
  router.normalisation = RouterNormalisation::softmax_of_chosen;
  if (f.weights.storage() != WeightStorage::numbers)
    config.refuse("quantization_config", "stacked experts in this format are not supported");
  auto const spans = read_spans(config, f.layers, {});
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  bool const bias = config.flag_or("attention_bias", false);
  float const residual = multiplier(config, "residual_multiplier");
  float const attention = multiplier(config, "attention_multiplier");
  ModelSpec spec = model_of(f);
  spec.embedding_multiplier = multiplier(config, "embedding_multiplier");
  spec.logit_multiplier = 1.0F / multiplier(config, "logits_scaling");
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .span = spans[l]});
    layer.attention.softmax_scale = attention;
    layer.residual_multiplier = residual;
    std::string const prefix = layer_prefix(l) + "block_sparse_moe.";
    MoeFfnSpec moe{.router = router,
                   .router_weight = prefix + "router.layer.weight",
                   .intermediate = intermediate,
                   .activation = f.activation};
    for (std::size_t e = 0; e < router.num_experts; ++e)
      moe.experts.push_back(fused_ffn(prefix, intermediate, router.num_experts, e));
    if (shared_intermediate > 0)
      moe.shared =
          SharedExpertSpec{.ffn = {.intermediate = shared_intermediate,
                                   .activation = f.activation,
                                   .tensors = fused_ffn(layer_prefix(l) + "shared_mlp.", shared_intermediate, 0, 0)}};
    layer.ffn = std::move(moe);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace

ModelSpec build_granitemoe(ConfigReader& config, ModelOptions const& /*options*/) {
  return build(config, 0);
}

ModelSpec build_granitemoeshared(ConfigReader& config, ModelOptions const& /*options*/) {
  return build(config, config.has("shared_intermediate_size") ? config.index("shared_intermediate_size") : 0);
}

}  // namespace expertmesh
