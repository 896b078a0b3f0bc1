// Bytes and operations of a step, against sums made by hand from the shapes of small models.
#include "coordinator/bench/step_cost.h"

#include <gtest/gtest.h>

#include "tests/support/small_mixtral.h"

namespace expertmesh {
namespace {

class StepCostTest : public testing::Test {
 protected:
  StepCostTest() : dir_(testing::TempDir() + "/step_cost_model") {}
  ~StepCostTest() override { std::filesystem::remove_all(dir_); }

  ModelSpec spec(std::string const& window) const { return test::small_mixtral(dir_, window); }

 private:
  std::filesystem::path dir_;
};

constexpr std::size_t kHidden = 32;
constexpr std::size_t kAttention = kHidden * (32 + 16 + 16) + 32 * kHidden;  // q, k, v and o of a layer
constexpr std::size_t kRouter = 32 * kHidden;                                // 4 experts padded to a panel
constexpr std::size_t kExpert = 3 * kHidden * 16;
constexpr std::size_t kHead = 48 * kHidden;
constexpr std::size_t kHeadPanels = 64 * kHidden;  // padded
constexpr std::size_t kNorms = (2 * 2 + 1) * kHidden;

TEST_F(StepCostTest, WeightsOfAStep) {
  ModelSpec const model = spec("null");
  std::vector<std::size_t> const hit{3, 1};
  // bfloat16 but for routers and norms; the embedding gives one row a token
  EXPECT_EQ(StepCost(model, kBfloat16Weights, DType::bf16).weight_bytes(5, hit),
            2 * (2 * kAttention + kHeadPanels + 4 * kExpert + 5 * kHidden) + 4 * (2 * kRouter + kNorms));
  // float32; the embedding stays as it is stored
  EXPECT_EQ(StepCost(model, kFloat32Weights, DType::f32).weight_bytes(5, hit),
            4 * (2 * kAttention + kHeadPanels + 4 * kExpert + 2 * kRouter + kNorms) + 2 * 5 * kHidden);
}

TEST_F(StepCostTest, KeysAndValuesOfAToken) {
  ModelSpec const model = spec("null");
  EXPECT_EQ(StepCost(model, kBfloat16Weights, DType::bf16).kv_bytes(10), 2U * 2 * (2 * 2 * 8) * 10);
  EXPECT_EQ(StepCost(model, kFloat32Weights, DType::f32).kv_bytes(10), 4U * 2 * (2 * 2 * 8) * 10);
  EXPECT_EQ(StepCost(model, kBfloat16Weights, DType::i8).kv_bytes(10), 2U * (2 * 2 * (8 + 4)) * 10);
  ModelSpec const windowed = spec("4");
  EXPECT_EQ(StepCost(windowed, kBfloat16Weights, DType::bf16).kv_bytes(3), 2U * 2 * (2 * 2 * 8) * 3);
  EXPECT_EQ(StepCost(windowed, kBfloat16Weights, DType::bf16).kv_bytes(10), 2U * 2 * (2 * 2 * 8) * 4);
}

TEST_F(StepCostTest, OperationsOfAPrompt) {
  constexpr std::size_t kToken = kAttention + 4 * kHidden + 2 * kExpert;  // of a layer, 2 of 4 experts
  ModelSpec const model = spec("null");
  EXPECT_DOUBLE_EQ(StepCost(model, kBfloat16Weights, DType::bf16).prompt_flops(3),
                   2.0 * (2 * 3 * kToken + kHead) + 2 * 4.0 * (1 + 2 + 3) * 32);
  ModelSpec const windowed = spec("2");
  EXPECT_DOUBLE_EQ(StepCost(windowed, kBfloat16Weights, DType::bf16).prompt_flops(3),
                   2.0 * (2 * 3 * kToken + kHead) + 2 * 4.0 * (1 + 2 + 2) * 32);
}

TEST_F(StepCostTest, APromptIsAsMuchAsItsTokensButForTheirLogits) {
  for (char const* window : {"null", "2"}) {
    ModelSpec const model = spec(window);
    StepCost const cost(model, kInt8Weights, DType::bf16);
    EXPECT_DOUBLE_EQ(cost.decode_flops(1) + cost.decode_flops(2) + cost.decode_flops(3),
                     cost.prompt_flops(3) + 2 * 2.0 * kHead);
  }
}

TEST_F(StepCostTest, AllExpertsHitIsTheWholeModelButTheEmbedding) {
  ModelSpec const model = spec("null");
  StepCost const cost(model, kBfloat16Weights, DType::bf16);
  std::vector<std::size_t> const all{4, 4};
  EXPECT_EQ(cost.weight_bytes(0, all) + cost.plan().embedding_bytes,
            cost.plan().coordinator_bytes + cost.plan().worker_bytes.front());
}

}  // namespace
}  // namespace expertmesh
