#include "coordinator/model/families/common_fields.h"

#include <cmath>

namespace expertmesh {
namespace {

// Type of a rope_scaling or rope_parameters object; only the plain one is known.
void check_rope_type(ConfigReader& rope) {
  std::string const type = rope.has("rope_type") ? rope.text("rope_type") : rope.text_or("type", "default");
  rope.without_effect({"type", "rope_type"});
  if (type != "default") rope.refuse("rope_type", "RoPE of type '" + type + "' is not supported");
}

// `rope_theta` and `rope_scaling` beside each other, or both inside `rope_parameters`.
RopeSpec read_rope(ConfigReader& config, double default_theta) {
  RopeSpec spec{.theta = config.number_or("rope_theta", default_theta)};
  if (auto scaling = config.object("rope_scaling")) {
    check_rope_type(*scaling);
    scaling->finish();
  }
  if (auto parameters = config.object("rope_parameters")) {
    check_rope_type(*parameters);
    double const theta = parameters->number_or("rope_theta", spec.theta);
    if (config.has("rope_theta") && theta != spec.theta)
      config.refuse("rope_theta", "differs from rope_parameters.rope_theta");
    spec.theta = theta;
    if (parameters->number_or("partial_rotary_factor", 1.0) != 1.0)
      parameters->refuse("partial_rotary_factor", "a partial rotation is not supported");
    parameters->finish();
  }
  if (config.number_or("partial_rotary_factor", 1.0) != 1.0)
    config.refuse("partial_rotary_factor", "a partial rotation is not supported");
  if (!(spec.theta > 0)) config.refuse("rope_theta", "must be positive");
  return spec;
}

std::optional<std::size_t> read_window(ConfigReader& config) {
  auto const window = config.optional_count("sliding_window");
  // Families with `use_sliding_window` leave a width behind when it is off.
  if (config.has("use_sliding_window") && !config.flag_or("use_sliding_window", false)) return std::nullopt;
  if (window && config.has("max_window_layers") && config.has("use_sliding_window"))
    config.refuse("use_sliding_window", "a window on some of the layers is not supported");
  return window;
}

}  // namespace

CommonFields read_common_fields(ConfigReader& config, FamilyDefaults const& defaults) {
  CommonFields f{};
  f.layers = config.count("num_hidden_layers");
  f.hidden = config.count("hidden_size");
  f.vocab = config.count("vocab_size");
  f.max_position = config.count("max_position_embeddings");
  f.num_heads = config.count("num_attention_heads");
  f.num_kv_heads = config.count_or("num_key_value_heads", f.num_heads);
  if (f.num_heads % f.num_kv_heads != 0)
    config.refuse("num_key_value_heads", std::to_string(f.num_kv_heads) + " does not divide num_attention_heads " +
                                             std::to_string(f.num_heads));
  if (!config.has("head_dim") && f.hidden % f.num_heads != 0)
    config.refuse("hidden_size", std::to_string(f.hidden) + " is no multiple of num_attention_heads " +
                                     std::to_string(f.num_heads) + ", and there is no head_dim");
  f.head_dim = config.count_or("head_dim", f.hidden / f.num_heads);
  if (f.head_dim % 2 != 0)
    config.refuse(config.has("head_dim") ? "head_dim" : "hidden_size",
                  "RoPE needs an even head size, got " + std::to_string(f.head_dim));
  f.rope = read_rope(config, defaults.rope_theta);
  f.window = read_window(config);
  f.epsilon = static_cast<float>(config.number_or("rms_norm_eps", static_cast<double>(defaults.rms_norm_eps)));
  if (!(f.epsilon >= 0)) config.refuse("rms_norm_eps", "must not be negative");
  f.tied = config.flag_or("tie_word_embeddings", false);
  if (std::string const act = config.text_or("hidden_act", "silu"); act != "silu")
    config.refuse("hidden_act", "activation '" + act + "' is not supported");
  for (auto const& type : config.texts("layer_types"))
    if (type != (f.window ? "sliding_attention" : "full_attention"))
      config.refuse("layer_types", "layers of type '" + type + "' are not supported here");
  for (char const* field : {"attention_bias", "mlp_bias", "qkv_bias", "quantization_config", "attn_logit_softcapping",
                            "final_logit_softcapping"})
    config.must_be_off(field);
  config.without_effect({"architectures",
                         "attention_dropout",
                         "auto_map",
                         "bos_token_id",
                         "chunk_size_feed_forward",
                         "classifier_dropout",
                         "dtype",
                         "embd_pdrop",
                         "eos_token_id",
                         "gradient_checkpointing",
                         "hidden_dropout",
                         "id2label",
                         "initializer_range",
                         "is_decoder",
                         "label2id",
                         "max_window_layers",
                         "model_type",
                         "_name_or_path",
                         "output_attentions",
                         "output_hidden_states",
                         "output_router_logits",
                         "pad_token_id",
                         "pretraining_tp",
                         "problem_type",
                         "resid_pdrop",
                         "return_dict",
                         "rope_interleaved",
                         "router_aux_loss_coef",
                         "sep_token_id",
                         "torch_dtype",
                         "torchscript",
                         "transformers_version",
                         "unsloth_fixed",
                         "use_cache",
                         "_attn_implementation"});
  return f;
}

RouterSpec read_router_size(ConfigReader& config) {
  char const* field = config.has("num_local_experts") ? "num_local_experts" : "num_experts";
  RouterSpec router{.num_experts = config.count(field), .experts_per_token = config.count("num_experts_per_tok")};
  if (config.has("num_local_experts") && config.has("num_experts") && config.count("num_experts") != router.num_experts)
    config.refuse("num_experts", "differs from num_local_experts");
  if (router.num_experts > 1024) config.refuse(field, "more than 1024 experts a layer are not supported");
  if (router.experts_per_token > router.num_experts)
    config.refuse("num_experts_per_tok", std::to_string(router.experts_per_token) + " is more than the " +
                                             std::to_string(router.num_experts) + " experts there are");
  if (std::string const scoring = config.text_or("scoring_func", "softmax"); scoring != "softmax")
    config.refuse("scoring_func", "unknown scoring function '" + scoring + "'");
  return router;
}

ModelSpec model_of(CommonFields const& f) {
  ModelSpec spec;
  spec.hidden = f.hidden;
  spec.vocab = f.vocab;
  spec.max_position = f.max_position;
  spec.embedding = "model.embed_tokens.weight";
  if (!f.tied) spec.lm_head = "lm_head.weight";
  spec.stacks = {StackSpec{.kind = StackKind::decoder, .layers = {}, .final_norm = {"model.norm.weight", f.epsilon}}};
  return spec;
}

std::string layer_prefix(std::size_t layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

LayerSpec layer_of(CommonFields const& f, std::size_t layer, LayerOptions options) {
  std::string const prefix = layer_prefix(layer);
  LayerSpec spec;
  spec.input_norm = {prefix + "input_layernorm.weight", f.epsilon};
  spec.post_attention_norm = {prefix + "post_attention_layernorm.weight", f.epsilon};
  spec.attention = {.num_heads = f.num_heads,
                    .num_kv_heads = f.num_kv_heads,
                    .head_dim = f.head_dim,
                    .softmax_scale = 1.0F / std::sqrt(static_cast<float>(f.head_dim)),
                    .window = f.window,
                    .rope = f.rope,
                    .q = prefix + "self_attn.q_proj.weight",
                    .k = prefix + "self_attn.k_proj.weight",
                    .v = prefix + "self_attn.v_proj.weight",
                    .o = prefix + "self_attn.o_proj.weight",
                    .q_norm = {},
                    .k_norm = {}};
  if (options.qk_norm) {
    spec.attention.q_norm = NormSpec{prefix + "self_attn.q_norm.weight", f.epsilon};
    spec.attention.k_norm = NormSpec{prefix + "self_attn.k_norm.weight", f.epsilon};
  }
  return spec;
}

DenseFfnSpec dense_ffn_of(std::string const& prefix, std::size_t intermediate) {
  return {.intermediate = intermediate,
          .gate = prefix + "gate_proj.weight",
          .up = prefix + "up_proj.weight",
          .down = prefix + "down_proj.weight"};
}

std::vector<ExpertTensors> experts_of(std::string const& prefix, std::size_t num_experts, ExpertNames names) {
  std::vector<ExpertTensors> experts;
  for (std::size_t e = 0; e < num_experts; ++e) {
    std::string const expert = prefix + "experts." + std::to_string(e) + ".";
    experts.push_back(
        {expert + names.gate + ".weight", expert + names.up + ".weight", expert + names.down + ".weight"});
  }
  return experts;
}

}  // namespace expertmesh
