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

// n_group and topk_group; score: how groups are compared.
std::optional<RouterGroups> read_groups(ConfigReader& config, RouterSpec const& router, GroupScore score);
// DeepSeek-V3's mixture: sigmoid scores, a bias for the choice, groups compared by their two best.
DeepseekMixture read_sigmoid_mixture(ConfigReader& config, CommonFields const& fields, std::size_t first_sparse);
// The parts that all of them have: sizes of experts, dense layers and shared experts.
void read_mixture_sizes(ConfigReader& config, CommonFields const& fields, std::size_t first_sparse,
                        DeepseekMixture& mixture);
// The FFN of this layer.
void set_ffn(CommonFields const& fields, DeepseekMixture const& mixture, std::size_t layer, LayerSpec& spec);
// Layers behind the last that predict further tokens may be in the checkpoint; they are not used.
void skip_prediction_layers(ConfigReader& config, CommonFields const& fields, ModelSpec& spec);

}  // namespace expertmesh
