// The noisy top-k gate of Shazeer et al. 2017 (arXiv:1701.06538, eq. 3-5) in a Llama-like decoder with a mixture in
// every N-th layer. Noise is off unless the config or --router-noise turns it on.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {

ModelSpec build_noisy_topk_moe(ConfigReader& config, ModelOptions const& options) {
  CommonFields const f = read_common_fields(config, {.rope_theta = 10000.0, .norm_epsilon = 1e-6F});
  RouterSpec router = read_router_size(config);
  router.scoring = RouterScoring::none;
  router.normalisation = RouterNormalisation::softmax_of_chosen;
  if (config.flag_or("router_noise", false)) router.noise = RouterNoise{};
  if (options.router_noise_seed) router.noise = RouterNoise{*options.router_noise_seed};
  auto const spans = read_spans(config, f.layers, {});
  std::size_t const intermediate = config.count("intermediate_size", kMostColumns);
  std::size_t const interval = config.count_or("moe_layer_interval", 1);
  if (interval > f.layers)
    config.refuse("moe_layer_interval", "no layer of " + std::to_string(f.layers) + " would hold experts");
  ModelSpec spec = model_of(f);
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.span = spans[l]});
    if ((l + 1) % interval == 0) {
      std::string const prefix = layer_prefix(l) + "block_sparse_moe.";
      layer.ffn = MoeFfnSpec{.router = router,
                             .router_weight = prefix + "gate.weight",
                             .router_noise_weight = prefix + "noise.weight",
                             .intermediate = intermediate,
                             .activation = f.activation,
                             .experts = experts_of(f, prefix, router.num_experts, {"w1", "w3", "w2"})};
    } else {
      layer.ffn = dense_ffn_of(f, layer_prefix(l) + "mlp.", {.intermediate = intermediate});
    }
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
