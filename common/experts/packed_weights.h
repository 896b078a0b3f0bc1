// Weights of a checkpoint, packed for the GEMMs.
#pragma once
#include <array>
#include <cstddef>
#include <memory>
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
  WeightHome home{};
  ThreadPool* pool = nullptr;  // whose threads share a weight's rows; null: the caller alone. Not for a device
};
// Who multiplies a weight.
enum class Holder : std::uint8_t { processor, device };

// What the parts are packed as where bfloat16, or whatever `format` is, is asked for: bfloat16 numbers that the
// checkpoint has in FP8 or MXFP4 stay in those bits if the parts are alike in it and the holder has kernels for them.
// Of FP8, processors have them for scales of 32 numbers or a multiple, devices for 128 or a multiple.
WeightFormat packed_format(WeightFormat const& format, std::span<LinearPart const> parts, Holder holder);
// What load_linear() will take: for planning memory before loading.
std::size_t packed_linear_bytes(WeightFormat const& format, std::span<LinearPart const> parts, std::size_t k,
                                Holder holder = Holder::processor);

// The parts one below the other: [sum of rows, K], packed as packed_format() says. A part without a bias beside others
// with one has zeros. Throws what the reader throws; what could have stayed in codes and does not is logged, once.
PackedLinear load_linear(WeightReader& reader, WeightFormat const& format, std::span<LinearPart const> parts,
                         std::size_t k, PackingPlace const& place = {});

struct FfnShape {
  std::size_t hidden = 0;        // H
  std::size_t intermediate = 0;  // F
};
// packed_format() of gate_up and of down.
std::array<WeightFormat, 2> packed_formats(WeightFormat const& format, FfnTensors const& tensors, FfnShape const& shape,
                                           Holder holder);
FfnWeights load_ffn(WeightReader& reader, WeightFormat const& format, FfnTensors const& tensors, FfnShape const& shape,
                    ActivationSpec const& activation, PackingPlace const& place = {});
// Such weights on this host, and as they lie elsewhere: gate_up, its bias, down, its bias.
using FfnBytes = std::array<std::span<std::byte const>, 4>;
FfnBytes bytes_of(FfnWeights const& ffn);
std::array<std::size_t, 4> ffn_byte_counts(WeightFormat const& format, FfnTensors const& tensors, FfnShape const& shape,
                                           Holder holder = Holder::processor);
// keeper: of the bytes, of which there are ffn_byte_counts(). They stay where they are, unless the home has several
// nodes: then the weights are a copy that is spread over them.
FfnWeights ffn_of(FfnBytes const& bytes, std::shared_ptr<void const> const& keeper, WeightFormat const& format,
                  FfnTensors const& tensors, FfnShape const& shape, ActivationSpec const& activation,
                  WeightHome const& home = {});
// What its size_bytes() will be: for planning memory before loading.
std::size_t packed_ffn_bytes(WeightFormat const& format, FfnTensors const& tensors, FfnShape const& shape,
                             Holder holder = Holder::processor);

}  // namespace expertmesh
