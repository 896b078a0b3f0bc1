#include "coordinator/bench/step_cost.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {
namespace {

std::size_t weights_of(GroupedProjection const& p, std::size_t num_heads, std::size_t hidden) {
  return hidden * p.head_dim * (num_heads + 2 * p.num_kv_heads);
}

// In the absorbed form: each head's key and value projection meets every token once.
std::size_t weights_of(LatentProjection const& p, std::size_t num_heads, std::size_t hidden) {
  std::size_t const q_rows = num_heads * (p.nope_dim + p.rope_dim);
  return (p.q_a ? p.q_rank * (hidden + q_rows) : hidden * q_rows) + hidden * (p.kv_rank + p.rope_dim) +
         num_heads * p.kv_rank * (p.nope_dim + p.value_dim);
}

std::size_t weights_of(FfnTensors const& ffn, std::size_t hidden, std::size_t intermediate) {
  return (ffn.gate ? 3 : 2) * hidden * intermediate;
}

// Weights that meet every token of a layer.
std::size_t active_weights(LayerSpec const& layer, std::size_t hidden) {
  AttentionSpec const& a = layer.attention;
  std::size_t const attention =
      std::visit([&](auto const& p) { return weights_of(p, a.num_heads, hidden); }, a.projection) +
      hidden * a.num_heads * a.value_dim();
  if (auto const* dense = std::get_if<DenseFfnSpec>(&layer.ffn))
    return attention + weights_of(dense->tensors, hidden, dense->intermediate);
  auto const& moe = std::get<MoeFfnSpec>(layer.ffn);
  std::size_t const router = (moe.router.noise ? 2 : 1) * hidden * moe.router.num_experts;
  std::size_t const shared = moe.shared ? weights_of(moe.shared->ffn.tensors, hidden, moe.shared->ffn.intermediate) : 0;
  return attention + router + shared +
         moe.router.experts_per_token * weights_of(moe.experts.front(), hidden, moe.intermediate);
}

// By the last of `context` tokens; 1 at least.
std::size_t tokens_seen(AttentionSpan const& span, std::size_t context) {
  switch (span.kind) {
    case SpanKind::full:
      return context;
    case SpanKind::window:
      return std::min(context, span.tokens);
    case SpanKind::chunked:
      return (context - 1) % span.tokens + 1;
  }
  return context;
}

// Multiply-adds of one query with one key and value, all heads.
std::size_t pair_cost(AttentionSpec const& a) {
  if (auto const* latent = std::get_if<LatentProjection>(&a.projection))
    return a.num_heads * (2 * latent->kv_rank + latent->rope_dim);
  return 2 * a.num_heads * a.value_dim();
}

}  // namespace

StepCost::StepCost(ModelSpec const& spec, WeightFormat const& weights, DType dtype)
    : spec_(spec), dtype_(dtype), plan_(plan_model(spec, weights, dtype, 1)) {}

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
  for (auto const& layer : spec_.decoder().layers)
    elements += layer.attention.kv_elements() * tokens_seen(layer.attention.span, context);
  return elements * size_of(dtype_);
}

double StepCost::prompt_flops(std::size_t tokens) const {
  double flops = 2.0 * static_cast<double>(spec_.hidden * spec_.vocab);
  for (auto const& layer : spec_.decoder().layers) {
    flops += 2.0 * static_cast<double>(tokens * active_weights(layer, spec_.hidden));
    std::size_t pairs = 0;  // of a query and a key
    for (std::size_t context = 1; context <= tokens; ++context) pairs += tokens_seen(layer.attention.span, context);
    flops += 2.0 * static_cast<double>(pairs * pair_cost(layer.attention));
  }
  return flops;
}

double StepCost::decode_flops(std::size_t context) const {
  double flops = 2.0 * static_cast<double>(spec_.hidden * spec_.vocab);
  for (auto const& layer : spec_.decoder().layers)
    flops += 2.0 * static_cast<double>(active_weights(layer, spec_.hidden) +
                                       tokens_seen(layer.attention.span, context) * pair_cost(layer.attention));
  return flops;
}

}  // namespace expertmesh
