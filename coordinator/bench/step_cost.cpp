#include "coordinator/bench/step_cost.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {
namespace {

// Weights that meet every token of a layer.
std::size_t active_weights(LayerSpec const& layer, std::size_t hidden) {
  AttentionSpec const& a = layer.attention;
  auto const& p = std::get<GroupedProjection>(a.projection);
  std::size_t const attention = hidden * p.head_dim * (2 * a.num_heads + 2 * p.num_kv_heads);
  if (auto const* dense = std::get_if<DenseFfnSpec>(&layer.ffn)) return attention + 3 * hidden * dense->intermediate;
  auto const& moe = std::get<MoeFfnSpec>(layer.ffn);
  std::size_t const router = (moe.router.noise ? 2 : 1) * hidden * moe.router.num_experts;
  return attention + router + moe.router.experts_per_token * 3 * hidden * moe.intermediate;
}

// By the last of `context` tokens, at least 1.
std::size_t tokens_seen(AttentionSpec const& attention, std::size_t context) {
  AttentionSpan const& span = attention.span;
  if (span.kind == SpanKind::window) return std::min(context, span.tokens);
  if (span.kind == SpanKind::chunked) return (context - 1) % span.tokens + 1;
  return context;
}

}  // namespace

StepCost::StepCost(ModelSpec const& spec, DType dtype)
    : spec_(spec), dtype_(dtype), plan_(plan_model(spec, weight_format_of(dtype), dtype, 1)) {}

std::size_t StepCost::weight_bytes(std::size_t num_tokens, std::span<std::size_t const> experts_hit) const {
  EM_CHECK(experts_hit.size() == plan_.expert_bytes.size(),
           experts_hit.size() << " of " << plan_.expert_bytes.size() << " MoE layers");
  std::size_t const embedding_row = plan_.embedding_bytes / spec_.vocab;
  std::size_t bytes = plan_.coordinator_bytes - plan_.embedding_bytes + num_tokens * embedding_row;
  for (std::size_t m = 0; m < experts_hit.size(); ++m) bytes += experts_hit[m] * plan_.expert_bytes[m];
  return bytes;
}

std::size_t StepCost::kv_bytes(std::size_t context) const {
  std::size_t elements = 0;
  for (auto const& layer : spec_.stacks.front().layers) {
    auto const& p = std::get<GroupedProjection>(layer.attention.projection);
    elements += 2 * p.num_kv_heads * p.head_dim * tokens_seen(layer.attention, context);
  }
  return elements * size_of(dtype_);
}

double StepCost::prompt_flops(std::size_t tokens) const {
  double flops = 2.0 * static_cast<double>(spec_.hidden * spec_.vocab);
  for (auto const& layer : spec_.stacks.front().layers) {
    flops += 2.0 * static_cast<double>(tokens * active_weights(layer, spec_.hidden));
    std::size_t pairs = 0;  // of a query and a key
    for (std::size_t context = 1; context <= tokens; ++context) pairs += tokens_seen(layer.attention, context);
    flops += 4.0 * static_cast<double>(pairs * layer.attention.num_heads * layer.attention.value_dim());
  }
  return flops;
}

}  // namespace expertmesh
