#include "common/kernels/ffn_activation.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::Bounded;
using reference::BoundedMatrix;
using reference::kEpsilonF32;
using reference::num_wrong;
using reference::random_matrix;
using reference::same_bits;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

constexpr std::size_t kSizes[] = {1, 2, 3, 5, 7, 15, 16, 17, 33, 48, 64, 72, 129};
constexpr ActivationSpec kUnclamped[] = {{.kind = Activation::silu},
                                         {.kind = Activation::gelu},
                                         {.kind = Activation::gelu_tanh},
                                         {.kind = Activation::relu}};
constexpr ActivationSpec kClamped[] = {{.kind = Activation::clamped_silu, .alpha = 1.702F, .limit = 7},
                                       {.kind = Activation::clamped_silu, .alpha = 0.5F, .limit = 0.25F}};

class FfnActivationTest : public EachIsa {};
EM_FOR_EACH_ISA(FfnActivationTest);

// Rows of small numbers, of large ones, and of both signs of each: far into both tails.
Matrix<float> inputs(std::size_t n) {
  auto x = random_matrix(3, n, 1);
  for (std::size_t i = 0; i < n; ++i) {
    x.view().row(1)[i] *= 80;
    x.view().row(2)[i] *= 5;
  }
  return x;
}

TEST_P(FfnActivationTest, EqualsTheReferenceAndHasTheBitsOfScalar) {
  Rig rig(GetParam(), 2);
  Rig scalar(Isa::scalar);
  auto const check = [&](ActivationSpec const& f, bool gated, std::size_t n) {
    auto const in = inputs(gated ? 2 * n : n);
    Matrix<float> out(3, n), of_scalar(3, n);
    ffn_activation(rig.exec, f, in.view(), out.view());
    ffn_activation(scalar.exec, f, in.view(), of_scalar.view());
    BoundedMatrix expected(3);
    for (std::size_t t = 0; t < 3; ++t)
      for (std::size_t i = 0; i < n; ++i) {
        auto const at = [&](std::size_t column) { return Bounded{static_cast<double>(in.view().row(t)[column]), 0}; };
        expected[t].push_back(gated ? reference::activated(f, at(i), at(n + i))
                                    : reference::activated(f, std::nullopt, at(i)));
      }
    EXPECT_EQ(num_wrong(out.view(), expected), 0U) << static_cast<int>(f.kind) << (gated ? " gated " : " ") << n;
    EXPECT_TRUE(same_bits(out.view(), of_scalar.view())) << static_cast<int>(f.kind) << " " << n;
  };
  for (std::size_t n : kSizes) {
    for (ActivationSpec const& f : kUnclamped)
      for (bool gated : {true, false}) check(f, gated, n);
    for (ActivationSpec const& f : kClamped) check(f, true, n);
  }
}

float activated(Exec const& exec, ActivationSpec const& f, float gate, float up) {
  Matrix<float> in(1, 2), out(1, 1);
  in.view().data[0] = gate;
  in.view().data[1] = up;
  ffn_activation(exec, f, in.view(), out.view());
  return out.view().data[0];
}

TEST_P(FfnActivationTest, AtTheirLimits) {
  Rig rig(GetParam());
  for (ActivationSpec const& f : kUnclamped) {
    int const kind = static_cast<int>(f.kind);
    EXPECT_EQ(activated(rig.exec, f, kInfinity, 1), kInfinity) << kind;
    EXPECT_EQ(activated(rig.exec, f, 3e38F, 1), 3e38F) << kind;
    EXPECT_EQ(activated(rig.exec, f, 100, 1), 100) << kind;
    for (float x : {0.0F, -0.0F, -100.0F, -3e38F}) EXPECT_EQ(activated(rig.exec, f, x, 1), 0) << kind << " of " << x;
    EXPECT_TRUE(std::isnan(activated(rig.exec, f, kNaN, 1))) << kind;
    EXPECT_TRUE(std::isnan(activated(rig.exec, f, 1, kNaN))) << kind;
  }
}

// g / (1 + e^(-alpha g)) * (u + 1), g at most the limit, u within it: the gate has no limit below.
TEST_P(FfnActivationTest, TheClampedOneHoldsGateAndUpWithinTheLimit) {
  Rig rig(GetParam());
  ActivationSpec const f{.kind = Activation::clamped_silu, .alpha = 1.702F, .limit = 7};
  float const at_limit = activated(rig.exec, f, 7, 7);
  EXPECT_NEAR(at_limit, 7 / (1 + std::exp(-1.702 * 7)) * 8, 1e-4);
  for (float gate : {7.5F, 1e30F, kInfinity})
    for (float up : {7.5F, 1e30F, kInfinity}) EXPECT_EQ(activated(rig.exec, f, gate, up), at_limit);
  for (float up : {-7.5F, -1e30F, -kInfinity})
    EXPECT_EQ(activated(rig.exec, f, 7, up), activated(rig.exec, f, 7, -7)) << up;
  EXPECT_NEAR(activated(rig.exec, f, 7, -7), -6 * 7, 1e-3);
  EXPECT_NEAR(activated(rig.exec, f, -8, 0), -8 / (1 + std::exp(1.702 * 8)), 1e-10);
  EXPECT_EQ(activated(rig.exec, f, -1e30F, 3), 0);
  EXPECT_TRUE(std::isnan(activated(rig.exec, f, kNaN, 1)));
  EXPECT_TRUE(std::isnan(activated(rig.exec, f, 1, kNaN)));
}

// gelu(x) = x (1 + erf(x / sqrt(2))) / 2 gives erf away where x is not small.
TEST_P(FfnActivationTest, TheErrorFunctionIsGoodToTwoInTenMillion) {
  Rig rig(GetParam());
  constexpr std::size_t kCount = 160;
  Matrix<float> in(1, kCount), out(1, kCount);
  double worst = 0;
  for (std::size_t part = 0; part < 500; ++part) {
    for (std::size_t i = 0; i < kCount; ++i)
      in.view().data[i] = 1e-4F * static_cast<float>(part * kCount + i + 1);  // up to 8
    ffn_activation(rig.exec, {.kind = Activation::gelu}, in.view(), out.view());
    for (std::size_t i = 0; i < kCount; ++i) {
      double const x = static_cast<double>(in.view().data[i]);
      double const y = static_cast<double>(out.view().data[i]);
      double const erf = 2 * y / x - 1;
      double const rounding = kEpsilonF32 * std::abs(y) / x;  // of y, seen through 2 / x
      worst = std::max(worst, std::abs(erf - std::erf(x / std::sqrt(2.0))) - rounding);
    }
  }
  EXPECT_LT(worst, 2e-7);
}

// silu(x) / x = 1 / (1 + e^-x) for x much below 0 is e^x (1 + e^x)^-1: the relative error of the exponential shows.
TEST_P(FfnActivationTest, TheExponentialIsGoodToAFewUlpOverItsRange) {
  Rig rig(GetParam());
  constexpr std::size_t kCount = 160;
  Matrix<float> in(1, kCount), out(1, kCount);
  for (std::size_t part = 0; part < 50; ++part) {
    for (std::size_t i = 0; i < kCount; ++i)
      in.view().data[i] = -20.0F - 0.0083F * static_cast<float>(part * kCount + i);
    ffn_activation(rig.exec, {}, in.view(), out.view());
    for (std::size_t i = 0; i < kCount; ++i) {
      double const x = static_cast<double>(in.view().data[i]);
      double const expected = x / (1 + std::exp(-x));
      EXPECT_NEAR(static_cast<double>(out.view().data[i]) / expected, 1.0, 3 * kEpsilonF32) << x;
    }
  }
}

TEST(FfnActivation, ShapesThatFitNoFormAreABrokenInvariant) {
  Rig rig(Isa::scalar);
  Matrix<float> in(1, 6), out(1, 4), same(1, 6);
  EXPECT_DEATH(ffn_activation(rig.exec, {}, in.view(), out.view()), "broken invariant");
  EXPECT_DEATH(ffn_activation(rig.exec, kClamped[0], in.view(), same.view()), "broken invariant");
}

}  // namespace
}  // namespace expertmesh
