// What a worker has to know of a model: the shape of the experts and where their weights lie. Family-free: the
// coordinator builds it from the ModelSpec and sends it in the control plane's `assign`.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/config/weight_format.h"

namespace expertmesh {

enum class Activation : std::uint8_t { silu };  // silu: down(silu(gate(x)) * up(x))

// One routed expert of one layer. Tensor names as in the checkpoint.
struct ExpertTensors {
  std::string gate;  // [F,H]
  std::string up;    // [F,H]
  std::string down;  // [H,F]
};

// The routed experts of one MoE layer.
struct ExpertLayerSpec {
  std::uint32_t layer = 0;       // index in its stack
  std::size_t hidden = 0;        // H
  std::size_t intermediate = 0;  // F
  Activation activation = Activation::silu;
  std::vector<ExpertTensors> experts;  // [E]
};

struct ExpertModelSpec {
  std::vector<ExpertLayerSpec> layers;     // MoE layers only, ascending
  WeightFormat weights = kFloat32Weights;  // format the experts are packed in
  DType wire = DType::f32;                 // rows on the wire: f32 or bf16; expert outputs are rounded to it
};

}  // namespace expertmesh
