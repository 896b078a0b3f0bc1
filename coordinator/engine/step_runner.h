// Runs one step: the decoder over a batch, then logits, sampling and log-probabilities for the rows that need them.
// Knows no requests, no queue and no clients.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/base/cores.h"
#include "common/kernels/graph_cache.h"
#include "coordinator/engine/encoder_run.h"
#include "coordinator/engine/generate_request.h"
#include "coordinator/engine/micro_batches.h"
#include "coordinator/engine/stage_floors.h"
#include "coordinator/engine/step_trace.h"
#include "coordinator/model/decoder.h"
#include "coordinator/model/step_inputs.h"
#include "coordinator/sampling/row_sampler.h"
#include "coordinator/scheduler/step_batch.h"

namespace expertmesh {

// In how many micro-batches a step's layers run; automatic: by what its kind has taken (split_choice.h).
enum class MicroBatchRule : std::uint8_t { one, two, automatic };

struct StepRunnerLimits {
  std::size_t max_tokens = 0;          // T
  std::size_t max_logit_rows = 0;      // R rows of one LM-head call; a step that needs more makes several
  bool record_routing = false;         // keep every token's experts for return_routed_experts
  PollPause pause = PollPause::yield;  // while workers compute
  MicroBatchRule micro_batches = MicroBatchRule::one;
  bool graphs = true;          // of a device, for decode steps that do not need the host on their way
  TraceLane* trace = nullptr;  // of the thread that runs steps: hears of them and of their stages
};

// What the engine wants of one logit row.
struct RowWish {
  SamplingParams const* sampling = nullptr;    // outlives the step
  std::optional<std::size_t> token_logprobs;   // of the sampled token
  std::optional<std::size_t> prompt_logprobs;  // of the prompt's next token
};

class StepRunner {
 public:
  // All of them must outlive the runner.
  StepRunner(ModelSpec const& spec, StepRunnerLimits const& limits, Exec const& exec, Decoder& decoder, KvCache& kv,
             Experts& experts);

  // The calling thread is the one that will call run().
  void place_caller() const { exec_.pool().place_caller(); }
  // wishes: [logit rows]. The results are valid until the next step. Throws ExpertsLost; the step has then no effect
  // but on KV places that will be written again.
  std::span<RowResult const> run(StepBatch const& batch, std::span<RowWish const> wishes);

  // Takes inputs through the encoder, as far as the batch's budget goes; the same batch goes on next time. Throws
  // ExpertsLost; the batch has to begin anew then.
  struct Encoded {
    bool all = false;
    std::size_t tokens = 0;  // of them, or as much work on all of them
  };
  Encoded encode(EncoderBatch const& batch);

  // Hears what the layers compute from now on; nullptr: nobody. It must outlive the steps.
  void set_tap(LayerTap* tap) { tap_ = tap; }

  // Experts of row t of the last step in the decoder's MoE layer m: [K], kNoExpert where one had no room. Only with
  // record_routing.
  [[nodiscard]] std::span<std::uint32_t const> routed(std::size_t moe_layer, std::size_t row) const;
  [[nodiscard]] std::size_t num_routed_layers() const { return moe_layers_.size() - first_routed_; }
  [[nodiscard]] std::size_t num_moe_layers() const { return moe_layers_.size(); }             // of all stacks
  [[nodiscard]] std::vector<std::uint32_t> const& moe_layers() const { return moe_layers_; }  // through all stacks
  [[nodiscard]] BalanceStatistics const& balance() const { return balance_; }
  [[nodiscard]] StageTimes const& stages() const { return stages_; }  // of the last step
  // From now on the work of each step of the decoder is counted; null again: it is not.
  void count_floors(StageFloors const* floors) { floors_ = floors; }
  // Of the last step; none: not counted.
  [[nodiscard]] std::optional<StageWork> work() const { return floors_ ? std::optional(last_work_) : std::nullopt; }
  [[nodiscard]] std::optional<StageSeconds> floors() const;
  // Whether a device's own clock gives the stages' times, for a microsecond or two of the step each.
  void time_stages_on_device(bool on);
  // Steps so far that were one launch.
  [[nodiscard]] std::size_t num_graph_launches() const { return num_launched_; }
  [[nodiscard]] std::size_t num_split_steps() const { return num_split_; }  // in two micro-batches
  [[nodiscard]] std::size_t activation_bytes() const;

 private:
  [[nodiscard]] StepTrace* trace() { return trace_ ? &*trace_ : nullptr; }
  [[nodiscard]] StepContext context(Experts& experts);
  [[nodiscard]] StepContext context_of(StepBatch const& batch, Experts& experts);
  void forward(StepBatch const& batch);
  [[nodiscard]] StepExperts* begin_step(StepBatch const& batch, bool comes_again);
  // Whether it counts. most_positions: as of a graph, or 0.
  bool run_ahead(StepContext const& step, StepExperts& experts, std::size_t most_positions);
  [[nodiscard]] GraphCache::Key graph_key(StepContext const& step, std::size_t most_positions);
  void run_as_graph(StepContext const& step, std::size_t most_positions);
  void run_layers(StepContext const& step, SplitChoice::Kind const& kind);
  [[nodiscard]] std::optional<std::size_t> positions_of_graph(StepBatch const& batch) const;
  [[nodiscard]] RowTask task_of(StepBatch const& batch, LogitRow const& row, RowWish const& wish) const;
  void fetch_routing(std::size_t tokens);  // that was left on the device during the step

  StepRunnerLimits limits_;
  Exec const& exec_;
  Decoder& decoder_;
  KvCache& kv_;
  Experts& experts_;
  std::vector<std::uint32_t> moe_layers_;
  std::uint32_t first_routed_;  // of the decoder's, among them
  std::size_t experts_per_token_;
  bool const layers_need_host_;
  bool const can_be_graphs_;
  bool const reads_routing_;
  Activations activations_;
  BalanceStatistics balance_;
  StageTimes stages_;
  StageFloors const* floors_ = nullptr;
  StageWork last_work_{};
  std::optional<StepTrace> trace_;
  MicroBatches micro_batches_;
  SplitChoice split_choice_;
  std::size_t num_split_ = 0;
  std::optional<EncoderRun> encoder_run_;
  RowSampler sampler_;
  std::vector<TokenId> const eos_ids_;
  LayerTap* tap_ = nullptr;
  std::vector<std::uint32_t> routed_;  // [MoE layers][T][K] of the last step
  std::size_t last_tokens_ = 0;
  std::vector<std::uint32_t> head_rows_;       // [R]
  std::vector<std::size_t> experts_of_layer_;  // [MoE layers] K
  ExchangeShape row_exchange_;                 // of one token
  std::optional<StepInputs> inputs_;           // with a device
  std::optional<GraphCache> graphs_;           // of steps whose experts are on this device
  std::array<std::uint64_t, 4> graph_key_{};
  std::size_t num_launched_ = 0;
  bool stages_on_device_ = false;
  std::vector<std::uint32_t> fetched_experts_;
  std::vector<float> fetched_weights_;
  std::vector<RowTask> tasks_;      // [R]
  std::vector<RowResult> results_;  // [logit rows]
};

}  // namespace expertmesh
