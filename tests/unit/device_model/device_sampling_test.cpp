// Steps that sample on the device, against the same steps whose rows ask for more than it does and so are sampled on
// the host.
#include <gtest/gtest.h>

#include "common/kernels/token_choice.h"
#include "tests/unit/device/test_device.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh {
namespace {

using test::Model;

std::vector<SamplingParams> different_params() {
  return {{.temperature = 0},
          {.seed = 1},
          {.repetition_penalty = 1.3F, .frequency_penalty = 0.5F, .top_k = 20, .seed = 2},
          {.logit_bias = {{5, 2.0F}, {9, -50.0F}}, .temperature = 0.7F, .min_p = 0.01F, .top_p = 0.9F, .seed = 3},
          {.temperature = 0, .forced_first = 11}};
}

struct Sampled {
  std::vector<std::vector<TokenId>> tokens;            // [sequences], prompts too
  std::vector<std::vector<TokenLogprobs>> of_tokens;   // [sequences][new tokens]
  std::vector<std::vector<TokenLogprobs>> of_prompts;  // [sequences][prompt tokens but the first]
};

constexpr std::size_t kNew = 6;

// Prompts of different lengths side by side; `listed` best tokens at each position.
Sampled run(Model& model, std::size_t listed) {
  auto const params = different_params();
  Scheduler scheduler({.max_num_seqs = 8, .max_num_batched_tokens = 24, .max_model_len = 128}, model.groups,
                      model.blocks);
  std::vector<Sequence> sequences(params.size());
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = sequences[i];
    s.id = SequenceId(i);
    for (std::size_t t = 0; t < 5 + 4 * i; ++t)
      s.tokens.push_back(static_cast<TokenId>((7 * t + i) % model.spec.vocab));
    s.prompt_length = s.tokens.size();
    s.max_length = s.prompt_length + kNew;
    s.prompt_logits = true;
    scheduler.submit(s);
  }
  Sampled out{.tokens = {}, .of_tokens = std::vector<std::vector<TokenLogprobs>>(params.size()), .of_prompts = {}};
  out.of_prompts.resize(params.size());
  for (;;) {
    StepBatch const& batch = scheduler.schedule();
    if (batch.num_tokens() == 0) break;
    std::vector<RowWish> wishes;
    for (LogitRow const& row : batch.logit_rows())
      wishes.push_back({.sampling = &params[batch.sequences()[row.sequence]->id.value()],
                        .token_logprobs = listed,
                        .prompt_logprobs = listed});
    auto const results = model.runner->run(batch, wishes);
    std::vector<LogitRow> const rows(batch.logit_rows().begin(), batch.logit_rows().end());
    std::vector<Sequence*> const of(batch.sequences().begin(), batch.sequences().end());
    scheduler.complete_step();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      Sequence& s = *of[rows[i].sequence];
      std::size_t const index = s.id.value();
      if (results[i].prompt_logprobs) out.of_prompts[index].push_back(*results[i].prompt_logprobs);
      if (!rows[i].sample) continue;
      out.of_tokens[index].push_back(results[i].token_logprobs.value());
      s.tokens.push_back(results[i].token.value());
      if (s.tokens.size() == s.max_length) scheduler.remove(s);
    }
  }
  for (Sequence const& s : sequences) out.tokens.push_back(s.tokens);
  return out;
}

void expect_same(std::vector<std::vector<TokenLogprobs>> const& here,
                 std::vector<std::vector<TokenLogprobs>> const& there, std::size_t listed) {
  ASSERT_EQ(here.size(), there.size());
  for (std::size_t s = 0; s < here.size(); ++s) {
    ASSERT_EQ(here[s].size(), there[s].size()) << s;
    for (std::size_t t = 0; t < here[s].size(); ++t) {
      EXPECT_EQ(here[s][t].chosen.token, there[s][t].chosen.token);
      EXPECT_EQ(here[s][t].chosen.logprob, there[s][t].chosen.logprob);
      ASSERT_EQ(there[s][t].top.size(), listed);
      for (std::size_t i = 0; i < listed; ++i) {
        EXPECT_EQ(here[s][t].top[i].token, there[s][t].top[i].token);
        EXPECT_EQ(here[s][t].top[i].logprob, there[s][t].top[i].logprob);
      }
    }
  }
}

TEST(DeviceSampling, StepsGiveWhatTheHostMakesOfTheirLogits) {
  Model model(test::model_dir("mixtral"), DType::f32, 1, best_isa(), &test::test_device());
  ASSERT_GT(model.spec.vocab, kMostRanked);
  Sampled const on_host = run(model, model.spec.vocab);
  Sampled const on_device = run(model, 4);
  EXPECT_EQ(on_device.tokens, on_host.tokens);
  for (auto const& tokens : on_device.of_tokens) EXPECT_EQ(tokens.size(), kNew);
  for (std::size_t i = 0; i < on_device.of_prompts.size(); ++i) EXPECT_EQ(on_device.of_prompts[i].size(), 4 + 4 * i);
  expect_same(on_host.of_tokens, on_device.of_tokens, 4);
  expect_same(on_host.of_prompts, on_device.of_prompts, 4);
  EXPECT_EQ(on_device.tokens.back()[on_device.tokens.back().size() - kNew], 11) << "forced";
}

}  // namespace
}  // namespace expertmesh
