// Steps of some sequences that come and go, and what they gave.
#pragma once
#include <list>

#include "tests/unit/engine/golden_rig.h"

namespace expertmesh::test {

// What the steps of some sequences gave, by sequence.
struct Said {
  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::vector<float>> logprobs;  // of all tokens of the vocabulary, best first, position by position
  std::vector<std::vector<std::uint32_t>> experts;
  std::size_t launches = 0;
  std::size_t decode_steps = 0;  // that had no prompt in them
};

// Sequence i comes at step 3 i and says a number of tokens of its own; blocks are few enough that the first are used
// again. experts: in place of the model's.
inline Said say(Model& model, bool graphs, Experts* experts = nullptr) {
  model.runner.emplace(
      model.spec,
      StepRunnerLimits{.max_tokens = Model::kMaxTokens, .max_logit_rows = 16, .record_routing = true, .graphs = graphs},
      model.exec, *model.decoder, *model.kv,
      experts          ? *experts
      : model.resident ? static_cast<Experts&>(*model.resident)
                       : static_cast<Experts&>(model.no_experts));
  Scheduler scheduler({.max_num_seqs = 3, .max_num_batched_tokens = 32, .max_model_len = 128}, model.groups,
                      model.blocks);
  constexpr std::size_t kSequences = 4;
  std::list<Sequence> sequences;
  Said said;
  said.tokens.resize(kSequences);
  said.logprobs.resize(kSequences);
  said.experts.resize(kSequences);
  SamplingParams const greedy{.temperature = 0};
  for (std::size_t step = 0; step == 0 || !sequences.empty(); ++step) {
    if (step % 3 == 0 && step / 3 < kSequences) {
      std::size_t const i = step / 3;
      Sequence& sequence = sequences.emplace_back();
      sequence.id = SequenceId(static_cast<std::uint32_t>(i));
      for (std::size_t t = 0; t < 5 + 7 * i; ++t) sequence.tokens.push_back(static_cast<TokenId>(3 + (t * 5 + i) % 40));
      sequence.prompt_length = sequence.tokens.size();
      sequence.max_length = sequence.prompt_length + 12 - 2 * i;
      scheduler.submit(sequence);
    }
    StepBatch const& batch = scheduler.schedule();
    if (batch.num_decodes() == batch.num_tokens()) ++said.decode_steps;
    std::vector<RowWish> const wishes(
        batch.logit_rows().size(),
        RowWish{.sampling = &greedy, .token_logprobs = model.spec.vocab, .prompt_logprobs = {}});
    auto const results = model.runner->run(batch, wishes);
    for (std::size_t r = 0; r < results.size(); ++r) {
      LogitRow const& row = batch.logit_rows()[r];
      Sequence& sequence = *batch.sequences()[row.sequence];
      std::size_t const id = sequence.id.value();
      said.tokens[id].push_back(results[r].token.value());
      auto const& top = results[r].token_logprobs->top;
      for (TokenLogprob const& entry : top) said.logprobs[id].push_back(entry.logprob);
      for (std::size_t m = 0; m < model.runner->num_moe_layers(); ++m) {
        auto const chosen = model.runner->routed(m, row.row);
        said.experts[id].insert(said.experts[id].end(), chosen.begin(), chosen.end());
      }
      sequence.tokens.push_back(*results[r].token);
    }
    scheduler.complete_step();
    for (auto s = sequences.begin(); s != sequences.end();) {
      bool const done = s->tokens.size() >= s->max_length;
      if (done) scheduler.remove(*s);
      s = done ? sequences.erase(s) : std::next(s);
    }
  }
  said.launches = model.runner->num_graph_launches();
  return said;
}

}  // namespace expertmesh::test
