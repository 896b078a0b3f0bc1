// What a step's stages take at least, against sums made by hand from the shapes of a small model.
#include "coordinator/engine/stage_floors.h"

#include <gtest/gtest.h>

#include "tests/support/small_mixtral.h"

namespace expertmesh {
namespace {

constexpr std::size_t kWidth = 32;                                           // H
constexpr std::size_t kProjections = kWidth * (32 + 16 + 16) + 32 * kWidth;  // q, k, v and o of a layer
constexpr std::size_t kGate = 32 * kWidth;                                   // 4 experts padded to a panel
constexpr std::size_t kOneExpert = 3 * kWidth * 16;
constexpr std::size_t kLogits = 48 * kWidth;
constexpr std::size_t kKvBytes =
    2 * 2 * (2 * 2 * 8);  // of a position: bfloat16, two layers, keys and values of two heads
constexpr Ceilings kMemoryOnly{.bytes_per_second = 1};
constexpr Ceilings kCoresOnly{.operations_per_second = 1};

class StageFloorsTest : public testing::Test {
 protected:
  StageFloorsTest() : dir_(testing::TempDir() + "/stage_floors_model") {}
  ~StageFloorsTest() override { std::filesystem::remove_all(dir_); }

  StageFloors floors(std::string const& window, Ceilings own, DType kv_dtype = DType::bf16) const {
    return {test::small_mixtral(dir_, window), kBfloat16Weights, DType::bf16, kv_dtype, own};
  }
  // In the first layer three tokens go to experts 0, 1 and 3, one of their slots finds no room; in the second all go to
  // 2 and 0.
  void route() {
    std::vector<float> const weights(6, 0.5F);
    std::vector<std::uint32_t> const first{0, 1, 3, 1, kNoExpert, 0};
    std::vector<std::uint32_t> const second{2, 0, 2, 0, 2, 0};
    routed_.add(0, {first, weights, 2});
    routed_.add(1, {second, weights, 2});
  }
  // A sequence that decodes at position 9, and one with a prompt's positions 4 and 5.
  [[nodiscard]] StageFloors::Step step() const {
    return {.positions = positions_, .offsets = offsets_, .logit_rows = 2, .routed = routed_};
  }

  BalanceStatistics routed_{2, 4};

 private:
  std::filesystem::path dir_;
  std::vector<std::uint32_t> const positions_{9, 4, 5};
  std::vector<std::uint32_t> const offsets_{0, 1, 3};
};

double of(StageSeconds const& floors, Stage stage) {
  return floors[static_cast<std::size_t>(stage)];
}

TEST_F(StageFloorsTest, OfBytes) {
  route();
  StageSeconds const seconds = floors("null", kMemoryOnly).of(step());
  std::size_t const norms = 2 * 2 * kWidth * sizeof(float);
  EXPECT_EQ(of(seconds, Stage::embedding), 3 * kWidth * (2 + 4));
  EXPECT_EQ(of(seconds, Stage::attention), 2 * 2 * kProjections + norms + kKvBytes * (10 + 6));
  EXPECT_EQ(of(floors("null", kMemoryOnly, DType::i8).of(step()), Stage::attention),
            2 * 2 * kProjections + norms + 2 * (2 * 2 * (8 + 4)) * (10 + 6));  // a scale for each 8 numbers
  EXPECT_EQ(of(seconds, Stage::router), 2 * 4 * kGate);
  EXPECT_EQ(of(seconds, Stage::dispatch), 2 * 3 * kWidth * (4 + 2));
  EXPECT_EQ(of(seconds, Stage::shared_expert), 0);
  EXPECT_EQ(of(seconds, Stage::experts), 2 * kOneExpert * (3 + 2));
  EXPECT_EQ(of(seconds, Stage::combine), 2 * kWidth * (5 + 6) + 2 * 2 * 3 * kWidth * 4);
  EXPECT_EQ(of(seconds, Stage::dense_ffn), 0);
  EXPECT_EQ(of(seconds, Stage::lm_head), 2 * 64 * kWidth);  // whole panels
  EXPECT_EQ(of(seconds, Stage::fetch), 0);
  EXPECT_EQ(of(seconds, Stage::sampling), 2 * 48 * 4);
}

TEST_F(StageFloorsTest, OfOperations) {
  route();
  StageSeconds const seconds = floors("null", kCoresOnly).of(step());
  EXPECT_EQ(of(seconds, Stage::embedding), 0);
  EXPECT_EQ(of(seconds, Stage::attention), 2 * 2 * (3 * kProjections + (10 + 5 + 6) * 2 * 4 * 8));
  EXPECT_EQ(of(seconds, Stage::router), 2 * 2 * 3 * 4 * kWidth);
  EXPECT_EQ(of(seconds, Stage::experts), 2 * kOneExpert * (5 + 6));
  EXPECT_EQ(of(seconds, Stage::lm_head), 2 * 2 * kLogits);
}

// The window of four: position 9 sees four, 4 and 5 together the five from 1 on.
TEST_F(StageFloorsTest, OfAWindow) {
  std::size_t const rest = 2 * 2 * kProjections + 2 * 2 * kWidth * sizeof(float);
  EXPECT_EQ(of(floors("4", kMemoryOnly).of(step()), Stage::attention), rest + kKvBytes * (4 + 5));
  EXPECT_EQ(of(floors("4", kCoresOnly).of(step()), Stage::attention), 2 * 2 * (3 * kProjections + 3 * 4 * 2 * 4 * 8));
}

TEST_F(StageFloorsTest, TheLongerOfBothAndTheExpertsAtTheirOwnPace) {
  route();
  double const bytes = 2 * kOneExpert * 5;
  double const operations = 2 * kOneExpert * 11;
  StageFloors both = floors("null", {.bytes_per_second = 1, .operations_per_second = 4});
  EXPECT_EQ(of(both.of(step()), Stage::experts), bytes);
  both.set_experts({.bytes_per_second = 4, .operations_per_second = 2});
  EXPECT_EQ(of(both.of(step()), Stage::experts), operations / 2);
  EXPECT_EQ(of(both.of(step()), Stage::router), 2 * 4 * kGate);  // the coordinator's own, as before
  both.set_experts({.bytes_per_second = 4});
  EXPECT_EQ(of(both.of(step()), Stage::experts), bytes / 4);
  both.set_experts({});  // nobody has said how fast he is
  EXPECT_EQ(of(both.of(step()), Stage::experts), 0);
}

TEST_F(StageFloorsTest, NoTokensTakeNoTime) {
  route();
  StageSeconds const seconds =
      floors("null", kMemoryOnly).of({.positions = {}, .offsets = {}, .logit_rows = 0, .routed = routed_});
  EXPECT_EQ(seconds, StageSeconds{});
}

}  // namespace
}  // namespace expertmesh
