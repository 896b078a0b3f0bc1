#include "coordinator/model/families/common_fields.h"

#include <algorithm>
#include <cmath>

#include "coordinator/model/families/rope_fields.h"

namespace expertmesh {

Activation activation_named(ConfigReader& config, std::string_view field, std::string const& name) {
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  config.refuse(field, "activation '" + name + "' is not supported");
}

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
      "seq_aux",
      "aux_loss_alpha",
      "ep_size",
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

CommonFields read_sizes(ConfigReader& config, FamilyDefaults const& defaults) {
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
  f.epsilon = static_cast<float>(config.number_or("rms_norm_eps", static_cast<double>(defaults.norm_epsilon)));
  if (!(f.epsilon >= 0 && f.epsilon < 1)) config.refuse("rms_norm_eps", "must be at least 0 and below 1");
  f.tied = config.flag_or("tie_word_embeddings", defaults.tied);
  f.activation.kind = activation_named(config, "hidden_act", config.text_or("hidden_act", "silu"));
  f.weights = StoredWeights(config);
  skip_what_has_no_effect(config);
  return f;
}

CommonFields read_common_fields(ConfigReader& config, FamilyDefaults const& defaults) {
  CommonFields f = read_sizes(config, defaults);
  if (!config.has("head_dim") && !defaults.head_dim && f.hidden % f.num_heads != 0)
    config.refuse("hidden_size", std::to_string(f.hidden) + " is no multiple of num_attention_heads " +
                                     std::to_string(f.num_heads) + ", and there is no head_dim");
  f.head_dim = config.count_or("head_dim", defaults.head_dim.value_or(f.hidden / f.num_heads));
  if (f.head_dim > kMostColumns / f.num_heads)
    config.refuse("head_dim", std::to_string(f.head_dim) + " for each of " + std::to_string(f.num_heads) +
                                  " heads is more than supported here");
  f.rope = read_rope(config, {.theta = defaults.rope_theta,
                              .head_dim = f.head_dim,
                              .partial_rotary_factor = defaults.partial_rotary_factor,
                              .partial = defaults.partial_rotation,
                              .interleaved = defaults.rope_interleaved,
                              .max_position = f.max_position});
  return f;
}

std::vector<AttentionSpan> read_spans(ConfigReader& config, std::size_t layers, WindowFields const& fields) {
  std::optional<std::size_t> window;
  std::size_t first_full_or_sliding = fields.max_window_layers;
  if (fields.rule == WindowRule::none) {
    config.must_be_off("sliding_window");
    config.must_be_off("use_sliding_window");
  } else if (fields.needs_switch && !config.flag_or("use_sliding_window", false)) {
    config.without_effect({"sliding_window", "max_window_layers"});
  } else {
    // 0 says none, too
    if (config.has("sliding_window") ? config.number_or("sliding_window", 0) != 0
                                     : fields.window > 0 && !config.is_null("sliding_window"))
      window = config.count_or("sliding_window", fields.window);
    if (!config.flag_or("use_sliding_window", true) && (window || config.has("sliding_window")))
      config.refuse("use_sliding_window", "false contradicts sliding_window");
    if (config.has("max_window_layers")) first_full_or_sliding = config.index("max_window_layers");
  }
  auto const by_rule = [&](std::size_t l) {
    switch (fields.rule) {
      case WindowRule::none:
        return false;
      case WindowRule::every_layer:
        return true;
      case WindowRule::from_max_window_layers:
        return l >= first_full_or_sliding;
      case WindowRule::even_below_max_window_layers:
        return l % 2 == 0 && l < first_full_or_sliding;
      case WindowRule::even_layers:
        return l % 2 == 0;
    }
    return false;
  };
  auto const types = config.texts("layer_types");
  if (!types.empty() && types.size() != layers)
    config.refuse("layer_types", std::to_string(types.size()) + " types for " + std::to_string(layers) + " layers");
  std::vector<AttentionSpan> spans(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    bool slides = window && by_rule(l);
    if (!types.empty()) {
      bool const sliding_type = types[l] == "sliding_attention";
      if (!sliding_type && types[l] != "full_attention")
        config.refuse("layer_types", "layers of type '" + types[l] + "' are not supported here");
      if (sliding_type != slides && !(fields.obeys_layer_types && (window || !sliding_type)))
        config.refuse("layer_types",
                      "'" + types[l] + "' of layer " + std::to_string(l) + " contradicts sliding_window");
      slides = sliding_type;
    }
    if (slides) spans[l] = {SpanKind::window, *window};
  }
  return spans;
}

RouterSpec read_router_size(ConfigReader& config, RouterFields const& fields) {
  // The first field that is there counts; others have to say the same.
  auto const read = [&](std::vector<std::string_view> const& names, std::size_t most) {
    auto const place = std::ranges::find_if(names, [&](auto name) { return config.has(name); });
    std::string_view const name = place == names.end() ? names.front() : *place;
    std::size_t const value = config.count(name, most);
    for (auto other : names)
      if (config.has(other) && config.count(other) != value) config.refuse(other, "differs from " + std::string(name));
    return std::pair(name, value);
  };
  auto const [experts_field, num_experts] = read(fields.num_experts, kMostExperts);
  auto const [chosen_field, chosen] = read(fields.experts_per_token, kMostCount);
  if (chosen > num_experts)
    config.refuse(chosen_field,
                  std::to_string(chosen) + " is more than the " + std::to_string(num_experts) + " experts there are");
  if (std::string const scoring = config.text_or("scoring_func", fields.scoring); scoring != fields.scoring)
    config.refuse("scoring_func", "unknown scoring function '" + scoring + "'");
  return {.num_experts = num_experts, .experts_per_token = chosen};
}

std::vector<bool> read_sparse_layers(ConfigReader& config, std::size_t layers) {
  std::size_t const step = config.count_or("decoder_sparse_step", 1);
  std::vector<bool> sparse(layers);
  for (std::size_t l = 0; l < layers; ++l) sparse[l] = (l + 1) % step == 0;
  for (std::size_t l : config.indices("mlp_only_layers")) {
    if (l >= layers) config.refuse("mlp_only_layers", "there is no layer " + std::to_string(l));
    sparse[l] = false;
  }
  return sparse;
}

ModelSpec model_of(CommonFields const& f) {
  ModelSpec spec;
  spec.hidden = f.hidden;
  spec.vocab = f.vocab;
  spec.max_position = f.max_position;
  // Such frequencies stretch with the sequence: the context grows by the factor, and nothing but sense ends there.
  if (f.rope.kind == RopeKind::dynamic) {
    double const stretched = static_cast<double>(f.max_position) * f.rope.factor;
    spec.max_position = static_cast<std::size_t>(std::min(stretched, static_cast<double>(kMostCount)));
    spec.goes_beyond_max_position = true;
  }
  spec.embedding = "model.embed_tokens.weight";
  if (!f.tied) spec.lm_head = f.weights.head("lm_head");
  spec.stacks = {StackSpec{.kind = StackKind::decoder, .layers = {}, .final_norm = {"model.norm.weight", f.epsilon}}};
  return spec;
}

std::string layer_prefix(std::size_t layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

LayerSpec layer_of(CommonFields const& f, std::size_t layer, LayerOptions const& options) {
  std::string const prefix = layer_prefix(layer);
  LayerSpec spec;
  spec.input_norm = {prefix + "input_layernorm.weight", f.epsilon};
  spec.post_attention_norm = {prefix + "post_attention_layernorm.weight", f.epsilon};
  auto const linear = [&](char const* name, bool biased) {
    std::string const module = prefix + "self_attn." + name;
    LinearSpec l{f.weights.weight(module)};
    if (biased) l.bias = VectorSlice{module + ".bias"};
    return l;
  };
  GroupedProjection projection{.num_kv_heads = f.num_kv_heads,
                               .head_dim = f.head_dim,
                               .q = linear("q_proj", options.qkv_bias),
                               .k = linear("k_proj", options.qkv_bias),
                               .v = linear("v_proj", options.qkv_bias)};
  if (options.qk_norm) {
    auto const norm = [&](char const* name) {
      return QkNormSpec{
          .weight = prefix + "self_attn." + name + ".weight", .epsilon = f.epsilon, .scope = *options.qk_norm};
    };
    projection.q_norm = norm("q_norm");
    projection.k_norm = norm("k_norm");
  }
  spec.attention.num_heads = f.num_heads;
  spec.attention.softmax_scale = 1.0F / std::sqrt(static_cast<float>(f.head_dim));
  spec.attention.span = options.span;
  spec.attention.rope = f.rope;
  spec.attention.projection = std::move(projection);
  spec.attention.o = linear("o_proj", options.o_bias);
  return spec;
}

DenseFfnSpec dense_ffn_of(CommonFields const& f, std::string const& prefix, DenseFfnOptions const& options) {
  auto const bias = [&](char const* name) {
    return options.bias ? std::optional(VectorSlice{prefix + name + ".bias"}) : std::nullopt;
  };
  return {.intermediate = options.intermediate,
          .activation = f.activation,
          .tensors = {.gate = f.weights.weight(prefix + "gate_proj"),
                      .up = f.weights.weight(prefix + "up_proj"),
                      .down = f.weights.weight(prefix + "down_proj"),
                      .gate_bias = bias("gate_proj"),
                      .up_bias = bias("up_proj"),
                      .down_bias = bias("down_proj")}};
}

std::vector<FfnTensors> experts_of(CommonFields const& f, std::string const& prefix, std::size_t num_experts,
                                   ExpertNames names) {
  std::vector<FfnTensors> experts;
  for (std::size_t e = 0; e < num_experts; ++e) {
    std::string const expert = prefix + "experts." + std::to_string(e) + ".";
    experts.push_back({.gate = f.weights.weight(expert + names.gate),
                       .up = f.weights.weight(expert + names.up),
                       .down = f.weights.weight(expert + names.down)});
  }
  return experts;
}

}  // namespace expertmesh
