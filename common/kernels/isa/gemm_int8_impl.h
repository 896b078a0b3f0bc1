// The int8 GEMM over Vec and Ints (16 int32 sums), of whichever ISA was included before. A sum of a group is exact,
// whatever computes it; scaled, the groups are added in the order of K. So all ISAs have the same bits.
#pragma once
#include "common/kernels/int8_panels.h"
#include "common/kernels/isa/gemm_impl.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// A row's group as the ISA's dot_int8 reads it.
struct QuantisedGroup {
  float scale;
  std::int32_t start;         // -kInt8WeightBias times the sum of the whole numbers: what the bias adds too much
  Int8Element x[kInt8Group];  // as arrange() has them; zeros behind the row's end
};
static_assert(sizeof(QuantisedGroup) <= quantised_row_bytes(1) && alignof(QuantisedGroup) <= sizeof(float));

inline void quantise_int8(float const* x, std::size_t n, std::byte* out) {
  auto* group = reinterpret_cast<QuantisedGroup*>(out);
  for (std::size_t i = 0; i < n; i += kInt8Group, ++group) {
    std::int32_t whole[kInt8Group];
    group->scale = quantise_group(x + i, n - i < kInt8Group ? n - i : kInt8Group, whole).scale;
    std::int32_t sum = 0;
    for (std::int32_t const q : whole) sum += q;
    group->start = -kInt8WeightBias * sum;
    arrange(whole, group->x);
  }
}

struct GemmInt8 : RegisterTiles {
  static constexpr std::size_t kAheadFrom = 2;
  static std::size_t panel_bytes(GemmPart const& g) { return int8_panel_bytes(g.k); }
  static std::size_t ticks(std::size_t k) { return int8_groups(k) * (kInt8Group / kInt8StepK / kStepsATick); }

  template <std::size_t MR, std::size_t NV>
  static void tile(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t vector) {
    std::byte const* block[NV];
    EM_UNROLL
    for (std::size_t j = 0; j < NV; ++j)  // a vector's scales are as many bytes as its numbers of a step
      block[j] = g.panels + (vector + j) / kPanelVectors * int8_panel_bytes(g.k) +
                 (vector + j) % kPanelVectors * (kInt8StepBytes / kPanelVectors);
    QuantisedGroup const* x[MR];
    EM_UNROLL
    for (std::size_t i = 0; i < MR; ++i) x[i] = static_cast<QuantisedGroup const*>(g.x[row + i]);
    TileSums<MR, NV> sums;
    for (std::size_t k = 0; k < g.k; k += kInt8Group) {
      std::size_t const steps = ((g.k - k < kInt8Group ? g.k - k : kInt8Group) + kInt8StepK - 1) / kInt8StepK;
      Ints acc[MR][NV];
      EM_UNROLL
      for (std::size_t i = 0; i < MR; ++i) {
        EM_UNROLL
        for (std::size_t j = 0; j < NV; ++j) acc[i][j] = broadcast(x[i]->start);
      }
      for (std::size_t step = 0; step < steps; ++step) {
        if (step % kStepsATick == 0) ahead.tick();
        Int8Weights w[NV];
        EM_UNROLL
        for (std::size_t j = 0; j < NV; ++j) w[j] = load_int8(block[j] + kInt8ScaleBytes + step * kInt8StepBytes);
        EM_UNROLL
        for (std::size_t i = 0; i < MR; ++i) {
          Int8Row const xi = broadcast_int8(x[i]->x + step * kInt8StepK);
          EM_UNROLL
          for (std::size_t j = 0; j < NV; ++j) acc[i][j] = dot_int8(acc[i][j], w[j], xi);
        }
      }
      EM_UNROLL
      for (std::size_t j = 0; j < NV; ++j) {
        Vec const weights = load(reinterpret_cast<float const*>(block[j]));
        EM_UNROLL
        for (std::size_t i = 0; i < MR; ++i) sums.add(i, j, to_floats(acc[i][j]), broadcast(x[i]->scale) * weights);
        block[j] += kInt8ScaleBytes + steps * kInt8StepBytes;
      }
      EM_UNROLL
      for (std::size_t i = 0; i < MR; ++i) ++x[i];
    }
    sums.store(g, row, vector);
  }
};

inline float peak_int8(std::size_t rounds) {
  std::byte w[kInt8StepBytes];
  for (std::size_t i = 0; i < kInt8StepBytes; ++i) w[i] = static_cast<std::byte>(rounds + i);
  // As in a GEMM each sum has numbers of its own, that change: else there are ISAs where the products could be kept.
  constexpr std::size_t kChanges = 8;
  Int8Element x[(kChanges + kAccumulators) * kInt8StepK];
  // Over kChanges rounds a sum comes back to where it was, so that it never overflows.
  constexpr int kFactors[kChanges] = {1, -2, 3, -4, 4, -3, 2, -1};
  for (std::size_t i = 0; i < sizeof x / sizeof *x; ++i)
    x[i] = static_cast<Int8Element>(kFactors[i / kInt8StepK % kChanges] *
                                    (1 + static_cast<int>(rounds % 7 + i % kInt8StepK)));
  Int8Weights const weights = load_int8(w);
  return peak<std::int32_t>(rounds, [&](Ints const& sum, std::size_t round, std::size_t i) {
    return dot_int8(sum, weights, broadcast_int8(x + (round % kChanges + i) * kInt8StepK));
  });
}

}  // namespace
}  // namespace expertmesh
