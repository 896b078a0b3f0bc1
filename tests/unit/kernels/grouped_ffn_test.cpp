#include "common/kernels/grouped_ffn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "common/kernels/ffn_activation.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;

// What an FFN may have: activation, gate, biases.
struct Form {
  ActivationSpec activation{};
  bool gated = true;
  bool gate_bias = false;
  bool up_bias = false;
  bool down_bias = false;
};
constexpr ActivationSpec kClamped{.kind = Activation::clamped_silu, .alpha = 1.702F, .limit = 0.5F};
constexpr Form kForms[] = {
    {},
    {.gate_bias = true, .up_bias = true, .down_bias = true},
    {.activation = kClamped, .gate_bias = true, .up_bias = true, .down_bias = true},
    {.activation = kClamped},
    {.activation = {.kind = Activation::gelu}, .up_bias = true},
    {.activation = {.kind = Activation::gelu_tanh}, .gate_bias = true},
    {.activation = {.kind = Activation::relu}, .down_bias = true},
    {.activation = {.kind = Activation::relu}, .gated = false},
    {.activation = {.kind = Activation::gelu}, .gated = false, .up_bias = true, .down_bias = true},
    {.activation = {.kind = Activation::silu}, .gated = false, .up_bias = true},
};

struct Expert {
  Expert(std::size_t h, std::size_t f, WeightFormat const& format, std::uint64_t seed, Form const& form = {}) {
    auto const matrix = [&](bool there, std::size_t rows, std::size_t cols) {
      return there ? random_matrix(rows, cols, seed++) : Matrix<float>(0, cols);
    };
    plain.gate = matrix(form.gated, f, h);
    plain.up = matrix(true, f, h);
    plain.down = matrix(true, h, f);
    plain.gate_bias = matrix(form.gate_bias, 1, f);
    plain.up_bias = matrix(form.up_bias, 1, f);
    plain.down_bias = matrix(form.down_bias, 1, h);
    plain.activation = form.activation;

    auto const bytes = [](Matrix<float> const& m) { return reinterpret_cast<std::byte const*>(m.view().data); };
    std::size_t const gates = form.gated ? f : 0;
    weights.gate_up.w = PackedMatrix(format, gates + f, h);
    weights.gate_up.w.set_rows(0, gates, DType::f32, bytes(plain.gate));
    weights.gate_up.w.set_rows(gates, f, DType::f32, bytes(plain.up));
    weights.down.w = reference::packed(format, plain.down.view());
    if (form.gate_bias || form.up_bias) weights.gate_up.bias = AlignedBuffer<float>(gates + f);
    auto const copy = [](Matrix<float> const& bias, float* out) {
      std::copy_n(bias.view().data, bias.view().rows * bias.view().cols, out);
    };
    copy(plain.gate_bias, weights.gate_up.bias.data());
    copy(plain.up_bias, weights.gate_up.bias.data() + gates);
    weights.down.bias = AlignedBuffer<float>(form.down_bias ? h : 0);
    copy(plain.down_bias, weights.down.bias.data());
    weights.activation = form.activation;
  }
  reference::Ffn plain;
  FfnWeights weights;
};

// Rows of the wire type, as bytes.
struct WireRows {
  WireRows(std::size_t num_rows, std::size_t num_cols, DType wire)
      : type(wire), row_bytes(num_cols * size_of(wire)), cols(num_cols), bytes(num_rows * row_bytes) {
    for (std::size_t r = 0; r < num_rows; ++r) pointers.push_back(bytes.data() + r * row_bytes);
  }
  void set(MatrixView<float const> x) {
    for (std::size_t r = 0; r < x.rows; ++r)
      for (std::size_t c = 0; c < cols; ++c) {
        if (type == DType::bf16)
          reinterpret_cast<bf16*>(pointers[r])[c] = to_bf16(x.row(r)[c]);
        else
          reinterpret_cast<float*>(pointers[r])[c] = x.row(r)[c];
      }
  }
  [[nodiscard]] Matrix<float> floats() const {
    Matrix<float> out(pointers.size(), cols);
    for (std::size_t r = 0; r < pointers.size(); ++r)
      for (std::size_t c = 0; c < cols; ++c)
        out.view().row(r)[c] = type == DType::bf16 ? to_float(reinterpret_cast<bf16 const*>(pointers[r])[c])
                                                   : reinterpret_cast<float const*>(pointers[r])[c];
    return out;
  }
  DType type;
  std::size_t row_bytes, cols;
  AlignedBuffer<std::byte> bytes;
  std::vector<std::byte*> pointers;
};

// Rows of `x`, group g with the rows [offsets[g], offsets[g+1]).
Matrix<float> run(Exec const& exec, MatrixView<float const> x, std::vector<FfnWeights const*> const& groups,
                  std::vector<std::size_t> const& offsets, DType wire) {
  WireRows in(x.rows, x.cols, wire);
  in.set(x);
  WireRows out(x.rows, x.cols, wire);
  std::vector<std::byte const*> const inputs(in.pointers.begin(), in.pointers.end());
  grouped_ffn(exec, {.groups = groups, .offsets = offsets, .in = inputs, .out = out.pointers, .wire = wire});
  return out.floats();
}

class GroupedFfnTest : public testing::TestWithParam<std::tuple<Isa, DType, DType>> {
 protected:
  [[nodiscard]] Isa isa() const { return std::get<0>(GetParam()); }
  [[nodiscard]] WeightFormat format() const {
    DType const type = std::get<1>(GetParam());
    for (WeightFormat const& format : {kInt4Weights, kInt8Weights, kBfloat16Weights})
      if (format.storage == type) return format;
    return kFloat32Weights;
  }
  [[nodiscard]] DType wire() const { return std::get<2>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(IsaWeightsWire, GroupedFfnTest,
                         testing::Combine(testing::ValuesIn(runnable_isas()),
                                          testing::Values(DType::f32, DType::bf16, DType::i8, DType::i4),
                                          testing::Values(DType::f32, DType::bf16)),
                         [](auto const& test) {
                           return std::string(name_of(std::get<0>(test.param))) + "_" +
                                  std::string(name_of(std::get<1>(test.param))) + "_" +
                                  std::string(name_of(std::get<2>(test.param)));
                         });

TEST_P(GroupedFfnTest, EqualsTheReference) {
  Rig rig(isa(), 2);
  for (Form const& form : kForms)
    for (auto const& [h, f] : {std::pair<std::size_t, std::size_t>{1, 1}, {7, 3}, {33, 17}, {64, 72}, {129, 48}}) {
      std::vector<Expert> experts;
      for (std::uint64_t e = 0; e < 4; ++e) experts.emplace_back(h, f, format(), 10 * e + 1, form);
      std::vector<FfnWeights const*> const groups = {&experts[2].weights, &experts[0].weights, &experts[3].weights};
      std::vector<std::size_t> const which = {2, 0, 3};
      std::vector<std::size_t> const offsets = {0, 1, 1, 70};  // one row, none, more than a tile
      auto const x = random_matrix(70, h, 99);
      auto const y = run(rig.exec, x.view(), groups, offsets, wire());
      reference::BoundedMatrix expected;
      for (std::size_t g = 0; g < groups.size(); ++g)
        for (std::size_t r = offsets[g]; r < offsets[g + 1]; ++r)
          expected.push_back(reference::ffn(x.view().row(r), experts[which[g]].plain, format(), wire()));
      EXPECT_EQ(reference::num_wrong(y.view(), expected), 0U)
          << "H " << h << " F " << f << " activation " << static_cast<int>(form.activation.kind);
    }
}

TEST_P(GroupedFfnTest, ARowHasTheSameBitsAloneAndInAnyGroupingAndThreadCount) {
  auto const x = random_matrix(21, 40, 5);
  for (Form const& form : kForms) {
    std::vector<Expert> experts;
    for (std::uint64_t e = 0; e < 3; ++e) experts.emplace_back(40, 88, format(), 10 * e + 1, form);
    std::vector<FfnWeights const*> const groups = {&experts[0].weights, &experts[1].weights, &experts[2].weights};
    std::vector<std::size_t> const offsets = {0, 9, 10, 21};
    Rig one(isa());
    auto const whole = run(one.exec, x.view(), groups, offsets, wire());
    for (std::size_t threads : {1, 2, 3}) {
      Rig rig(isa(), threads);
      EXPECT_TRUE(reference::same_bits(run(rig.exec, x.view(), groups, offsets, wire()).view(), whole.view()));
      for (std::size_t g = 0; g < groups.size(); ++g)
        for (std::size_t r = offsets[g]; r < offsets[g + 1]; ++r)
          EXPECT_TRUE(reference::same_bits(run(rig.exec, x.view().row_range(r, 1), {groups[g]}, {0, 1}, wire()).view(),
                                           whole.view().row_range(r, 1)))
              << threads << " threads, row " << r;
    }
  }
}

// Messages of different layers are served together.
TEST_P(GroupedFfnTest, ExpertsOfDifferentFormsAndSizesStandSideBySide) {
  std::vector<Expert> experts;
  for (std::size_t i = 0; i < std::size(kForms); ++i)
    experts.emplace_back(33, 8 + 5 * i, format(), 20 * i + 1, kForms[i]);
  std::vector<FfnWeights const*> groups;
  std::vector<std::size_t> offsets = {0};
  for (std::size_t i = 0; i < experts.size(); ++i) {
    groups.push_back(&experts[i].weights);
    offsets.push_back(offsets.back() + i % 4);
  }
  auto const x = random_matrix(offsets.back(), 33, 7);
  Rig rig(isa(), 3);
  auto const y = run(rig.exec, x.view(), groups, offsets, wire());
  for (std::size_t g = 0; g < groups.size(); ++g)
    for (std::size_t r = offsets[g]; r < offsets[g + 1]; ++r)
      EXPECT_EQ(reference::num_wrong(y.view().row_range(r, 1),
                                     {reference::ffn(x.view().row(r), experts[g].plain, format(), wire())}),
                0U)
          << g;
}

// More rows than go through the op together: groups that fill such a wave, are empty, or are larger than one.
TEST_P(GroupedFfnTest, RowsOfManyWavesHaveTheBitsOfEachGroupAlone) {
  constexpr std::size_t kHidden = 16;
  constexpr std::size_t kIntermediate = 4096;  // 32 rows a wave and thread
  Expert const a(kHidden, kIntermediate, format(), 1);
  Expert const b(kHidden, kIntermediate, format(), 20);
  std::vector<FfnWeights const*> groups;
  std::vector<std::size_t> offsets = {0};
  for (std::size_t const rows : {20U, 0U, 11U, 1U, 1U, 33U, 0U, 40U, 2U, 0U}) {
    groups.push_back(groups.size() % 2 == 0 ? &a.weights : &b.weights);
    offsets.push_back(offsets.back() + rows);
  }
  auto const x = random_matrix(offsets.back(), kHidden, 7);
  Rig one_thread(isa(), 1, 2 * kIntermediate);
  auto const y = run(one_thread.exec, x.view(), groups, offsets, wire());
  Rig rig(isa(), 3, 2 * kIntermediate);
  EXPECT_TRUE(reference::same_bits(run(rig.exec, x.view(), groups, offsets, wire()).view(), y.view()));
  for (std::size_t g = 0; g < groups.size(); ++g) {
    std::size_t const rows = offsets[g + 1] - offsets[g];
    if (rows == 0) continue;
    EXPECT_TRUE(
        reference::same_bits(run(rig.exec, x.view().row_range(offsets[g], rows), {groups[g]}, {0, rows}, wire()).view(),
                             y.view().row_range(offsets[g], rows)))
        << g;
  }
}

TEST_P(GroupedFfnTest, ARowMayServeSeveralExperts) {
  Rig rig(isa(), 2);
  Expert const a(16, 8, format(), 1);
  Expert const b(16, 8, format(), 20);
  WireRows in(1, 16, wire());
  in.set(random_matrix(1, 16, 3).view());
  WireRows out(2, 16, wire());
  std::vector<FfnWeights const*> const groups = {&a.weights, &b.weights};
  std::vector<std::size_t> const offsets = {0, 1, 2};
  std::vector<std::byte const*> const inputs = {in.pointers[0], in.pointers[0]};
  grouped_ffn(rig.exec, {.groups = groups, .offsets = offsets, .in = inputs, .out = out.pointers, .wire = wire()});
  auto const x = in.floats();
  auto const y = out.floats();
  reference::BoundedMatrix const expected = {reference::ffn(x.view().row(0), a.plain, format(), wire()),
                                             reference::ffn(x.view().row(0), b.plain, format(), wire())};
  EXPECT_EQ(reference::num_wrong(y.view(), expected), 0U);
  // Each row is its expert's and no other's, bit by bit.
  EXPECT_TRUE(
      reference::same_bits(y.view().row_range(0, 1), run(rig.exec, x.view(), {&a.weights}, {0, 1}, wire()).view()));
  EXPECT_TRUE(
      reference::same_bits(y.view().row_range(1, 1), run(rig.exec, x.view(), {&b.weights}, {0, 1}, wire()).view()));
  EXPECT_FALSE(reference::same_bits(y.view().row_range(0, 1), y.view().row_range(1, 1)));
}

TEST_P(GroupedFfnTest, Float32AndWholeNumbersHaveTheBitsOfScalar) {
  if (format() == kBfloat16Weights) return;
  Rig scalar(Isa::scalar);
  Rig rig(isa());
  auto const x = random_matrix(5, 72, 2);
  for (Form const& form : kForms) {
    Expert const expert(72, 33, format(), 1, form);
    EXPECT_TRUE(reference::same_bits(run(rig.exec, x.view(), {&expert.weights}, {0, 5}, wire()).view(),
                                     run(scalar.exec, x.view(), {&expert.weights}, {0, 5}, wire()).view()));
  }
}

// The order that the header promises, step by step: sum, bias, activation; sum, bias, rounding.
TEST_P(GroupedFfnTest, ABiasIsAddedToTheFinishedSum) {
  if (format() == kBfloat16Weights) return;
  Rig rig(isa());
  Expert const expert(72, 33, format(), 1, {.gate_bias = true, .up_bias = true, .down_bias = true});
  FfnWeights const& w = expert.weights;
  WireRows in(5, 72, wire());
  in.set(random_matrix(5, 72, 2).view());
  auto const x = in.floats();
  Matrix<float> gate_up(5, 66), hidden(5, 33), y(5, 72);
  linear(rig.exec, x.view(), w.gate_up.w, gate_up.view());
  for (std::size_t i = 0; i < 5 * 66; ++i) gate_up.view().data[i] += w.gate_up.bias[i % 66];
  ffn_activation(rig.exec, w.activation, gate_up.view(), hidden.view());
  linear(rig.exec, hidden.view(), w.down.w, y.view());
  for (std::size_t i = 0; i < 5 * 72; ++i)
    y.view().data[i] = reference::rounded(y.view().data[i] + w.down.bias[i % 72], wire());
  EXPECT_TRUE(reference::same_bits(run(rig.exec, x.view(), {&w}, {0, 5}, wire()).view(), y.view()));
}

TEST_P(GroupedFfnTest, NoRowsAreFine) {
  Rig rig(isa());
  GroupedRows none;
  none.wire = wire();
  grouped_ffn(rig.exec, none);
}

}  // namespace
}  // namespace expertmesh
