// gpt-oss (OpenAI 2025): attention sinks, a window in every second layer, biases everywhere, experts with a clamped
// SwiGLU whose gate and up lie in alternate rows, in bf16 or MXFP4.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"
#include "coordinator/model/families/rope_fields.h"

namespace expertmesh {
namespace {

FfnTensors expert_of(CommonFields const& f, std::string const& prefix, std::size_t intermediate, std::size_t stack,
                     std::size_t index) {
  bool const quantised = f.weights.quantises(prefix + "gate_up_proj");
  WeightSlice gate{.name = prefix + "gate_up_proj",
                   .stack = stack,
                   .index = index,
                   .stored_rows = 2 * intermediate,
                   .row_step = 2,
                   .transposed = !quantised,  // bf16 [E,H,2F], MXFP4 [E,2F,H]
                   .storage = quantised ? WeightStorage::mxfp4 : WeightStorage::numbers};
  WeightSlice up = gate;
  up.first_row = 1;
  WeightSlice down = gate;
  down.name = prefix + "down_proj";
  down.stored_rows = 0;
  down.row_step = 1;
  VectorSlice const gate_bias{.name = prefix + "gate_up_proj_bias",
                              .stack = stack,
                              .index = index,
                              .stored_length = 2 * intermediate,
                              .step = 2};
  VectorSlice up_bias = gate_bias;
  up_bias.first = 1;
  return {.gate = gate,
          .up = up,
          .down = down,
          .gate_bias = gate_bias,
          .up_bias = up_bias,
          .down_bias = VectorSlice{.name = prefix + "down_proj_bias", .stack = stack, .index = index}};
}

}  // namespace

ModelSpec build_gpt_oss(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields f = read_common_fields(config, {.rope_theta = 150000.0, .norm_epsilon = 1e-5F, .head_dim = 64});
  if (!config.has("rope_scaling") && !config.has("rope_parameters"))
    f.rope = {.kind = RopeKind::yarn,
              .theta = f.rope.theta,
              .rotary_dim = f.rope.rotary_dim,
              .factor = 32.0,
              .original_max_position = 4096,
              .truncate = false,
              .magnitude = static_cast<float>(yarn_magnitude(32.0, 1.0))};
  RouterSpec router = read_router_size(config, {.experts_per_token = {"num_experts_per_tok", "experts_per_token"}});
  router.scoring = RouterScoring::none;
  router.normalisation = RouterNormalisation::softmax_of_chosen;
  bool const bias = config.flag_or("attention_bias", true);
  auto const spans = read_spans(config, f.layers, {.rule = WindowRule::even_layers, .window = 128});
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  if (f.weights.storage() != WeightStorage::numbers && f.weights.storage() != WeightStorage::mxfp4)
    config.refuse("quantization_config", "experts in this format are not supported here");
  if (f.weights.storage() == WeightStorage::mxfp4)
    for (auto const& [field, size] : {std::pair("hidden_size", f.hidden), std::pair("intermediate_size", intermediate)})
      if (size % kMxfp4Group != 0)
        config.refuse(field, std::to_string(size) + " is no multiple of " + std::to_string(kMxfp4Group) +
                                 ", which MXFP4 weights need");
  if (f.activation.kind != Activation::silu) config.refuse("hidden_act", "this family has its own");
  ActivationSpec const activation{.kind = Activation::clamped_silu,
                                  .alpha = static_cast<float>(config.number_or("swiglu_alpha", 1.702)),
                                  .limit = static_cast<float>(config.number_or("swiglu_limit", 7.0))};
  if (!(activation.limit > 0)) config.refuse("swiglu_limit", "must be positive");
  config.without_effect({"initial_context_length"});
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .span = spans[l]});
    layer.attention.sinks = layer_prefix(l) + "self_attn.sinks";
    std::string const prefix = layer_prefix(l) + "mlp.";
    MoeFfnSpec moe{.router = router,
                   .router_weight = prefix + "router.weight",
                   .router_bias = VectorSlice{prefix + "router.bias"},
                   .intermediate = intermediate,
                   .activation = activation};
    for (std::size_t e = 0; e < router.num_experts; ++e)
      moe.experts.push_back(expert_of(f, prefix + "experts.", intermediate, router.num_experts, e));
    layer.ffn = std::move(moe);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
