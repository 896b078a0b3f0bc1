// The int4 GEMM over Vec and Int4Sums, of whichever ISA was included before. A sum of a group of weights is exact,
// whatever computes it; scaled, the groups are added in the order of K. So all ISAs have the same bits.
#pragma once
#include "common/kernels/int4_panels.h"
#include "common/kernels/isa/gemm_int8_impl.h"
#include "common/kernels/isa/vec_math.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// A row's group of activations, the same numbers as a QuantisedGroup's.
struct Int4RowGroup {
  float scale;
  std::int32_t start[kInt4GroupsAtOnce];  // -8 times the sum of the whole numbers that meet a group of weights
  std::int8_t x[kInt8Group];              // zeros behind the row's end
};
static_assert(sizeof(Int4RowGroup) <= quantised_row_bytes(1) && alignof(Int4RowGroup) <= sizeof(float));

void quantise_for_int4(float const* x, std::size_t n, std::byte* out) {
  auto* group = reinterpret_cast<Int4RowGroup*>(out);
  for (std::size_t i = 0; i < n; i += kInt8Group, ++group) {
    std::int32_t whole[kInt8Group];
    group->scale = quantise_group(x + i, n - i < kInt8Group ? n - i : kInt8Group, whole).scale;
    for (std::size_t part = 0; part < kInt4GroupsAtOnce; ++part) {
      std::int32_t sum = 0;
      for (std::size_t j = 0; j < kInt4Group; ++j) sum += whole[part * kInt4Group + j];
      group->start[part] = -kInt4Bias * sum;
    }
    for (std::size_t j = 0; j < kInt8Group; ++j) group->x[j] = static_cast<std::int8_t>(whole[j]);
  }
}

// As GemmInt8: the sums lie in y from one group of activations to the next.
struct GemmInt4 {
  template <std::size_t MR, std::size_t NP>
  static void tile(GemmGroup const& part, std::size_t row, std::size_t panel) {
    GemmPart const& g = part.whole;
    std::size_t const first = part.group * kInt4GroupsAtOnce;
    std::size_t const left = int4_groups(g.k) - first;
    std::size_t const groups = left < kInt4GroupsAtOnce ? left : kInt4GroupsAtOnce;
    std::byte const* block[NP];
    for (std::size_t j = 0; j < NP; ++j)
      block[j] = g.panels + (panel + j) * int4_panel_bytes(g.k) + first * kInt4BlockBytes;
    Int4RowGroup const* x[MR];
    for (std::size_t i = 0; i < MR; ++i) x[i] = static_cast<Int4RowGroup const*>(g.x[row + i]) + part.group;
    Vec sum[MR][NP];
    for (std::size_t i = 0; i < MR; ++i)
      for (std::size_t j = 0; j < NP; ++j) {
        std::size_t const column = (panel + j) * kLanes;
        sum[i][j] = part.group == 0 ? zero() : load_some(g.y[row + i] + column, g.n - column);
      }
    for (std::size_t group = 0; group < groups; ++group) {
      Int4Sums acc[MR][NP];
      for (auto& line : acc)
        for (auto& a : line) a = no_int4_sums();
      for (std::size_t step = 0; step < kInt4Group / kInt4StepK; ++step) {
        Int4Weights w[NP];
        for (std::size_t j = 0; j < NP; ++j) w[j] = load_int4(block[j] + kInt4ScaleBytes + step * kInt4StepBytes);
        for (std::size_t i = 0; i < MR; ++i) {
          Int4Row const xi = broadcast_int4(x[i]->x + group * kInt4Group + step * kInt4StepK);
          for (std::size_t j = 0; j < NP; ++j) acc[i][j] = dot_int4(acc[i][j], w[j], xi);
        }
      }
      for (std::size_t j = 0; j < NP; ++j) {
        Vec const weights = load(reinterpret_cast<std::uint16_t const*>(block[j]));
        for (std::size_t i = 0; i < MR; ++i)
          sum[i][j] = fma(to_floats(total(acc[i][j], x[i]->start[group])), broadcast(x[i]->scale) * weights, sum[i][j]);
        block[j] += kInt4BlockBytes;
      }
    }
    for (std::size_t i = 0; i < MR; ++i)
      for (std::size_t j = 0; j < NP; ++j) {
        std::size_t const column = (panel + j) * kLanes;
        store_some(g.y[row + i] + column, sum[i][j], g.n - column);
      }
  }
};

}  // namespace
}  // namespace expertmesh
