// Weights of a checkpoint, packed for the GEMMs.
#pragma once
#include <cstddef>
#include <optional>
#include <span>

#include "common/base/thread_pool.h"
#include "common/checkpoint/weight_reader.h"
#include "common/config/expert_spec.h"
#include "common/kernels/grouped_ffn.h"

namespace expertmesh {

struct LinearPart {
  WeightSlice weight;  // [rows,K]
  std::size_t rows = 0;
  std::optional<VectorSlice> bias{};  // [rows]
};
// Where packed weights go, and who packs them.
struct PackingPlace {
  DeviceMemory* device = nullptr;  // null: this host
  ThreadPool* pool = nullptr;      // whose threads share a weight's rows; null: the caller alone. Not for a device
};
// The parts one below the other: [sum of rows, K]. A part without a bias beside others with one has zeros. Throws what
// the reader throws.
PackedLinear load_linear(WeightReader& reader, WeightFormat const& format, std::span<LinearPart const> parts,
                         std::size_t k, PackingPlace const& place = {});

struct FfnShape {
  std::size_t hidden = 0;        // H
  std::size_t intermediate = 0;  // F
};
FfnWeights load_ffn(WeightReader& reader, WeightFormat const& format, FfnTensors const& tensors, FfnShape const& shape,
                    ActivationSpec const& activation, PackingPlace const& place = {});
// What its size_bytes() will be: for planning memory before loading.
std::size_t packed_ffn_bytes(WeightFormat const& format, FfnTensors const& tensors, FfnShape const& shape);

}  // namespace expertmesh
