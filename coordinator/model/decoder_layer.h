// One transformer block, as the papers draw it.
#pragma once
#include <optional>
#include <variant>
#include <vector>

#include "common/base/task.h"
#include "common/moe/balance.h"
#include "coordinator/experts/experts.h"
#include "coordinator/model/attention.h"
#include "coordinator/model/stage_times.h"

namespace expertmesh {

// What every layer of a step shares.
struct StepContext {
  Exec const& exec;
  Activations& act;
  Experts& experts;
  BalanceStatistics& balance;
  StageTimes& stages;
  std::size_t tokens;                        // T
  std::span<std::uint32_t const> positions;  // [T]
  std::vector<TokenPlaces> const& places;    // one per KV group
  std::uint32_t* routed = nullptr;           // [MoE layers][T][K] of this step's choices, where asked for
};

// gate, up, silu, down in this process.
class DenseFfn {
 public:
  DenseFfn(DenseFfnSpec const& spec, std::size_t hidden, WeightLoader const& loader);
  // x: [T,H] -> out: [T,H]
  void forward(Exec const& exec, MatrixView<float const> x, Activations& act, MatrixView<float> out) const;

 private:
  std::size_t intermediate_;
  Activation activation_;
  PackedMatrix gate_up_;  // [2I,H]
  PackedMatrix down_;     // [H,I]
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
  PackedMatrix gate_;   // [E,H] fp32
  PackedMatrix noise_;  // [E,H] fp32, only with noise on
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
  std::uint32_t index_;
  std::uint32_t moe_index_;
  std::vector<float> input_norm_;           // [H]
  std::vector<float> post_attention_norm_;  // [H]
  float input_epsilon_;
  float post_attention_epsilon_;
  Attention attention_;
  std::variant<DenseFfn, Router> ffn_;
};

}  // namespace expertmesh
