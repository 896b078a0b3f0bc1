// Windows whose blocks are given back, through the whole model: the bits of a cache that forgets nothing, in one so
// small that every block is used again and again, with NaN in whatever is not held.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/golden_file.h"
#include "tests/support/goldens_dir.h"
#include "tests/unit/engine/allocation_counter.h"
#include "tests/unit/engine/model_rig.h"

namespace expertmesh {
namespace {

using test::ModelRig;
using test::Numerics;
std::filesystem::path const kDir = test::goldens_dir() / "models/mixtral-window";
constexpr std::size_t kLength = 160;  // tokens with which each sequence ends: 10 blocks
constexpr std::size_t kStepTokens = 16;

enum class Poison { none, freed, held };

// What one step added to a sequence.
struct Line {
  TokenId token = 0;
  std::vector<float> logprobs;  // of all tokens, in the order of their ids
  bool operator==(Line const&) const = default;
};
struct Outcome {
  std::vector<std::vector<Line>> lines;  // [sequences][new tokens]
  std::size_t preemptions = 0;
};

void overwrite(ModelRig& rig, std::size_t group, std::size_t block, int byte) {
  for (std::uint32_t layer : rig.groups[group].layers) {
    KvLayer& kv = rig.kv->layer(layer);
    std::size_t const bytes = KvLayer::bytes_per_block(kv.shape());
    std::memset(kv.blocks().data() + block * bytes, byte, bytes);
  }
}

constexpr int kNaN = 0xff;    // of float32 and of bfloat16; the scales of int8
constexpr int kSmall = 0x3d;  // about 0.046

// Overwrites the blocks that the running sequences hold, or all others with NaN.
void poison(ModelRig& rig, std::vector<Sequence> const& sequences, bool held) {
  for (std::size_t g = 0; g < rig.groups.size(); ++g) {
    std::vector<bool> is_held(rig.blocks[g], false);
    for (Sequence const& s : sequences)
      if (!s.block_tables.empty())
        for (std::uint32_t block : s.block_tables[g].blocks)
          if (block != kNoKvBlock) is_held[block] = true;
    for (std::size_t b = 0; b < is_held.size(); ++b)
      if (is_held[b] == held) overwrite(rig, g, b, held ? kSmall : kNaN);
  }
}

std::vector<std::vector<TokenId>> golden_prompts() {
  test::GoldenFile const golden(kDir / "golden.safetensors");
  std::vector<std::vector<TokenId>> prompts;
  for (char const* name : {"prompt2.input_ids", "prompt1.input_ids", "prompt0.input_ids", "prompt2.input_ids"}) {
    auto const ids = golden.ints(name);
    prompts.emplace_back(ids.begin(), ids.end());
  }
  return prompts;
}

// All prompts side by side, greedily, up to kLength tokens each.
Outcome generate(ModelRig& rig, Poison what) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = kStepTokens, .max_model_len = kLength}, rig.groups,
                      rig.blocks);
  auto const prompts = golden_prompts();
  std::vector<Sequence> sequences(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sequences[i].id = SequenceId(i);
    sequences[i].tokens.reserve(kLength);
    sequences[i].tokens = prompts[i];
    sequences[i].prompt_length = prompts[i].size();
    sequences[i].max_length = kLength;
    scheduler.submit(sequences[i]);
  }
  Outcome outcome;
  outcome.lines.resize(prompts.size());
  SamplingParams const greedy{.temperature = 0};
  while (!scheduler.empty()) {
    std::size_t const before = test::allocations_so_far();
    StepBatch const& batch = scheduler.schedule();
    EXPECT_EQ(test::allocations_so_far(), before);
    if (batch.num_tokens() == 0) {
      ADD_FAILURE() << "work waits, but nothing runs";
      break;
    }
    std::vector<RowWish> const wishes(
        batch.logit_rows().size(),
        RowWish{.sampling = &greedy, .token_logprobs = rig.spec.vocab, .prompt_logprobs = {}});
    auto const results = rig.runner->run(batch, wishes);
    std::vector<std::pair<Sequence*, Line>> sampled;
    for (std::size_t i = 0; i < results.size(); ++i) {
      Line line{*results[i].token, std::vector<float>(rig.spec.vocab)};
      for (auto const& entry : results[i].token_logprobs->top)
        line.logprobs[static_cast<std::size_t>(entry.token)] = entry.logprob;
      sampled.emplace_back(batch.sequences()[batch.logit_rows()[i].sequence], std::move(line));
    }
    std::size_t const before_end = test::allocations_so_far();
    scheduler.complete_step();
    EXPECT_EQ(test::allocations_so_far(), before_end);
    for (auto& [sequence, line] : sampled) {
      sequence->tokens.push_back(line.token);
      outcome.lines[sequence->id.value()].push_back(std::move(line));
      if (sequence->tokens.size() == kLength) scheduler.remove(*sequence);
    }
    scheduler.check_integrity();
    if (what != Poison::none) poison(rig, sequences, what == Poison::held);
  }
  outcome.preemptions = scheduler.num_preemptions();
  return outcome;
}

ModelSpec windows_of_16() {
  return read_model_spec(kDir, {});
}
// A window of 16, all, a window of 40: three groups.
ModelSpec mixed() {
  ModelSpec spec = windows_of_16();
  auto& layers = spec.stacks.front().layers;
  layers[1].attention.span = {};
  layers[2].attention.span = {SpanKind::window, 40};
  return spec;
}

TEST(KvSpanGolden, GreedyAnswersAreTheReferencesInAFewBlocks) {
  ModelRig rig(windows_of_16(), kDir, DType::f32, 2, best_isa(), 3);
  Outcome const outcome = generate(rig, Poison::freed);
  std::ifstream file(kDir / "golden.json");
  auto const golden = nlohmann::json::parse(file);
  for (std::size_t i : {0U, 1U, 2U, 3U}) {
    std::vector<TokenId> const expected = golden.at("prompts").at(i == 3 ? 2 : 2 - i).at("greedy");
    ASSERT_GE(outcome.lines[i].size(), expected.size());
    for (std::size_t t = 0; t < expected.size(); ++t)
      ASSERT_EQ(outcome.lines[i][t].token, expected[t]) << "prompt " << i << ", new token " << t;
  }
}

class KvSpanBits : public testing::TestWithParam<Numerics> {};

TEST_P(KvSpanBits, AreThoseOfACacheThatForgetsNothing) {
  ModelRig roomy(windows_of_16(), kDir, GetParam(), 2, best_isa(), 64);
  ASSERT_EQ(roomy.groups.size(), 1U);
  ASSERT_EQ(roomy.groups[0].most_blocks(kLength, kStepTokens), 3U);
  Outcome const expected = generate(roomy, Poison::none);
  EXPECT_EQ(expected.preemptions, 0U);
  std::size_t preemptions = 0;
  for (std::size_t blocks : {3, 4, 5, 6}) {
    ModelRig small(windows_of_16(), kDir, GetParam(), 2, best_isa(), blocks);
    Outcome const got = generate(small, Poison::freed);
    EXPECT_TRUE(got.lines == expected.lines) << blocks << " blocks";
    preemptions += got.preemptions;
  }
  EXPECT_GT(preemptions, 0U);
}

TEST_P(KvSpanBits, AreThoseOfACacheThatForgetsNothingWithGroupsOfManyKinds) {
  ModelRig roomy(mixed(), kDir, GetParam(), 2, best_isa(), 64);
  ASSERT_EQ(roomy.groups.size(), 3U);
  Outcome const expected = generate(roomy, Poison::none);
  std::size_t preemptions = 0;
  for (std::vector<std::size_t> const& blocks :
       {std::vector<std::size_t>{3, 10, 5}, {3, 40, 40}, {40, 40, 9}, {40, 16, 40}, {8, 17, 12}}) {
    ModelRig small(mixed(), kDir, GetParam(), 2, best_isa(), blocks);
    Outcome const got = generate(small, Poison::freed);
    EXPECT_TRUE(got.lines == expected.lines) << blocks[0] << ", " << blocks[1] << ", " << blocks[2] << " blocks";
    preemptions += got.preemptions;
  }
  EXPECT_GT(preemptions, 0U);
}

TEST_P(KvSpanBits, DependOnTheBlocksThatAreHeld) {
  ModelRig rig(windows_of_16(), kDir, GetParam(), 2, best_isa(), 3);
  Outcome const expected = generate(rig, Poison::none);
  EXPECT_FALSE(generate(rig, Poison::held).lines == expected.lines) << "overwriting harms nobody";
}

TEST(KvSpanDeathTest, WhoFreesTooEarlyIsFoundOut) {
  EXPECT_DEATH(
      {
        ModelRig rig(windows_of_16(), kDir, DType::f32, 1, best_isa(), 3);
        rig.groups[0].span_tokens = 1;  // for the scheduler only
        (void)generate(rig, Poison::none);
      },
      "position [0-9]+ has been freed");
}

INSTANTIATE_TEST_SUITE_P(DTypes, KvSpanBits, testing::Values(DType::f32, DType::bf16, Numerics(DType::f32, DType::i8)),
                         [](auto const& param_info) { return std::string(name_of(param_info.param.kv)); });

}  // namespace
}  // namespace expertmesh
