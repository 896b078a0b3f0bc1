// Phi-3.5-MoE (Microsoft 2024): SparseMixer's choice of two experts, layer norms with biases, biases everywhere but in
// the experts, longrope.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

NormSpec layer_norm(std::string const& module, float epsilon) {
  return {.weight = module + ".weight", .epsilon = epsilon, .kind = NormKind::layer, .bias = module + ".bias"};
}

}  // namespace

ModelSpec build_phimoe(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields f = read_common_fields(config, {.rope_theta = 1e6, .norm_epsilon = 1e-5F});
  // The reference implementation never takes the long factors; only the magnitude follows the length.
  if (f.rope.kind == RopeKind::longrope) f.rope.long_factors = f.rope.short_factors;
  RouterSpec router = read_router_size(config);
  if (router.experts_per_token != 2) config.refuse("num_experts_per_tok", "this family chooses two");
  router.scoring = RouterScoring::sparsemixer;
  router.normalisation = RouterNormalisation::none;
  router.sparse_mixer.jitter = static_cast<float>(config.number_or("router_jitter_noise", 0.01));
  if (router.sparse_mixer.jitter < 0) config.refuse("router_jitter_noise", "must not be negative");
  config.without_effect({"input_jitter_noise"});  // multiplies the input in training only
  auto const spans = read_spans(config, f.layers, {.rule = WindowRule::every_layer, .obeys_layer_types = false});
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  bool const bias = config.flag_or("attention_bias", false);
  ModelSpec spec = model_of(f);
  spec.stacks.front().final_norm = layer_norm("model.norm", f.epsilon);
  if (config.flag_or("lm_head_bias", false)) spec.lm_head_bias = "lm_head.bias";
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .span = spans[l]});
    layer.input_norm = layer_norm(layer_prefix(l) + "input_layernorm", f.epsilon);
    layer.post_attention_norm = layer_norm(layer_prefix(l) + "post_attention_layernorm", f.epsilon);
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
