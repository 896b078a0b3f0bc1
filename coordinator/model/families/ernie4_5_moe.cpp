// ERNIE 4.5 MoE (Baidu 2025): softmax scores, a bias for the choice, weights renormalised by a sum held above
// moe_norm_min; rotated pairs lie beside each other.
#include "coordinator/model/families/common_fields.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

struct SparseLayers {
  std::size_t first, last, interval;
  [[nodiscard]] bool contains(std::size_t layer) const {
    return (layer + 1) % interval == 0 && layer >= first && layer <= last;
  }
};

SparseLayers read_sparse_range(ConfigReader& config, std::size_t layers) {
  SparseLayers s{.first = config.has("moe_layer_start_index") ? config.index("moe_layer_start_index") : 1,
                 .last = layers - 1,
                 .interval = config.count_or("moe_layer_interval", 1)};
  if (config.number_or("moe_layer_end_index", -1) != -1) s.last = config.index("moe_layer_end_index");
  return s;
}

}  // namespace

ModelSpec build_ernie4_5_moe(ConfigReader& config, ModelOptions const& /*options*/) {
  CommonFields const f = read_common_fields(
      config, {.rope_theta = 500000.0, .norm_epsilon = 1e-5F, .rope_interleaved = true, .tied = true});
  bool const bias = config.flag_or("use_bias", false);
  RouterSpec router = read_router_size(config, {.num_experts = {"moe_num_experts", "num_experts"},
                                                .experts_per_token = {"moe_k", "num_experts_per_tok"}});
  router.sum_floor = static_cast<float>(config.number_or("moe_norm_min", 1e-12));
  if (!(router.sum_floor > 0)) config.refuse("moe_norm_min", "must be positive");
  auto const spans = read_spans(config, f.layers, {});
  std::size_t const dense_intermediate = config.count("intermediate_size", kMostColumns);
  std::size_t const intermediate = config.count("moe_intermediate_size", kMostColumns);
  std::size_t const shared = config.has("moe_num_shared_experts") ? config.index("moe_num_shared_experts") : 2;
  if (shared > kMostColumns / intermediate) config.refuse("moe_num_shared_experts", "is more than supported here");
  SparseLayers const sparse = read_sparse_range(config, f.layers);
  if (std::string const gate = config.text_or("moe_gate", "topk"); gate != "topk")
    config.refuse("moe_gate", "'" + gate + "' is not supported");
  if (!config.flag_or("moe_use_aux_free", true)) config.refuse("moe_use_aux_free", "false is not supported");
  config.without_effect({"moe_capacity", "num_nextn_predict_layers"});
  ModelSpec spec = model_of(f);
  spec.skipped_prefixes = {"model.mtp", "mtp"};  // layers that predict further tokens
  if (bias) spec.lm_head_bias = "lm_head.bias";
  for (std::size_t l = 0; l < f.layers; ++l) {
    LayerSpec layer = layer_of(f, l, {.qkv_bias = bias, .o_bias = bias, .span = spans[l]});
    std::string const prefix = layer_prefix(l) + "mlp.";
    if (!sparse.contains(l)) {
      layer.ffn = dense_ffn_of(f, prefix, {.intermediate = dense_intermediate, .bias = bias});
    } else {
      MoeFfnSpec moe{.router = router,
                     .router_weight = prefix + "gate.weight",
                     .selection_bias = VectorSlice{.name = prefix + "moe_statics.e_score_correction_bias", .stack = 1},
                     .intermediate = intermediate,
                     .activation = f.activation,
                     .experts = experts_of(f, prefix, router.num_experts, {"gate_proj", "up_proj", "down_proj"})};
      if (shared > 0)
        moe.shared = SharedExpertSpec{
            .ffn = dense_ffn_of(f, prefix + "shared_experts.", {.intermediate = shared * intermediate, .bias = bias})};
      layer.ffn = std::move(moe);
    }
    spec.stacks.front().layers.push_back(std::move(layer));
  }
  return spec;
}

}  // namespace expertmesh
