// What one layer asks of whoever computes it: bytes that lie in memory and multiply-adds of a token. Plans, benchmarks
// and `info --json` add these up.
#pragma once
#include <cstddef>

#include "common/config/attention_span.h"
#include "common/experts/packed_weights.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

// A part of a layer.
struct PartCost {
  std::size_t bytes = 0;          // of its weights as packed, biases and norms included
  std::size_t multiply_adds = 0;  // of one token with its matrices; an operation count is twice this
  bool operator==(PartCost const&) const = default;
};

struct LayerCost {
  PartCost attention;  // the layer's norms are in its bytes, and cross attention where there is any
  AttentionSpan span;
  std::size_t kv_bytes = 0;            // that the KV cache holds of a token
  std::size_t cross_kv_bytes = 0;      // of an encoder's token
  std::size_t pair_multiply_adds = 0;  // of one token with one key and value, all heads
  PartCost dense_ffn{};                // nothing in layers with experts, as the following are in others
  PartCost router{};
  PartCost shared_expert{};
  PartCost expert{};                  // one of them
  std::size_t expert_parameters = 0;  // of one, biases included
  std::size_t num_experts = 0;        // E
  std::size_t experts_per_token = 0;  // K

  // Of a token, without what it does with keys and values.
  [[nodiscard]] std::size_t multiply_adds() const;
  // What the coordinator keeps: all but the routed experts.
  [[nodiscard]] std::size_t coordinator_bytes() const;
  bool operator==(LayerCost const&) const = default;
};
// Who multiplies what.
struct Holders {
  Holder coordinator = Holder::processor;
  Holder experts = Holder::processor;  // the routed ones
};
LayerCost cost_of(LayerSpec const& layer, std::size_t hidden, WeightFormat weights, DType kv_dtype,
                  Holders const& holders = {});

// How many positions the last of `context` tokens attends to; context: 1 at least.
std::size_t tokens_seen(AttentionSpan const& span, std::size_t context);

}  // namespace expertmesh
