// MXFP4 and FP8 weights are multiplied to the bits that the bfloat16 numbers have which they are.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "common/kernels/grouped_ffn.h"
#include "common/kernels/headwise_linear.h"
#include "tests/unit/kernels/coded_weight.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::Coded;
using reference::num_different;
using reference::random_coded;
using reference::random_matrix;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<WeightFormat> formats_for(std::size_t k) {
  std::vector<WeightFormat> out = {fp8_weights(32), fp8_weights(96), fp8_weights(128)};
  if (k % 32 == 0) out.push_back(kMxfp4Weights);
  return out;
}

class CodedWeights : public EachIsa {
 protected:
  Matrix<float> run(Exec const& exec, MatrixView<float const> x, PackedMatrix const& w) const {
    Matrix<float> y(x.rows, w.n());
    linear(exec, x, w, y.view());
    return y;
  }
};
EM_FOR_EACH_ISA(CodedWeights);

TEST_P(CodedWeights, HaveTheBitsOfTheirNumbersInBf16) {
  Rig one(GetParam(), 1);
  Rig three(GetParam(), 3);
  for (std::size_t n : {1, 15, 16, 17, 72, 129})
    for (std::size_t k : {1, 2, 31, 33, 64, 129, 256, 287, 320})
      for (WeightFormat const& format : formats_for(k)) {
        Coded const w = random_coded(format, n, k, n + k);
        PackedMatrix const coded = w.packed();
        PackedMatrix const wide = w.as_bf16();
        for (std::size_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 64, 130}) {
          auto const x = random_matrix(m, k, m);
          auto const expected = run(one.exec, x.view(), wide);
          for (Rig* rig : {&one, &three})
            EXPECT_EQ(num_different(run(rig->exec, x.view(), coded).view(), expected.view()), 0U)
                << name_of(format.storage) << " by " << format.group_size << " M " << m << " N " << n << " K " << k;
        }
      }
}

// All codes with scales that leave the range of bfloat16 or are at its ends: one in each column, so that a panel has
// many. In FP8 a product of each code; in MXFP4 32 times the same, all with the scale that is tried.
TEST_P(CodedWeights, HaveThemForEveryCodeAndScale) {
  Rig rig(GetParam());
  std::vector<float> scales = {0.0F, -0.0F, 1.0F, 1.1F, -0.3F, 0x1.fffffep100F, kInfinity, -kInfinity, kNaN};
  for (int exponent : {-149, -140, -127, -126, -118, -117, -116, 116, 117, 118, 119, 120, 126, 127})
    for (float const factor : {1.0F, -1.0F, 1.0000001F, 0.99999994F}) scales.push_back(std::ldexp(factor, exponent));
  Coded fp8(fp8_weights(32), 256 * scales.size(), 1);
  for (std::size_t i = 0; i < fp8.n; ++i) {
    fp8.codes[i] = static_cast<std::byte>(i / scales.size());
    fp8.set_scale(i, 0, scales[i % scales.size()]);
  }
  Coded mxfp4(kMxfp4Weights, std::size_t{16} * 256, 32);
  for (std::size_t i = 0; i < mxfp4.n; ++i) {
    std::fill_n(mxfp4.codes.begin() + static_cast<std::ptrdiff_t>(16 * i), 16, static_cast<std::byte>(i / 256 * 0x11));
    mxfp4.scales[i] = static_cast<std::byte>(i % 256);
  }
  for (Coded const* w : {&fp8, &mxfp4})
    for (std::size_t m : {1, 64}) {
      auto x = random_matrix(m, w->k, 7);
      std::fill_n(x.view().row(0), w->k, 1.0F);
      EXPECT_EQ(
          num_different(run(rig.exec, x.view(), w->packed()).view(), run(rig.exec, x.view(), w->as_bf16()).view()), 0U)
          << name_of(w->format.storage) << " M " << m;
    }
}

// A code that is NaN spoils its own column alone, wherever it is in a stretch.
TEST_P(CodedWeights, ANaNSpoilsItsColumn) {
  Rig rig(GetParam());
  auto const x = random_matrix(3, 160, 1);
  for (std::size_t k : {0, 1, 31, 130, 159})
    for (int const nan : {0x7f, 0xff}) {
      Coded w = random_coded(fp8_weights(128), 40, 160, 5);
      w.codes[19 * w.k + k] = static_cast<std::byte>(nan);
      auto const y = run(rig.exec, x.view(), w.packed());
      EXPECT_EQ(num_different(y.view(), run(rig.exec, x.view(), w.as_bf16()).view()), 0U);
      for (std::size_t n = 0; n < w.n; ++n) EXPECT_EQ(std::isnan(y.view().row(2)[n]), n == 19) << n << " k " << k;
    }
}

TEST_P(CodedWeights, AnyWrongBitIsNoticed) {
  Rig rig(GetParam());
  auto const x = random_matrix(2, 160, 1);
  for (WeightFormat const& format : formats_for(160)) {
    Coded w = random_coded(format, 40, 160, 3);
    auto const expected = run(rig.exec, x.view(), w.as_bf16());
    w.codes[w.codes.size() - 1] ^= std::byte{0x80};
    EXPECT_EQ(num_different(run(rig.exec, x.view(), w.packed()).view(), expected.view()), 2U);
  }
}

TEST_P(CodedWeights, InExpertsAndHeads) {
  Rig rig(GetParam(), 2);
  auto const bytes = [](MatrixView<float const> x, std::size_t r) {
    return reinterpret_cast<std::byte const*>(x.row(r));
  };
  for (WeightFormat const& format : {fp8_weights(32), kMxfp4Weights}) {
    Coded const gate_up = random_coded(format, 2 * 96, 64, 1);
    Coded const down = random_coded(format, 64, 96, 2);
    auto const x = random_matrix(9, 64, 3);
    auto const out_of = [&](auto pack) {
      FfnWeights ffn{
          .gate_up = {pack(gate_up), {}}, .down = {pack(down), {}}, .activation = {.kind = Activation::silu}};
      FfnWeights const* const groups[] = {&ffn};
      std::size_t const offsets[] = {0, 9};
      Matrix<float> y(9, 64);
      std::vector<std::byte const*> in;
      std::vector<std::byte*> out;
      for (std::size_t r = 0; r < 9; ++r) {
        in.push_back(bytes(x.view(), r));
        out.push_back(reinterpret_cast<std::byte*>(y.view().row(r)));
      }
      grouped_ffn(rig.exec, {.groups = groups, .offsets = offsets, .in = in, .out = out, .wire = DType::f32});
      return y;
    };
    EXPECT_EQ(num_different(out_of([](Coded const& w) { return w.packed(); }).view(),
                            out_of([](Coded const& w) { return w.as_bf16(); }).view()),
              0U);
    auto const of_heads = random_matrix(9, 2 * 64, 6);
    auto const heads_of = [&](auto pack) {
      std::vector<PackedMatrix> heads;
      for (std::uint64_t seed : {4, 5}) heads.push_back(pack(random_coded(format, 20, 64, seed)));
      Matrix<float> y(9, 40);
      headwise_linear(rig.exec, of_heads.view(), heads, {.x_stride = 64, .y_stride = 20}, y.view());
      return y;
    };
    EXPECT_EQ(num_different(heads_of([](Coded const& w) { return w.packed(); }).view(),
                            heads_of([](Coded const& w) { return w.as_bf16(); }).view()),
              0U);
  }
}

TEST(CodedMatrices, WidenToTheirNumbers) {
  for (std::size_t k : {1, 33, 160})
    for (WeightFormat const& format : formats_for(k)) {
      Coded const w = random_coded(format, 37, k, 9);
      PackedMatrix const wide = w.packed().widened();
      PackedMatrix const expected = w.as_bf16();
      ASSERT_EQ(wide.size_bytes(), expected.size_bytes());
      EXPECT_EQ(std::memcmp(wide.data(), expected.data(), wide.size_bytes()), 0) << name_of(format.storage) << " " << k;
    }
}

TEST(CodedMatrices, TakeTheBytesOfTheirLayout) {
  EXPECT_EQ(packed_bytes(kMxfp4Weights, 17, 64), 2U * 2 * (16 + 256));
  EXPECT_EQ(packed_bytes(fp8_weights(128), 17, 131), 2U * (2 * 64 + 66 * 32));
  EXPECT_EQ(random_coded(fp8_weights(128), 17, 131, 1).packed().size_bytes(), packed_bytes(fp8_weights(128), 17, 131));
}

TEST(CodedMatricesDeathTest, TakeNoNumbers) {
  PackedMatrix w(kMxfp4Weights, 1, 32);
  auto const numbers = random_matrix(1, 32, 1);
  auto const* const bytes = reinterpret_cast<std::byte const*>(numbers.view().row(0));
  EXPECT_DEATH(w.set_rows(0, 1, DType::f32, bytes), "numbers for weights of float4_e2m1fn");
  EXPECT_DEATH(PackedMatrix(kMxfp4Weights, 1, 33), "no kernel for K 33");
}

}  // namespace
}  // namespace expertmesh
