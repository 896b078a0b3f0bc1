// The row-wise ops of a device do what those of the processor do, bit for bit where no function of <cmath> is in them.
#include "common/kernels/rows.h"

#include <gtest/gtest.h>

#include <limits>

#include "common/kernels/ffn_activation.h"
#include "tests/unit/device/device_rig.h"

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

class DeviceRowOpsTest : public EachDevice {
 protected:
  // On the device to a matrix of [rows, cols] that held something else.
  template <class F>
  Matrix<float> result(std::size_t rows, std::size_t cols, Margins margins, F f) {
    DeviceMatrix const out(*device_, filled(rows, cols, kNaN).view(), margins);
    f(out.view());
    EXPECT_TRUE(out.margins_are_untouched());
    return out.values();
  }
  // The same in place.
  template <class F>
  Matrix<float> changed(MatrixView<float const> x, Margins margins, F f) {
    DeviceMatrix const on_device(*device_, x, margins);
    f(on_device.view());
    EXPECT_TRUE(on_device.margins_are_untouched());
    return on_device.values();
  }
};
EM_FOR_EACH_DEVICE(DeviceRowOpsTest);

std::vector<float> numbers_of(Matrix<float> const& m) {
  return {m.view().data, m.view().data + m.view().rows * m.view().cols};
}

TEST_P(DeviceRowOpsTest, Add) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    auto x = random_matrix(rows, cols, 1);
    auto const y = random_matrix(rows, cols, 2);
    DeviceMatrix const other(*device_, y.view(), {margins.after, margins.before});
    auto const sum = changed(x.view(), margins, [&](auto on_device) { device_->add(on_device, other.view()); });
    add(host_.exec, x.view(), y.view());
    EXPECT_TRUE(same_bits(sum.view(), x.view()));
  });
}

TEST_P(DeviceRowOpsTest, Scale) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    auto x = random_matrix(rows, cols, 1);
    auto const scaled = changed(x.view(), margins, [&](auto on_device) { device_->scale(on_device, 0.3F); });
    scale(host_.exec, x.view(), 0.3F);
    EXPECT_TRUE(same_bits(scaled.view(), x.view()));
  });
}

TEST_P(DeviceRowOpsTest, ScaleByPosition) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    auto x = random_matrix(rows, cols, 1);
    std::vector<std::uint32_t> positions;
    for (std::size_t t = 0; t < rows; ++t) positions.push_back(static_cast<std::uint32_t>(t * t * 7 % 50));
    OnDevice<std::uint32_t> const on_device_positions(*device_, positions);
    auto const scaled = changed(x.view(), margins, [&](auto on_device) {
      device_->scale_by_position(on_device, on_device_positions.span(), 8, 0.2F);
    });
    BoundedMatrix expected(rows);
    for (std::size_t t = 0; t < rows; ++t)
      for (std::size_t i = 0; i < cols; ++i) {
        double const value = static_cast<double>(x.view().row(t)[i]) * (1 + 0.2 * std::log((positions[t] + 1) / 8 + 1));
        expected[t].push_back({value, 8 * kEpsilonF32 * std::abs(value)});
      }
    EXPECT_EQ(num_wrong(scaled.view(), expected), 0U);
  });
}

TEST_P(DeviceRowOpsTest, ScaleRowsBySigmoid) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    auto const x = random_matrix(rows, cols, 1);
    auto gate = random_matrix(rows, 1, 2);
    scale(host_.exec, gate.view(), 30);
    DeviceMatrix const on_device_gate(*device_, gate.view(), {2, 1});
    auto const scaled = changed(
        x.view(), margins, [&](auto on_device) { device_->scale_rows_by_sigmoid(on_device, on_device_gate.view()); });
    BoundedMatrix expected(rows);
    for (std::size_t t = 0; t < rows; ++t)
      for (std::size_t i = 0; i < cols; ++i) {
        double const value =
            static_cast<double>(x.view().row(t)[i]) / (1 + std::exp(-static_cast<double>(gate.view().data[t])));
        expected[t].push_back({value, 8 * kEpsilonF32 * std::abs(value) + 1e-37});
      }
    EXPECT_EQ(num_wrong(scaled.view(), expected), 0U);
  });
}

TEST_P(DeviceRowOpsTest, ScaleRowsIntoSlotsAndAddSlots) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    for (std::size_t k : {1, 3}) {
      auto const x = random_matrix(rows, cols, 1);
      auto const weights = numbers_of(random_matrix(1, rows * k, 2));
      OnDevice<float> const on_device_weights(*device_, weights);
      DeviceMatrix const on_device_x(*device_, x.view(), {margins.after, margins.before});
      auto const slots = result(rows * k, cols, margins, [&](auto out) {
        device_->scale_rows_into_slots(on_device_x.view(), on_device_weights.span(), k, out);
      });
      Matrix<float> of_host(rows * k, cols);
      scale_rows_into_slots(host_.exec, x.view(), weights, k, of_host.view());
      EXPECT_TRUE(same_bits(slots.view(), of_host.view()));

      DeviceMatrix const on_device_slots(*device_, of_host.view(), {margins.after, margins.before});
      auto const sums =
          result(rows, cols, margins, [&](auto out) { device_->add_slots(on_device_slots.view(), k, out); });
      Matrix<float> sums_of_host(rows, cols);
      add_slots(host_.exec, of_host.view(), k, sums_of_host.view());
      EXPECT_TRUE(same_bits(sums.view(), sums_of_host.view()));
    }
  });
}

TEST_P(DeviceRowOpsTest, ClipHoldsNumbersAndKeepsNaN) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    auto x = random_matrix(rows, cols, 1);
    auto const clipped = changed(x.view(), margins, [&](auto on_device) { device_->clip(on_device, 0.4F); });
    clip(host_.exec, x.view(), 0.4F);
    EXPECT_TRUE(same_bits(clipped.view(), x.view()));
  });
  Matrix<float> x(1, 4);
  std::copy_n(std::vector<float>{-kInfinity, kInfinity, kNaN, -0.5F}.data(), 4, x.view().data);
  auto const clipped = changed(x.view(), {}, [&](auto on_device) { device_->clip(on_device, 2); });
  float const* const y = clipped.view().data;
  EXPECT_EQ(std::vector<float>(y, y + 2), (std::vector<float>{-2, 2}));
  EXPECT_TRUE(std::isnan(y[2]));
  EXPECT_EQ(y[3], -0.5F);
}

TEST_P(DeviceRowOpsTest, EmbeddingWidensEveryType) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    constexpr std::size_t kVocabulary = 7;
    std::vector<TokenId> ids;
    for (std::size_t t = 0; t < rows; ++t) ids.push_back(static_cast<TokenId>((t * 5 + 6) % kVocabulary));
    OnDevice<TokenId> const on_device_ids(*device_, ids);
    for (DType type : {DType::f32, DType::bf16, DType::f16}) {
      std::vector<std::byte> table(kVocabulary * cols * size_of(type));
      for (std::size_t i = 0; i < table.size(); ++i)  // halves of every kind but NaN, which has many bits
        table[i] = static_cast<std::byte>(mix64(i) >> (i % 2 == 0 ? 56 : 58));
      OnDevice<std::byte> const on_device_table(*device_, table);
      auto const rows_out = result(rows, cols, margins, [&](auto out) {
        device_->embedding(on_device_ids.span(), type, on_device_table.data(), out);
      });
      Matrix<float> of_host(rows, cols);
      embedding(host_.exec, ids, type, table.data(), of_host.view());
      EXPECT_TRUE(same_bits(rows_out.view(), of_host.view())) << name_of(type);
    }
  });
}

TEST_P(DeviceRowOpsTest, EmbeddingOfEveryHalf) {
  std::vector<std::uint16_t> table(1 << 16);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::uint16_t>(i);
  OnDevice<std::uint16_t> const on_device_table(*device_, table);
  OnDevice<TokenId> const ids(*device_, {0});
  for (DType type : {DType::bf16, DType::f16}) {
    auto const out = result(1, table.size(), {}, [&](auto to) {
      device_->embedding(ids.span(), type, reinterpret_cast<std::byte const*>(on_device_table.data()), to);
    });
    for (std::size_t i = 0; i < table.size(); ++i) {
      float const expected = type == DType::bf16 ? to_float(bf16{table[i]}) : to_float(fp16{table[i]});
      float const actual = out.view().data[i];
      ASSERT_TRUE(std::isnan(expected) ? std::isnan(actual) : std::memcmp(&actual, &expected, sizeof actual) == 0) << i;
    }
  }
}

TEST_P(DeviceRowOpsTest, GatherRows) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    auto const x = random_matrix(rows, cols, 1);
    std::vector<std::uint32_t> chosen;
    for (std::size_t i = 0; i < 2 * rows + 1; ++i) chosen.push_back(static_cast<std::uint32_t>(i * 7 % rows));
    DeviceMatrix const from(*device_, x.view(), {margins.after, margins.before});
    OnDevice<std::uint32_t> const on_device_rows(*device_, chosen);
    auto const gathered = result(chosen.size(), cols, margins,
                                 [&](auto out) { device_->gather_rows(from.view(), on_device_rows.span(), out); });
    for (std::size_t i = 0; i < chosen.size(); ++i)
      EXPECT_TRUE(same_bits(gathered.view().row_range(i, 1), x.view().row_range(chosen[i], 1)));
  });
}

TEST_P(DeviceRowOpsTest, CopyHeadColumns) {
  struct Shape {
    std::size_t heads, count;
    HeadRange from, to;
  };
  for (Margins margins : kMargins)
    for (auto const& [heads, count, from, to] : {Shape{1, 1, {1, 0}, {1, 0}},
                                                 {3, 64, {192, 128}, {64, 0}},
                                                 {5, 7, {10, 3}, {9, 1}},
                                                 {4, 6, {8, 0}, {12, 4}}}) {
      auto const x = random_matrix(5, heads * from.stride, 1);
      auto expected = random_matrix(5, heads * to.stride, 2);
      DeviceMatrix const on_device_x(*device_, x.view(), {margins.after, margins.before});
      auto const copied = changed(expected.view(), margins, [&, h = heads, c = count, f = from, t = to](auto out) {
        device_->copy_head_columns(on_device_x.view(), f, h, c, t, out);
      });
      for (std::size_t t = 0; t < 5; ++t)
        for (std::size_t h = 0; h < heads; ++h)
          for (std::size_t i = 0; i < count; ++i)
            expected.view().row(t)[h * to.stride + to.first + i] = x.view().row(t)[h * from.stride + from.first + i];
      EXPECT_TRUE(same_bits(copied.view(), expected.view())) << heads << " heads";
    }
}

TEST_P(DeviceRowOpsTest, ToWireAndBack) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    auto const x = random_matrix(rows, cols, 1);
    DeviceMatrix const on_device_x(*device_, x.view(), margins);
    for (DType wire : {DType::f32, DType::bf16}) {
      std::vector<std::byte> of_host(rows * cols * size_of(wire));
      to_wire(host_.exec, x.view(), wire, of_host.data());
      OnDevice<std::byte> const bytes(*device_, std::vector<std::byte>(of_host.size()));
      device_->to_wire(on_device_x.view(), wire, bytes.data());
      EXPECT_EQ(bytes.values(), of_host) << name_of(wire);

      auto const back = result(rows, cols, margins, [&](auto out) { device_->from_wire(wire, bytes.data(), out); });
      for (std::size_t t = 0; t < rows; ++t)
        for (std::size_t i = 0; i < cols; ++i)
          ASSERT_EQ(back.view().row(t)[i], reference::rounded(x.view().row(t)[i], wire));
    }
  });
}

TEST_P(DeviceRowOpsTest, RoundingToBf16IsToNearestEvenAndKeepsNaN) {
  std::uint32_t const bits[] = {0x3f808000U, 0x3f818000U, 0x3f808001U, 0x3f807fffU, 0x7f7fffffU, 0xff800000U,
                                0x7f800001U, 0x00000001U, 0x80000000U, 0xffffffffU, 0x3f80ffffU};
  Matrix<float> x(1, std::size(bits));
  std::memcpy(x.view().data, bits, sizeof bits);
  DeviceMatrix const on_device_x(*device_, x.view());
  OnDevice<std::uint16_t> const out(*device_, std::vector<std::uint16_t>(std::size(bits)));
  device_->to_wire(on_device_x.view(), DType::bf16, reinterpret_cast<std::byte*>(out.data()));
  EXPECT_EQ(out.values(), (std::vector<std::uint16_t>{0x3f80, 0x3f82, 0x3f81, 0x3f80, 0x7f80, 0xff80, 0x7fc0, 0x0000,
                                                      0x8000, 0xffff, 0x3f81}));
}

TEST_P(DeviceRowOpsTest, Combine) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    for (DType wire : {DType::f32, DType::bf16})
      for (std::size_t k : {1, 3}) {
        auto slots = random_matrix(rows * k, cols, 3);
        auto const weights = numbers_of(random_matrix(1, rows * k, 4));
        std::vector<std::uint32_t> experts;
        for (std::size_t s = 0; s < rows * k; ++s)
          experts.push_back(s % 4 == 3 ? 0xffffffffU : static_cast<std::uint32_t>(s));
        for (std::size_t s = 3; s < rows * k; s += 4)
          std::fill_n(slots.view().row(s), cols, kNaN);  // left over from before
        std::vector<std::byte> bytes(rows * k * cols * size_of(wire));
        to_wire(host_.exec, slots.view(), wire, bytes.data());
        std::vector<std::byte const*> row_pointers;
        for (std::size_t s = 0; s < rows * k; ++s)
          row_pointers.push_back(experts[s] == 0xffffffffU ? nullptr : bytes.data() + s * cols * size_of(wire));
        Matrix<float> of_host(rows, cols);
        combine(host_.exec, wire, row_pointers, weights, k, of_host.view());

        OnDevice<std::byte> const on_device_rows(*device_, bytes);
        OnDevice<std::uint32_t> const on_device_experts(*device_, experts);
        OnDevice<float> const on_device_weights(*device_, weights);
        auto const out = result(rows, cols, margins, [&](auto to) {
          device_->combine(wire, on_device_rows.data(), on_device_experts.span(), on_device_weights.span(), k, to);
        });
        EXPECT_TRUE(same_bits(out.view(), of_host.view())) << name_of(wire) << " K " << k;
      }
  });
}

TEST_P(DeviceRowOpsTest, ToWireWithNumbers) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    auto const x = random_matrix(rows, cols, 1);
    DeviceMatrix const on_device_x(*device_, x.view(), margins);
    for (DType wire : {DType::f32, DType::bf16})
      for (std::size_t k : {1, 3}) {
        std::vector<std::byte> of_host(rows * cols * size_of(wire));
        to_wire(host_.exec, x.view(), wire, of_host.data());
        std::vector<std::uint32_t> numbers;
        for (std::size_t s = 0; s < rows * k; ++s) numbers.push_back(static_cast<std::uint32_t>(0xffffffffU - s));
        OnDevice<std::uint32_t> const on_device_numbers(*device_, numbers);
        OnDevice<std::byte> const bytes(*device_, std::vector<std::byte>(of_host.size()));
        OnDevice<std::uint32_t> const copied(*device_, std::vector<std::uint32_t>(numbers.size()));
        device_->to_wire_with(on_device_x.view(), wire, on_device_numbers.span(), bytes.data(), copied.data());
        EXPECT_EQ(bytes.values(), of_host) << name_of(wire);
        EXPECT_EQ(copied.values(), numbers) << name_of(wire);
      }
  });
}

// Three have rows for all slots, of which those are NaN that are not theirs.
TEST_P(DeviceRowOpsTest, CombineHeld) {
  std::vector<std::uint32_t> const holder_of{2, 0, 1, 1, 0};
  OnDevice<std::uint32_t> const on_device_holders(*device_, holder_of);
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    for (DType wire : {DType::f32, DType::bf16})
      for (std::size_t k : {1, 3}) {
        auto const weights = numbers_of(random_matrix(1, rows * k, 4));
        std::size_t const row_bytes = cols * size_of(wire);
        std::vector<std::uint32_t> experts;
        for (std::size_t s = 0; s < rows * k; ++s)
          experts.push_back(s % 4 == 3 ? 0xffffffffU : static_cast<std::uint32_t>(s * 5 % 6));  // the last: of nobody
        std::vector<std::vector<std::byte>> bytes;
        for (std::size_t w = 0; w < 3; ++w) {
          auto slots = random_matrix(rows * k, cols, 10 + w);
          for (std::size_t s = 0; s < rows * k; ++s)
            if (experts[s] >= 5 || holder_of[experts[s]] != w) std::fill_n(slots.view().row(s), cols, kNaN);
          to_wire(host_.exec, slots.view(), wire, bytes.emplace_back(rows * k * row_bytes).data());
        }
        std::vector<std::byte const*> row_pointers;
        for (std::size_t s = 0; s < rows * k; ++s)
          row_pointers.push_back(experts[s] >= 5 ? nullptr : bytes[holder_of[experts[s]]].data() + s * row_bytes);
        Matrix<float> of_host(rows, cols);
        combine(host_.exec, wire, row_pointers, weights, k, of_host.view());

        OnDevice<std::byte> const a(*device_, bytes[0]);
        OnDevice<std::byte> const b(*device_, bytes[1]);
        OnDevice<std::byte> const c(*device_, bytes[2]);
        OnDevice<std::byte const*> const of_holder(*device_, {a.data(), b.data(), c.data()});
        OnDevice<std::uint32_t> const on_device_experts(*device_, experts);
        OnDevice<float> const on_device_weights(*device_, weights);
        OnDevice<std::uint32_t> const not_finite(*device_, {0});
        auto const combined = [&] {
          return result(rows, cols, margins, [&](auto to) {
            device_->combine_held(
                wire,
                {.of_holder = of_holder.span(), .holder_of = on_device_holders.span(), .not_finite = not_finite.data()},
                on_device_experts.span(), on_device_weights.span(), k, to);
          });
        };
        EXPECT_TRUE(same_bits(combined().view(), of_host.view())) << name_of(wire) << " K " << k;
        EXPECT_EQ(not_finite.values().front(), 0U) << name_of(wire) << " K " << k;

        // Expert 0 is that of slot 0; the last number of its row is an infinity from now on.
        std::uint32_t const infinity = wire == DType::f32 ? 0xff800000U : 0xff80U;
        device_->upload(c.data() + row_bytes - size_of(wire), &infinity, size_of(wire));
        static_cast<void>(combined());
        EXPECT_NE(not_finite.values().front(), 0U) << name_of(wire) << " K " << k;
      }
  });
}

// ---- activations
constexpr ActivationSpec kActivations[] = {{.kind = Activation::silu},
                                           {.kind = Activation::gelu},
                                           {.kind = Activation::gelu_tanh},
                                           {.kind = Activation::relu},
                                           {.kind = Activation::clamped_silu, .alpha = 1.702F, .limit = 7},
                                           {.kind = Activation::clamped_silu, .alpha = 0.5F, .limit = 0.25F}};

TEST_P(DeviceRowOpsTest, EveryActivation) {
  for_shapes([&](std::size_t rows, std::size_t cols, Margins margins) {
    for (ActivationSpec const& f : kActivations)
      for (bool gated : {false, true}) {
        if (!gated && f.kind == Activation::clamped_silu) continue;
        auto in = random_matrix(rows, gated ? 2 * cols : cols, 1);
        for (std::size_t t = 0; t < rows; ++t) scale(host_.exec, in.view().row_range(t, 1), t % 2 == 0 ? 5 : 80);
        DeviceMatrix const on_device_in(*device_, in.view(), {margins.after, margins.before});
        auto const out =
            result(rows, cols, margins, [&](auto to) { device_->ffn_activation(f, gated, on_device_in.view(), to); });
        BoundedMatrix expected(rows);
        for (std::size_t t = 0; t < rows; ++t)
          for (std::size_t i = 0; i < cols; ++i) {
            auto const at = [&](std::size_t column) {
              return Bounded{static_cast<double>(in.view().row(t)[column]), 0};
            };
            expected[t].push_back(gated ? reference::activated(f, at(i), at(cols + i))
                                        : reference::activated(f, std::nullopt, at(i)));
          }
        EXPECT_EQ(num_wrong(out.view(), expected), 0U) << static_cast<int>(f.kind) << (gated ? " gated" : "");
      }
  });
}

class DeviceActivationTest : public DeviceRowOpsTest {
 protected:
  float activated(ActivationSpec const& f, float gate, float up) {
    Matrix<float> in(1, 2);
    in.view().data[0] = gate;
    in.view().data[1] = up;
    DeviceMatrix const on_device_in(*device_, in.view());
    auto const out = result(1, 1, {}, [&](auto to) { device_->ffn_activation(f, true, on_device_in.view(), to); });
    return out.view().data[0];
  }
};
EM_FOR_EACH_DEVICE(DeviceActivationTest);

TEST_P(DeviceActivationTest, AtTheirLimits) {
  for (ActivationSpec const& f : kActivations) {
    int const kind = static_cast<int>(f.kind);
    EXPECT_TRUE(std::isnan(activated(f, kNaN, 1))) << kind;
    EXPECT_TRUE(std::isnan(activated(f, 1, kNaN))) << kind;
    if (f.kind == Activation::clamped_silu) continue;
    EXPECT_EQ(activated(f, kInfinity, 1), kInfinity) << kind;
    EXPECT_EQ(activated(f, 3e38F, 1), 3e38F) << kind;
    EXPECT_EQ(activated(f, 100, 1), 100) << kind;
    for (float x : {0.0F, -0.0F, -100.0F, -3e38F}) EXPECT_EQ(activated(f, x, 1), 0) << kind << " of " << x;
  }
}

TEST_P(DeviceActivationTest, TheClampedOneHoldsGateAndUpWithinTheLimit) {
  ActivationSpec const f{.kind = Activation::clamped_silu, .alpha = 1.702F, .limit = 7};
  float const at_limit = activated(f, 7, 7);
  for (float gate : {7.5F, 1e30F, kInfinity})
    for (float up : {7.5F, 1e30F, kInfinity}) EXPECT_EQ(activated(f, gate, up), at_limit);
  for (float up : {-7.5F, -1e30F, -kInfinity}) EXPECT_EQ(activated(f, 7, up), activated(f, 7, -7)) << up;
  EXPECT_EQ(activated(f, -1e30F, 3), 0);
}

}  // namespace
}  // namespace expertmesh
