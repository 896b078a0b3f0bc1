// Decode steps recorded and launched as graphs: the same bits as op by op, whoever comes and goes.
#include "coordinator/engine/step_graphs.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <list>
#include <set>

#include "tests/unit/device/test_device.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh {
namespace {

using test::Model;

// What the steps of some sequences gave, by sequence.
struct Said {
  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::vector<float>> logprobs;  // of all tokens of the vocabulary, best first, position by position
  std::vector<std::vector<std::uint32_t>> experts;
  std::size_t launches = 0;
  std::size_t decode_steps = 0;  // that had no prompt in them
};

// Sequence i comes at step 3 i and says a number of tokens of its own; blocks are few enough that the first are used
// again.
Said say(Model& model, bool graphs) {
  model.runner.emplace(
      model.spec,
      StepRunnerLimits{.max_tokens = Model::kMaxTokens, .max_logit_rows = 16, .record_routing = true, .graphs = graphs},
      model.exec, *model.decoder, *model.kv,
      model.resident ? static_cast<Experts&>(*model.resident) : static_cast<Experts&>(model.no_experts));
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

class StepGraphsOfModel : public testing::TestWithParam<std::string> {};

TEST_P(StepGraphsOfModel, GiveTheSameBits) {
  static std::set<std::string> const kSome{"deepseek_v3", "gpt_oss", "llama", "llama4", "mixtral-window", "phimoe"};
  if (!kSome.contains(GetParam()) && std::getenv("EM_DEVICE_ALL") == nullptr)
    GTEST_SKIP() << "EM_DEVICE_ALL is not set";
  Model model(test::model_dir(GetParam()), DType::bf16, 1, best_isa(), &test::test_device());
  Said const with = say(model, true);
  Said const without = say(model, false);
  EXPECT_EQ(with.tokens, without.tokens);
  EXPECT_EQ(with.logprobs, without.logprobs);
  EXPECT_EQ(with.experts, without.experts);
  EXPECT_EQ(without.launches, 0U);
  // One, two and three sequences: each shape goes op by op once, and again where inputs have found more room.
  EXPECT_GT(2 * with.launches, with.decode_steps);
}

std::string name_of_case(testing::TestParamInfo<std::string> const& info) {
  std::string name = info.param;
  std::ranges::replace(name, '-', '_');
  return name;
}
std::vector<std::string> those_without_noise() {
  std::vector<std::string> names(test::kReferenceModels.begin(), test::kReferenceModels.end());
  std::erase(names, "noisy_topk_moe");
  return names;
}
INSTANTIATE_TEST_SUITE_P(Cases, StepGraphsOfModel, testing::ValuesIn(those_without_noise()), name_of_case);

TEST(StepGraphs, RecordTheSecondTimeAndForgetWhatWasNotUsedLongest) {
  Device& device = test::test_device();
  constexpr std::size_t kNumbers = 5;
  AlignedBuffer<float> memory(kNumbers, &device);
  MatrixView<float> const x(memory.data(), 1, kNumbers);
  std::vector<float> const ones(kNumbers, 1.0F);
  device.upload(memory.data(), ones.data(), kNumbers * sizeof(float));
  StepGraphs graphs(device);
  std::size_t calls = 0;
  auto const run = [&](std::size_t tokens) {
    graphs.run({.tokens = tokens, .sequences = tokens, .most_positions = 256, .inputs = memory.data()}, [&] {
      ++calls;
      device.scale(x, 2);
    });
    float first = 0;
    device.download(&first, memory.data(), sizeof first);
    return first;
  };
  EXPECT_EQ(run(1), 2);
  EXPECT_EQ(calls, 1U);
  EXPECT_EQ(run(1), 4);  // recorded, and launched
  EXPECT_EQ(calls, 2U);
  EXPECT_EQ(run(1), 8);
  EXPECT_EQ(calls, 2U);
  EXPECT_EQ(graphs.num_launched(), 2U);
  for (std::size_t tokens = 2; tokens < 65; ++tokens) run(tokens);
  run(1);
  EXPECT_EQ(calls, 2U + 63U);  // all 64 are kept
  run(65);                     // but not one more: 2 goes
  run(2);
  run(1);
  EXPECT_EQ(calls, 2U + 63U + 2U);
  EXPECT_EQ(graphs.num_launched(), 4U);
}

TEST(StepGraphs, AnErrorInARecordingLeavesTheDeviceUsable) {
  Device& device = test::test_device();
  AlignedBuffer<float> memory(1, &device);
  MatrixView<float> const x(memory.data(), 1, 1);
  StepGraphs graphs(device);
  StepGraphs::Shape const shape{.tokens = 1, .sequences = 1, .most_positions = 256, .inputs = nullptr};
  graphs.run(shape, [] {});
  EXPECT_THROW(graphs.run(shape, [] { throw std::runtime_error("no"); }), std::runtime_error);
  float number = 3;
  device.upload(memory.data(), &number, sizeof number);
  graphs.run(shape, [&] { device.scale(x, 2); });
  device.download(&number, memory.data(), sizeof number);
  EXPECT_EQ(number, 6);
}

}  // namespace
}  // namespace expertmesh
