// What a worker has to know of a model: the shape of the experts and where their weights lie. Family-free: the
// coordinator builds it from the ModelSpec and sends it in the control plane's `assign`.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/config/activation.h"
#include "common/config/weight_format.h"
#include "common/config/weight_slice.h"

namespace expertmesh {

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
  std::uint32_t layer = 0;       // numbered through all stacks
  std::size_t hidden = 0;        // H
  std::size_t intermediate = 0;  // F
  ActivationSpec activation{};
  std::vector<FfnTensors> experts;  // [E]
  bool operator==(ExpertLayerSpec const&) const = default;
};

struct ExpertModelSpec {
  std::vector<ExpertLayerSpec> layers;     // MoE layers only, ascending
  WeightFormat weights = kFloat32Weights;  // format the experts are packed in
  DType wire = DType::f32;                 // rows on the wire: f32 or bf16; expert outputs are rounded to it
  bool operator==(ExpertModelSpec const&) const = default;
};

// H of the widest layer.
std::size_t max_hidden(ExpertModelSpec const& model);

// What contradicts itself or cannot be computed, field first ("experts[2].up: …"); empty: nothing. A spec without
// problems may still name tensors that are not there: reading them tells.
std::string problem_of(FfnTensors const& tensors, std::size_t hidden, std::size_t intermediate);
std::string problem_of(ActivationSpec const& activation, bool gated);
std::string problem_of(ExpertLayerSpec const& layer);

}  // namespace expertmesh
