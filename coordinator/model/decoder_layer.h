// One transformer block, as the papers draw it: of a decoder, or of an encoder, whose tokens also look at later ones.
#pragma once
#include <optional>
#include <variant>
#include <vector>

#include "common/base/task.h"
#include "common/kernels/grouped_ffn.h"
#include "common/moe/balance.h"
#include "common/moe/router.h"
#include "coordinator/experts/experts.h"
#include "coordinator/model/attention.h"
#include "coordinator/model/norm.h"
#include "coordinator/model/stage_times.h"
#include "coordinator/scheduler/sequence.h"

namespace expertmesh {

// Hears what the layers compute, for tests and for those who study a model. Rows are those of the step.
class LayerTap {
 public:
  virtual ~LayerTap() = default;
  // x: [T,H] the decoder's residual stream after a layer; index 0 is the embedding, l + 1 what its layer l leaves.
  virtual void hidden(std::size_t index, MatrixView<float const> x) = 0;
  // x: [R,H] behind the encoder's final norm, of rows from `begin` on.
  virtual void encoder_output(std::size_t /*begin*/, MatrixView<float const> /*x*/) {}
  // What the mixture of this layer, numbered through all stacks, adds before any residual multiplier. routed, shared:
  // [T,H]; shared is empty where there is no shared expert.
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
  StackKind stack;                                // that runs
  std::span<TokenId const> ids;                   // [T]
  std::span<TokenId const> ids_on_device;         // [T], where a device looks them up
  std::span<std::uint32_t const> positions;       // [T]
  std::span<std::uint32_t const> prompt_lengths;  // [T] of each token's sequence, in tokens
  std::span<std::uint32_t const> sequence_of;     // [T] index into sequences
  std::span<Sequence* const> sequences;           // [B] whose expert counts the layers keep
  std::span<TokenPlaces const> places;            // of the stack: one per KV group, or the encoder's one
  std::uint32_t* routed = nullptr;                // [MoE layers of the decoder][T][K] experts, where asked for
  std::uint32_t first_routed = 0;                 // MoE layers before the decoder's
  bool routing_on_host = true;                    // what a device has chosen is read there, layer by layer
  LayerTap* tap = nullptr;
  // Of a micro-batch: its tokens are rows [first_row, first_row + T) of the step's. What others of the step may do
  // while it waits for experts leaves these rows of the activations alone, and no others.
  std::size_t first_row = 0;
  std::size_t other_tokens = 0;  // of the step, that are not in this micro-batch
  bool const* failed = nullptr;  // whether another one of the step has: then the rest is of no use

  // Between ops: what other micro-batches wait for moves on.
  void move_others() const {
    if (other_tokens > 0) experts.move();
  }
  // Of tokens [begin, begin + count) alone, but for their places.
  [[nodiscard]] StepContext part(std::size_t begin, std::size_t count) const;
  [[nodiscard]] std::size_t step_tokens() const { return tokens + other_tokens; }
  [[nodiscard]] MatrixView<float> rows(Matrix<float>& of_step) const {
    return of_step.view().row_range(first_row, tokens);  // [T,…]
  }
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
  // Where routing goes: to rows from first_row on; a device's among those of the step's MoE layers, and, if it is
  // needed there, to the host.
  struct Place {
    std::size_t moe_index = 0;
    std::size_t first_row = 0;
    std::size_t step_tokens = 0;
    bool on_host = true;
  };
  // x: [T,H] -> routing of T tokens, in act's buffers.
  RoutingView forward(Exec const& exec, MatrixView<float const> x, std::span<std::uint32_t const> positions,
                      Place place, Activations& act) const;

 private:
  MatrixView<float> noise(Exec const& exec, std::span<std::uint32_t const> positions, Activations& act) const;
  void choose_experts(Exec const& exec, RouterInput const& in, std::span<std::uint32_t> experts,
                      std::span<float> weights) const;

  RouterSpec spec_;
  std::uint32_t layer_;
  PackedLinear gate_;                    // [E,H] fp32
  AlignedBuffer<float> selection_bias_;  // [E] or empty
  std::optional<PackedLinear> noise_;    // [E,H] fp32, only with noise on
};

// Who of a sequence gets to experts that take so many of its tokens and no more.
struct ExpertCapacity {
  std::size_t tokens = 0;
  std::size_t num_experts = 0;
  std::size_t first_count = 0;  // among the sequence's expert counts
};

// A layer's mixture: who routes, and what is not routed.
struct Mixture {
  Router router;
  std::optional<SharedExpert> shared;
  bool gate_on_input = false;
  std::optional<ExpertCapacity> capacity{};
};

// Where a layer finds keys and values.
struct LayerCache {
  TokenPlaces const& places;
  KvLayer& kv;
  TokenPlaces const* cross_places = nullptr;  // of the encoder's output, in decoders that have one
  KvLayer const* cross = nullptr;
};

class DecoderLayer {
 public:
  DecoderLayer(NumberedLayer const& layer, std::size_t hidden, WeightLoader const& loader);

  // act.x: [T,H] residual stream, updated in place. angles: of its RoPE.
  Task forward(FrameArena& arena, StepContext const& step, RopeAngles angles, LayerCache cache) const;
  // In an encoder, before forward() of any token: the cache's part of these, from x [T,H].
  void write_keys(StepContext const& step, RopeAngles const& angles, LayerCache const& cache) const;
  // encoded: [R,H] of the encoder's output -> what the cross-attention keeps of it.
  void write_cross(Exec const& exec, MatrixView<float const> encoded, TokenPlaces const& places, KvLayer& cache,
                   Activations& act) const;

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
  [[nodiscard]] Router::Place place_of(StepContext const& step) const;
  void hold_to_capacity(StepContext const& step, ExpertCapacity const& capacity, std::size_t experts_per_token) const;

  struct CrossBlock {
    Norm norm;
    CrossAttention attention;
  };
  std::uint32_t number_;
  std::uint32_t moe_index_;
  Norm input_norm_;
  Norm post_attention_norm_;
  Attention attention_;
  std::optional<CrossBlock> cross_;
  std::variant<DenseFfn, Mixture> ffn_;
  float residual_multiplier_;
};

}  // namespace expertmesh
