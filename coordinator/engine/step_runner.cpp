#include "coordinator/engine/step_runner.h"

#include <algorithm>

namespace expertmesh {
namespace {

constexpr std::size_t kFrameBytes = std::size_t{16} << 10;  // two nested coroutines of well under 1 KiB each

std::vector<std::uint32_t> moe_layers_of(ModelSpec const& spec) {
  std::vector<std::uint32_t> layers;
  auto const& stack = spec.stacks.front().layers;
  for (std::uint32_t l = 0; l < stack.size(); ++l)
    if (std::holds_alternative<MoeFfnSpec>(stack[l].ffn)) layers.push_back(l);
  return layers;
}

}  // namespace

StepRunner::StepRunner(ModelSpec const& spec, StepRunnerLimits const& limits, Exec const& exec, Decoder& decoder,
                       KvCache& kv, Experts& experts)
    : limits_(limits),
      exec_(exec),
      decoder_(decoder),
      kv_(kv),
      experts_(experts),
      moe_layers_(moe_layers_of(spec)),
      experts_per_token_(layer_maxima(spec).experts_per_token),
      activations_(spec, {.tokens = limits.max_tokens, .logit_rows = limits.max_logit_rows}),
      balance_(moe_layers_.size(), layer_maxima(spec).num_experts),
      frames_(kFrameBytes),
      sampler_(spec.vocab),
      eos_ids_(spec.eos_ids),
      routed_(limits.record_routing ? moe_layers_.size() * limits.max_tokens * experts_per_token_ : 0) {
  head_rows_.reserve(limits.max_logit_rows);
  results_.reserve(limits.max_tokens);
}

void StepRunner::forward(StepBatch const& batch) {
  stages_.begin();
  StepContext const step{.exec = exec_,
                         .act = activations_,
                         .experts = experts_,
                         .balance = balance_,
                         .stages = stages_,
                         .tokens = batch.num_tokens(),
                         .positions = batch.positions(),
                         .prompt_lengths = batch.prompt_lengths(),
                         .places = batch.places(),
                         .routed = routed_.empty() ? nullptr : routed_.data(),
                         .tap = tap_};
  Task task = decoder_.forward(frames_, batch.ids(), step, kv_);
  task.start();
  while (!task.done()) {
    experts_.progress();
    if (!task.done()) pause_polling(limits_.pause);
  }
  task.rethrow();
  last_tokens_ = batch.num_tokens();
}

std::span<RowResult const> StepRunner::run(StepBatch const& batch, std::span<RowWish const> wishes) {
  forward(batch);
  auto const rows = batch.logit_rows();
  results_.assign(rows.size(), {});
  for (std::size_t begin = 0; begin < rows.size(); begin += limits_.max_logit_rows) {
    std::size_t const end = std::min(begin + limits_.max_logit_rows, rows.size());
    head_rows_.clear();
    for (std::size_t i = begin; i < end; ++i) head_rows_.push_back(rows[i].row);
    MatrixView<float const> const logits = decoder_.logits(exec_, activations_, head_rows_);  // [R,V]
    stages_.end(Stage::lm_head);
    for (std::size_t i = begin; i < end; ++i) {
      std::span<float const> const row(logits.row(i - begin), logits.cols);
      Sequence const& sequence = *batch.sequences()[rows[i].sequence];
      std::size_t const next = rows[i].position + 1;
      if (wishes[i].prompt_logprobs && next < sequence.prompt_length)
        results_[i].prompt_logprobs = sampler_.logprobs(row, sequence.tokens[next], *wishes[i].prompt_logprobs);
      if (!rows[i].sample) continue;
      results_[i].token =
          sampler_.sample(row, *wishes[i].sampling,
                          {.tokens = sequence.tokens, .prompt_length = sequence.prompt_length, .eos_ids = eos_ids_});
      if (wishes[i].token_logprobs)
        results_[i].token_logprobs = sampler_.logprobs(row, *results_[i].token, *wishes[i].token_logprobs);
    }
    stages_.end(Stage::sampling);
  }
  return results_;
}

std::span<std::uint32_t const> StepRunner::routed(std::size_t moe_layer, std::size_t row) const {
  return std::span(routed_).subspan((moe_layer * last_tokens_ + row) * experts_per_token_, experts_per_token_);
}

}  // namespace expertmesh
