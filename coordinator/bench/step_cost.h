// What a step has to read and to compute, from a model's shapes and the routing taken: the figures that times are held
// against.
#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include "coordinator/model/layer_cost.h"
#include "coordinator/model/model_plan.h"

namespace expertmesh {

class StepCost {
 public:
  StepCost(ModelSpec const& spec, WeightFormat const& weights, DType kv_dtype, Holders const& holders = {});

  // Bytes of weights one step reads: all that are not routed experts once (of the embedding a row for each token), and
  // each expert that was hit once. experts_hit: [MoE layers] distinct experts.
  [[nodiscard]] std::size_t weight_bytes(std::size_t num_tokens, std::span<std::size_t const> experts_hit) const;

  // Bytes of keys and values that one token reads which is the last of `context` tokens.
  [[nodiscard]] std::size_t kv_bytes(std::size_t context) const;

  // Operations (a multiply-add is two) to compute a prompt of `tokens` tokens, with logits of the last.
  [[nodiscard]] double prompt_flops(std::size_t tokens) const;
  // To compute one token with its logits, the last of `context` tokens.
  [[nodiscard]] double decode_flops(std::size_t context) const;

  [[nodiscard]] std::size_t num_moe_layers() const { return plan_.expert_bytes.size(); }
  [[nodiscard]] ModelPlan const& plan() const { return plan_; }  // with all experts in one place

 private:
  std::size_t hidden_;
  std::size_t vocab_;
  std::vector<LayerCost> layers_;  // of the decoder
  ModelPlan plan_;
};

}  // namespace expertmesh
