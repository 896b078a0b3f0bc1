// Sequences that begin alike, through every decoder: behind another's blocks they get the bits of being computed whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "coordinator/model/prefix_kind.h"
#include "tests/support/goldens_dir.h"
#include "tests/unit/engine/model_rig.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
using test::ModelRig;
using Tokens = std::vector<TokenId>;
using Logprobs = std::vector<float>;  // of all tokens, in the order of their ids

std::vector<std::string> decoders() {
  std::vector<std::string> names;
  for (auto const& entry : fs::directory_iterator(test::goldens_dir() / "models"))
    if (!read_model_spec(entry.path(), {}).encoder()) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

class PrefixTest : public testing::TestWithParam<std::string> {
 protected:
  static constexpr std::size_t kStepTokens = 24;  // prompts take several
  static constexpr std::size_t kMaxLength = 256;

  [[nodiscard]] Scheduler scheduler(bool cache) const {
    return {
        {.max_num_seqs = 2, .max_num_batched_tokens = kStepTokens, .max_model_len = kMaxLength, .prefix_cache = cache},
        rig.groups,
        rig.blocks};
  }
  // What the model says after the prompt and after each greedy token; `tokens` become all of them.
  std::vector<Logprobs> generate(ModelRig& model, Scheduler& scheduler, Tokens& tokens, std::size_t max_new) {
    Sequence s;
    s.id = SequenceId(++last_id);
    s.tokens = tokens;
    s.prompt_length = tokens.size();
    s.max_length = tokens.size() + max_new;
    s.reuse_prefix = true;
    s.prefix_kind = prefix_kind(model.spec, tokens.size());
    scheduler.submit(s);
    SamplingParams const greedy{.temperature = 0};
    std::vector<Logprobs> said;
    while (said.size() < max_new) {
      StepBatch const& batch = scheduler.schedule();
      std::vector<RowWish> const wishes(
          batch.logit_rows().size(),
          RowWish{.sampling = &greedy, .token_logprobs = model.spec.vocab, .prompt_logprobs = {}});
      auto const results = model.runner->run(batch, wishes);
      scheduler.complete_step();
      for (RowResult const& result : results) {
        Logprobs& all = said.emplace_back(model.spec.vocab);
        for (auto const& entry : result.token_logprobs->top) all[static_cast<std::size_t>(entry.token)] = entry.logprob;
        s.tokens.push_back(*result.token);
      }
    }
    cached = *s.num_cached;
    tokens = s.tokens;
    scheduler.remove(s);
    scheduler.check_integrity();
    return said;
  }

  fs::path const dir = test::goldens_dir() / "models" / GetParam();
  // Each with a KV cache of its own: of int8, so that scales are kept, too.
  ModelRig rig{read_model_spec(dir, {}), dir, {DType::f32, DType::i8}, 1, best_isa()};
  ModelRig whole_rig{read_model_spec(dir, {}), dir, {DType::f32, DType::i8}, 1, best_isa()};
  std::uint64_t last_id = 0;
  std::size_t cached = 0;  // of the last sequence
};
INSTANTIATE_TEST_SUITE_P(Decoders, PrefixTest, testing::ValuesIn(decoders()), [](auto const& test) {
  std::string name = test.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST_P(PrefixTest, TheSameBits) {
  std::mt19937 random(1);
  auto const any = [&](std::size_t count) {
    Tokens tokens(count);
    for (TokenId& t : tokens) t = static_cast<TokenId>(3 + random() % (rig.spec.vocab - 3));
    return tokens;
  };
  Tokens const beginning = any(70);
  Scheduler whole = scheduler(false);
  Scheduler behind = scheduler(true);
  // Returns the tokens of both together; at_least: that must have been there.
  auto const expect_alike = [&](Tokens tokens, std::size_t max_new, std::size_t at_least) {
    Tokens same = tokens;
    auto const expected = generate(whole_rig, whole, tokens, max_new);
    auto const got = generate(rig, behind, same, max_new);
    EXPECT_GE(cached, at_least);
    EXPECT_EQ(same, tokens);
    EXPECT_EQ(got, expected);
    return tokens;
  };
  Tokens conversation = expect_alike(beginning, 20, 0);
  expect_alike(beginning, 5, 64);
  for (TokenId t : any(7)) conversation.push_back(t);
  // A prompt of another length may have other keys; then it shares with none of the shorter.
  bool const alike = prefix_kind(rig.spec, conversation.size()) == prefix_kind(rig.spec, beginning.size());
  expect_alike(conversation, 5, alike ? 80 : 0);
  expect_alike(conversation, 3, 96);
  Tokens branch(beginning.begin(), beginning.begin() + 50);
  for (TokenId t : any(30)) branch.push_back(t);
  expect_alike(branch, 5, 0);
  expect_alike(branch, 5, 64);
}

}  // namespace
}  // namespace expertmesh
