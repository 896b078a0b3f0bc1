// What a worker has to know of a model: the shape of the experts and where their weights lie. Family-free: the
// coordinator builds it from the ModelSpec and sends it in the control plane's `assign`.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/config/weight_format.h"
#include "common/config/weight_slice.h"

namespace expertmesh {

// f of an FFN: with a gate, down(f(gate(x)) * up(x)); without one, down(f(up(x))).
enum class Activation : std::uint8_t {
  silu,          // x / (1 + e^-x)
  gelu,          // x Phi(x), by the error function (Hendrycks and Gimpel 2016)
  gelu_tanh,     // its tanh approximation
  relu,          // max(x, 0)
  clamped_silu,  // gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit): g / (1 + e^(-alpha g)) * (u + 1)
};

struct ActivationSpec {
  Activation kind = Activation::silu;
  float alpha = 0;  // clamped_silu only
  float limit = 0;  // clamped_silu only
  bool operator==(ActivationSpec const&) const = default;
};

// One FFN's weights in the checkpoint.
struct FfnTensors {
  std::optional<WeightSlice> gate{};       // [F,H]; none: an FFN without a gate
  WeightSlice up;                          // [F,H]
  WeightSlice down;                        // [H,F]
  std::optional<VectorSlice> gate_bias{};  // [F]
  std::optional<VectorSlice> up_bias{};    // [F]
  std::optional<VectorSlice> down_bias{};  // [H]
  bool operator==(FfnTensors const&) const = default;
};

// The routed experts of one MoE layer. They have gates and biases all or none.
struct ExpertLayerSpec {
  std::uint32_t layer = 0;       // index in its stack
  std::size_t hidden = 0;        // H
  std::size_t intermediate = 0;  // F
  ActivationSpec activation{};
  std::vector<FfnTensors> experts;  // [E]
};

struct ExpertModelSpec {
  std::vector<ExpertLayerSpec> layers;     // MoE layers only, ascending
  WeightFormat weights = kFloat32Weights;  // format the experts are packed in
  DType wire = DType::f32;                 // rows on the wire: f32 or bf16; expert outputs are rounded to it
};

}  // namespace expertmesh
