// Decode steps recorded and launched as graphs: the same bits as op by op, whoever comes and goes.
#include "coordinator/engine/step_graphs.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "tests/unit/device/test_device.h"
#include "tests/unit/device_model/step_rig.h"

namespace expertmesh {
namespace {

using test::Model;
using test::Said;
using test::say;

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

std::vector<std::string> those_without_noise() {
  std::vector<std::string> names(test::kReferenceModels.begin(), test::kReferenceModels.end());
  std::erase(names, "noisy_topk_moe");
  return names;
}
INSTANTIATE_TEST_SUITE_P(Cases, StepGraphsOfModel, testing::ValuesIn(those_without_noise()), test::name_of_model);

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
