// Takes the coordinator's own tensors out of a WeightSource: packed for the GEMMs, or as floats, counting bytes.
#pragma once
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "common/experts/packed_weights.h"

namespace expertmesh {

class WeightLoader {
 public:
  // on_bytes hears the checkpoint bytes read since the last call.
  WeightLoader(WeightSource const& source, WeightFormat format, std::function<void(std::size_t)> on_bytes,
               PackingPlace const& place = {})
      : source_(source), format_(format), on_bytes_(std::move(on_bytes)), place_(place) {}

  [[nodiscard]] DeviceMemory* device() const { return place_.home.device; }

  [[nodiscard]] bool holds(std::string_view name) const { return source_.holds(name); }
  // The parts one below the other, [sum of rows, K], in the profile's format.
  [[nodiscard]] PackedLinear linear(std::initializer_list<LinearPart> parts, std::size_t k) const;
  // Routers stay in fp32 whatever the profile: their logits decide, and they are small.
  [[nodiscard]] PackedLinear linear_float32(LinearPart const& part, std::size_t k) const;
  // An FFN of this process, in the profile's format.
  [[nodiscard]] FfnWeights ffn(FfnTensors const& tensors, FfnShape const& shape,
                               ActivationSpec const& activation) const;
  [[nodiscard]] AlignedBuffer<float> floats(VectorSlice const& slice, std::size_t n) const;
  [[nodiscard]] AlignedBuffer<float> floats(std::string const& name, std::size_t n) const {
    return floats(VectorSlice{name}, n);
  }
  // [n,k] in fp32 on the host, and such a matrix packed in the profile's format: for weights that are rearranged in
  // between.
  [[nodiscard]] Matrix<float> numbers(WeightSlice const& slice, std::size_t n, std::size_t k) const;
  [[nodiscard]] PackedMatrix packed(MatrixView<float const> numbers) const;
  // [rows,K] as stored, on the host, for row lookups.
  [[nodiscard]] StoredTensor stored(std::string const& name, std::size_t rows, std::size_t k) const;

 private:
  template <class Read>
  auto counted(Read read) const;

  WeightSource const& source_;
  WeightFormat format_;
  std::function<void(std::size_t)> on_bytes_;
  PackingPlace place_;
};

}  // namespace expertmesh
