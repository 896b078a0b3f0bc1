#include "common/kernels/linear.h"

#include <gtest/gtest.h>

#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;
using reference::same_bits;

class LinearTest : public EachIsa {};
EM_FOR_EACH_ISA(LinearTest);

Matrix<float> run(Exec const& exec, MatrixView<float const> x, PackedMatrix const& w) {
  Matrix<float> y(x.rows, w.n());
  linear(exec, x, w, y.view());
  return y;
}

TEST_P(LinearTest, EqualsTheReference) {
  Rig rig(GetParam(), 2);
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights})
    for (std::size_t m : {1, 2, 3, 4, 5, 7, 17, 65, 129})
      for (std::size_t n : {1, 2, 15, 16, 17, 48, 64, 72, 129})
        for (std::size_t k : {1, 2, 3, 5, 7, 16, 33, 64, 129}) {
          auto const x = random_matrix(m, k, 1);
          auto const w = random_matrix(n, k, 2);
          auto const y = run(rig.exec, x.view(), reference::packed(format, w.view()));
          EXPECT_EQ(reference::num_wrong(y.view(), reference::linear(x.view(), w.view(), format)), 0U)
              << name_of(format.storage) << " M " << m << " N " << n << " K " << k;
        }
}

TEST_P(LinearTest, AWeightOfTheWrongSignIsNoticed) {
  Rig rig(GetParam());
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights}) {
    auto const x = random_matrix(3, 129, 1);
    auto w = random_matrix(20, 129, 2);
    auto const expected = reference::linear(x.view(), w.view(), format);
    for (std::size_t k : {0, 1, 64, 128}) {
      w.view().row(17)[k] *= -1;
      auto const y = run(rig.exec, x.view(), reference::packed(format, w.view()));
      EXPECT_EQ(reference::num_wrong(y.view(), expected), 3U) << "k " << k;
      w.view().row(17)[k] *= -1;
    }
  }
}

TEST_P(LinearTest, ARowHasTheSameBitsAloneInABatchAndForAnyThreadCount) {
  constexpr std::size_t kN = 145;
  constexpr std::size_t kK = 129;
  auto const x = random_matrix(131, kK, 3);
  auto const w = random_matrix(kN, kK, 4);
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights}) {
    auto const packed = reference::packed(format, w.view());
    Rig one(GetParam(), 1);
    auto const whole = run(one.exec, x.view(), packed);
    for (std::size_t threads : {1, 2, 3}) {
      Rig rig(GetParam(), threads);
      for (std::size_t m = 0; m < x.view().rows;) {
        std::size_t const rows = std::min(1 + m % 7, x.view().rows - m);
        EXPECT_TRUE(
            same_bits(run(rig.exec, x.view().row_range(m, rows), packed).view(), whole.view().row_range(m, rows)))
            << threads << " threads, rows from " << m;
        m += rows;
      }
      EXPECT_TRUE(same_bits(run(rig.exec, x.view(), packed).view(), whole.view())) << threads << " threads";
    }
  }
}

TEST_P(LinearTest, HasTheBitsOfScalarButForBfloat16WithAnInstructionOfItsOwn) {
  Rig scalar(Isa::scalar);
  Rig rig(GetParam());
  auto const x = random_matrix(7, 129, 5);
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights}) {
    auto const w = reference::packed(format, random_matrix(100, 129, 6).view());
    bool const same = same_bits(run(rig.exec, x.view(), w).view(), run(scalar.exec, x.view(), w).view());
    bool const own_order = GetParam() == Isa::avx512_bf16 || GetParam() == Isa::amx;
    EXPECT_EQ(same, format != kBfloat16Weights || !own_order) << name_of(format.storage);
  }
}

// One addition after the sum: the bits of adding by hand, for any shape of the tiles.
TEST_P(LinearTest, TheBiasIsAddedToTheFinishedSum) {
  Rig rig(GetParam(), 2);
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights})
    for (std::size_t m : {1, 3, 65, 129})
      for (std::size_t n : {1, 15, 16, 17, 64, 72, 129}) {
        auto const x = random_matrix(m, 33, 1);
        auto const b = random_matrix(1, n, 3);
        PackedLinear const l{reference::packed(format, random_matrix(n, 33, 2).view()),
                             AlignedBuffer<float>(std::span<float const>(b.view().data, n))};
        Matrix<float> y(m, n + 3);
        linear(rig.exec, x.view(), l, y.view().columns(1, n));
        auto expected = run(rig.exec, x.view(), l.w);
        for (std::size_t i = 0; i < m * n; ++i) expected.view().data[i] += l.bias[i % n];
        EXPECT_TRUE(same_bits(y.view().columns(1, n), expected.view())) << "M " << m << " N " << n;
        for (std::size_t r = 0; r < m; ++r)
          for (std::size_t c : {std::size_t{0}, n + 1, n + 2}) EXPECT_EQ(y.view().row(r)[c], 0.0F) << r << "," << c;
      }
}

TEST_P(LinearTest, ReadsAndWritesStridedRowsOnly) {
  Rig rig(GetParam());
  auto const wide = random_matrix(5, 60, 7);
  auto const w = random_matrix(19, 33, 8);
  auto const packed = reference::packed(kFloat32Weights, w.view());
  Matrix<float> y(5, 40);
  linear(rig.exec, wide.view().columns(9, 33), packed, y.view().columns(4, 19));
  EXPECT_EQ(reference::num_wrong(y.view().columns(4, 19),
                                 reference::linear(wide.view().columns(9, 33), w.view(), kFloat32Weights)),
            0U);
  for (std::size_t m = 0; m < 5; ++m)
    for (std::size_t c : {0, 3, 23, 39}) EXPECT_EQ(y.view().row(m)[c], 0.0F) << m << "," << c;
}

TEST_P(LinearTest, NoRowsAreFine) {
  Rig rig(GetParam(), 2);
  auto const w = reference::packed(kFloat32Weights, random_matrix(3, 5, 9).view());
  EXPECT_EQ(run(rig.exec, MatrixView<float const>(nullptr, 0, 5), w).view().rows, 0U);
}

TEST(PackedMatrix, FusedRowsGiveTheSameBytesAsWhole) {
  auto const w = random_matrix(37, 21, 10);
  auto const* bytes = reinterpret_cast<std::byte const*>(w.view().data);
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights}) {
    PackedMatrix whole(format, 37, 21);
    whole.set_rows(0, 37, DType::f32, bytes);
    PackedMatrix parts(format, 37, 21);
    parts.set_rows(18, 19, DType::f32, bytes + 18 * 21 * sizeof(float));
    parts.set_rows(0, 18, DType::f32, bytes);
    ASSERT_EQ(whole.size_bytes(), packed_bytes(format, 37, 21));
    EXPECT_EQ(std::memcmp(whole.data(), parts.data(), whole.size_bytes()), 0);
  }
}

TEST(PackedMatrix, LayoutIsAsTheHeaderSays) {
  auto const w = random_matrix(34, 3, 11);
  PackedMatrix f32 = reference::packed(kFloat32Weights, w.view());
  PackedMatrix half = reference::packed(kBfloat16Weights, w.view());
  ASSERT_EQ(f32.size_bytes(), 2 * 3 * 32 * sizeof(float));
  ASSERT_EQ(half.size_bytes(), 2 * 2 * 32 * 2 * sizeof(bf16));
  auto const* f = reinterpret_cast<float const*>(f32.data());
  auto const* h = reinterpret_cast<bf16 const*>(half.data());
  for (std::size_t n = 0; n < 64; ++n)
    for (std::size_t k = 0; k < 4; ++k) {
      float const x = n < 34 && k < 3 ? w.view().row(n)[k] : 0.0F;
      if (k < 3) {
        EXPECT_EQ(f[(n / 32 * 3 + k) * 32 + n % 32], x);
      }
      EXPECT_EQ(h[((n / 32 * 2 + k / 2) * 32 + n % 32) * 2 + k % 2], to_bf16(x));
    }
}

TEST(PackedMatrix, TakesEveryFloatTypeFromUnalignedBytes) {
  // 1, -2, 0.5 as bf16 and fp16, one byte off alignment.
  std::uint16_t const as_bf16[] = {0x3f80, 0xc000, 0x3f00};
  std::uint16_t const as_fp16[] = {0x3c00, 0xc000, 0x3800};
  float const numbers[] = {1, -2, 0.5};
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights}) {
    PackedMatrix expected(format, 1, 3);
    expected.set_rows(0, 1, DType::f32, reinterpret_cast<std::byte const*>(numbers));
    for (auto const& [type, bits] : {std::pair{DType::bf16, as_bf16}, std::pair{DType::f16, as_fp16}}) {
      std::byte shifted[7];
      std::memcpy(shifted + 1, bits, 6);
      PackedMatrix actual(format, 1, 3);
      actual.set_rows(0, 1, type, shifted + 1);
      EXPECT_EQ(std::memcmp(actual.data(), expected.data(), expected.size_bytes()), 0) << name_of(type);
    }
  }
}

}  // namespace
}  // namespace expertmesh
