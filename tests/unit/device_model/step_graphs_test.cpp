// Decode steps recorded and launched as graphs: the same bits as op by op, whoever comes and goes.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <future>
#include <set>

#include "common/kernels/graph_cache.h"
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

class GraphCacheTest : public testing::Test {
 protected:
  // Doubles the number, op by op or as a graph.
  void twice(std::uint64_t key) {
    std::uint64_t const keys[] = {7, key};
    auto const ops = [this] {
      ++calls;
      device.scale({memory.data(), 1, 1}, 2);
    };
    DeviceGraph* const graph = graphs.find_or_record(keys, ops);
    if (!graph) return ops();
    graph->launch();
    ++launches;
  }
  void put(float number) { device.upload(memory.data(), &number, sizeof number); }
  float number() {
    float out = 0;
    device.download(&out, memory.data(), sizeof out);
    return out;
  }

  Device& device = test::test_device();
  AlignedBuffer<float> memory{1, &device};
  GraphCache graphs{device};
  std::size_t calls = 0;
  std::size_t launches = 0;
};

TEST_F(GraphCacheTest, RecordsTheSecondTimeAndForgetsWhatWasNotUsedLongest) {
  put(1);
  twice(1);
  EXPECT_EQ(number(), 2);
  EXPECT_EQ(calls, 1U);
  twice(1);  // recorded, and launched
  EXPECT_EQ(number(), 4);
  EXPECT_EQ(calls, 2U);
  twice(1);
  EXPECT_EQ(number(), 8);
  EXPECT_EQ(calls, 2U);
  EXPECT_EQ(launches, 2U);
  for (std::uint64_t key = 2; key < 65; ++key) twice(key);
  twice(1);
  EXPECT_EQ(calls, 2U + 63U);  // all 64 are kept
  twice(65);                   // but not one more: 2 goes
  twice(2);
  twice(1);
  EXPECT_EQ(calls, 2U + 63U + 2U);
  EXPECT_EQ(launches, 4U);
  graphs.clear();
  twice(1);
  EXPECT_EQ(calls, 2U + 63U + 3U);
}

TEST_F(GraphCacheTest, AnErrorInARecordingLeavesTheDeviceUsable) {
  std::uint64_t const key[] = {3};
  EXPECT_EQ(graphs.find_or_record(key, [] {}), nullptr);
  EXPECT_THROW(graphs.find_or_record(key, [] { throw std::runtime_error("no"); }), std::runtime_error);
  EXPECT_FALSE(graphs.is_recording());
  put(3);
  EXPECT_NE(graphs.find_or_record(key, [&] { device.scale({memory.data(), 1, 1}, 2); }), nullptr);
  EXPECT_EQ(number(), 3) << "recorded, not done";
}

// A queue beside the device's own that is taken into a recording has to come back to it; else there is no graph, and
// that is how it stays.
TEST_F(GraphCacheTest, AQueueThatIsNotJoinedIsRefused) {
  auto const queue = device.make_link_queue();
  std::size_t asked = 0;
  std::uint64_t const key[] = {4};
  for (int i = 0; i < 3; ++i) EXPECT_EQ(graphs.find_or_record(key, [&] { ++asked, queue->follow_device(); }), nullptr);
  EXPECT_EQ(asked, 1U);
  EXPECT_FALSE(queue->is_recording());
  std::uint64_t const other[] = {5};
  auto const joined = [&] {
    queue->follow_device();
    EXPECT_TRUE(queue->is_recording());
    queue->hold_device();
  };
  EXPECT_EQ(graphs.find_or_record(other, joined), nullptr);
  EXPECT_NE(graphs.find_or_record(other, joined), nullptr);
}

// Experts of a new placement are loaded while steps go on.
TEST_F(GraphCacheTest, OtherThreadsCopiesWaitForTheEndOfARecording) {
  std::uint64_t const key[] = {6};
  std::future<float> loaded;
  auto const ops = [&] {
    device.scale({memory.data(), 1, 1}, 2);
    loaded = std::async(std::launch::async, [this] {
      std::vector<float> const numbers(100, 3.0F);
      AlignedBuffer<float> const there(std::span<float const>(numbers), &device);
      float last = 0;
      device.download(&last, there.data() + 99, sizeof last);
      return last;
    });
    EXPECT_EQ(loaded.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  };
  EXPECT_EQ(graphs.find_or_record(key, ops), nullptr);
  DeviceGraph* const graph = graphs.find_or_record(key, ops);
  EXPECT_EQ(loaded.get(), 3);
  put(1);
  ASSERT_NE(graph, nullptr);
  graph->launch();
  EXPECT_EQ(number(), 2);
}

}  // namespace
}  // namespace expertmesh
