#include "coordinator/bench/step_cost.h"

#include "common/base/check.h"

namespace expertmesh {
StepCost::StepCost(ModelSpec const& spec, WeightFormat const& weights, DType kv_dtype, Holders const& holders)
    : hidden_(spec.hidden), vocab_(spec.vocab), plan_(plan_model(spec, weights, kv_dtype, 1, holders)) {
  for (auto const& layer : spec.decoder().layers)
    layers_.push_back(cost_of(layer, spec.hidden, weights, kv_dtype, holders));
}

std::size_t StepCost::weight_bytes(std::size_t num_tokens, std::span<std::size_t const> experts_hit) const {
  EM_CHECK(experts_hit.size() == plan_.expert_bytes.size(),
           experts_hit.size() << " of " << plan_.expert_bytes.size() << " MoE layers");
  std::size_t const embedding_row = plan_.embedding_bytes / vocab_;
  std::size_t bytes = plan_.coordinator_bytes - plan_.embedding_bytes + num_tokens * embedding_row;
  for (std::size_t m = 0; m < experts_hit.size(); ++m) bytes += experts_hit[m] * plan_.expert_bytes[m];
  return bytes;
}

std::size_t StepCost::kv_bytes(std::size_t context) const {
  std::size_t bytes = 0;
  for (auto const& layer : layers_) bytes += layer.kv_bytes * tokens_seen(layer.span, context);
  return bytes;
}

double StepCost::prompt_flops(std::size_t tokens) const {
  double flops = 2.0 * static_cast<double>(hidden_ * vocab_);
  for (auto const& layer : layers_) {
    flops += 2.0 * static_cast<double>(tokens * layer.multiply_adds());
    std::size_t pairs = 0;  // of a query and a key
    for (std::size_t context = 1; context <= tokens; ++context) pairs += tokens_seen(layer.span, context);
    flops += 2.0 * static_cast<double>(pairs * layer.pair_multiply_adds);
  }
  return flops;
}

double StepCost::decode_flops(std::size_t context) const {
  double flops = 2.0 * static_cast<double>(hidden_ * vocab_);
  for (auto const& layer : layers_)
    flops +=
        2.0 * static_cast<double>(layer.multiply_adds() + tokens_seen(layer.span, context) * layer.pair_multiply_adds);
  return flops;
}

}  // namespace expertmesh
