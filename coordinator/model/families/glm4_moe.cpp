// GLM-4.5 (Zhipu 2025) and dots.llm1 (rednote 2025): grouped-query attention in front of DeepSeek-V3's mixture.
#include "coordinator/model/families/deepseek_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_glm4_moe(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(
      config, {.rope_theta = 10000.0, .norm_epsilon = 1e-5F, .partial_rotary_factor = 0.5, .partial_rotation = true});
  bool const bias = config.flag_or("attention_bias", false);
  std::optional<QkNormScope> const norm =
      config.flag_or("use_qk_norm", false) ? std::optional(QkNormScope::head) : std::nullopt;
  auto const spans = read_spans(config, f.layers, {});
  DeepseekMixture const mixture = read_sigmoid_mixture(config, f, {.first_sparse = 1, .shared_experts = 1});
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .qk_norm = norm, .span = spans[l]});
    set_ffn(f, mixture, l, layer);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  skip_prediction_layers(config, f, spec);
  return spec;
}

ModelSpec build_dots1(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F});
  bool const bias = config.flag_or("attention_bias", false);
  auto const spans = read_spans(config, f.layers,
                                {.rule = WindowRule::from_max_window_layers, .window = 4096, .max_window_layers = 62});
  DeepseekMixture mixture = read_sigmoid_mixture(config, f, {});
  // Not said, weights are left as they are.
  if (!config.has("norm_topk_prob")) mixture.router.normalisation = RouterNormalisation::none;
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer =
        layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .qk_norm = QkNormScope::head, .span = spans[l]});
    set_ffn(f, mixture, l, layer);
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
