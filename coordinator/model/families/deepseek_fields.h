// What the families that follow DeepSeek's mixtures have in common: dense layers first, then routed experts in groups
// beside shared ones.
#pragma once
#include <cstddef>
#include <string>

#include "coordinator/model/families/common_fields.h"

namespace expertmesh {

struct DeepseekMixture {
  RouterSpec router;
  bool selection_bias = false;   // <mlp>.gate.e_score_correction_bias
  std::size_t first_sparse = 0;  // layers before it are dense
  std::size_t intermediate = 0;  // F of a routed expert
  std::size_t dense_intermediate = 0;
  std::size_t shared_intermediate = 0;  // of all shared experts together; 0: none
  bool ffn_bias = false;                // of dense and shared FFNs
};

// n_group and topk_group; none where all experts are one group.
std::optional<RouterGroups> read_groups(ConfigReader& config, RouterSpec const& router, RouterGroups const& defaults);

// What such families default differently.
struct MixtureDefaults {
  std::size_t first_sparse = 0;    // first_k_dense_replace
  std::size_t shared_experts = 0;  // n_shared_experts
  double scale = 1.0;              // routed_scaling_factor
  std::size_t groups = 1;          // n_group
  std::size_t chosen_groups = 1;   // topk_group
};
// DeepSeek-V3's mixture: sigmoid scores, a bias for the choice, groups compared by their two best.
DeepseekMixture read_sigmoid_mixture(ConfigReader& config, CommonFields const& fields, MixtureDefaults const& defaults);
// The parts that all of them have: sizes of experts, dense layers and shared experts.
void read_mixture_sizes(ConfigReader& config, CommonFields const& fields, MixtureDefaults const& defaults,
                        DeepseekMixture& mixture);
// The FFN of this layer.
void set_ffn(CommonFields const& fields, DeepseekMixture const& mixture, std::size_t layer, LayerSpec& spec);
// Layers behind the last that predict further tokens may be in the checkpoint; they are not used.
void skip_prediction_layers(ConfigReader& config, CommonFields const& fields, ModelSpec& spec);

}  // namespace expertmesh
