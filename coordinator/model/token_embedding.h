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
  // What lies in the mapped file is looked up there: its source must outlive this. max_tokens: T. other: of a stack
  // that may have the same table, or null.
  TokenEmbedding(ModelSpec const& spec, StackSpec const& stack, WeightLoader const& loader, std::size_t max_tokens,
                 TokenEmbedding const* other);
  // The step's ids -> out: [T,H]
  void forward(StepContext const& step, MatrixView<float> out);

 private:
  void add_sinusoids(StepContext const& step, MatrixView<float> out);

  std::string name_;
  std::shared_ptr<StoredTensor const> table_;                     // [V,H] on the host
  std::shared_ptr<AlignedBuffer<std::byte> const> device_table_;  // the same on the device, if there is one
  float multiplier_;
  std::optional<SinusoidalPositions> sinusoids_;
  std::vector<float> frequencies_;      // [H/2] e^(-i ln(10000) / (H/2 - 1))
  std::vector<std::uint32_t> numbers_;  // [T] positions as the sinusoids count them
};

}  // namespace expertmesh
