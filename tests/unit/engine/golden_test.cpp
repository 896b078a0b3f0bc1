// The reference checkpoints through the step runner, in this process: hidden states, logits and routing of the
// reference; the same bits for any batch, chunk and thread count; no allocation on the step path.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tests/support/golden_file.h"
#include "tests/unit/engine/allocation_counter.h"
#include "tests/unit/engine/model_rig.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kMaxTokens = test::ModelRig::kMaxTokens;

// Spells out what a rig's steps give.
struct Model : test::ModelRig {
  Model(fs::path const& dir, DType dtype, std::size_t threads, Isa isa)
      : ModelRig(read_model_spec(dir, {}), dir, dtype, threads, isa) {}

  // Runs the prompts side by side in chunks of at most `budget` tokens; row 0 of the result is prompt 0's, …: the
  // logits of every position as log-probabilities of all tokens in id order, and the routing.
  struct Output {
    std::vector<std::vector<float>> logprobs;                      // [T][V]
    std::vector<std::vector<std::vector<std::uint32_t>>> experts;  // [T][MoE layers][K]
  };
  std::vector<Output> run(std::vector<std::vector<TokenId>> const& prompts, std::size_t budget) {
    Scheduler scheduler({.max_num_seqs = 8, .max_num_batched_tokens = budget, .max_model_len = 128}, groups, blocks);
    std::vector<Sequence> sequences(prompts.size());
    std::vector<Output> outputs(prompts.size());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      sequences[i].id = SequenceId(i);
      sequences[i].tokens = prompts[i];
      sequences[i].prompt_length = prompts[i].size();
      sequences[i].max_length = prompts[i].size() + 1;
      sequences[i].prompt_logits = true;
      scheduler.submit(sequences[i]);
    }
    SamplingParams const greedy{.temperature = 0};
    for (;;) {
      StepBatch const& batch = scheduler.schedule();
      if (batch.num_tokens() == 0) break;
      std::vector<RowWish> const wishes(
          batch.logit_rows().size(),
          RowWish{.sampling = &greedy, .token_logprobs = spec.vocab, .prompt_logprobs = spec.vocab});
      auto const results = runner->run(batch, wishes);
      for (std::size_t i = 0; i < results.size(); ++i) {
        LogitRow const& row = batch.logit_rows()[i];
        auto& output = outputs[batch.sequences()[row.sequence]->id.value()];
        auto const& top = row.sample ? results[i].token_logprobs->top : results[i].prompt_logprobs->top;
        auto& line = output.logprobs.emplace_back(spec.vocab);
        for (auto const& entry : top) line[entry.token] = entry.logprob;
        auto& experts = output.experts.emplace_back();
        for (std::size_t m = 0; m < runner->num_moe_layers(); ++m) {
          auto const chosen = runner->routed(m, row.row);
          experts.emplace_back(chosen.begin(), chosen.end());
        }
      }
      scheduler.complete_step();
    }
    for (auto& s : sequences) scheduler.remove(s);
    return outputs;
  }
};

fs::path model_dir(std::string const& name) {
  return fs::path(EM_GOLDENS_DIR) / "models" / name;
}

std::vector<TokenId> prompt_of(test::GoldenFile const& golden, std::size_t i) {
  auto const ids = golden.ints("prompt" + std::to_string(i) + ".input_ids");
  return {ids.begin(), ids.end()};
}

class ReferenceModel : public testing::TestWithParam<std::string> {
 protected:
  fs::path const dir = model_dir(GetParam());
  test::GoldenFile const golden{dir / "golden.safetensors"};
  std::vector<std::vector<TokenId>> const prompts{prompt_of(golden, 0), prompt_of(golden, 1), prompt_of(golden, 2)};
};

TEST_P(ReferenceModel, LogitsAndRoutingAreTheReferences) {
  Model model(dir, DType::f32, 2, best_isa());
  auto const outputs = model.run(prompts, kMaxTokens);
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    std::string const prefix = "prompt" + std::to_string(p) + ".";
    auto const logits = golden.floats(prefix + "logits");  // [T,V]
    float largest = 0;
    for (float x : logits) largest = std::max(largest, std::fabs(x));
    std::size_t const vocab = model.spec.vocab;
    for (std::size_t t = 0; t < prompts[p].size(); ++t) {
      double shift = 0;  // log-probabilities are the logits less a constant of the row
      for (std::size_t v = 0; v < vocab; ++v)
        shift += static_cast<double>(logits[t * vocab + v] - outputs[p].logprobs[t][v]) / static_cast<double>(vocab);
      for (std::size_t v = 0; v < vocab; ++v)
        ASSERT_NEAR(outputs[p].logprobs[t][v] + shift, logits[t * vocab + v], 2e-4 * static_cast<double>(largest))
            << "prompt " << p << ", position " << t;
      for (std::size_t m = 0; m < model.runner->num_moe_layers(); ++m) {
        auto const experts =
            golden.ints(prefix + "router." + std::to_string(model.runner->moe_layers()[m]) + ".experts");
        auto const& chosen = outputs[p].experts[t][m];
        for (std::size_t k = 0; k < chosen.size(); ++k) EXPECT_EQ(chosen[k], experts[t * chosen.size() + k]);
      }
    }
  }
}

TEST_P(ReferenceModel, BitsDoNotDependOnBatchChunkOrThreads) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Model one(dir, dtype, 1, best_isa());
    auto const expected = one.run({prompts[2]}, kMaxTokens)[0];
    for (std::size_t budget : {8, 16, 31, 128}) {
      Model three(dir, dtype, 3, best_isa());
      std::vector<std::vector<TokenId>> crowd(8, prompts[1]);
      crowd[3] = prompts[2];
      auto const got = three.run(crowd, budget)[3];
      EXPECT_EQ(got.logprobs, expected.logprobs) << name_of(dtype) << ", budget " << budget;
      EXPECT_EQ(got.experts, expected.experts);
    }
  }
}

TEST_P(ReferenceModel, Float32BitsDoNotDependOnTheInstructionSet) {
  auto const expected = Model(dir, DType::f32, 1, Isa::scalar).run({prompts[1]}, kMaxTokens)[0];
  for (Isa isa : runnable_isas())
    EXPECT_EQ(Model(dir, DType::f32, 1, isa).run({prompts[1]}, kMaxTokens)[0].logprobs, expected.logprobs)
        << name_of(isa);
}

TEST_P(ReferenceModel, AStepDoesNotAllocate) {
  Model model(dir, DType::bf16, 2, best_isa());
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = kMaxTokens, .max_model_len = 128}, model.groups,
                      model.blocks);
  Sequence sequence;
  sequence.tokens.reserve(128);
  sequence.tokens = prompts[2];
  sequence.prompt_length = prompts[2].size();
  sequence.max_length = sequence.prompt_length + 48;
  scheduler.submit(sequence);
  SamplingParams const greedy{.temperature = 0};
  std::vector<RowWish> const wishes(1, RowWish{.sampling = &greedy, .token_logprobs = {}, .prompt_logprobs = {}});
  for (int step = 0; step < 40; ++step) {  // windows move on meanwhile
    std::size_t const before = test::allocations_so_far();
    StepBatch const& batch = scheduler.schedule();
    auto const results = model.runner->run(batch, std::span(wishes).first(batch.logit_rows().size()));
    scheduler.complete_step();
    std::size_t const during = test::allocations_so_far() - before;
    if (step > 0) {  // in the first one the experts set themselves up
      EXPECT_EQ(during, 0U) << "step " << step;
    }
    sequence.tokens.push_back(*results[0].token);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ReferenceModel,
                         testing::Values("mixtral", "mixtral-window", "qwen3_moe", "llama", "noisy_topk_moe"),
                         [](auto const& param_info) {
                           std::string name = param_info.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace expertmesh
