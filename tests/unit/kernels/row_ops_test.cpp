#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <utility>

#include "common/kernels/ffn_activation.h"
#include "common/kernels/layer_norm.h"
#include "common/kernels/rms_norm.h"
#include "common/kernels/rope.h"
#include "common/kernels/rows.h"
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

class RowOpsTest : public EachIsa {};
EM_FOR_EACH_ISA(RowOpsTest);

constexpr std::size_t kSizes[] = {1, 2, 3, 5, 7, 15, 16, 17, 33, 48, 64, 72, 129};

TEST_P(RowOpsTest, RmsNorm) {
  Rig rig(GetParam(), 2);
  Rig scalar(Isa::scalar);
  for (std::size_t n : kSizes) {
    auto const x = random_matrix(3, n, 1);
    auto const weight = random_matrix(1, n, 2);
    std::span<float const> const w(weight.view().data, n);
    Matrix<float> out(3, n), of_scalar(3, n);
    rms_norm(rig.exec, x.view(), w, 1e-5F, out.view());
    rms_norm(scalar.exec, x.view(), w, 1e-5F, of_scalar.view());
    BoundedMatrix expected;
    for (std::size_t t = 0; t < 3; ++t)
      expected.push_back(reference::rms_norm(x.view().row(t), w.data(), n, static_cast<double>(1e-5F)));
    EXPECT_EQ(num_wrong(out.view(), expected), 0U) << n;
    EXPECT_TRUE(same_bits(out.view(), of_scalar.view())) << n;
  }
}

TEST_P(RowOpsTest, LayerNorm) {
  Rig rig(GetParam(), 2);
  Rig scalar(Isa::scalar);
  for (std::size_t n : kSizes)
    for (bool biased : {false, true}) {
      auto x = random_matrix(3, n, 1);
      for (std::size_t i = 0; i < n; ++i) x.view().row(1)[i] = 5 + x.view().row(1)[i] / 8;  // a mean far from 0
      auto const weight = random_matrix(1, n, 2);
      auto const bias = random_matrix(1, n, 3);
      std::span<float const> const w(weight.view().data, n);
      std::span<float const> const b(bias.view().data, biased ? n : 0);
      Matrix<float> out(3, n), of_scalar(3, n);
      layer_norm(rig.exec, x.view(), w, b, 1e-5F, out.view());
      layer_norm(scalar.exec, x.view(), w, b, 1e-5F, of_scalar.view());
      BoundedMatrix expected;
      for (std::size_t t = 0; t < 3; ++t)
        expected.push_back(reference::layer_norm(x.view().row(t), w.data(), biased ? b.data() : nullptr, n,
                                                 static_cast<double>(1e-5F)));
      EXPECT_EQ(num_wrong(out.view(), expected), 0U) << n;
      EXPECT_TRUE(same_bits(out.view(), of_scalar.view())) << n;
      layer_norm(rig.exec, x.view(), w, b, 1e-5F, x.view());  // in place
      EXPECT_TRUE(same_bits(x.view(), out.view())) << n;
    }
}

TEST_P(RowOpsTest, RmsNormOfHeadsWithoutAWeightOnlyDivides) {
  Rig rig(GetParam());
  for (std::size_t d : {1, 7, 16, 24, 72}) {
    auto x = random_matrix(4, 3 * d, 1);
    auto weighted = random_matrix(4, 3 * d, 1);
    rms_norm_heads(rig.exec, x.view(), 3, {}, 1e-6F);
    rms_norm_heads(rig.exec, weighted.view(), 3, std::vector<float>(d, 1), 1e-6F);
    EXPECT_TRUE(same_bits(x.view(), weighted.view())) << d;
  }
}

TEST_P(RowOpsTest, ClipHoldsNumbersAndKeepsNaN) {
  Rig rig(GetParam(), 2);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Matrix<float> x(2, 8);
  float const numbers[] = {-kInfinity, -2.5F, -2, -0.5F, 0.5F, 2, kInfinity, std::numeric_limits<float>::quiet_NaN()};
  for (std::size_t t = 0; t < 2; ++t) std::copy_n(numbers, 8, x.view().row(t));
  clip(rig.exec, x.view().columns(1, 7), 2);
  for (std::size_t t = 0; t < 2; ++t) {
    float const* y = x.view().row(t);
    EXPECT_EQ(std::vector<float>(y, y + 7), (std::vector<float>{-kInfinity, -2, -2, -0.5F, 0.5F, 2, 2}));
    EXPECT_TRUE(std::isnan(y[7]));
  }
}

TEST_P(RowOpsTest, RmsNormOfHeadsIsRmsNormOfEachHeadInPlace) {
  Rig rig(GetParam(), 3);
  for (std::size_t d : {1, 7, 16, 24, 72}) {
    auto wide = random_matrix(4, 3 * d + 5, 1);
    auto const before = random_matrix(4, 3 * d + 5, 1);
    auto const weight = random_matrix(1, d, 2);
    std::span<float const> const w(weight.view().data, d);
    rms_norm_heads(rig.exec, wide.view().columns(2, 3 * d), 3, w, 1e-6F);
    for (std::size_t h = 0; h < 3; ++h) {
      Matrix<float> head(4, d);
      rms_norm(rig.exec, before.view().columns(2 + h * d, d), w, 1e-6F, head.view());
      EXPECT_TRUE(same_bits(wide.view().columns(2 + h * d, d), head.view())) << d;
    }
    EXPECT_TRUE(same_bits(wide.view().columns(0, 2), before.view().columns(0, 2)));
    EXPECT_TRUE(same_bits(wide.view().columns(2 + 3 * d, 3), before.view().columns(2 + 3 * d, 3)));
  }
}

TEST_P(RowOpsTest, AddAndCombine) {
  Rig rig(GetParam(), 2);
  for (std::size_t n : kSizes) {
    auto x = random_matrix(3, n, 1);
    auto const before = random_matrix(3, n, 1);
    auto const y = random_matrix(3, n, 2);
    add(rig.exec, x.view(), y.view());
    for (std::size_t i = 0; i < 3 * n; ++i) EXPECT_EQ(x.view().data[i], before.view().data[i] + y.view().data[i]);

    constexpr std::size_t kK = 3;
    for (DType wire : {DType::f32, DType::bf16}) {
      auto const slots = random_matrix(3 * kK, n, 3);
      auto const weights = random_matrix(1, 3 * kK, 4);
      AlignedBuffer<std::byte> bytes(3 * kK * n * size_of(wire));
      to_wire(rig.exec, slots.view(), wire, bytes.data());
      std::vector<std::byte const*> rows;
      for (std::size_t r = 0; r < 3 * kK; ++r) rows.push_back(bytes.data() + r * n * size_of(wire));
      constexpr std::size_t kNone = 4;
      rows[kNone] = nullptr;
      Matrix<float> out(3, n);
      std::fill_n(out.view().data, 3 * n, std::numeric_limits<float>::quiet_NaN());
      combine(rig.exec, wire, rows, {weights.view().data, 3 * kK}, kK, out.view());
      for (std::size_t t = 0; t < 3; ++t)
        for (std::size_t i = 0; i < n; ++i) {
          float sum = 0;
          for (std::size_t slot = t * kK; slot < (t + 1) * kK; ++slot)
            if (slot != kNone)
              sum = std::fma(weights.view().data[slot], reference::rounded(slots.view().row(slot)[i], wire), sum);
          EXPECT_EQ(out.view().row(t)[i], sum) << n << " " << name_of(wire);
        }
    }
  }
}

TEST_P(RowOpsTest, NamedRowsAreThoseOfAll) {
  Rig rig(GetParam(), 3);
  constexpr std::size_t kColumns = 37;
  auto const x = random_matrix(9, kColumns, 5);
  for (DType wire : {DType::f32, DType::bf16}) {
    std::size_t const row_bytes = kColumns * size_of(wire);
    std::vector<std::byte> all(9 * row_bytes);
    to_wire(rig.exec, x.view(), wire, all.data());
    for (std::vector<std::uint32_t> const& rows : {std::vector<std::uint32_t>{}, {8}, {0, 2, 3, 8, 2}}) {
      std::vector<std::byte> named(rows.size() * row_bytes);
      gather_to_wire(rig.exec, x.view(), rows, wire, named.data());
      for (std::size_t r = 0; r < rows.size(); ++r)
        EXPECT_EQ(std::memcmp(&named[r * row_bytes], &all[rows[r] * row_bytes], row_bytes), 0) << r;
    }
  }
}

TEST_P(RowOpsTest, RoundingToBf16IsToNearestEvenAndKeepsNaN) {
  Rig rig(GetParam());
  std::uint32_t const bits[] = {0x3f808000U, 0x3f818000U, 0x3f808001U, 0x3f807fffU, 0x7f7fffffU, 0xff800000U,
                                0x7f800001U, 0x00000001U, 0x80000000U, 0xffffffffU, 0x3f80ffffU};
  Matrix<float> x(1, std::size(bits));
  std::memcpy(x.view().data, bits, sizeof bits);
  std::vector<std::uint16_t> out(std::size(bits));
  to_wire(rig.exec, x.view(), DType::bf16, reinterpret_cast<std::byte*>(out.data()));
  EXPECT_EQ(out, (std::vector<std::uint16_t>{0x3f80, 0x3f82, 0x3f81, 0x3f80, 0x7f80, 0xff80, 0x7fc0, 0x0000, 0x8000,
                                             0xffff, 0x3f81}));
}

TEST_P(RowOpsTest, InfinitiesAndNaNAreFoundWhereverTheyAre) {
  Rig rig(GetParam(), 3);
  float const others[] = {std::numeric_limits<float>::max(), -0.0F, std::numeric_limits<float>::denorm_min(), -3e38F};
  float const infinity = std::numeric_limits<float>::infinity();
  for (std::size_t const count : {0, 1, 7, 8, 33, 100}) {
    std::vector<float> wide(count);
    for (std::size_t i = 0; i < count; ++i) wide[i] = others[i % std::size(others)];
    std::vector<bf16> narrow(count);
    auto const found = [&](DType wire) {
      for (std::size_t i = 0; i < count; ++i) {  // cut, since what is rounded up to 2^128 is infinite
        narrow[i].bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(wide[i]) >> 16);
      }
      void const* const numbers = wire == DType::f32 ? static_cast<void const*>(wide.data()) : narrow.data();
      return !all_finite(rig.exec, wire, static_cast<std::byte const*>(numbers), count);
    };
    for (DType const wire : {DType::f32, DType::bf16}) {
      EXPECT_FALSE(found(wire)) << count;
      for (std::size_t i = 0; i < count; ++i)
        for (float const bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
          float const kept = std::exchange(wide[i], bad);
          EXPECT_TRUE(found(wire)) << bad << " at " << i << " of " << count;
          wide[i] = kept;
        }
    }
  }
}

TEST_P(RowOpsTest, EmbeddingWidensEveryType) {
  Rig rig(GetParam(), 2);
  std::vector<TokenId> const ids = {2, 0, 2};
  float const numbers[] = {0, 1, 2, 3, 4, 5};  // [3,2]
  std::uint16_t const as_fp16[] = {0x0000, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500};
  for (DType type : {DType::f32, DType::bf16, DType::f16}) {
    std::byte table[1 + 6 * sizeof(float)];  // a mapped file aligns nothing
    for (std::size_t i = 0; i < 6; ++i) {
      bf16 const narrow = to_bf16(numbers[i]);
      void const* element = type == DType::f32    ? static_cast<void const*>(&numbers[i])
                            : type == DType::bf16 ? static_cast<void const*>(&narrow)
                                                  : static_cast<void const*>(&as_fp16[i]);
      std::memcpy(table + 1 + i * size_of(type), element, size_of(type));
    }
    Matrix<float> out(3, 2);
    embedding(rig.exec, ids, type, table + 1, out.view());
    EXPECT_EQ(std::vector<float>(out.view().data, out.view().data + 6), (std::vector<float>{4, 5, 0, 1, 4, 5}))
        << name_of(type);
  }
}

TEST(Rope, TurnsPairsByTheAngle) {
  Rig rig(Isa::scalar, 2);
  struct Shape {
    std::size_t half, first, after;  // elements before and after the rotated ones of a head
  };
  for (auto const& [half, first, after] :
       {Shape{1, 0, 0}, {3, 0, 0}, {12, 0, 0}, {16, 0, 0}, {36, 0, 0}, {3, 0, 5}, {4, 7, 0}, {2, 1, 3}})
    for (bool interleaved : {false, true}) {
      std::size_t const d = first + 2 * half + after;
      auto const angles = random_matrix(4, half, 2);
      Matrix<float> cos(4, half), sin(4, half);
      for (std::size_t i = 0; i < 4 * half; ++i) {
        cos.view().data[i] = 1.5F * std::cos(10 * angles.view().data[i]);
        sin.view().data[i] = 1.5F * std::sin(10 * angles.view().data[i]);
      }
      auto wide = random_matrix(4, 3 * d + 1, 1);
      auto const before = random_matrix(4, 3 * d + 1, 1);
      apply_rope(rig.exec, wide.view().columns(1, 3 * d),
                 {.num_heads = 3, .head_dim = d, .first = first, .interleaved = interleaved}, cos.view(), sin.view());
      BoundedMatrix expected(4);
      for (std::size_t t = 0; t < 4; ++t) {
        auto const x = [&](std::size_t i) { return static_cast<double>(before.view().row(t)[i]); };
        for (std::size_t i = 0; i <= 3 * d; ++i) expected[t].push_back({x(i), 0});
        for (std::size_t h = 0; h < 3; ++h)
          for (std::size_t i = 0; i < half; ++i) {
            std::size_t const a = 1 + h * d + first + (interleaved ? 2 * i : i);
            std::size_t const b = interleaved ? a + 1 : a + half;
            auto const c = static_cast<double>(cos.view().row(t)[i]);
            auto const s = static_cast<double>(sin.view().row(t)[i]);
            double const bound = 4 * kEpsilonF32 * (std::abs(x(a)) + std::abs(x(b)));
            expected[t][a] = {x(a) * c - x(b) * s, bound};
            expected[t][b] = {x(b) * c + x(a) * s, bound};
          }
      }
      EXPECT_EQ(num_wrong(wide.view(), expected), 0U) << half << " " << first << " " << after << " " << interleaved;
    }
}

}  // namespace
}  // namespace expertmesh
