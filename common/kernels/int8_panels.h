// How int8 weights lie in the panels of a PackedMatrix. A panel is one stream that the GEMM reads from end to end: for
// each group of K the scales, then steps of four k:
//   [ceil(K/128)] x { f32 [32] scales, u8 [ceil(k/4)][32][4] }    k: 128, the last group's may be fewer
// A byte is the whole number + 128: unsigned, as vpdpbusd wants one of its operands. Padding columns have the scale 0;
// padding k meet activations that are 0.
#pragma once
#include <cstddef>

#include "common/kernels/int8_group.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

constexpr std::size_t kInt8StepK = 4;
constexpr std::size_t kInt8StepBytes = kInt8StepK * kPanelColumns;
constexpr std::size_t kInt8ScaleBytes = kPanelColumns * sizeof(float);
constexpr std::size_t kInt8BlockBytes = kInt8ScaleBytes + kInt8Group / kInt8StepK * kInt8StepBytes;  // a whole group
constexpr int kInt8Bias = 128;

inline std::size_t int8_groups(std::size_t k) {
  return (k + kInt8Group - 1) / kInt8Group;
}
inline std::size_t int8_panel_bytes(std::size_t k) {
  return int8_groups(k) * kInt8ScaleBytes + (k + kInt8StepK - 1) / kInt8StepK * kInt8StepBytes;
}

}  // namespace
}  // namespace expertmesh
