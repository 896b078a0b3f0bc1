// Token ids -> rows of the residual stream, with what the model adds of their positions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "coordinator/model/decoder_layer.h"

namespace expertmesh {

class TokenEmbedding {
 public:
  struct Limits {
    std::size_t tokens = 0;     // T
    std::size_t positions = 0;  // of the longest sequence, where the model adds something of them
  };
  // What lies in the mapped file is looked up there: its source must outlive this. other: of a stack that may have the
  // same tables, or null; its positions are at least these.
  TokenEmbedding(ModelSpec const& spec, StackSpec const& stack, WeightLoader const& loader, Limits const& limits,
                 TokenEmbedding const* other);
  // The step's ids -> out: [T,H]. Uses act.normed.
  void forward(StepContext const& step, MatrixView<float> out);
  // Of the sinusoids, where the model has them; beside the weights.
  static std::size_t sinusoid_bytes(ModelSpec const& spec, std::size_t positions);

 private:
  void add_sinusoids(StepContext const& step, MatrixView<float> out);

  std::string name_;
  std::shared_ptr<StoredTensor const> table_;                     // [V,H] on the host
  std::shared_ptr<AlignedBuffer<std::byte> const> device_table_;  // the same on the device, if there is one
  float multiplier_;
  std::optional<SinusoidalPositions> positions_;
  // [positions + 1, H], where the embedding is computed. Row n: of a sequence's nth token that is no padding; 0: zeros.
  std::shared_ptr<AlignedBuffer<float> const> sinusoids_;
  std::vector<std::uint32_t> numbers_;  // [T] rows of it
};

}  // namespace expertmesh
