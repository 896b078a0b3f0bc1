#include "coordinator/model/families/deepseek_fields.h"

namespace expertmesh {

std::optional<RouterGroups> read_groups(ConfigReader& config, RouterSpec const& router, RouterGroups const& defaults) {
  GroupScore const score = defaults.score;
  RouterGroups const groups{.count = config.count_or("n_group", defaults.count),
                            .chosen = config.count_or("topk_group", defaults.chosen),
                            .score = score};
  if (groups.count == 1 && groups.chosen == 1) return std::nullopt;
  if (router.num_experts % groups.count != 0)
    config.refuse("n_group", std::to_string(groups.count) + " does not divide the " +
                                 std::to_string(router.num_experts) + " experts there are");
  if (groups.chosen > groups.count)
    config.refuse("topk_group",
                  std::to_string(groups.chosen) + " is more than n_group " + std::to_string(groups.count));
  std::size_t const size = router.num_experts / groups.count;
  if (groups.chosen * size < router.experts_per_token)
    config.refuse("topk_group", std::to_string(groups.chosen) + " groups hold " + std::to_string(groups.chosen * size) +
                                    " experts, fewer than num_experts_per_tok");
  if (score == GroupScore::sum_of_two_largest && size < 2)
    config.refuse("n_group", "groups are compared by their two best experts, but hold one");
  return groups;
}

DeepseekMixture read_sigmoid_mixture(ConfigReader& config, CommonFields const& f, MixtureDefaults const& defaults) {
  DeepseekMixture mixture;
  RouterSpec& router = mixture.router;
  router = read_router_size(
      config, {.num_experts = {"n_routed_experts", "num_local_experts", "num_experts"}, .scoring = "sigmoid"});
  router.scoring = RouterScoring::sigmoid;
  router.groups =
      read_groups(config, router, {defaults.groups, defaults.chosen_groups, GroupScore::sum_of_two_largest});
  router.normalisation =
      config.flag_or("norm_topk_prob", true) ? RouterNormalisation::sum_to_one : RouterNormalisation::none;
  router.sum_offset = 1e-20F;
  router.scale = static_cast<float>(config.number_or("routed_scaling_factor", defaults.scale));
  if (std::string const method = config.text_or("topk_method", "noaux_tc"); method != "noaux_tc")
    config.refuse("topk_method", "unknown method '" + method + "'");
  mixture.selection_bias = true;
  read_mixture_sizes(config, f, defaults, mixture);
  return mixture;
}

void read_mixture_sizes(ConfigReader& config, CommonFields const& f, MixtureDefaults const& defaults,
                        DeepseekMixture& mixture) {
  mixture.first_sparse =
      config.has("first_k_dense_replace") ? config.index("first_k_dense_replace") : defaults.first_sparse;
  if (mixture.first_sparse > f.layers)
    config.refuse("first_k_dense_replace", "there are only " + std::to_string(f.layers) + " layers");
  if (config.count_or("moe_layer_freq", 1) != 1)
    config.refuse("moe_layer_freq", "a mixture in every N-th layer is not supported here");
  mixture.intermediate = config.count("moe_intermediate_size", kMostColumns);
  mixture.dense_intermediate = config.count("intermediate_size", kMostColumns);
  std::size_t const shared =
      config.has("n_shared_experts") ? config.index("n_shared_experts") : defaults.shared_experts;
  if (shared > kMostColumns / mixture.intermediate)
    config.refuse("n_shared_experts", std::to_string(shared) + " is more than supported here");
  mixture.shared_intermediate = shared * mixture.intermediate;
}

void set_ffn(CommonFields const& f, DeepseekMixture const& m, std::size_t layer, LayerSpec& spec) {
  std::string const prefix = layer_prefix(layer) + "mlp.";
  if (layer < m.first_sparse) {
    spec.ffn = dense_ffn_of(f, prefix, {.intermediate = m.dense_intermediate, .bias = m.ffn_bias});
    return;
  }
  MoeFfnSpec moe{.router = m.router,
                 .router_weight = prefix + "gate.weight",
                 .intermediate = m.intermediate,
                 .activation = f.activation,
                 .experts = experts_of(f, prefix, m.router.num_experts, {"gate_proj", "up_proj", "down_proj"})};
  if (m.selection_bias) moe.selection_bias = VectorSlice{prefix + "gate.e_score_correction_bias"};
  if (m.shared_intermediate > 0)
    moe.shared = SharedExpertSpec{.ffn = dense_ffn_of(f, prefix + "shared_experts.",
                                                      {.intermediate = m.shared_intermediate, .bias = m.ffn_bias})};
  spec.ffn = std::move(moe);
}

void skip_prediction_layers(ConfigReader& config, CommonFields const& f, ModelSpec& spec) {
  std::size_t const count =
      config.has("num_nextn_predict_layers") ? config.index("num_nextn_predict_layers") : std::size_t{1};
  for (std::size_t i = 0; i < count && i < f.layers; ++i) spec.skipped_prefixes.push_back(layer_prefix(f.layers + i));
}

}  // namespace expertmesh
