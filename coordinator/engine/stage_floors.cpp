#include "coordinator/engine/stage_floors.h"

#include <algorithm>

namespace expertmesh {
namespace {

PartCost& operator+=(PartCost& sum, PartCost const& part) {
  sum.bytes += part.bytes;
  sum.multiply_adds += part.multiply_adds;
  return sum;
}

double floor_seconds(Ceilings const& ceilings, PartCost const& work) {
  auto const seconds = [](double amount, double rate) { return rate > 0 ? amount / rate : 0; };
  return std::max(seconds(static_cast<double>(work.bytes), ceilings.bytes_per_second),
                  seconds(2.0 * static_cast<double>(work.multiply_adds), ceilings.operations_per_second));
}

}  // namespace

StageFloors::StageFloors(ModelSpec const& spec, WeightFormat const& weights, DType dtype, DType kv_dtype, Ceilings own,
                         Holders const& holders)
    : own_(own),
      experts_(own),
      embedding_row_bytes_(spec.hidden * (size_of(spec.stored_dtype) + sizeof(float))),
      row_bytes_(spec.hidden * size_of(dtype)),
      residual_bytes_(spec.hidden * sizeof(float)),
      vocab_(spec.vocab),
      lm_head_{.bytes = packed_bytes(weights, spec.vocab, spec.hidden), .multiply_adds = spec.vocab * spec.hidden} {
  for (auto const& layer : spec.decoder().layers) {
    LayerCost const cost = cost_of(layer, spec.hidden, weights, kv_dtype, holders);
    attention_ += cost.attention;
    router_ += cost.router;
    shared_expert_ += cost.shared_expert;
    dense_ffn_ += cost.dense_ffn;
    if (cost.num_experts > 0) expert_.push_back(cost.expert);
    auto at = std::ranges::find(spans_, cost.span, &Span::span);
    if (at == spans_.end()) at = spans_.insert(at, {.span = cost.span});
    at->kv_bytes += cost.kv_bytes;
    at->pair_cost += cost.pair_multiply_adds;
  }
}

StageSeconds StageFloors::of(StageWork const& work) const {
  StageSeconds floors{};
  for (std::size_t s = 0; s < kNumStages; ++s)
    floors[s] = floor_seconds(Stage(s) == Stage::experts ? experts_ : own_, work[s]);
  return floors;
}

StageWork StageFloors::work_of(Step const& step) const {
  std::size_t const tokens = step.positions.size();
  StageWork work{};
  auto const set = [&](Stage stage, std::size_t bytes, std::size_t multiply_adds) {
    work[static_cast<std::size_t>(stage)] = {.bytes = bytes, .multiply_adds = multiply_adds};
  };
  if (tokens == 0) return work;
  set(Stage::embedding, tokens * embedding_row_bytes_, 0);

  PartCost attention{.bytes = attention_.bytes, .multiply_adds = tokens * attention_.multiply_adds};
  for (Span const& span : spans_) {
    for (std::size_t s = 0; s + 1 < step.offsets.size(); ++s) {
      // The tokens are consecutive: what they see together is what the first one sees, and those after it.
      std::size_t const count = step.offsets[s + 1] - step.offsets[s];
      if (count == 0) continue;
      std::size_t const first = tokens_seen(span.span, step.positions[step.offsets[s]] + std::size_t{1});
      attention.bytes += span.kv_bytes * (first + count - 1);
    }
    for (std::uint32_t const position : step.positions)
      attention.multiply_adds += span.pair_cost * tokens_seen(span.span, position + std::size_t{1});
  }
  set(Stage::attention, attention.bytes, attention.multiply_adds);
  set(Stage::dense_ffn, dense_ffn_.bytes, tokens * dense_ffn_.multiply_adds);

  if (!expert_.empty()) {
    PartCost experts;
    std::size_t rows = 0;
    for (std::size_t m = 0; m < expert_.size(); ++m) {
      BalanceStatistics::Hits const hits = step.routed.of_step(m);
      experts += {.bytes = hits.experts * expert_[m].bytes, .multiply_adds = hits.rows * expert_[m].multiply_adds};
      rows += hits.rows;
    }
    std::size_t const exchanged = expert_.size() * tokens;  // tokens of all MoE layers
    set(Stage::router, router_.bytes, tokens * router_.multiply_adds);
    set(Stage::shared_expert, shared_expert_.bytes, tokens * shared_expert_.multiply_adds);
    set(Stage::dispatch, exchanged * (residual_bytes_ + row_bytes_), 0);
    set(Stage::experts, experts.bytes, experts.multiply_adds);
    set(Stage::combine, rows * row_bytes_ + 2 * exchanged * residual_bytes_, 0);
  }
  if (step.logit_rows > 0) {
    set(Stage::lm_head, lm_head_.bytes, step.logit_rows * lm_head_.multiply_adds);
    set(Stage::sampling, step.logit_rows * vocab_ * sizeof(float), 0);
  }
  return work;
}

}  // namespace expertmesh
