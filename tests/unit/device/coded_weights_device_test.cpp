// FP8 and MXFP4 weights on a device, multiplied from their codes: against double precision, and bit for bit against
// bfloat16 weights of the same numbers where sums are the same; a row's bits are its own.
#include <gtest/gtest.h>

#include <limits>

#include "common/kernels/exec.h"
#include "common/kernels/grouped_ffn.h"
#include "common/kernels/linear.h"
#include "common/moe/routing.h"
#include "tests/unit/device/device_rig.h"
#include "tests/unit/kernels/coded_weight.h"

namespace expertmesh {
namespace {

using reference::BoundedMatrix;
using reference::Coded;
using reference::num_different;
using reference::num_wrong;
using reference::random_coded;
using reference::random_matrix;
using reference::same_bits;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr WeightFormat kFp8 = fp8_weights(128);
// Weights are not rounded, activations are: how codes are multiplied.
constexpr WeightFormat kExactly{.activation = ActivationRule::round_to_bf16};

std::vector<WeightFormat> formats_for(std::size_t k) {
  std::vector<WeightFormat> out = {kFp8, fp8_weights(256)};
  if (k % 32 == 0) out.push_back(kMxfp4Weights);
  return out;
}

// Bits of either sign and of any size, with zeros, and with scales of either sign.
Coded with_signs(Coded w) {
  for (std::size_t row = 0; !w.mxfp4() && row < w.n; row += 3)
    for (std::size_t group = 0; group < w.groups(); ++group) {
      std::byte& top = w.scales[(row * w.groups() + group) * sizeof(float) + 3];
      top ^= std::byte{0x80};
    }
  return w;
}

class DeviceCodesTest : public EachDevice {
 protected:
  [[nodiscard]] PackedMatrix on_device(Coded const& w) const { return w.packed({.device = device_.get()}); }
  [[nodiscard]] PackedMatrix numbers_on_device(Coded const& w) const {
    PackedMatrix out(kBfloat16Weights, w.n, w.k, {.device = device_.get()});
    auto const numbers = w.numbers();
    out.set_rows(0, w.n, DType::f32, reinterpret_cast<std::byte const*>(numbers.view().data));
    return out;
  }
  // y of x, where y held something else.
  Matrix<float> linear_of(MatrixView<float const> x, PackedMatrix const& w) {
    DeviceMatrix const in(*device_, x);
    DeviceMatrix const out(*device_, filled(x.rows, w.n(), kNaN).view());
    device_->linear(in.view(), w.on_device(), {}, out.view());
    return out.values();
  }
};
EM_FOR_EACH_DEVICE(DeviceCodesTest);

TEST_P(DeviceCodesTest, EqualTheReference) {
  struct Size {
    std::size_t n, k;
  };
  for (Size const size : {Size{1, 1}, {20, 3}, {8, 32}, {301, 64}, {33, 257}, {130, 416}, {180, 1312}, {5, 2880}})
    for (WeightFormat const& format : formats_for(size.k)) {
      Coded const w = with_signs(random_coded(format, size.n, size.k, size.n));
      PackedMatrix const coded = on_device(w);
      auto const numbers = w.numbers();
      for (std::size_t m : {1, 2, 7, 8, 9, 33, 129}) {
        if (test::kFewCases && m * size.n > 5000) continue;
        auto const x = random_matrix(m, size.k, 1);
        EXPECT_EQ(num_wrong(linear_of(x.view(), coded).view(), reference::linear(x.view(), numbers.view(), kExactly)),
                  0U)
            << name_of(format.storage) << " by " << format.group_size << " M " << m << " N " << size.n << " K "
            << size.k;
      }
    }
}

// More of x than a block's shared memory has room for.
TEST_P(DeviceCodesTest, LongRowsEqualTheReference) {
  for (WeightFormat const& format : {kFp8, kMxfp4Weights})
    for (std::size_t k : {29696, 60032}) {
      Coded const w = random_coded(format, 9, k, 2);
      auto const x = random_matrix(k < 30000 ? 7 : 1, k, 1);
      EXPECT_EQ(num_wrong(linear_of(x.view(), on_device(w)).view(),
                          reference::linear(x.view(), w.numbers().view(), kExactly)),
                0U)
          << name_of(format.storage) << " K " << k;
    }
}

// MXFP4 of any scale, and FP8 whose scales are 1, which is all that its sums differ by.
TEST_P(DeviceCodesTest, HaveTheBitsOfTheirNumbersInBf16) {
  for (WeightFormat const& format : {kFp8, kMxfp4Weights})
    for (std::size_t k : {96, 160, 416}) {
      Coded w = random_coded(format, 150, k, k);
      for (std::size_t i = 0; !w.mxfp4() && i < w.n * w.groups(); ++i) w.set_scale(i / w.groups(), i % w.groups(), 1);
      PackedMatrix const coded = on_device(w);
      PackedMatrix const wide = numbers_on_device(w);
      for (std::size_t m : {1, 9, 70}) {
        auto const x = random_matrix(m, k, m);
        EXPECT_TRUE(same_bits(linear_of(x.view(), coded).view(), linear_of(x.view(), wide).view()))
            << name_of(format.storage) << " M " << m << " K " << k;
      }
    }
}

// All MXFP4 codes with all scales, subnormal, infinite and NaN products among them; those of a tile have different
// scales.
TEST_P(DeviceCodesTest, EveryMxfp4CodeAndScaleIsExact) {
  Coded w(kMxfp4Weights, std::size_t{16} * 256, 32);
  for (std::size_t i = 0; i < w.n; ++i) {
    std::fill_n(w.codes.begin() + static_cast<std::ptrdiff_t>(16 * i), 16, static_cast<std::byte>(i / 256 * 0x11));
    w.scales[i] = static_cast<std::byte>(i % 256);
  }
  PackedMatrix const coded = on_device(w);
  for (std::size_t m : {1, 9, 65}) {
    auto x = filled(m, 32, 0);  // one product a sum: no infinity meets another
    for (std::size_t r = 0; r < m; ++r) x.view().row(r)[r % 32] = r % 2 == 0 ? 1.0F : -2.0F;
    auto const y = linear_of(x.view(), coded);
    std::size_t wrong = 0;
    for (std::size_t r = 0; r < m; ++r)
      for (std::size_t n = 0; n < w.n; ++n) {
        float const number = reference::rounded(w.number(n, 0), DType::bf16);
        float const expected = std::isfinite(number) ? number * x.view().row(r)[r % 32] : kNaN;  // 0 times it is one
        float const is = y.view().row(r)[n];
        wrong += is == expected || (std::isnan(is) && std::isnan(expected)) ? 0 : 1;
      }
    EXPECT_EQ(wrong, 0U) << "M " << m;
  }
}

// All FP8 codes, with scales of both signs and at the ends of float32.
TEST_P(DeviceCodesTest, EveryFp8CodeTimesItsScaleIsRoundedOnce) {
  std::vector<float> scales = {0.0F, -0.0F, 1.0F, 1.1F, -0.3F, 0x1.fffffep100F, kInfinity, -kInfinity, kNaN};
  for (int exponent : {-149, -140, -127, -126, -117, 117, 118, 119, 120, 127})
    for (float const factor : {1.0F, -1.0F, 0.99999994F}) scales.push_back(std::ldexp(factor, exponent));
  Coded w(kFp8, 256 * scales.size(), 1);
  for (std::size_t i = 0; i < w.n; ++i) {
    w.codes[i] = static_cast<std::byte>(i / scales.size());
    w.set_scale(i, 0, scales[i % scales.size()]);
  }
  PackedMatrix const coded = on_device(w);
  for (std::size_t m : {1, 65}) {
    auto const y = linear_of(filled(m, 1, 1).view(), coded);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < m * w.n; ++i) {
      float const expected = w.number(i % w.n, 0);
      float const is = y.view().data[i];
      wrong += is == expected || (std::isnan(is) && std::isnan(expected)) ? 0 : 1;
    }
    EXPECT_EQ(wrong, 0U) << "M " << m;
  }
}

TEST_P(DeviceCodesTest, ANaNSpoilsItsColumn) {
  for (std::size_t m : {3, 70})
    for (std::size_t k : {0, 1, 130, 159})
      for (int const nan : {0x7f, 0xff}) {
        Coded w = random_coded(kFp8, 40, 160, 5);
        w.codes[19 * w.k + k] = static_cast<std::byte>(nan);
        auto const y = linear_of(random_matrix(m, 160, 1).view(), on_device(w));
        for (std::size_t n = 0; n < w.n; ++n) EXPECT_EQ(std::isnan(y.view().row(2)[n]), n == 19) << n << " k " << k;
      }
}

TEST_P(DeviceCodesTest, AnyWrongBitIsNoticed) {
  auto const x = random_matrix(2, 160, 1);
  for (WeightFormat const& format : formats_for(160))
    for (std::size_t back : {1, 29}) {
      Coded w = random_coded(format, 40, 160, 3);
      w.codes[w.codes.size() - back] |= std::byte{0x20};
      auto const expected = reference::linear(x.view(), w.numbers().view(), kExactly);
      EXPECT_EQ(num_wrong(linear_of(x.view(), on_device(w)).view(), expected), 0U);
      w.codes[w.codes.size() - back] ^= std::byte{0x80};
      EXPECT_EQ(num_wrong(linear_of(x.view(), on_device(w)).view(), expected), 2U);
    }
}

// On both sides of every border between the shapes that kernels choose by the number of rows and of outputs.
TEST_P(DeviceCodesTest, ARowHasTheSameBitsInBatchesOfEverySize) {
  constexpr std::size_t kRows = 300;
  struct Size {
    std::size_t n, k;
  };
  for (Size const size : {Size{300, 192}, {520, 64}, {20, 320}})
    for (WeightFormat const& format : {kFp8, kMxfp4Weights}) {
      if (test::kFewCases && size.n != 20) continue;
      auto const x = random_matrix(kRows, size.k, 3);
      PackedMatrix const w = on_device(random_coded(format, size.n, size.k, 4));
      auto const whole = linear_of(x.view(), w);
      for (std::size_t rows : {1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129}) {
        auto const last = linear_of(x.view().row_range(kRows - rows, rows), w);
        EXPECT_TRUE(same_bits(last.view(), whole.view().row_range(kRows - rows, rows)))
            << name_of(format.storage) << " N " << size.n << ", " << rows << " rows";
      }
    }
}

// The bytes of a weight come back from a device as a processor has them, so that checksums can be compared.
TEST_P(DeviceCodesTest, ComeBackAsTheyWere) {
  for (std::size_t k : {1, 33, 160, 320})
    for (WeightFormat const& format : formats_for(k)) {
      Coded w = with_signs(random_coded(format, 37, k, 9));
      if (!w.mxfp4()) w.codes[5 * k] = std::byte{0xff};
      PackedMatrix const there = on_device(w);
      EXPECT_EQ(there.size_bytes(), device_weight_bytes(format, 37, k));
      PackedMatrix const back = there.copy_to_host();
      PackedMatrix const expected = w.packed();
      ASSERT_EQ(back.size_bytes(), expected.size_bytes());
      EXPECT_EQ(std::memcmp(back.data(), expected.data(), back.size_bytes()), 0)
          << name_of(format.storage) << " by " << format.group_size << " K " << k;
    }
}

TEST(DeviceCodes, TakeTheBytesOfTheirLayout) {
  EXPECT_EQ(device_weight_bytes(kFp8, 3, 4096), 3U * (4096 + 32 * 4));
  EXPECT_EQ(device_weight_bytes(kMxfp4Weights, 3, 4096), 3U * (2048 + 128));
  EXPECT_EQ(device_weight_bytes(kMxfp4Weights, 3, 2880), 3U * 1568) << "23 blocks of 64 and 23 scales, a whole 32";
  EXPECT_EQ(device_weight_bytes(kBfloat16Weights, 3, 17), 3U * 64);
}

TEST_P(DeviceCodesTest, ScalesInTheMiddleOfAChunkHaveNoKernel) {
  EXPECT_DEATH(PackedMatrix(fp8_weights(96), 1, 192, {.device = device_.get()}), "no kernel for K 192");
}

// ---- experts
struct ExpertFormats {
  WeightFormat gate_up, down;
};
constexpr ExpertFormats kExpertFormats[] = {
    {kFp8, kFp8}, {kMxfp4Weights, kMxfp4Weights}, {kFp8, kBfloat16Weights}, {kBfloat16Weights, kMxfp4Weights}};

// The experts of a layer; with biases, gated.
class CodedLayer {
 public:
  CodedLayer(Device& device, ExpertFormats const& formats, std::size_t num_experts, std::size_t h, std::size_t f)
      : hidden(h), intermediate(f) {
    std::vector<DeviceExpert> pointers;
    auto const make = [&](WeightFormat const& format, std::size_t n, std::size_t k, std::size_t seed) {
      Coded const coded = random_coded(from_codes(format) ? format : kFp8, n, k, seed);
      if (from_codes(format))
        return PackedLinear{.w = coded.packed({.device = &device}), .bias = bias(device, n, seed)};
      PackedMatrix w(format, n, k, {.device = &device});
      auto const numbers = coded.numbers();
      w.set_rows(0, n, DType::f32, reinterpret_cast<std::byte const*>(numbers.view().data));
      return PackedLinear{.w = std::move(w), .bias = bias(device, n, seed)};
    };
    for (std::size_t e = 0; e < num_experts; ++e)
      experts.push_back({.gate_up = make(formats.gate_up, 2 * f, h, 10 + 2 * e),
                         .down = make(formats.down, h, f, 11 + 2 * e),
                         .activation = {.kind = Activation::silu}});
    for (FfnWeights const& expert : experts) pointers.push_back(expertmesh::on_device(expert));
    table = AlignedBuffer<DeviceExpert>(std::span<DeviceExpert const>(pointers), &device);
    view = layer_on_device(experts.front(), table.span(), DType::bf16);
  }
  std::size_t const hidden;
  std::size_t const intermediate;
  std::vector<FfnWeights> experts;
  AlignedBuffer<DeviceExpert> table;
  DeviceExperts view;

 private:
  static AlignedBuffer<float> bias(Device& device, std::size_t n, std::size_t seed) {
    auto const numbers = random_matrix(1, n, 1000 + seed);
    return AlignedBuffer<float>(std::span<float const>(numbers.view().data, n), &device);
  }
};

class DeviceCodedExpertsTest : public EachDevice {
 protected:
  std::vector<std::uint16_t> run(CodedLayer const& layer, MatrixView<float const> x,
                                 std::vector<std::uint32_t> const& experts) {
    device_->reserve({.max_rows = experts.size(),
                      .max_columns = std::max(layer.hidden, 2 * layer.intermediate),
                      .max_head_dim = 1,
                      .max_intermediate = layer.intermediate});
    DeviceMatrix const in(*device_, x);
    OnDevice<std::uint32_t> const slots(*device_, experts);
    OnDevice<std::uint16_t> const out(*device_, std::vector<std::uint16_t>(experts.size() * layer.hidden, 0x7fff));
    device_->run_experts(layer.view, in.view(), slots.span(), experts.size() / x.rows,
                         reinterpret_cast<std::byte*>(out.data()));
    return out.values();
  }
  // One row through the ops that an expert is made of.
  std::vector<std::uint16_t> composed(CodedLayer const& layer, float const* x, std::size_t expert) {
    FfnWeights const& e = layer.experts[expert];
    Matrix<float> row(1, layer.hidden);
    for (std::size_t i = 0; i < layer.hidden; ++i) row.view().data[i] = reference::rounded(x[i], DType::bf16);
    DeviceMatrix const in(*device_, row.view());
    DeviceMatrix const hidden(*device_, Matrix<float>(1, 2 * layer.intermediate).view());
    DeviceMatrix const activated(*device_, Matrix<float>(1, layer.intermediate).view());
    DeviceMatrix const sums(*device_, Matrix<float>(1, layer.hidden).view());
    OnDevice<std::uint16_t> const out(*device_, std::vector<std::uint16_t>(layer.hidden));
    device_->linear(in.view(), e.gate_up.w.on_device(), e.gate_up.bias.span(), hidden.view());
    device_->ffn_activation(e.activation, true, hidden.view(), activated.view());
    device_->linear(activated.view(), e.down.w.on_device(), e.down.bias.span(), sums.view());
    device_->to_wire(sums.view(), DType::bf16, reinterpret_cast<std::byte*>(out.data()));
    return out.values();
  }
};
EM_FOR_EACH_DEVICE(DeviceCodedExpertsTest);

// From one token to as many as take the tiles for many rows.
TEST_P(DeviceCodedExpertsTest, HaveTheBitsOfTheOpsOneAfterTheOther) {
  for (ExpertFormats const& formats : kExpertFormats) {
    CodedLayer const layer(*device_, formats, 3, 160, 96);
    auto const x = random_matrix(300, layer.hidden, 1);
    std::vector<std::uint32_t> experts;
    for (std::size_t s = 0; s < 600; ++s)
      experts.push_back(s % 7 == 3 ? kNoExpert : static_cast<std::uint32_t>(mix64(s) % 3));
    for (std::size_t tokens : {1, 2, 7, 8, 9, 33, 129, 300}) {
      std::vector<std::uint32_t> const some(experts.begin(), experts.begin() + static_cast<std::ptrdiff_t>(2 * tokens));
      auto const rows = run(layer, x.view().first_rows(tokens), some);
      for (std::size_t s = tokens < 10 ? 0 : 2 * tokens - 10; s < 2 * tokens; ++s) {
        std::vector<std::uint16_t> const row(rows.begin() + static_cast<std::ptrdiff_t>(s * layer.hidden),
                                             rows.begin() + static_cast<std::ptrdiff_t>((s + 1) * layer.hidden));
        EXPECT_EQ(row, some[s] == kNoExpert ? std::vector<std::uint16_t>(layer.hidden, 0x7fff)
                                            : composed(layer, x.view().row(s / 2), some[s]))
            << name_of(formats.gate_up.storage) << ", " << name_of(formats.down.storage) << ", T " << tokens
            << ", slot " << s;
      }
    }
  }
}

}  // namespace
}  // namespace expertmesh
