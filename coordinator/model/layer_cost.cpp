#include "coordinator/model/layer_cost.h"

#include <algorithm>

#include "common/experts/packed_weights.h"
#include "coordinator/model/kv_cache.h"

namespace expertmesh {
namespace {

std::size_t norm_bytes(NormSpec const& norm, std::size_t n) {
  return (norm.bias ? 2 : 1) * n * sizeof(float);
}

std::size_t norm_bytes(std::optional<QkNormSpec> const& norm, std::size_t heads, std::size_t head_dim) {
  if (!norm || !norm->weight) return 0;
  return (norm->scope == QkNormScope::head ? 1 : heads) * head_dim * sizeof(float);
}

// How linears are packed, and by whom.
struct Packing {
  WeightFormat format;
  Holder holder;

  // Of parts one below the other.
  [[nodiscard]] std::size_t bytes(std::initializer_list<LinearPart> parts, std::size_t k) const {
    return packed_linear_bytes(format, parts, k, holder);
  }
};

// q, k and v are fused.
PartCost projection_cost(GroupedProjection const& p, std::size_t num_heads, std::size_t hidden,
                         Packing const& packing) {
  std::size_t const q_rows = num_heads * p.head_dim;
  std::size_t const kv_rows = p.num_kv_heads * p.head_dim;
  std::size_t const rows = q_rows + 2 * kv_rows;
  return {
      .bytes = packing.bytes(
                   {{p.q.weight, q_rows, p.q.bias}, {p.k.weight, kv_rows, p.k.bias}, {p.v.weight, kv_rows, p.v.bias}},
                   hidden) +
               norm_bytes(p.q_norm, num_heads, p.head_dim) + norm_bytes(p.k_norm, p.num_kv_heads, p.head_dim),
      .multiply_adds = hidden * rows};
}

// q_a and kv_a are fused; kv_b lies there as one matrix for the keys and one for the values of each head, and in the
// absorbed form each of them meets every token once.
PartCost projection_cost(LatentProjection const& p, std::size_t num_heads, std::size_t hidden, Packing const& packing) {
  std::size_t const q_rows = num_heads * (p.nope_dim + p.rope_dim);
  std::size_t const q_columns = p.q_a ? p.q_rank : hidden;
  LinearPart const kv_a{p.kv_a.weight, p.kv_rank + p.rope_dim, p.kv_a.bias};
  std::size_t const a_bytes =
      p.q_a ? packing.bytes({{p.q_a->weight, p.q_rank, p.q_a->bias}, kv_a}, hidden) : packing.bytes({kv_a}, hidden);
  WeightFormat const& numbers = packing.format;  // rearranged, so that nothing is left of a checkpoint's codes
  return {
      .bytes =
          a_bytes + (p.q_a_norm ? norm_bytes(*p.q_a_norm, p.q_rank) : 0) + norm_bytes(p.kv_a_norm, p.kv_rank) +
          packing.bytes({{p.q_b.weight, q_rows, p.q_b.bias}}, q_columns) +
          num_heads * (packed_bytes(numbers, p.kv_rank, p.nope_dim) + packed_bytes(numbers, p.value_dim, p.kv_rank)),
      .multiply_adds = (p.q_a ? p.q_rank * hidden : 0) + q_columns * q_rows + hidden * (p.kv_rank + p.rope_dim) +
                       num_heads * p.kv_rank * (p.nope_dim + p.value_dim),
  };
}

PartCost attention_cost(AttentionSpec const& a, std::size_t hidden, Packing const& packing) {
  PartCost cost =
      std::visit([&](auto const& p) { return projection_cost(p, a.num_heads, hidden, packing); }, a.projection);
  std::size_t const values = a.num_heads * a.value_dim();
  cost.bytes += packing.bytes({{a.o.weight, hidden, a.o.bias}}, values);
  cost.multiply_adds += hidden * values;
  return cost;
}

std::size_t pair_multiply_adds(AttentionSpec const& a) {
  if (auto const* latent = std::get_if<LatentProjection>(&a.projection))
    return a.num_heads * (2 * latent->kv_rank + latent->rope_dim);
  return 2 * a.num_heads * a.value_dim();
}

PartCost ffn_cost(FfnTensors const& ffn, std::size_t hidden, std::size_t intermediate, Packing const& packing) {
  return {.bytes = packed_ffn_bytes(packing.format, ffn, {hidden, intermediate}, packing.holder),
          .multiply_adds = (ffn.gate ? 3 : 2) * hidden * intermediate};
}

void add_experts(MoeFfnSpec const& moe, std::size_t hidden, Packing const& own, Packing const& experts,
                 LayerCost& cost) {
  std::size_t const matrices = moe.router.noise ? 2 : 1;
  cost.num_experts = moe.router.num_experts;
  cost.experts_per_token = moe.router.experts_per_token;
  cost.router = {.bytes = matrices * packed_bytes(kFloat32Weights, cost.num_experts, hidden),
                 .multiply_adds = matrices * hidden * cost.num_experts};
  if (moe.shared) cost.shared_expert = ffn_cost(moe.shared->ffn.tensors, hidden, moe.shared->ffn.intermediate, own);
  FfnTensors const& expert = moe.experts.front();
  cost.expert = ffn_cost(expert, hidden, moe.intermediate, experts);
  cost.expert_parameters = cost.expert.multiply_adds + (expert.gate_bias ? moe.intermediate : 0) +
                           (expert.up_bias ? moe.intermediate : 0) + (expert.down_bias ? hidden : 0);
}

}  // namespace

std::size_t LayerCost::multiply_adds() const {
  return attention.multiply_adds + dense_ffn.multiply_adds + router.multiply_adds + shared_expert.multiply_adds +
         experts_per_token * expert.multiply_adds;
}

std::size_t LayerCost::coordinator_bytes() const {
  return attention.bytes + dense_ffn.bytes + router.bytes + shared_expert.bytes;
}

LayerCost cost_of(LayerSpec const& layer, std::size_t hidden, WeightFormat weights, DType kv_dtype,
                  Holders const& holders) {
  Packing const own{weights, holders.coordinator};
  LayerCost cost{.attention = attention_cost(layer.attention, hidden, own),
                 .span = layer.attention.span,
                 .kv_bytes = kv_bytes_per_token(layer.attention, kv_dtype),
                 .pair_multiply_adds = pair_multiply_adds(layer.attention)};
  cost.attention.bytes += norm_bytes(layer.input_norm, hidden) + norm_bytes(layer.post_attention_norm, hidden);
  if (layer.cross) {
    cost.cross_kv_bytes = kv_bytes_per_token(layer.cross->attention, kv_dtype);
    cost.attention.bytes +=
        attention_cost(layer.cross->attention, hidden, own).bytes + norm_bytes(layer.cross->norm, hidden);
  }
  if (auto const* dense = std::get_if<DenseFfnSpec>(&layer.ffn))
    cost.dense_ffn = ffn_cost(dense->tensors, hidden, dense->intermediate, own);
  else
    add_experts(std::get<MoeFfnSpec>(layer.ffn), hidden, own, {weights, holders.experts}, cost);
  return cost;
}

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

}  // namespace expertmesh
