#include "common/kernels/grouped_ffn.h"

#include <gtest/gtest.h>

#include <tuple>

#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;

struct Expert {
  Expert(std::size_t h, std::size_t f, WeightFormat const& format, std::uint64_t seed)
      : gate(random_matrix(f, h, seed)), up(random_matrix(f, h, seed + 1)), down(random_matrix(h, f, seed + 2)) {
    weights.gate_up.w = PackedMatrix(format, 2 * f, h);
    weights.gate_up.w.set_rows(0, f, DType::f32, reinterpret_cast<std::byte const*>(gate.view().data));
    weights.gate_up.w.set_rows(f, f, DType::f32, reinterpret_cast<std::byte const*>(up.view().data));
    weights.down.w = reference::packed(format, down.view());
  }
  Matrix<float> gate, up, down;
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
    return std::get<1>(GetParam()) == DType::bf16 ? kBfloat16Weights : kFloat32Weights;
  }
  [[nodiscard]] DType wire() const { return std::get<2>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(IsaWeightsWire, GroupedFfnTest,
                         testing::Combine(testing::ValuesIn(runnable_isas()), testing::Values(DType::f32, DType::bf16),
                                          testing::Values(DType::f32, DType::bf16)),
                         [](auto const& test) {
                           return std::string(name_of(std::get<0>(test.param))) + "_" +
                                  std::string(name_of(std::get<1>(test.param))) + "_" +
                                  std::string(name_of(std::get<2>(test.param)));
                         });

TEST_P(GroupedFfnTest, EqualsTheReference) {
  Rig rig(isa(), 2);
  for (auto const& [h, f] : {std::pair<std::size_t, std::size_t>{1, 1}, {7, 3}, {33, 17}, {64, 72}, {129, 48}}) {
    std::vector<Expert> experts;
    for (std::uint64_t e = 0; e < 4; ++e) experts.emplace_back(h, f, format(), 10 * e + 1);
    std::vector<FfnWeights const*> const groups = {&experts[2].weights, &experts[0].weights, &experts[3].weights};
    std::vector<std::size_t> const which = {2, 0, 3};
    std::vector<std::size_t> const offsets = {0, 1, 1, 70};  // one row, none, more than a tile
    auto const x = random_matrix(70, h, 99);
    auto const y = run(rig.exec, x.view(), groups, offsets, wire());
    reference::BoundedMatrix expected;
    for (std::size_t g = 0; g < groups.size(); ++g)
      for (std::size_t r = offsets[g]; r < offsets[g + 1]; ++r) {
        Expert const& expert = experts[which[g]];
        expected.push_back(reference::ffn(x.view().row(r), expert.gate.view(), expert.up.view(), expert.down.view(),
                                          format(), wire()));
      }
    EXPECT_EQ(reference::num_wrong(y.view(), expected), 0U) << "H " << h << " F " << f;
  }
}

TEST_P(GroupedFfnTest, ARowHasTheSameBitsAloneAndInAnyGroupingAndThreadCount) {
  std::vector<Expert> experts;
  for (std::uint64_t e = 0; e < 3; ++e) experts.emplace_back(40, 88, format(), 10 * e + 1);
  auto const x = random_matrix(21, 40, 5);
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
  reference::BoundedMatrix const expected = {
      reference::ffn(x.view().row(0), a.gate.view(), a.up.view(), a.down.view(), format(), wire()),
      reference::ffn(x.view().row(0), b.gate.view(), b.up.view(), b.down.view(), format(), wire())};
  EXPECT_EQ(reference::num_wrong(y.view(), expected), 0U);
  EXPECT_NE(reference::num_wrong(y.view(), {expected[1], expected[0]}), 0U);
}

TEST_P(GroupedFfnTest, Float32WeightsHaveTheBitsOfScalar) {
  if (format() != kFloat32Weights) return;
  Rig scalar(Isa::scalar);
  Rig rig(isa());
  Expert const expert(72, 33, format(), 1);
  auto const x = random_matrix(5, 72, 2);
  EXPECT_TRUE(reference::same_bits(run(rig.exec, x.view(), {&expert.weights}, {0, 5}, wire()).view(),
                                   run(scalar.exec, x.view(), {&expert.weights}, {0, 5}, wire()).view()));
}

TEST_P(GroupedFfnTest, NoRowsAreFine) {
  Rig rig(isa());
  GroupedRows none;
  none.wire = wire();
  grouped_ffn(rig.exec, none);
}

}  // namespace
}  // namespace expertmesh
