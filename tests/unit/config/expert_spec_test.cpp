#include "common/config/expert_spec.h"

#include <gtest/gtest.h>

#include <limits>

namespace expertmesh {
namespace {

TEST(WeightSlice, FitsItsStoredMatrixOrSaysWhyNot) {
  EXPECT_EQ(problem_of(WeightSlice{"w"}, 3, 5), "");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .stored_rows = 6, .first_row = 3}, 3, 5), "");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .stored_rows = 6, .first_row = 1, .row_step = 2}, 3, 5), "");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .stack = 4, .index = 3, .transposed = true}, 3, 5), "");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .storage = WeightStorage::mxfp4}, 3, 64), "");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .transposed = true, .storage = WeightStorage::fp8_blocks}, 3, 5), "");

  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .first_row = 1}, 3, 5), "reaches number 3 of 3 stored");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .stored_rows = 6, .first_row = 4}, 3, 5),
            "reaches number 6 of 6 stored");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .stored_rows = 6, .first_row = 2, .row_step = 2}, 3, 5),
            "reaches number 6 of 6 stored");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .row_step = 0}, 3, 5), "a step of 0");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .stack = 4, .index = 4}, 3, 5), "number 4 of a stack of 4");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .index = 1}, 3, 5), "number 1 of a stack of 0");
  EXPECT_EQ(problem_of(WeightSlice{"w"}, 0, 5), "is empty");
  EXPECT_EQ(problem_of(WeightSlice{"w"}, 3, 0), "is empty");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .storage = WeightStorage::mxfp4}, 3, 48),
            "mxfp4 rows of 48, no multiple of 32");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .transposed = true, .storage = WeightStorage::mxfp4}, 3, 32),
            "mxfp4 is never transposed");
  auto const of_integers = [](StoredIntegers const& form) {
    return problem_of(WeightSlice{.name = "w", .storage = WeightStorage::integers, .integers = form}, 3, 5);
  };
  EXPECT_EQ(of_integers({}), "");
  EXPECT_EQ(of_integers({.bits = 3}), "3 bits in this layout");
  EXPECT_EQ(of_integers({.layout = IntegerLayout::bytes}), "4 bits in this layout");
  EXPECT_EQ(of_integers({.layout = IntegerLayout::awq, .bits = 8}), "awq of 8 bits");
  EXPECT_EQ(of_integers({.layout = IntegerLayout::awq, .has_group_index = true}), "awq has no group index");
  EXPECT_EQ(of_integers({.layout = IntegerLayout::packed, .one_scale = true}), "one scale, and groups");
  EXPECT_EQ(of_integers({.layout = IntegerLayout::bytes, .bits = 8, .group_size = 2, .one_scale = true}),
            "one scale, and groups");
  EXPECT_EQ(of_integers({.layout = IntegerLayout::awq, .zero_points = ZeroPoints::stored_minus_one}),
            "zero points minus one are of gptq");
  for (WeightSlice const& w : {WeightSlice{.name = "w", .transposed = true, .storage = WeightStorage::integers},
                               WeightSlice{.name = "w", .stack = 4, .storage = WeightStorage::integers}})
    EXPECT_EQ(problem_of(w, 3, 5), "integers are never transposed or stacked");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .storage = WeightStorage::fp8_scaled, .block_rows = 0}, 3, 5),
            "blocks of 0 rows");
  EXPECT_EQ(problem_of(WeightSlice{.name = "w", .storage = WeightStorage::fp8_blocks, .block_columns = 0}, 3, 5),
            "blocks of 0");
}

TEST(VectorSlice, FitsItsStoredVectorOrSaysWhyNot) {
  EXPECT_EQ(problem_of(VectorSlice{"v"}, 3), "");
  EXPECT_EQ(problem_of(VectorSlice{.name = "v", .stack = 2, .index = 1, .stored_length = 6, .first = 1, .step = 2}, 3),
            "");
  EXPECT_EQ(problem_of(VectorSlice{.name = "v", .stored_length = 6, .first = 2, .step = 2}, 3),
            "reaches number 6 of 6 stored");
  EXPECT_EQ(problem_of(VectorSlice{.name = "v", .stack = 2, .index = 2}, 3), "number 2 of a stack of 2");
}

ExpertLayerSpec biased_layer() {
  ExpertLayerSpec layer{.hidden = 4, .intermediate = 6, .experts = {}};
  for (int e = 0; e < 3; ++e)
    layer.experts.push_back({.gate = WeightSlice{"g"},
                             .up = {"u"},
                             .down = {"d"},
                             .gate_bias = VectorSlice{"gb"},
                             .up_bias = VectorSlice{"ub"},
                             .down_bias = VectorSlice{"db"}});
  return layer;
}

template <class Change>
std::string problem_after(Change change) {
  ExpertLayerSpec layer = biased_layer();
  change(layer);
  return problem_of(layer);
}

TEST(ExpertLayerSpec, HasItsPartsInAllExpertsOrNone) {
  std::string const uneven = ": some experts of the layer have one, some have none";
  EXPECT_EQ(problem_of(biased_layer()), "");
  EXPECT_EQ(problem_of(ExpertLayerSpec{}), "");
  EXPECT_EQ(problem_after([](auto& l) { l.experts[2].up_bias.reset(); }), "experts[2].up_bias" + uneven);
  EXPECT_EQ(problem_after([](auto& l) { l.experts[1].down_bias.reset(); }), "experts[1].down_bias" + uneven);
  EXPECT_EQ(problem_after([](auto& l) { l.experts[0].gate_bias.reset(); }), "experts[1].gate_bias" + uneven);
  EXPECT_EQ(problem_after([](auto& l) { l.experts[2].gate.reset(); }), "experts[2].gate" + uneven);
  EXPECT_EQ(problem_after([](auto& l) {
              for (auto& e : l.experts) e.gate.reset();
            }),
            "experts[0].gate_bias: there is no gate");
  EXPECT_EQ(problem_after([](auto& l) {
              for (auto& e : l.experts) e.gate_bias = {}, e.gate = {};
            }),
            "");
}

TEST(ExpertLayerSpec, NamesTheSliceThatDoesNotFit) {
  EXPECT_EQ(problem_after([](auto& l) { l.experts[1].down.index = 1; }), "experts[1].down: number 1 of a stack of 0");
  EXPECT_EQ(problem_after([](auto& l) { l.experts[1].gate->stored_rows = 5; }),
            "experts[1].gate: reaches number 5 of 5 stored");
  EXPECT_EQ(problem_after([](auto& l) { l.experts[2].down_bias->stored_length = 3; }),
            "experts[2].down_bias: reaches number 3 of 3 stored");
  EXPECT_EQ(problem_after([](auto& l) { l.experts[2].up_bias->first = 1; }),
            "experts[2].up_bias: reaches number 6 of 6 stored");
}

TEST(ActivationSpec, NumbersGoWithTheClampedOneAndItGoesWithAGate) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  ActivationSpec const clamped{.kind = Activation::clamped_silu, .alpha = 1.7F, .limit = 7};
  EXPECT_EQ(problem_of(clamped, true), "");
  EXPECT_NE(problem_of(clamped, false).find("without a gate"), std::string::npos);
  EXPECT_NE(problem_of({.kind = Activation::clamped_silu, .alpha = 1.7F}, true), "");
  EXPECT_NE(problem_of({.kind = Activation::clamped_silu, .alpha = 1.7F, .limit = -1}, true), "");
  EXPECT_NE(problem_of({.kind = Activation::clamped_silu, .alpha = kNaN, .limit = 7}, true), "");
  EXPECT_NE(problem_of({.kind = Activation::clamped_silu, .alpha = 1, .limit = kNaN}, true), "");
  for (Activation const kind : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu})
    for (bool const gated : {false, true}) {
      EXPECT_EQ(problem_of({.kind = kind}, gated), "");
      EXPECT_EQ(problem_of({.kind = kind, .alpha = 1}, gated).substr(0, 6), "alpha:");
      EXPECT_EQ(problem_of({.kind = kind, .limit = 1}, gated).substr(0, 6), "limit:");
    }
}

}  // namespace
}  // namespace expertmesh
