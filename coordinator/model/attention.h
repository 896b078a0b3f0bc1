// Attention of one layer: projections, norms, RoPE, KV cache, softmax, output projection.
#pragma once
#include <optional>
#include <variant>
#include <vector>

#include "common/kernels/linear.h"
#include "common/kernels/paged_attention.h"
#include "coordinator/model/activations.h"
#include "coordinator/model/norm.h"
#include "coordinator/model/rope_table.h"
#include "coordinator/model/weight_loader.h"

namespace expertmesh {

// What an attention works on in a step.
struct AttentionStep {
  Exec const& exec;
  RopeAngles const& angles;  // of its RopeSpec
  TokenPlaces const& places;
  KvLayer& cache;
  Activations& act;
  RelativeBias const* bias;  // or null
};

// Grouped-query attention (Ainslie et al. 2023) with its special cases, one key/value head for all or for each.
class GroupedAttention {
 public:
  GroupedAttention(AttentionSpec const& spec, std::size_t hidden, WeightLoader const& loader);
  // x: [T,H] -> out: [T,Q*D]
  void forward(AttentionStep const& step, AttentionSpec const& spec, std::span<float const> sinks,
               MatrixView<float const> x, MatrixView<float> out) const;
  // Keys and values only.
  void write(AttentionStep const& step, AttentionSpec const& spec, MatrixView<float const> x) const;
  [[nodiscard]] std::size_t size_bytes() const;

 private:
  // [T,Q*D], [T,G*D], [T,G*D]; of act.qkv.
  struct Projected {
    MatrixView<float> q, k, v;
  };
  Projected project(AttentionStep const& step, AttentionSpec const& spec, MatrixView<float const> x) const;
  // Of queries or of keys.
  struct HeadNorm {
    QkNormSpec spec;
    AlignedBuffer<float> weight;  // [D], or [heads*D] over a whole projection, or empty
  };
  static std::optional<HeadNorm> head_norm(std::optional<QkNormSpec> const& spec, std::size_t num_heads,
                                           std::size_t head_dim, WeightLoader const& loader);
  void normalise(Exec const& exec, bool after_rope, MatrixView<float> q, std::size_t num_heads,
                 MatrixView<float> k) const;

  std::size_t num_kv_heads_;
  std::size_t head_dim_;
  std::optional<float> clip_;
  PackedLinear qkv_;  // [(Q+2G)*D,H]
  std::optional<HeadNorm> q_norm_;
  std::optional<HeadNorm> k_norm_;
};

// Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434) in the form that never makes keys and values out of
// the latents: q.(W_UK c) = (W_UK^T q).c, and the sum of weighted values W_UV c is W_UV times the sum of latents.
class LatentAttention {
 public:
  LatentAttention(AttentionSpec const& spec, std::size_t hidden, WeightLoader const& loader);
  // x: [T,H] -> out: [T,Q*value_dim]
  void forward(AttentionStep const& step, AttentionSpec const& spec, std::span<float const> sinks,
               MatrixView<float const> x, MatrixView<float> out) const;
  [[nodiscard]] std::size_t size_bytes() const;

 private:
  std::size_t q_rank_, kv_rank_, nope_dim_, rope_dim_, value_dim_;
  PackedLinear down_;                 // [q_rank+C+R,H] q_a and kv_a
  std::optional<Norm> q_a_norm_;      // [q_rank]
  Norm kv_a_norm_;                    // [C]
  PackedLinear q_b_;                  // [Q*(nope+R), q_rank or H]
  std::vector<PackedMatrix> keys_;    // [Q] W_UK^T [C,nope]
  std::vector<PackedMatrix> values_;  // [Q] W_UV [value,C]
};

class Attention {
 public:
  Attention(AttentionSpec spec, std::size_t hidden, WeightLoader const& loader);

  // x: [T,H] normed input, out: [T,H]. Writes what the cache keeps of these tokens first, then attends.
  void forward(Exec const& exec, MatrixView<float const> x, RopeAngles const& angles, TokenPlaces const& places,
               KvLayer& cache, Activations& act, MatrixView<float> out) const;
  // The first half of it: the cache's part of these tokens, for layers whose tokens look at later ones, too.
  void write(Exec const& exec, MatrixView<float const> x, RopeAngles const& angles, TokenPlaces const& places,
             KvLayer& cache, Activations& act) const;
  [[nodiscard]] AttentionSpec const& spec() const { return spec_; }
  [[nodiscard]] std::size_t size_bytes() const;

 private:
  AttentionSpec spec_;
  std::variant<GroupedAttention, LatentAttention> heads_;
  AlignedBuffer<float> sinks_;  // [Q] or empty
  std::optional<RelativeBias> bias_;
  PackedLinear o_;  // [H,Q*D]
};

// Attention of a decoder's tokens to the encoder's output, whose keys and values are computed once.
class CrossAttention {
 public:
  CrossAttention(AttentionSpec const& spec, std::size_t hidden, WeightLoader const& loader);

  // encoded: [T,H] of the encoder's output, at `places`.
  void write(Exec const& exec, MatrixView<float const> encoded, TokenPlaces const& places, KvLayer& cache,
             Activations& act) const;
  // x: [T,H] normed input, out: [T,H].
  void forward(Exec const& exec, MatrixView<float const> x, TokenPlaces const& places, KvLayer const& cache,
               Activations& act, MatrixView<float> out) const;

 private:
  std::size_t num_heads_, num_kv_heads_, head_dim_;
  float softmax_scale_;
  PackedLinear q_;   // [Q*D,H]
  PackedLinear kv_;  // [2G*D,H]
  PackedLinear o_;   // [H,Q*D]
};

}  // namespace expertmesh
