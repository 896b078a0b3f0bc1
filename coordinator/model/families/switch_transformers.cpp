// Switch Transformers (Fedus et al. 2021, arXiv:2101.03961): T5's encoder and decoder (Raffel et al. 2020) with one
// expert a token in every N-th layer, each of which takes a fixed number of a sequence's tokens.
#include "coordinator/model/families/encoder_decoder_fields.h"
#include "coordinator/model/families/families.h"

#include <cmath>

namespace expertmesh {
namespace {

constexpr std::size_t kDefaultLength = 512;  // tokens T5 was trained on; relative positions have no end

struct SwitchFields {
  EncoderDecoderFields common;
  std::size_t num_heads, head_dim, intermediate, capacity, buckets, max_distance;
  float epsilon;
  ActivationSpec activation;
  bool gated, router_bias;
};

// How the layers of a stack differ from one another.
struct SwitchStack {
  StackKind kind;
  std::size_t layers;
  std::size_t sparse_step;  // 0: no layer holds experts
};

bool is_sparse(std::size_t layer, std::size_t step) {
  return step > 0 && (step == 1 || layer % step == 1);
}

std::size_t sparse_step(ConfigReader& config, char const* step_field, char const* count_field, std::size_t layers) {
  std::size_t const count = index_or(config, count_field, 3);
  return index_or(config, step_field, count > 0 ? layers / count : layers);
}

// "gated-gelu" is T5's name for a gate with the tanh form.
void read_activation_and_gate(ConfigReader& config, SwitchFields& f) {
  std::string const name = config.text_or("dense_act_fn", "relu");
  std::string const older = config.text_or("feed_forward_proj", name);
  std::string const gated = "gated-";
  if (older != name && older != gated + name && !(older == "gated-gelu" && name == "gelu_new"))
    config.refuse("feed_forward_proj", "'" + older + "' differs from dense_act_fn '" + name + "'");
  f.gated = older.starts_with(gated);
  if (config.flag_or("is_gated_act", f.gated) != f.gated)
    config.refuse("is_gated_act", "contradicts " + std::string(f.gated ? "'" + older + "'" : "dense_act_fn"));
  if (older == "gated-gelu")
    f.activation.kind = Activation::gelu_tanh;
  else
    f.activation.kind =
        activation_named(config, "dense_act_fn", name.starts_with(gated) ? name.substr(gated.size()) : name);
}

SwitchFields read_switch_fields(ConfigReader& config) {
  SwitchFields f{};
  f.common = read_encoder_decoder(
      config, {.padding = 0, .end_of_sequence = 1, .start_fields = {"bos_token_id", "pad_token_id"}, .start = 0});
  f.num_heads = config.count("num_heads", kMostColumns);
  f.head_dim = config.count("d_kv", kMostColumns / f.num_heads);
  f.intermediate = config.count("d_ff", kMostColumns);
  f.capacity = index_or(config, "expert_capacity", 64);
  f.epsilon = static_cast<float>(config.number_or("layer_norm_epsilon", 1e-6));
  if (!(f.epsilon >= 0 && f.epsilon < 1)) config.refuse("layer_norm_epsilon", "must be at least 0 and below 1");
  f.router_bias = config.flag_or("router_bias", false);
  f.buckets = config.count_or("relative_attention_num_buckets", 32);
  f.max_distance = config.count_or("relative_attention_max_distance", 128);
  if (f.buckets < 4 || f.buckets > kMostColumns)
    config.refuse("relative_attention_num_buckets", "must be from 4 to " + std::to_string(kMostColumns));
  if (f.max_distance <= f.buckets / 2 || f.max_distance > kMostColumns)
    config.refuse("relative_attention_max_distance",
                  "must be above half of relative_attention_num_buckets, and at most " + std::to_string(kMostColumns));
  read_activation_and_gate(config, f);
  if (std::string const type = config.text_or("router_type", "tokens_masked"); type != "tokens_masked")
    config.refuse("router_type", "routers of type '" + type + "' are not supported");
  if (config.count_or("num_selected_experts", 1) != 1) config.refuse("num_selected_experts", "this family chooses one");
  config.without_effect({"dropout_rate", "add_router_probs"});
  return f;
}

AttentionSpec attention_of(SwitchFields const& f, std::string const& prefix) {
  auto const weight = [&](char const* name) { return LinearSpec{{.name = prefix + name + ".weight"}}; };
  return {.num_heads = f.num_heads,
          .softmax_scale = 1.0F,
          .span = {},
          .rope = {.kind = RopeKind::none},
          .projection = GroupedProjection{.num_kv_heads = f.num_heads,
                                          .head_dim = f.head_dim,
                                          .q = weight("q"),
                                          .k = weight("k"),
                                          .v = weight("v")},
          .o = weight("o")};
}

FfnTensors ffn_of(SwitchFields const& f, std::string const& prefix) {
  auto const weight = [&](char const* name) { return WeightSlice{.name = prefix + name + ".weight"}; };
  if (f.gated) return {.gate = weight("wi_0"), .up = weight("wi_1"), .down = weight("wo")};
  return {.up = weight("wi"), .down = weight("wo")};
}

std::variant<DenseFfnSpec, MoeFfnSpec> feed_forward_of(SwitchFields const& f, std::string const& prefix, bool sparse) {
  if (!sparse)
    return DenseFfnSpec{.intermediate = f.intermediate, .activation = f.activation, .tensors = ffn_of(f, prefix)};
  MoeFfnSpec moe{.router = {.num_experts = f.common.num_experts,
                            .experts_per_token = 1,
                            .normalisation = RouterNormalisation::none},
                 .router_weight = prefix + "router.classifier.weight",
                 .intermediate = f.intermediate,
                 .activation = f.activation,
                 .capacity = f.capacity};
  if (f.router_bias) moe.router_bias = VectorSlice{prefix + "router.classifier.bias"};
  for (std::size_t e = 0; e < f.common.num_experts; ++e)
    moe.experts.push_back(ffn_of(f, prefix + "experts.expert_" + std::to_string(e) + "."));
  return moe;
}

// Sub-layers are numbered: self-attention, in a decoder cross-attention, FFN; each has its norm.
LayerSpec layer_of(SwitchFields const& f, SwitchStack const& stack, std::size_t index) {
  bool const decoder = stack.kind == StackKind::decoder;
  std::string const name = decoder ? "decoder." : "encoder.";
  auto const part = [&](std::size_t layer, std::size_t number) {
    return name + "block." + std::to_string(layer) + ".layer." + std::to_string(number) + ".";
  };
  auto const norm = [&](std::size_t number) {
    return NormSpec{.weight = part(index, number) + "layer_norm.weight", .epsilon = f.epsilon};
  };
  LayerSpec layer;
  layer.input_norm = norm(0);
  layer.attention = attention_of(f, part(index, 0) + "SelfAttention.");
  layer.attention.relative_bias = RelativeBiasSpec{
      .weight = part(0, 0) + "SelfAttention.relative_attention_bias.weight",  // the first layer keeps it for all
      .buckets = f.buckets,
      .max_distance = f.max_distance,
      .bidirectional = !decoder};
  if (decoder) layer.cross = CrossAttentionSpec{norm(1), attention_of(f, part(index, 1) + "EncDecAttention.")};
  std::size_t const last = decoder ? 2 : 1;
  layer.post_attention_norm = norm(last);
  layer.ffn = feed_forward_of(f, part(index, last) + "mlp.", is_sparse(index, stack.sparse_step));
  return layer;
}

}  // namespace

ModelSpec build_switch_transformers(ConfigReader& config, ModelOptions const& /*options*/) {
  SwitchFields const f = read_switch_fields(config);
  std::size_t const encoder_layers = config.count("num_layers", kMostLayers);
  std::size_t const decoder_layers =
      config.has("num_decoder_layers") ? config.count("num_decoder_layers", kMostLayers) : encoder_layers;
  SwitchStack const stacks[] = {
      {StackKind::encoder, encoder_layers,
       sparse_step(config, "encoder_sparse_step", "num_sparse_encoder_layers", encoder_layers)},
      {StackKind::decoder, decoder_layers,
       sparse_step(config, "decoder_sparse_step", "num_sparse_decoder_layers", decoder_layers)}};
  ModelSpec spec = model_of(f.common, "", "final_layer_norm", f.epsilon, NormKind::rms);
  spec.max_position = config.count_or("n_positions", kDefaultLength);
  spec.goes_beyond_max_position = true;
  if (f.common.tied) spec.logit_multiplier = static_cast<float>(1 / std::sqrt(static_cast<double>(f.common.hidden)));
  for (std::size_t s = 0; s < 2; ++s)
    for (std::size_t l = 0; l < stacks[s].layers; ++l) spec.stacks[s].layers.push_back(layer_of(f, stacks[s], l));
  return spec;
}

}  // namespace expertmesh
