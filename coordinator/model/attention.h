// Grouped-query attention of one layer: projections, optional q/k norm, RoPE, KV cache, output projection.
#pragma once
#include <vector>

#include "common/kernels/packed_matrix.h"
#include "common/kernels/paged_attention.h"
#include "coordinator/model/activations.h"
#include "coordinator/model/weight_loader.h"

namespace expertmesh {

// Rotation angles of a step's tokens for one RopeSpec and head size.
struct RopeAngles {
  MatrixView<float const> cos;  // [T,D/2]
  MatrixView<float const> sin;
};

class Attention {
 public:
  Attention(AttentionSpec spec, std::size_t hidden, WeightLoader const& loader);

  // x: [T,H] normed input, out: [T,H]. Writes the keys and values of these tokens first, then attends.
  void forward(Exec const& exec, MatrixView<float const> x, RopeAngles const& angles, TokenPlaces const& places,
               KvLayer& cache, Activations& act, MatrixView<float> out) const;
  [[nodiscard]] AttentionSpec const& spec() const { return spec_; }
  [[nodiscard]] std::size_t size_bytes() const { return qkv_.size_bytes() + o_.size_bytes(); }

 private:
  AttentionSpec spec_;
  GroupedProjection heads_;
  PackedMatrix qkv_;           // [(Q+2G)*D,H]
  PackedMatrix o_;             // [H,Q*D]
  std::vector<float> q_norm_;  // [D] or empty
  std::vector<float> k_norm_;
};

}  // namespace expertmesh
