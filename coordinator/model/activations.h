// Every activation of the decoder, by name and shape, allocated once. T: most tokens of a step, R: most rows of one
// LM-head call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/tensor/tensor.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

// Latent attention works on this many tokens at a time: its queries are several times wider than the others.
constexpr std::size_t kLatentTokens = 64;  // S

struct ActivationLimits {
  std::size_t tokens = 0;      // T
  std::size_t logit_rows = 0;  // R
};

struct Activations {
  // device: that computes them; null: this host.
  Activations(ModelSpec const& spec, ActivationLimits const& limits, DeviceMemory* device = nullptr);
  [[nodiscard]] std::size_t size_bytes() const;

  Matrix<float> x;                       // [T,H] residual stream
  Matrix<float> normed;                  // [T,H] input of attention, router, experts and FFN
  Matrix<float> qkv;                     // [T,(Q+2G)*D]; with latents [T, latents and rotated key, then queries]
  Matrix<float> latent_queries;          // [S,Q*(C+R)] queries against latents; S = kLatentTokens at most
  Matrix<float> latent_attention;        // [S,Q*C] sums of latents
  Matrix<float> attention;               // [T,Q*D] of values
  Matrix<float> block_out;               // [T,H] what a block adds to the residual stream
  Matrix<float> gate_up;                 // [T,2I] dense layers
  Matrix<float> ffn_hidden;              // [T,I]
  Matrix<float> router;                  // [T,E] logits x Wg
  Matrix<float> noise_scale;             // [T,E] logits x Wn (noisy top-k only)
  Matrix<float> noise;                   // [T,E] standard normal
  AlignedBuffer<std::uint32_t> experts;  // [T,K] on the host
  AlignedBuffer<float> gate_weights;     // [T,K] on the host
  // The same on the device, if there is one, of every MoE layer until the step is over.
  AlignedBuffer<std::uint32_t> device_experts;  // [MoE layers][tokens of the step * the largest K]
  AlignedBuffer<float> device_gate_weights;
  AlignedBuffer<float> device_unit_weights;  // [T*K] ones, where gate weights multiply the experts' inputs
  std::size_t max_experts_per_token = 0;
  Matrix<float> shared_out;           // [T,H] of the shared expert
  Matrix<float> shared_gate;          // [T,1]
  Matrix<float> expert_in;            // [T*K,H] where gate weights multiply the experts' inputs
  Matrix<float> expert_out;           // [T*K,H] the same
  AlignedBuffer<float> unit_weights;  // [T*K] ones, the same, on the host
  Matrix<float> head_in;              // [R,H] final-normed rows that need logits
  Matrix<float> logits;               // [R,V]
  std::vector<float> on_host;         // of a device's activations: what is looked at just now; grows as needed
};

// The largest value of each dimension over the layers.
struct LayerMaxima {
  std::size_t qkv_columns = 0;               // (Q+2G)*D, or q_rank + C+R + Q*(nope+R)
  std::size_t attention_columns = 0;         // Q*D, and q_rank: what a weight of an attention takes in
  std::size_t latent_query_columns = 0;      // Q*(C+R)
  std::size_t latent_attention_columns = 0;  // Q*C
  std::size_t head_dim = 0;                  // of keys and values in paged_attention()
  std::size_t num_heads = 0;                 // Q of it
  std::size_t dense_intermediate = 0;
  std::size_t expert_intermediate = 0;
  std::size_t num_experts = 0;
  std::size_t experts_per_token = 0;
  bool has_noise = false;
  bool has_shared_expert = false;
  bool has_gate_on_input = false;
};
LayerMaxima layer_maxima(ModelSpec const& spec);

}  // namespace expertmesh
