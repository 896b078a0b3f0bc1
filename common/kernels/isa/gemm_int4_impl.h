// The int4 GEMM over Vec and Int4Sums, of whichever ISA was included before. A sum of a group of weights is exact,
// whatever computes it; those that meet one group of activations are added in the order of K, each times its scale, and
// then, times the activations' scale, to the sum of those before. So all ISAs have the same bits.
#pragma once
#include "common/kernels/int4_panels.h"
#include "common/kernels/isa/gemm_impl.h"
#include "common/kernels/isa/gemm_int8_impl.h"
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

inline void quantise_for_int4(float const* x, std::size_t n, std::byte* out) {
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

struct GemmInt4 {
  // Each sum has two registers, and two halves of each vector of weights and of a row's numbers are in others.
  static constexpr std::size_t kMostSums = kAccumulators < 12 ? kAccumulators : 12;
  static constexpr std::size_t kMostRows = kFewRows < 6 ? kFewRows : 6;
  static constexpr std::size_t kManyRows = kTileRows < 6 ? kTileRows : 6;
  static constexpr std::size_t kAheadFrom = 1;
  static std::size_t panel_bytes(GemmPart const& g) { return int4_panel_bytes(g.k); }
  static std::size_t ticks(std::size_t k) { return int4_groups(k); }

  template <std::size_t MR, std::size_t NV>
  static void tile(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t vector) {
    std::byte const* scales[NV];
    std::byte const* numbers[NV];
    EM_UNROLL
    for (std::size_t j = 0; j < NV; ++j) {
      std::byte const* const panel = g.panels + (vector + j) / kPanelVectors * int4_panel_bytes(g.k);
      std::size_t const part = (vector + j) % kPanelVectors;
      scales[j] = panel + part * (kInt4ScaleBytes / kPanelVectors);
      numbers[j] = panel + kInt4ScaleBytes + part * (kInt4StepBytes / kPanelVectors);
    }
    Int4RowGroup const* x[MR];
    EM_UNROLL
    for (std::size_t i = 0; i < MR; ++i) x[i] = static_cast<Int4RowGroup const*>(g.x[row + i]);
    TileSums<MR, NV> sums;
    for (std::size_t first = 0; first < int4_groups(g.k); first += kInt4GroupsAtOnce) {
      std::size_t const groups =
          int4_groups(g.k) - first < kInt4GroupsAtOnce ? int4_groups(g.k) - first : kInt4GroupsAtOnce;
      Vec of_row_group[MR][NV];  // without the row's scale
      EM_UNROLL
      for (std::size_t i = 0; i < MR; ++i) {
        EM_UNROLL
        for (std::size_t j = 0; j < NV; ++j) of_row_group[i][j] = zero();
      }
      for (std::size_t part = 0; part < groups; ++part) {
        ahead.tick();
        Int4Sums acc[MR][NV];
        EM_UNROLL
        for (std::size_t i = 0; i < MR; ++i) {
          EM_UNROLL
          for (std::size_t j = 0; j < NV; ++j) acc[i][j] = first_int4_sums(x[i]->start[part]);
        }
        EM_UNROLL_INT4_STEPS
        for (std::size_t step = 0; step < kInt4Group / kInt4StepK; ++step) {
          Int4Weights w[NV];
          EM_UNROLL
          for (std::size_t j = 0; j < NV; ++j) w[j] = load_int4(numbers[j] + step * kInt4StepBytes);
          EM_UNROLL
          for (std::size_t i = 0; i < MR; ++i) {
            Int4Row const xi = broadcast_int4(x[i]->x + part * kInt4Group + step * kInt4StepK);
            EM_UNROLL
            for (std::size_t j = 0; j < NV; ++j) acc[i][j] = dot_int4(acc[i][j], w[j], xi);
          }
        }
        EM_UNROLL
        for (std::size_t j = 0; j < NV; ++j) {
          Vec const weights = load(reinterpret_cast<std::uint16_t const*>(scales[j]));
          EM_UNROLL
          for (std::size_t i = 0; i < MR; ++i)
            of_row_group[i][j] = fma(to_floats(total(acc[i][j], x[i]->start[part])), weights, of_row_group[i][j]);
          scales[j] += kInt4BlockBytes;
          numbers[j] += kInt4BlockBytes;
        }
      }
      EM_UNROLL
      for (std::size_t i = 0; i < MR; ++i) {
        Vec const scale = broadcast(x[i]->scale);
        EM_UNROLL
        for (std::size_t j = 0; j < NV; ++j) sums.add(i, j, of_row_group[i][j], scale);
        ++x[i];
      }
    }
    sums.store(g, row, vector);
  }
};

inline float peak_int4(std::size_t rounds) {
  std::byte w[kInt4StepBytes];
  for (std::size_t i = 0; i < kInt4StepBytes; ++i) w[i] = static_cast<std::byte>(rounds + i);
  constexpr std::size_t kChanges = 8;  // as in peak_int8
  std::int8_t x[(kChanges + kAccumulators) * kInt4StepK];
  for (std::size_t i = 0; i < sizeof x; ++i) x[i] = static_cast<std::int8_t>(rounds % 7 + i % 5);
  Int4Weights const weights = load_int4(w);
  Int4Sums sums[kAccumulators];
  for (Int4Sums& sum : sums) sum = first_int4_sums(0);
  for (std::size_t round = 0; round < rounds / 2; ++round) {  // a step is two multiply-adds of int8
    EM_UNROLL
    for (std::size_t i = 0; i < kAccumulators; ++i)
      sums[i] = dot_int4(sums[i], weights, broadcast_int4(x + (round % kChanges + i) * kInt4StepK));
  }
  Vec all = zero();
  for (Int4Sums const& sum : sums) all = all + to_floats(total(sum, 0));
  return sum_lanes(all);
}

}  // namespace
}  // namespace expertmesh
