// Dense Qwen2 and Qwen3 (Qwen team 2024, 2025): Qwen2 with biases of q, k and v, Qwen3 with norms of q and k.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

ModelSpec build(ConfigReader& config, CommonFields const& f, LayerOptions options) {
  auto const spans =
      read_spans(config, f.layers, {.rule = WindowRule::from_max_window_layers, .needs_switch = true, .window = 4096});
  DenseFfnOptions const ffn{.intermediate = config.count("intermediate_size", kMostColumns)};
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    options.span = spans[l];
    LayerSpec layer = layer_of(f, l, options);
    layer.ffn = dense_ffn_of(f, layer_prefix(l) + "mlp.", ffn);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace

ModelSpec build_qwen2(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F});
  return build(config, f, {.qkv_bias = true});
}

ModelSpec build_qwen3(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F, .head_dim = 128});
  bool const bias = config.flag_or("attention_bias", false);
  return build(config, f, {.qkv_bias = bias, .o_bias = bias, .qk_norm = QkNormScope::head});
}

}  // namespace expertmesh
