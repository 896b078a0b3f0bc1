#include "coordinator/model/families/common_fields.h"

#include <cmath>

namespace expertmesh {
namespace {

// What a model may have, so that sizes, name lists and sums of parameters stay in range whatever a config says.
constexpr std::size_t kMostLayers = 1024;
constexpr std::size_t kMostExperts = 1024;  // in a layer
constexpr std::size_t kMostVocabulary = std::size_t{1} << 24;

// A rope_scaling or rope_parameters object: only the plain kind is known. Returns its rope_theta, if it has one.
std::optional<double> read_rope_object(ConfigReader rope) {
  for (char const* field : {"rope_type", "type"})
    if (std::string const type = rope.text_or(field, "default"); type != "default")
      rope.refuse(field, "RoPE of type '" + type + "' is not supported");
  if (rope.number_or("partial_rotary_factor", 1.0) != 1.0)
    rope.refuse("partial_rotary_factor", "a partial rotation is not supported");
  std::optional<double> const theta =
      rope.has("rope_theta") ? std::optional(rope.number_or("rope_theta", 0)) : std::nullopt;
  rope.finish();
  return theta;
}

// `rope_theta` and `rope_scaling` beside each other, or both inside `rope_parameters`.
RopeSpec read_rope(ConfigReader& config, double default_theta) {
  RopeSpec spec{.theta = config.number_or("rope_theta", default_theta)};
  bool known = config.has("rope_theta");
  for (char const* field : {"rope_scaling", "rope_parameters"}) {
    auto rope = config.object(field);
    if (!rope) continue;
    auto const theta = read_rope_object(std::move(*rope));
    if (!theta) continue;
    if (known && *theta != spec.theta) config.refuse(field, "its rope_theta differs from the one beside it");
    spec.theta = *theta;
    known = true;
  }
  if (config.number_or("partial_rotary_factor", 1.0) != 1.0)
    config.refuse("partial_rotary_factor", "a partial rotation is not supported");
  if (!(spec.theta > 0)) config.refuse("rope_theta", "must be positive");
  return spec;
}

std::optional<std::size_t> read_window(ConfigReader& config, WindowRule rule) {
  switch (rule) {
    case WindowRule::none:
      config.must_be_off("sliding_window");
      config.must_be_off("use_sliding_window");
      break;
    case WindowRule::in_every_layer:
      if (config.has("sliding_window") && !config.flag_or("use_sliding_window", true))
        config.refuse("use_sliding_window", "false contradicts sliding_window");
      return config.optional_count("sliding_window");
    case WindowRule::switched_off:
      if (config.flag_or("use_sliding_window", false) && config.has("sliding_window"))
        config.refuse("use_sliding_window", "a window on some of the layers is not supported");
      config.without_effect({"sliding_window", "max_window_layers"});
      break;
  }
  return std::nullopt;
}

void read_layer_types(ConfigReader& config, CommonFields const& f) {
  auto const types = config.texts("layer_types");
  if (!types.empty() && types.size() != f.layers)
    config.refuse("layer_types", std::to_string(types.size()) + " types for " + std::to_string(f.layers) + " layers");
  for (auto const& type : types)
    if (type != (f.span.kind == SpanKind::window ? "sliding_attention" : "full_attention"))
      config.refuse("layer_types", "layers of type '" + type + "' are not supported here");
}

// Fields of training, bookkeeping and sampling that published configs carry and that change no logit.
void skip_what_has_no_effect(ConfigReader& config) {
  config.without_effect({
      "architectures",
      "auto_map",
      "finetuning_task",
      "model_type",
      "_name_or_path",
      "_commit_hash",
      "name_or_path",
      "tokenizer_class",
      "transformers_version",
      "transformers.js_config",
      "unsloth_fixed",
      "unsloth_version",
      // training
      "attention_dropout",
      "attention_probs_dropout_prob",
      "classifier_dropout",
      "embd_pdrop",
      "ffn_dropout",
      "gradient_checkpointing",
      "hidden_dropout",
      "hidden_dropout_prob",
      "initializer_range",
      "neftune_noise_alpha",
      "resid_pdrop",
      "router_aux_loss_coef",
      "router_z_loss_coef",
      "tf_legacy_loss",
      "use_bfloat16",
      // how the reference implementation runs
      "_attn_implementation",
      "_attn_implementation_autoset",
      "attn_implementation",
      "_flash_attn_2_enabled",
      "cache_implementation",
      "chunk_size_feed_forward",
      "is_decoder",
      "output_attentions",
      "output_hidden_states",
      "output_router_logits",
      "pretraining_tp",
      "return_dict",
      "return_dict_in_generate",
      "torchscript",
      "use_cache",
      // labels and special tokens
      "bos_token_id",
      "id2label",
      "label2id",
      "pad_token_id",
      "problem_type",
      "sep_token_id",
      "unk_token_id",
      // how to sample, as old versions of transformers kept it
      "diversity_penalty",
      "do_sample",
      "early_stopping",
      "length_penalty",
      "max_length",
      "max_new_tokens",
      "min_length",
      "num_beam_groups",
      "num_beams",
      "num_return_sequences",
      "repetition_penalty",
      "temperature",
      "top_k",
      "top_p",
      "typical_p",
      // the length the tokenizer was made for; max_position_embeddings holds
      "max_sequence_length",
      "model_max_length",
  });
}

}  // namespace

CommonFields read_common_fields(ConfigReader& config, FamilyDefaults const& defaults) {
  CommonFields f{};
  f.layers = config.count("num_hidden_layers", kMostLayers);
  f.hidden = config.count("hidden_size", kMostColumns);
  f.vocab = config.count("vocab_size", kMostVocabulary);
  f.max_position = config.count("max_position_embeddings");
  f.num_heads = config.count("num_attention_heads", kMostColumns);
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
  if (f.head_dim > kMostColumns / f.num_heads)
    config.refuse("head_dim", std::to_string(f.head_dim) + " for each of " + std::to_string(f.num_heads) +
                                  " heads is more than supported here");
  f.rope = read_rope(config, defaults.rope_theta);
  f.rope.rotary_dim = f.head_dim;
  if (auto const window = read_window(config, defaults.window)) f.span = {SpanKind::window, *window};
  f.epsilon = static_cast<float>(config.number_or("rms_norm_eps", static_cast<double>(defaults.rms_norm_eps)));
  if (!(f.epsilon >= 0 && f.epsilon < 1)) config.refuse("rms_norm_eps", "must be at least 0 and below 1");
  f.tied = config.flag_or("tie_word_embeddings", false);
  if (std::string const act = config.text_or("hidden_act", "silu"); act != "silu")
    config.refuse("hidden_act", "activation '" + act + "' is not supported");
  read_layer_types(config, f);
  for (char const* field :
       {"attention_bias", "mlp_bias", "qkv_bias", "rope_interleaved", "quantization_config", "attn_logit_softcapping",
        "final_logit_softcapping", "is_encoder_decoder", "add_cross_attention"})
    config.must_be_off(field);
  skip_what_has_no_effect(config);
  return f;
}

RouterSpec read_router_size(ConfigReader& config) {
  char const* field = config.has("num_local_experts") ? "num_local_experts" : "num_experts";
  RouterSpec router{.num_experts = config.count(field, kMostExperts),
                    .experts_per_token = config.count("num_experts_per_tok")};
  if (config.has("num_local_experts") && config.has("num_experts") && config.count("num_experts") != router.num_experts)
    config.refuse("num_experts", "differs from num_local_experts");
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
  auto const weight = [&](char const* name) { return WeightSlice{prefix + "self_attn." + name + ".weight"}; };
  GroupedProjection projection{.num_kv_heads = f.num_kv_heads,
                               .head_dim = f.head_dim,
                               .q = {weight("q_proj")},
                               .k = {weight("k_proj")},
                               .v = {weight("v_proj")}};
  if (options.qk_norm) {
    projection.q_norm = QkNormSpec{.weight = prefix + "self_attn.q_norm.weight", .epsilon = f.epsilon};
    projection.k_norm = QkNormSpec{.weight = prefix + "self_attn.k_norm.weight", .epsilon = f.epsilon};
  }
  spec.attention.num_heads = f.num_heads;
  spec.attention.softmax_scale = 1.0F / std::sqrt(static_cast<float>(f.head_dim));
  spec.attention.span = f.span;
  spec.attention.rope = f.rope;
  spec.attention.projection = std::move(projection);
  spec.attention.o = {weight("o_proj")};
  return spec;
}

DenseFfnSpec dense_ffn_of(std::string const& prefix, std::size_t intermediate) {
  return {.intermediate = intermediate,
          .tensors = {.gate = WeightSlice{prefix + "gate_proj.weight"},
                      .up = {prefix + "up_proj.weight"},
                      .down = {prefix + "down_proj.weight"}}};
}

std::vector<FfnTensors> experts_of(std::string const& prefix, std::size_t num_experts, ExpertNames names) {
  std::vector<FfnTensors> experts;
  for (std::size_t e = 0; e < num_experts; ++e) {
    std::string const expert = prefix + "experts." + std::to_string(e) + ".";
    experts.push_back({.gate = WeightSlice{expert + names.gate + ".weight"},
                       .up = {expert + names.up + ".weight"},
                       .down = {expert + names.down + ".weight"}});
  }
  return experts;
}

}  // namespace expertmesh
