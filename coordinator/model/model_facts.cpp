#include "coordinator/model/model_facts.h"

#include "common/experts/packed_weights.h"
#include "coordinator/model/layer_cost.h"

namespace expertmesh {
namespace {

using nlohmann::ordered_json;

ordered_json part_facts(PartCost const& part) {
  return {{"bytes", part.bytes}, {"multiply_adds", part.multiply_adds}};
}

ordered_json kv_facts(LayerCost const& layer) {
  ordered_json kv{{"bytes_per_token", layer.kv_bytes}, {"multiply_adds_per_key", layer.pair_multiply_adds}};
  if (layer.span.kind != SpanKind::full)
    kv[layer.span.kind == SpanKind::window ? "window" : "chunk"] = layer.span.tokens;
  return kv;
}

ordered_json layer_facts(LayerCost const& layer) {
  ordered_json facts{{"count", 1}, {"attention", part_facts(layer.attention)}, {"kv", kv_facts(layer)}};
  if (layer.dense_ffn.bytes > 0) facts["dense_ffn"] = part_facts(layer.dense_ffn);
  if (layer.num_experts == 0) return facts;
  facts["router"] = part_facts(layer.router);
  if (layer.shared_expert.bytes > 0) facts["shared_expert"] = part_facts(layer.shared_expert);
  facts["experts"] = part_facts(layer.expert);
  facts["experts"]["count"] = layer.num_experts;
  facts["experts"]["per_token"] = layer.experts_per_token;
  return facts;
}

ordered_json stack_facts(StackSpec const& stack, std::size_t hidden, WeightFormat weights, DType kv_dtype,
                         Holders const& holders) {
  ordered_json layers = ordered_json::array();
  std::optional<LayerCost> last;
  for (auto const& layer : stack.layers) {
    LayerCost const cost = cost_of(layer, hidden, weights, kv_dtype, holders);
    if (cost == last)
      layers.back()["count"] = layers.back()["count"].get<std::size_t>() + 1;
    else
      layers.push_back(layer_facts(cost));
    last = cost;
  }
  return {{"kind", stack.kind == StackKind::encoder ? "encoder" : "decoder"}, {"layers", std::move(layers)}};
}

}  // namespace

ordered_json model_facts(ModelSpec const& spec, DType dtype, Quantization quantization, DType kv_dtype,
                         std::size_t num_workers, Holders const& holders) {
  WeightFormat const weights = weight_format_of(dtype, quantization);
  ModelPlan const plan = plan_model(spec, weights, kv_dtype, num_workers, holders);
  ordered_json stacks = ordered_json::array();
  for (auto const& stack : spec.stacks) stacks.push_back(stack_facts(stack, spec.hidden, weights, kv_dtype, holders));
  PartCost const head{.bytes = packed_bytes(weights, spec.vocab, spec.hidden),
                      .multiply_adds = spec.vocab * spec.hidden};
  return {{"family", spec.family},
          {"hidden", spec.hidden},
          {"vocab", spec.vocab},
          {"max_position", spec.max_position},
          {"stored_as", name_of(spec.stored_dtype)},
          {"stored_forms", stored_forms(spec)},
          {"dtype", name_of(dtype)},
          {"weights", name_of(weights.storage)},
          {"kv_cache_dtype", name_of(kv_dtype)},
          {"row_bytes", spec.hidden * size_of(dtype)},
          {"parameters",
           {{"total", plan.parameters}, {"active", plan.active_parameters}, {"routed", plan.routed_parameters}}},
          {"coordinator_bytes", plan.coordinator_bytes},
          {"embedding_bytes", plan.embedding_bytes},
          {"worker_bytes", plan.worker_bytes},
          {"kv_bytes_per_token", plan.kv_bytes_per_token},
          {"cross_kv_bytes_per_token", plan.cross_kv_bytes_per_token},
          {"lm_head", part_facts(head)},
          {"stacks", std::move(stacks)}};
}

std::string to_text(ordered_json const& json) {
  return json.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace expertmesh
