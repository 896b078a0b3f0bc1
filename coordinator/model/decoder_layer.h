// One transformer block, as the papers draw it.
#pragma once
#include <optional>
#include <variant>
#include <vector>

#include "common/base/task.h"
#include "common/kernels/grouped_ffn.h"
#include "common/moe/balance.h"
#include "coordinator/experts/experts.h"
#include "coordinator/model/attention.h"
#include "coordinator/model/norm.h"
#include "coordinator/model/stage_times.h"

namespace expertmesh {

// Hears what the layers compute, for tests and for those who study a model. Rows are those of the step.
class LayerTap {
 public:
  virtual ~LayerTap() = default;
  // x: [T,H] the residual stream after a layer; index 0 is the embedding, l + 1 what layer l leaves.
  virtual void hidden(std::size_t index, MatrixView<float const> x) = 0;
  // What the mixture of this layer adds, before any residual multiplier. routed, shared: [T,H]; shared is empty where
  // there is no shared expert.
  virtual void moe_output(std::size_t layer, MatrixView<float const> routed, MatrixView<float const> shared) = 0;
};

// What every layer of a step shares.
struct StepContext {
  Exec const& exec;
  Activations& act;
  Experts& experts;
  BalanceStatistics& balance;
  StageTimes& stages;
  std::size_t tokens;                             // T
  std::span<std::uint32_t const> positions;       // [T]
  std::span<std::uint32_t const> prompt_lengths;  // [T] of each token's sequence, in tokens
  std::vector<TokenPlaces> const& places;         // one per KV group
  std::uint32_t* routed = nullptr;                // [MoE layers][T][K] of this step's choices, where asked for
  LayerTap* tap = nullptr;
};

// An FFN in this process: dense layers, shared experts.
class DenseFfn {
 public:
  DenseFfn(DenseFfnSpec const& spec, std::size_t hidden, WeightLoader const& loader);
  // x: [T,H] -> out: [T,H]
  void forward(Exec const& exec, MatrixView<float const> x, Activations& act, MatrixView<float> out) const;

 private:
  FfnWeights weights_;
};

// An expert that every token goes through.
class SharedExpert {
 public:
  SharedExpert(SharedExpertSpec const& spec, std::size_t hidden, WeightLoader const& loader);
  // x: [T,H] -> out: [T,H]
  void forward(Exec const& exec, MatrixView<float const> x, Activations& act, MatrixView<float> out) const;

 private:
  DenseFfn ffn_;
  std::optional<PackedLinear> gate_;  // [1,H] fp32
};

// Gate logits -> experts and gate weights.
class Router {
 public:
  Router(MoeFfnSpec const& spec, std::uint32_t layer, std::size_t hidden, WeightLoader const& loader);
  // x: [T,H] -> routing of T tokens, in act's buffers.
  RoutingView forward(Exec const& exec, MatrixView<float const> x, std::span<std::uint32_t const> positions,
                      Activations& act) const;

 private:
  RouterSpec spec_;
  std::uint32_t layer_;
  PackedLinear gate_;                  // [E,H] fp32
  std::vector<float> selection_bias_;  // [E] or empty
  std::optional<PackedLinear> noise_;  // [E,H] fp32, only with noise on
};

// A layer's mixture: who routes, and what is not routed.
struct Mixture {
  Router router;
  std::optional<SharedExpert> shared;
  bool gate_on_input = false;
};

class DecoderLayer {
 public:
  // index: in the stack. moe_index: among the MoE layers, if this is one.
  DecoderLayer(LayerSpec const& spec, std::uint32_t index, std::uint32_t moe_index, std::size_t hidden,
               WeightLoader const& loader);

  // act.x: [T,H] residual stream, updated in place. kv: this layer's cache; angles: of its RoPE.
  Task forward(FrameArena& arena, StepContext const& step, RopeAngles angles, TokenPlaces const& places,
               KvLayer& kv) const;

 private:
  // What goes to the experts, and what comes back of them.
  struct ExpertRows {
    MatrixView<float> in;
    RoutingView routing;
    MatrixView<float> out;
  };
  ExpertRows rows_for_experts(StepContext const& step, MatrixView<float> normed, RoutingView routing,
                              MatrixView<float> block_out) const;
  void add_to_residual(StepContext const& step, MatrixView<float> block_out) const;

  std::uint32_t index_;
  std::uint32_t moe_index_;
  Norm input_norm_;
  Norm post_attention_norm_;
  Attention attention_;
  std::variant<DenseFfn, Mixture> ffn_;
  float residual_multiplier_;
};

}  // namespace expertmesh
