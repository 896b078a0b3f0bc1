// run_experts() of a device against double precision, and bit for bit against its linear() and activation one after the
// other; over routings that a router would hardly make.
#include <gtest/gtest.h>

#include <limits>

#include "common/kernels/exec.h"
#include "common/moe/routing.h"
#include "tests/unit/device/weight_on_device.h"

namespace expertmesh {
namespace {

using reference::BoundedMatrix;
using reference::num_wrong;
using reference::random_matrix;
using reference::same_bits;

constexpr ActivationSpec kClamped{.kind = Activation::clamped_silu, .alpha = 1.702F, .limit = 0.5F};

// What a layer's experts may have: activation, gate, biases.
struct Form {
  ActivationSpec activation{};
  bool gated = true;
  bool gate_up_bias = false;
  bool down_bias = false;
};
constexpr Form kForms[] = {
    {},
    {.gate_up_bias = true, .down_bias = true},
    {.activation = kClamped, .gate_up_bias = true, .down_bias = true},
    {.activation = {.kind = Activation::gelu}, .down_bias = true},
    {.activation = {.kind = Activation::gelu_tanh}, .gate_up_bias = true},
    {.activation = {.kind = Activation::relu}},
    {.activation = {.kind = Activation::relu}, .gated = false},
    {.activation = {.kind = Activation::gelu}, .gated = false, .gate_up_bias = true, .down_bias = true},
};

struct Format {
  WeightFormat weights;
  DType wire;
};
constexpr Format kFormats[] = {{kFloat32Weights, DType::f32},
                               {kBfloat16Weights, DType::bf16},
                               {kBfloat16Weights, DType::f32},
                               {kFloat32Weights, DType::bf16}};

struct LayerShape {
  std::size_t experts;
  std::size_t hidden;
  std::size_t intermediate;
};

std::vector<float> numbers_of(Matrix<float> const& m) {
  return {m.view().data, m.view().data + m.view().rows * m.view().cols};
}
Matrix<float> copy_of(MatrixView<float const> x) {
  Matrix<float> out(x.rows, x.cols);
  for (std::size_t r = 0; r < x.rows; ++r) std::copy_n(x.row(r), x.cols, out.view().row(r));
  return out;
}

// The experts of a layer, on the host and in the device's memory. Where there are many, every kDistinct-th is the same.
class Layer {
 public:
  Layer(Device& device, LayerShape const& s, Format const& f, Form const& form = {})
      : shape(s), format(f), pointers_(device, make_experts(device, form)) {
    view_ = {.experts = pointers_.span(),
             .gate_up_storage = f.weights.storage,
             .down_storage = f.weights.storage,
             .activation_rule = f.weights.activation,
             .hidden = s.hidden,
             .intermediate = s.intermediate,
             .gated = form.gated,
             .activation = form.activation,
             .wire = f.wire};
  }

  struct Expert {
    reference::Ffn plain;
    WeightOnDevice gate_up, down;
    OnDevice<float> gate_up_bias, down_bias;  // no numbers: none
  };
  [[nodiscard]] Expert const& expert(std::size_t e) const { return *experts_[e % kDistinct]; }
  [[nodiscard]] DeviceExperts const& view() const { return view_; }

  LayerShape const shape;
  Format const format;

 private:
  static constexpr std::size_t kDistinct = 11;
  std::vector<DeviceExpert> make_experts(Device& device, Form const& form) {
    auto const [num_experts, h, f] = shape;
    std::size_t const gates = form.gated ? f : 0;
    std::vector<DeviceExpert> pointers;
    for (std::size_t e = 0; e < std::min(num_experts, kDistinct); ++e) {
      auto const gate_up = random_matrix(gates + f, h, 100 + 4 * e);
      auto const down = random_matrix(h, f, 101 + 4 * e);
      auto const gate_up_bias = random_matrix(form.gate_up_bias ? 1 : 0, gates + f, 102 + 4 * e);
      auto const down_bias = random_matrix(form.down_bias ? 1 : 0, h, 103 + 4 * e);
      reference::Ffn plain{.gate = copy_of(gate_up.view().first_rows(gates)),
                           .up = copy_of(gate_up.view().row_range(gates, f)),
                           .down = copy_of(down.view()),
                           .gate_bias = copy_of(gate_up_bias.view().columns(0, gates)),
                           .up_bias = copy_of(gate_up_bias.view().columns(gates, f)),
                           .down_bias = copy_of(down_bias.view()),
                           .activation = form.activation};
      experts_.push_back(std::unique_ptr<Expert>(new Expert{.plain = std::move(plain),
                                                            .gate_up{device, gate_up.view(), format.weights},
                                                            .down{device, down.view(), format.weights},
                                                            .gate_up_bias{device, numbers_of(gate_up_bias)},
                                                            .down_bias{device, numbers_of(down_bias)}}));
      Expert const& expert = *experts_.back();
      pointers.push_back({.gate_up = expert.gate_up.weight().data,
                          .gate_up_bias = form.gate_up_bias ? expert.gate_up_bias.data() : nullptr,
                          .down = expert.down.weight().data,
                          .down_bias = form.down_bias ? expert.down_bias.data() : nullptr});
    }
    for (std::size_t e = kDistinct; e < num_experts; ++e) pointers.push_back(pointers[e - kDistinct]);
    return pointers;
  }

  std::vector<std::unique_ptr<Expert>> experts_;
  OnDevice<DeviceExpert> pointers_;
  DeviceExperts view_;
};

// What slot s of num_slots gets: an expert, or none.
struct Routing {
  char const* name;
  std::uint32_t (*expert_of)(std::size_t slot, std::size_t experts_per_token, std::size_t num_experts);
};
constexpr Routing kRoutings[] = {
    {"spread", [](auto s, auto /*k*/, auto e) { return static_cast<std::uint32_t>(mix64(s) % e); }},
    {"all to the last", [](auto /*s*/, auto /*k*/, auto e) { return static_cast<std::uint32_t>(e - 1); }},
    {"a token's all to one", [](auto s, auto k, auto e) { return static_cast<std::uint32_t>(s / k % e); }},
    {"falling", [](auto s, auto /*k*/, auto e) { return static_cast<std::uint32_t>(e - 1 - s % e); }},
    {"with holes",
     [](auto s, auto /*k*/, auto e) { return s % 3 == 0 ? kNoExpert : static_cast<std::uint32_t>(s * 7 % e); }},
    {"to none", [](auto /*s*/, auto /*k*/, auto /*e*/) { return kNoExpert; }},
};
std::vector<std::uint32_t> routed(Routing const& routing, std::size_t num_tokens, std::size_t experts_per_token,
                                  std::size_t num_experts) {
  std::vector<std::uint32_t> out;
  for (std::size_t s = 0; s < num_tokens * experts_per_token; ++s)
    out.push_back(routing.expert_of(s, experts_per_token, num_experts));
  return out;
}

constexpr std::byte kUntouched{0xa5};

class DeviceExpertsTest : public EachDevice {
 protected:
  // The rows of all slots, [S] of the wire dtype, where there had been kUntouched.
  std::vector<std::byte> run(Layer const& layer, MatrixView<float const> x, std::vector<std::uint32_t> const& experts) {
    return run(layer, layer.view(), x, experts);
  }
  std::vector<std::byte> run(Layer const& layer, DeviceExperts const& view, MatrixView<float const> x,
                             std::vector<std::uint32_t> const& experts) {
    device_->reserve({.max_rows = experts.size(),
                      .max_columns = std::max(layer.shape.hidden, 2 * layer.shape.intermediate),
                      .max_head_dim = 1,
                      .max_intermediate = layer.shape.intermediate});
    DeviceMatrix const in(*device_, x, {3, 2});
    OnDevice<std::uint32_t> const slots(*device_, experts);
    OnDevice<std::byte> const out(*device_, std::vector<std::byte>(experts.size() * row_bytes(layer), kUntouched));
    device_->run_experts(view, in.view(), slots.span(), experts.size() / x.rows, out.data());
    return out.values();
  }
  static std::size_t row_bytes(Layer const& layer) { return layer.shape.hidden * size_of(layer.format.wire); }

  // Of slot s, as numbers.
  static std::vector<float> row_of(Layer const& layer, std::vector<std::byte> const& rows, std::size_t s) {
    std::vector<float> out(layer.shape.hidden);
    std::byte const* const from = rows.data() + s * row_bytes(layer);
    for (std::size_t h = 0; h < out.size(); ++h) {
      bf16 narrow;
      if (layer.format.wire == DType::bf16) {
        std::memcpy(&narrow, from + h * sizeof narrow, sizeof narrow);
        out[h] = to_float(narrow);
      } else {
        std::memcpy(&out[h], from + h * sizeof(float), sizeof(float));
      }
    }
    return out;
  }

  // Slots whose row is not what it should be.
  static std::size_t num_wrong_slots(Layer const& layer, MatrixView<float const> x,
                                     std::vector<std::uint32_t> const& experts, std::vector<std::byte> const& rows) {
    std::size_t const experts_per_token = experts.size() / x.rows;
    std::size_t wrong = 0;
    for (std::size_t s = 0; s < experts.size(); ++s) {
      auto const bytes = std::span(rows).subspan(s * row_bytes(layer), row_bytes(layer));
      if (experts[s] == kNoExpert) {
        wrong += std::ranges::all_of(bytes, [](std::byte b) { return b == kUntouched; }) ? 0 : 1;
        continue;
      }
      auto const row = row_of(layer, rows, s);
      BoundedMatrix const expected{reference::ffn(x.row(s / experts_per_token), layer.expert(experts[s]).plain,
                                                  layer.format.weights, layer.format.wire)};
      wrong += num_wrong({row.data(), 1, row.size()}, expected) == 0 ? 0 : 1;
    }
    return wrong;
  }

  // One row through the ops that an expert is made of.
  std::vector<std::byte> composed(Layer const& layer, float const* x, std::size_t expert) {
    auto const [num_experts, h, f] = layer.shape;
    Layer::Expert const& e = layer.expert(expert);
    Matrix<float> wire_row(1, h);
    for (std::size_t i = 0; i < h; ++i) wire_row.view().data[i] = reference::rounded(x[i], layer.format.wire);
    DeviceMatrix const in(*device_, wire_row.view());
    DeviceMatrix const hidden(*device_, Matrix<float>(1, e.gate_up.weight().n).view());
    DeviceMatrix const activated(*device_, Matrix<float>(1, f).view());
    DeviceMatrix const sums(*device_, Matrix<float>(1, h).view());
    OnDevice<std::byte> const out(*device_, std::vector<std::byte>(row_bytes(layer)));
    device_->linear(in.view(), e.gate_up.weight(), e.gate_up_bias.span(), hidden.view());
    device_->ffn_activation(layer.view().activation, layer.view().gated, hidden.view(), activated.view());
    device_->linear(activated.view(), e.down.weight(), e.down_bias.span(), sums.view());
    device_->to_wire(sums.view(), layer.format.wire, out.data());
    return out.values();
  }
};
EM_FOR_EACH_DEVICE(DeviceExpertsTest);

TEST_P(DeviceExpertsTest, AllFormsEqualTheReference) {
  for (Form const& form : kForms)
    for (Format const& format : kFormats)
      for (LayerShape const& shape : {LayerShape{3, 72, 33}, LayerShape{2, 5, 20}}) {
        Layer const layer(*device_, shape, format, form);
        for (std::size_t t : {1, 2, 7}) {
          auto const x = random_matrix(t, shape.hidden, 1);
          auto const experts = routed(kRoutings[0], t, 2, shape.experts);
          EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, run(layer, x.view(), experts)), 0U)
              << "activation " << static_cast<int>(form.activation.kind) << " gated " << form.gated << " weights "
              << name_of(format.weights.storage) << " wire " << name_of(format.wire) << " T " << t;
        }
      }
}

TEST_P(DeviceExpertsTest, AllRoutingsEqualTheReference) {
  for (Format const& format : {kFormats[0], kFormats[1]})
    for (LayerShape const& shape : {LayerShape{1, 16, 9}, LayerShape{7, 40, 17}}) {
      Layer const layer(*device_, shape, format);
      for (std::size_t t : {1, 2, 5, 33})
        for (std::size_t k : {std::size_t{1}, std::size_t{2}, shape.experts})
          for (Routing const& routing : kRoutings) {
            auto const x = random_matrix(t, shape.hidden, 1);
            auto const experts = routed(routing, t, k, shape.experts);
            EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, run(layer, x.view(), experts)), 0U)
                << routing.name << ", wire " << name_of(format.wire) << ", E " << shape.experts << ", T " << t << ", K "
                << k;
          }
    }
}

// They are with somebody else; those behind the table's end, too.
TEST_P(DeviceExpertsTest, SlotsOfExpertsThatAreNotHeldAreLeftAlone) {
  for (Format const& format : {kFormats[0], kFormats[1]})
    for (std::vector<std::size_t> const& missing :
         {std::vector<std::size_t>{0, 3, 6}, {1}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5, 6}}) {
      Layer const layer(*device_, {7, 40, 17}, format);
      std::vector<DeviceExpert> table(7);
      device_->download(table.data(), layer.view().experts.data(), layer.view().experts.size_bytes());
      for (std::size_t const e : missing) table[e] = {};
      OnDevice<DeviceExpert> const on_device(*device_, table);
      DeviceExperts view = layer.view();
      view.experts = on_device.span();
      for (std::size_t t : {1, 5, 33, 150})
        for (Routing const& routing : kRoutings) {
          auto const x = random_matrix(t, 40, 1);
          auto experts = routed(routing, t, 3, 9);
          auto const rows = run(layer, view, x.view(), experts);
          for (std::uint32_t& e : experts)
            if (e >= 7 || table[e].gate_up == nullptr) e = kNoExpert;
          EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, rows), 0U)
              << routing.name << ", wire " << name_of(format.wire) << ", T " << t << ", " << missing.size()
              << " are missing";
        }
    }
}

TEST_P(DeviceExpertsTest, ManyExpertsAndFewHits) {
  Layer const layer(*device_, {1024, 16, 4}, kFormats[1]);
  for (std::size_t t : {1, 40}) {
    auto const x = random_matrix(t, 16, 1);
    auto experts = routed(kRoutings[0], t, 8, 1024);
    experts.front() = 1023;
    experts.back() = 0;
    EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, run(layer, x.view(), experts)), 0U) << "T " << t;
  }
}

// Several rounds of slots for each warp that groups them.
TEST_P(DeviceExpertsTest, ManySlotsOfFewExperts) {
  Layer const layer(*device_, {3, 4, 2}, kFormats[0]);
  for (Routing const& routing : {kRoutings[0], kRoutings[1], kRoutings[4]}) {
    auto const x = random_matrix(350, 4, 1);
    auto const experts = routed(routing, 350, 2, 3);
    EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, run(layer, x.view(), experts)), 0U) << routing.name;
  }
}

// As many of an expert as take the tiles for some rows and for many.
TEST_P(DeviceExpertsTest, ManyTokensEqualTheReference) {
  for (Format const& format : {kFormats[1], kFormats[2]})
    for (bool gated : {true, false}) {
      Layer const layer(*device_, {2, 40, 75}, format, {.gated = gated, .gate_up_bias = true, .down_bias = true});
      for (std::size_t t : {31, 65, 140})
        for (Routing const& routing : {kRoutings[0], kRoutings[1], kRoutings[4]}) {
          auto const x = random_matrix(t, 40, 1);
          auto const experts = routed(routing, t, 2, 2);
          EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, run(layer, x.view(), experts)), 0U)
              << routing.name << ", wire " << name_of(format.wire) << ", gated " << gated << ", T " << t;
        }
    }
}

// More than a block's shared memory has room for.
TEST_P(DeviceExpertsTest, LongRowsEqualTheReference) {
  for (LayerShape const& shape : {LayerShape{2, 9000, 3}, LayerShape{2, 4, 9000}}) {
    Layer const layer(*device_, shape, kFormats[1]);
    for (std::size_t t : {2, 5}) {
      auto const x = random_matrix(t, shape.hidden, 1);
      auto const experts = routed(kRoutings[1], t, 1, 2);
      EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, run(layer, x.view(), experts)), 0U)
          << "H " << shape.hidden << " T " << t;
    }
  }
}

TEST_P(DeviceExpertsTest, NoTokensAreNothing) {
  Layer const layer(*device_, {2, 16, 8}, kFormats[0]);
  OnDevice<std::uint32_t> const memory(*device_, {7});
  device_->run_experts(layer.view(), {nullptr, 0, 16}, {memory.data(), 0}, 2,
                       reinterpret_cast<std::byte*>(memory.data()));
  EXPECT_EQ(memory.values(), std::vector<std::uint32_t>{7});
}

TEST_P(DeviceExpertsTest, HasTheBitsOfTheOpsOneAfterTheOther) {
  for (Form const& form : kForms)
    for (Format const& format : {kFormats[1], kFormats[3]}) {
      LayerShape const shape{3, 72, 33};
      Layer const layer(*device_, shape, format, form);
      for (std::size_t t : {1, 3}) {
        auto const x = random_matrix(t, shape.hidden, 1);
        auto const experts = routed(kRoutings[0], t, 2, shape.experts);
        auto const rows = run(layer, x.view(), experts);
        for (std::size_t s = 0; s < experts.size(); ++s) {
          auto const alone = composed(layer, x.view().row(s / 2), experts[s]);
          EXPECT_EQ(std::memcmp(rows.data() + s * row_bytes(layer), alone.data(), alone.size()), 0)
              << "activation " << static_cast<int>(form.activation.kind) << " gated " << form.gated << " weights "
              << name_of(format.weights.storage) << " wire " << name_of(format.wire) << " T " << t << " slot " << s;
        }
      }
    }
}

TEST_P(DeviceExpertsTest, ATokenHasTheSameBitsAloneAndInABatch) {
  constexpr std::size_t kTokens = 17;
  constexpr std::size_t kK = 2;
  LayerShape const shape{5, 300, 20};
  for (Format const& format : {kFormats[0], kFormats[1]}) {
    Layer const layer(*device_, shape, format, {.gate_up_bias = true, .down_bias = true});
    auto const x = random_matrix(kTokens, shape.hidden, 1);
    for (Routing const& routing : {kRoutings[0], kRoutings[1], kRoutings[4]}) {
      auto const experts = routed(routing, kTokens, kK, shape.experts);
      auto const whole = run(layer, x.view(), experts);
      for (std::size_t first = 0, count = 1; first < kTokens; first += count, count = 1 + count % 5) {
        std::size_t const tokens = std::min(count, kTokens - first);
        auto const slots = std::span(experts).subspan(first * kK, tokens * kK);
        auto const part = run(layer, x.view().row_range(first, tokens), {slots.begin(), slots.end()});
        EXPECT_EQ(std::memcmp(part.data(), whole.data() + first * kK * row_bytes(layer), part.size()), 0)
            << routing.name << ", " << tokens << " tokens from " << first;
      }
    }
  }
}

// On both sides of every border between the shapes that kernels choose by the number of tokens.
TEST_P(DeviceExpertsTest, ATokenHasTheSameBitsInBatchesOfEverySize) {
  constexpr std::size_t kTokens = 300;
  constexpr std::size_t kK = 2;
  LayerShape const shape{3, 140, 40};
  for (Format const& format : {kFormats[1], kFormats[2]}) {
    Layer const layer(*device_, shape, format, {.gate_up_bias = true});
    auto const x = random_matrix(kTokens, shape.hidden, 1);
    for (Routing const& routing : {kRoutings[0], kRoutings[1], kRoutings[4]}) {
      auto const experts = routed(routing, kTokens, kK, shape.experts);
      auto const whole = run(layer, x.view(), experts);
      for (std::size_t tokens : {1, 2, 7, 8, 9, 16, 17, 64, 65, 72, 73, 129}) {
        std::size_t const first = kTokens - tokens;
        auto const part = run(layer, x.view().row_range(first, tokens), {experts.begin() + first * kK, experts.end()});
        EXPECT_EQ(std::memcmp(part.data(), whole.data() + first * kK * row_bytes(layer), part.size()), 0)
            << routing.name << ", wire " << name_of(format.wire) << ", " << tokens << " tokens";
      }
    }
  }
}

// The checks above can fail.
TEST_P(DeviceExpertsTest, AWrongExpertIsNoticed) {
  Layer const layer(*device_, {3, 24, 17}, kFormats[1]);
  auto const x = random_matrix(5, 24, 1);
  auto experts = routed(kRoutings[4], 5, 2, 3);
  auto const rows = run(layer, x.view(), experts);
  EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, rows), 0U);
  experts[4] = (experts[4] + 1) % 3;
  experts[7] = kNoExpert;
  experts[9] = 0;
  EXPECT_EQ(num_wrong_slots(layer, x.view(), experts, rows), 3U);
}

}  // namespace
}  // namespace expertmesh
