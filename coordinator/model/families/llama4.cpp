// Llama 4's text model (Meta 2025): chunked attention with rotation and q/k norm, and every few layers full attention
// without positions whose queries grow with them; gate weights multiply the experts' inputs.
#include <algorithm>

#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

// [layers] whether the layer rotates its queries and keys.
std::vector<bool> read_rotating_layers(ConfigReader& config, std::size_t layers) {
  std::vector<bool> rotates(layers);
  std::size_t const interval = config.count_or("no_rope_layer_interval", 4);
  for (std::size_t l = 0; l < layers; ++l) rotates[l] = (l + 1) % interval != 0;
  auto const said = config.indices("no_rope_layers");  // 1: rotates
  if (said.empty()) return rotates;
  if (said.size() != layers)
    config.refuse("no_rope_layers", std::to_string(said.size()) + " marks for " + std::to_string(layers) + " layers");
  for (std::size_t l = 0; l < layers; ++l) rotates[l] = said[l] != 0;
  return rotates;
}

std::vector<bool> read_sparse(ConfigReader& config, std::size_t layers) {
  std::size_t const step = config.count_or("interleave_moe_layer_step", 1);
  std::vector<bool> sparse(layers);
  for (std::size_t l = 0; l < layers; ++l) sparse[l] = (l + 1) % step == 0;
  if (!config.has("moe_layers")) return sparse;
  sparse.assign(layers, false);
  for (std::size_t l : config.indices("moe_layers")) {
    if (l >= layers) config.refuse("moe_layers", "there is no layer " + std::to_string(l));
    sparse[l] = true;
  }
  return sparse;
}

std::vector<AttentionSpan> read_chunks(ConfigReader& config, std::vector<bool> const& rotates) {
  auto chunk = config.optional_count("attention_chunk_size");
  if (!chunk && !config.is_null("attention_chunk_size")) chunk = 8192;
  auto const types = config.texts("layer_types");
  std::size_t const layers = rotates.size();
  if (!types.empty() && types.size() != layers)
    config.refuse("layer_types", std::to_string(types.size()) + " types for " + std::to_string(layers) + " layers");
  std::vector<AttentionSpan> spans(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    bool chunked = rotates[l];
    if (!types.empty()) {
      chunked = types[l] == "chunked_attention";
      if (!chunked && types[l] != "full_attention")
        config.refuse("layer_types", "layers of type '" + types[l] + "' are not supported here");
    }
    if (chunked && chunk) spans[l] = {SpanKind::chunked, *chunk};
  }
  return spans;
}

// Stored [H,2F] (gate, then up) and [F,H].
FfnTensors expert_of(std::string const& prefix, std::size_t intermediate, std::size_t stack, std::size_t index) {
  WeightSlice const gate{.name = prefix + "gate_up_proj",
                         .stack = stack,
                         .index = index,
                         .stored_rows = 2 * intermediate,
                         .transposed = true};
  WeightSlice up = gate;
  up.first_row = intermediate;
  return {.gate = gate,
          .up = up,
          .down = {.name = prefix + "down_proj", .stack = stack, .index = index, .transposed = true}};
}

}  // namespace

ModelSpec build_llama4_text(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(
      config, {.rope_theta = 500000.0, .norm_epsilon = 1e-5F, .head_dim = 128, .rope_interleaved = true});
  RouterSpec router = read_router_size(config);
  router.scoring = RouterScoring::none;
  router.normalisation = RouterNormalisation::sigmoid_of_chosen;
  if (f.weights.storage() != WeightStorage::numbers)
    config.refuse("quantization_config", "stacked experts in this format are not supported");
  bool const bias = config.flag_or("attention_bias", false);
  bool const norm = config.flag_or("use_qk_norm", true);
  auto const rotates = read_rotating_layers(config, f.layers);
  auto const spans = read_chunks(config, rotates);
  auto const sparse = read_sparse(config, f.layers);
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  std::size_t const dense_intermediate = config.count("intermediate_size_mlp", kMostColumns);
  bool const tunes = config.flag_or("attn_temperature_tuning", true);
  TemperatureTuning const tuning{.floor = config.number_or("floor_scale", 8192),
                                 .scale = config.number_or("attn_scale", 0.1)};
  if (!(tuning.floor > 0)) config.refuse("floor_scale", "must be positive");
  config.without_effect({"router_jitter_noise"});  // multiplies the input in training only
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .span = spans[l]});
    if (rotates[l] && norm) {
      auto& projection = std::get<GroupedProjection>(layer.attention.projection);
      projection.q_norm = QkNormSpec{.weight = {}, .epsilon = f.epsilon, .after_rope = true};
      projection.k_norm = projection.q_norm;
    }
    if (!rotates[l]) layer.attention.rope.kind = RopeKind::none;
    if (!rotates[l] && tunes) layer.attention.temperature = tuning;
    std::string const prefix = layer_prefix(l) + "feed_forward.";
    if (sparse[l]) {
      MoeFfnSpec moe{.router = router,
                     .router_weight = prefix + "router.weight",
                     .gate_on_input = true,
                     .intermediate = intermediate,
                     .activation = f.activation};
      for (std::size_t e = 0; e < router.num_experts; ++e)
        moe.experts.push_back(expert_of(prefix + "experts.", intermediate, router.num_experts, e));
      moe.shared = SharedExpertSpec{.ffn = dense_ffn_of(f, prefix + "shared_expert.", {.intermediate = intermediate})};
      layer.ffn = std::move(moe);
    } else {
      layer.ffn = dense_ffn_of(f, prefix, {.intermediate = dense_intermediate});
    }
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
