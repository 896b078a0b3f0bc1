// DeepSeek-V2 and DeepSeek-V3 (DeepSeek-AI 2024): multi-head latent attention; mixtures with shared experts, V2 with
// softmax scores and groups compared by their best expert, V3 with sigmoids and a bias for the choice.
#include <cmath>

#include "coordinator/model/families/deepseek_fields.h"
#include "coordinator/model/families/families.h"
#include "coordinator/model/families/rope_fields.h"

namespace expertmesh {
namespace {

constexpr float kLatentNormEpsilon = 1e-6F;  // of the latents' norms, whatever rms_norm_eps says

struct LatentFields {
  std::size_t q_rank, kv_rank, nope_dim, rope_dim, value_dim;
  float softmax_scale;
  bool bias;
};

LatentFields read_latent_fields(ConfigReader& config, CommonFields& f, bool interleaved) {
  LatentFields a{};
  // DeepSeek-V2-Lite has no latent of queries: null.
  a.q_rank = config.optional_count("q_lora_rank").value_or(0);
  a.kv_rank = config.count("kv_lora_rank", kMostColumns);
  a.nope_dim = config.count("qk_nope_head_dim", kMostColumns);
  a.rope_dim = config.count("qk_rope_head_dim", kMostColumns);
  a.value_dim = config.count("v_head_dim", kMostColumns);
  a.bias = config.flag_or("attention_bias", false);
  std::size_t const query_dim = a.nope_dim + a.rope_dim;
  for (auto const& [field, dim] : {std::pair("qk_nope_head_dim", query_dim), std::pair("v_head_dim", a.value_dim)})
    if (dim > kMostColumns / f.num_heads)
      config.refuse(field, "for each of " + std::to_string(f.num_heads) + " heads is more than supported here");
  if (config.count_or("qk_head_dim", query_dim) != query_dim)
    config.refuse("qk_head_dim", "is not qk_nope_head_dim + qk_rope_head_dim");
  if (std::size_t const dim = config.count_or("head_dim", a.rope_dim); dim != a.rope_dim && dim != query_dim)
    config.refuse("head_dim", "is neither qk_rope_head_dim nor the size of a query");
  f.rope = read_rope(config, {.head_dim = a.rope_dim, .interleaved = interleaved, .max_position = f.max_position});
  double scale = 1.0 / std::sqrt(static_cast<double>(query_dim));
  if (double const mscale = rope_number(config, "mscale_all_dim").value_or(0); mscale != 0) {
    double const magnitude = yarn_magnitude(f.rope.factor, mscale);
    scale *= magnitude * magnitude;
  }
  a.softmax_scale = static_cast<float>(scale);
  return a;
}

LayerSpec layer_with_latents(CommonFields const& f, LatentFields const& a, std::size_t layer) {
  std::string const prefix = layer_prefix(layer);
  std::string const attention = prefix + "self_attn.";
  auto const linear = [&](char const* name, bool biased) {
    LinearSpec l{f.weights.weight(attention + name)};
    if (biased) l.bias = VectorSlice{attention + name + ".bias"};
    return l;
  };
  LatentProjection p{.q_rank = a.q_rank,
                     .kv_rank = a.kv_rank,
                     .nope_dim = a.nope_dim,
                     .rope_dim = a.rope_dim,
                     .value_dim = a.value_dim,
                     .q_b = linear(a.q_rank == 0 ? "q_proj" : "q_b_proj", false),
                     .kv_a = linear("kv_a_proj_with_mqa", a.bias),
                     .kv_a_norm = {attention + "kv_a_layernorm.weight", kLatentNormEpsilon},
                     .kv_b = f.weights.weight(attention + "kv_b_proj")};
  if (a.q_rank != 0) {
    p.q_a = linear("q_a_proj", a.bias);
    p.q_a_norm = NormSpec{attention + "q_a_layernorm.weight", kLatentNormEpsilon};
  }
  LayerSpec spec;
  spec.input_norm = {prefix + "input_layernorm.weight", f.epsilon};
  spec.post_attention_norm = {prefix + "post_attention_layernorm.weight", f.epsilon};
  spec.attention = {.num_heads = f.num_heads,
                    .softmax_scale = a.softmax_scale,
                    .span = {},
                    .rope = f.rope,
                    .projection = std::move(p),
                    .o = linear("o_proj", a.bias)};
  return spec;
}

ModelSpec build(CommonFields const& f, LatentFields const& attention, DeepseekMixture const& mixture) {
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_with_latents(f, attention, l);
    set_ffn(f, mixture, l, layer);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace

ModelSpec build_deepseek_v2(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields f = read_sizes(config, {.norm_epsilon = 1e-6F});
  LatentFields const attention = read_latent_fields(config, f, true);
  DeepseekMixture mixture;
  RouterSpec& router = mixture.router;
  router = read_router_size(config, {.num_experts = {"n_routed_experts", "num_experts"}});
  router.normalisation = RouterNormalisation::none;
  config.without_effect({"norm_topk_prob"});  // the reference implementation does not look at it
  router.scale = static_cast<float>(config.number_or("routed_scaling_factor", 1.0));
  std::string const method = config.text_or("topk_method", "greedy");
  if (method == "group_limited_greedy")
    router.groups = read_groups(config, router, {.score = GroupScore::largest});
  else if (method == "greedy")
    config.without_effect({"n_group", "topk_group"});
  else
    config.refuse("topk_method", "unknown method '" + method + "'");
  read_mixture_sizes(config, f, {.shared_experts = 2}, mixture);
  mixture.ffn_bias = config.flag_or("mlp_bias", false);
  return build(f, attention, mixture);
}

ModelSpec build_deepseek_v3(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields f = read_sizes(config, {.norm_epsilon = 1e-6F});
  LatentFields const attention = read_latent_fields(config, f, config.flag_or("rope_interleave", true));
  DeepseekMixture const mixture = read_sigmoid_mixture(
      config, f, {.first_sparse = 3, .shared_experts = 1, .scale = 2.5, .groups = 8, .chosen_groups = 4});
  ModelSpec spec = build(f, attention, mixture);
  skip_prediction_layers(config, f, spec);
  return spec;
}

}  // namespace expertmesh
