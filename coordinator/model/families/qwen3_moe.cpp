// Qwen3 MoE (Qwen team 2025): q/k norm per head, dense layers where `mlp_only_layers` or `decoder_sparse_step` say so.
#include <algorithm>

#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_qwen3_moe(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f =
      read_common_fields(config, {.rope_theta = 10000.0, .rms_norm_eps = 1e-6F, .window = WindowRule::switched_off});
  RouterSpec router = read_router_size(config);
  router.normalisation =
      config.flag_or("norm_topk_prob", false) ? RouterNormalisation::sum_to_one : RouterNormalisation::none;
  std::size_t const dense_intermediate = config.count("intermediate_size", kMostColumns);
  std::size_t const intermediate = config.count("moe_intermediate_size", kMostColumns);
  std::size_t const step = config.count_or("decoder_sparse_step", 1);
  auto const dense_layers = config.indices("mlp_only_layers");
  for (std::size_t l : dense_layers)
    if (l >= f.layers) config.refuse("mlp_only_layers", "there is no layer " + std::to_string(l));
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qk_norm = true});
    std::string const prefix = layer_prefix(l) + "mlp.";
    if (std::ranges::count(dense_layers, l) > 0 || (l + 1) % step != 0) {
      layer.ffn = dense_ffn_of(prefix, dense_intermediate);
    } else {
      layer.ffn = MoeFfnSpec{.router = router,
                             .router_weight = prefix + "gate.weight",
                             .router_noise_weight = {},
                             .intermediate = intermediate,
                             .experts = experts_of(prefix, router.num_experts, {"gate_proj", "up_proj", "down_proj"})};
    }
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
