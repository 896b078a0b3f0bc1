// NLLB-MoE (NLLB Team 2022, arXiv:2207.04672): a translation model, pre-norm, with two experts a token in every N-th
// layer and sinusoidal positions. The target language is the first new token (forced_bos_token_id).
#include <cmath>
#include <limits>

#include "coordinator/model/families/encoder_decoder_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

struct NllbFields {
  EncoderDecoderFields common;
  ActivationSpec activation;
  bool router_bias;
  float expert_scale;  // of what experts give
};

struct StackFields {
  StackKind kind;
  std::size_t layers, num_heads, intermediate;
  std::size_t sparse_step;  // 0: no layer holds experts
};

StackFields read_stack(ConfigReader& config, StackKind kind, std::size_t hidden) {
  std::string const name = kind == StackKind::encoder ? "encoder" : "decoder";
  StackFields s{.kind = kind,
                .layers = config.count(name + "_layers", kMostLayers),
                .num_heads = config.count(name + "_attention_heads", kMostColumns),
                .intermediate = config.count(name + "_ffn_dim", kMostColumns),
                .sparse_step = index_or(config, name + "_sparse_step", 4)};
  if (hidden % s.num_heads != 0)
    config.refuse(name + "_attention_heads",
                  std::to_string(s.num_heads) + " does not divide d_model " + std::to_string(hidden));
  config.without_effect({"encoder_layerdrop", "decoder_layerdrop"});
  return s;
}

bool is_sparse(StackFields const& stack, std::size_t layer) {
  return stack.sparse_step > 0 && (layer + 1) % stack.sparse_step == 0;
}

// An expert takes ceil(fraction x tokens) of a sequence's tokens: all who want it from 1 on, since none wants it twice.
// Below, whom it takes depends on the tokens to come, which a decoder does not have.
void check_capacity(ConfigReader& config, bool any_sparse) {
  double const fraction = config.number_or("moe_eval_capacity_token_fraction", 1.0);
  if (any_sparse && fraction < 1)
    config.refuse("moe_eval_capacity_token_fraction",
                  "below 1 experts leave out tokens by what comes after them, which a decoder cannot know");
  // Of what a capacity leaves out; and of one that is not reached.
  config.without_effect({"expert_capacity", "normalize_router_prob_before_dropping", "batch_prioritized_routing"});
}

NllbFields read_fields(ConfigReader& config) {
  NllbFields f{};
  f.common = read_encoder_decoder(config, {.padding = 1, .end_of_sequence = 2, .start_fields = {}, .start = 2});
  if (f.common.hidden < 4) config.refuse("d_model", "sinusoidal positions need at least 4 columns");
  f.activation.kind = activation_named(config, "activation_function", config.text_or("activation_function", "relu"));
  f.router_bias = config.flag_or("router_bias", false);
  double const dropout = config.number_or("moe_token_dropout", 0.2);
  if (!(dropout >= 0 && dropout < 1)) config.refuse("moe_token_dropout", "must be at least 0 and below 1");
  f.expert_scale = static_cast<float>(1 - dropout);
  if (std::string const policy = config.text_or("second_expert_policy", "all"); policy != "all")
    config.refuse("second_expert_policy",
                  "'" + policy + "' draws lots for a token's second expert, which is not supported");
  config.without_effect({"dropout", "activation_dropout"});
  return f;
}

NormSpec norm_of(std::string const& name) {
  return {.weight = name + ".weight", .epsilon = 1e-5F, .kind = NormKind::layer, .bias = name + ".bias"};
}

AttentionSpec attention_of(NllbFields const& f, std::size_t num_heads, std::string const& prefix) {
  std::size_t const head_dim = f.common.hidden / num_heads;
  auto const linear = [&](char const* name) {
    return LinearSpec{{.name = prefix + name + ".weight"}, VectorSlice{prefix + name + ".bias"}};
  };
  return {.num_heads = num_heads,
          .softmax_scale = 1.0F / std::sqrt(static_cast<float>(head_dim)),
          .span = {},
          .rope = {.kind = RopeKind::none},
          .projection = GroupedProjection{.num_kv_heads = num_heads,
                                          .head_dim = head_dim,
                                          .q = linear("q_proj"),
                                          .k = linear("k_proj"),
                                          .v = linear("v_proj")},
          .o = linear("out_proj")};
}

FfnTensors ffn_of(std::string const& prefix) {
  return {.up = {.name = prefix + "fc1.weight"},
          .down = {.name = prefix + "fc2.weight"},
          .up_bias = VectorSlice{prefix + "fc1.bias"},
          .down_bias = VectorSlice{prefix + "fc2.bias"}};
}

std::variant<DenseFfnSpec, MoeFfnSpec> feed_forward_of(NllbFields const& f, StackFields const& stack,
                                                       std::string const& prefix, bool sparse) {
  if (!sparse)
    return DenseFfnSpec{.intermediate = stack.intermediate, .activation = f.activation, .tensors = ffn_of(prefix)};
  MoeFfnSpec moe{.router = {.num_experts = f.common.num_experts,
                            .experts_per_token = 2,
                            .sum_floor = std::numeric_limits<float>::epsilon(),
                            .scale = f.expert_scale},
                 .router_weight = prefix + "router.classifier.weight",
                 .intermediate = stack.intermediate,
                 .activation = f.activation};
  if (f.router_bias) moe.router_bias = VectorSlice{prefix + "router.classifier.bias"};
  for (std::size_t e = 0; e < f.common.num_experts; ++e)
    moe.experts.push_back(ffn_of(prefix + "experts.expert_" + std::to_string(e) + "."));
  return moe;
}

LayerSpec layer_of(NllbFields const& f, StackFields const& stack, std::size_t index) {
  bool const decoder = stack.kind == StackKind::decoder;
  std::string const prefix =
      std::string("model.") + (decoder ? "decoder" : "encoder") + ".layers." + std::to_string(index) + ".";
  LayerSpec layer;
  layer.input_norm = norm_of(prefix + "self_attn_layer_norm");
  layer.attention = attention_of(f, stack.num_heads, prefix + "self_attn.");
  if (decoder)
    layer.cross = CrossAttentionSpec{norm_of(prefix + "cross_attention_layer_norm"),
                                     attention_of(f, stack.num_heads, prefix + "cross_attention.")};
  layer.post_attention_norm = norm_of(prefix + "ff_layer_norm");
  layer.ffn = feed_forward_of(f, stack, prefix + "ffn.", is_sparse(stack, index));
  return layer;
}

}  // namespace

ModelSpec build_nllb_moe(ConfigReader& config, ModelOptions const& /*options*/) {
  NllbFields const f = read_fields(config);
  StackFields const stacks[] = {read_stack(config, StackKind::encoder, f.common.hidden),
                                read_stack(config, StackKind::decoder, f.common.hidden)};
  if (config.has("num_hidden_layers") && config.count("num_hidden_layers") != stacks[0].layers)
    config.refuse("num_hidden_layers", "differs from encoder_layers");
  ModelSpec spec = model_of(f.common, "model.", "layer_norm", 1e-5F, NormKind::layer);
  spec.max_position = config.count_or("max_position_embeddings", 1024);
  spec.sinusoidal_positions = SinusoidalPositions{f.common.padding};
  if (config.flag_or("scale_embedding", true))
    spec.embedding_multiplier = static_cast<float>(std::sqrt(static_cast<double>(f.common.hidden)));
  bool any_sparse = false;
  for (std::size_t s = 0; s < 2; ++s)
    for (std::size_t l = 0; l < stacks[s].layers; ++l) {
      spec.stacks[s].layers.push_back(layer_of(f, stacks[s], l));
      any_sparse = any_sparse || is_sparse(stacks[s], l);
    }
  if (any_sparse && f.common.num_experts < 2) config.refuse("num_experts", "each token goes to two");
  check_capacity(config, any_sparse);
  return spec;
}

}  // namespace expertmesh
