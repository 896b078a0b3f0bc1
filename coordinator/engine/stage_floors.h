// What the stages of a step take at least: the bytes that they have to move over what memory gives, or the operations
// that they have to do over what the cores compute, whichever takes longer (the roofline of Williams et al. 2009).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/experts/packed_weights.h"
#include "common/moe/balance.h"
#include "coordinator/model/layer_cost.h"
#include "coordinator/model/stage_times.h"

namespace expertmesh {

struct Ceilings {
  double bytes_per_second = 0;
  double operations_per_second = 0;  // a multiply-add is two; 0, here as above: not known, and no bound
};

// What the stages of a step have to do; nothing for those that have no floor.
using StageWork = std::array<PartCost, kNumStages>;  // in the order of Stage

// Of the decoder of a model without an encoder. Bytes counted: weights once a step, an expert's if a token went to it;
// keys and values of a sequence once a step; rows that go to the experts and come back once, since each goes to one
// worker at least; logits once. Caches that hold some of it can make a stage faster than its floor.
class StageFloors {
 public:
  // dtype: of rows to the experts. own: of the coordinator's threads, which run the experts, too, until set_experts().
  StageFloors(ModelSpec const& spec, WeightFormat const& weights, DType dtype, DType kv_dtype, Ceilings own,
              Holders const& holders = {});

  // Of those who run the routed experts, all together.
  void set_experts(Ceilings experts) { experts_ = experts; }

  struct Step {
    std::span<std::uint32_t const> positions;  // [T]
    std::span<std::uint32_t const> offsets;    // [B+1] tokens of each sequence
    std::size_t logit_rows = 0;                // R
    BalanceStatistics const& routed;           // since the step began
  };
  // Allocate nothing.
  [[nodiscard]] StageWork work_of(Step const& step) const;
  [[nodiscard]] StageSeconds of(StageWork const& work) const;  // 0 for a stage with nothing to do
  [[nodiscard]] StageSeconds of(Step const& step) const { return of(work_of(step)); }

 private:
  // Equal attention of so many layers.
  struct Span {
    AttentionSpan span;
    std::size_t kv_bytes = 0;   // of a position, all these layers
    std::size_t pair_cost = 0;  // multiply-adds of a query and a key, likewise
  };
  Ceilings own_;
  Ceilings experts_;
  std::size_t embedding_row_bytes_ = 0;  // read and written
  std::size_t row_bytes_ = 0;            // [H] to or from an expert
  std::size_t residual_bytes_ = 0;       // [H]
  std::size_t vocab_ = 0;
  PartCost attention_, router_, shared_expert_, dense_ffn_, lm_head_;  // of all layers together
  std::vector<Span> spans_;
  std::vector<PartCost> expert_;  // [MoE layers] one of them
};

}  // namespace expertmesh
