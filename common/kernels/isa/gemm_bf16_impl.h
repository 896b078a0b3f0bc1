// The bfloat16 GEMM over Vec and its dot_bf16(), of whichever ISA was included before.
#pragma once
#include <cstring>

#include "common/kernels/isa/gemm_impl.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

// acc[i][j] += x[i] w[j] over k numbers: w[j] a vector of a bfloat16 panel, x[i] a row of bfloat16.
template <std::size_t MR, std::size_t NV>
inline void multiply_bf16(Vec (&acc)[MR][NV], std::uint16_t const* const (&w)[NV], std::uint16_t const* const (&x)[MR],
                          std::size_t k, Ahead& ahead) {
  each_step(
      k / 2, ahead, [&](std::size_t pair) __attribute__((always_inline)) {
        EM_UNROLL
        for (std::size_t i = 0; i < MR; ++i) {
          std::uint32_t both;
          std::memcpy(&both, x[i] + 2 * pair, sizeof both);
          EM_UNROLL
          for (std::size_t j = 0; j < NV; ++j) acc[i][j] = dot_bf16(acc[i][j], w[j] + pair * 2 * kPanelColumns, both);
        }
      });
  if (k % 2 == 0) return;
  EM_UNROLL
  for (std::size_t i = 0; i < MR; ++i) {
    EM_UNROLL
    for (std::size_t j = 0; j < NV; ++j) acc[i][j] = dot_bf16(acc[i][j], w[j] + k / 2 * 2 * kPanelColumns, x[i][k - 1]);
  }
}

struct GemmBf16 : RegisterTiles {
  static constexpr std::size_t kAheadFrom = 4;
  static std::size_t panel_bytes(GemmPart const& g) {
    return (g.k + 1) / 2 * 2 * kPanelColumns * sizeof(std::uint16_t);
  }
  static std::size_t ticks(std::size_t k) { return k / 2 / kStepsATick; }

  template <std::size_t MR, std::size_t NV>
  static void tile(GemmPart const& g, Ahead& ahead, std::size_t row, std::size_t vector) {
    std::size_t const pairs = (g.k + 1) / 2;
    std::uint16_t const* w[NV];
    EM_UNROLL
    for (std::size_t j = 0; j < NV; ++j)
      w[j] = reinterpret_cast<std::uint16_t const*>(g.panels) +
             (vector + j) / kPanelVectors * pairs * 2 * kPanelColumns + (vector + j) % kPanelVectors * 2 * kLanes;
    std::uint16_t const* x[MR];
    EM_UNROLL
    for (std::size_t i = 0; i < MR; ++i) x[i] = static_cast<std::uint16_t const*>(g.x[row + i]);
    Vec acc[MR][NV];
    start_tile<MR, NV>(g, row, vector, acc);
    multiply_bf16<MR, NV>(acc, w, x, g.k, ahead);
    store_tile<MR, NV>(g, row, vector, acc);
  }
};

inline float peak_bf16(std::size_t rounds) {
  std::uint16_t w[2 * kLanes];
  for (std::size_t i = 0; i < 2 * kLanes; ++i) w[i] = static_cast<std::uint16_t>(rounds + i);
  return peak<float>(rounds, [&](Vec const& sum, std::size_t, std::size_t) {
    return dot_bf16(sum, w, static_cast<std::uint32_t>(rounds));
  });
}

}  // namespace
}  // namespace expertmesh
