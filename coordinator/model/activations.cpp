#include "coordinator/model/activations.h"

#include <algorithm>

namespace expertmesh {

namespace {

void add(GroupedProjection const& p, std::size_t heads, LayerMaxima& m) {
  m.qkv_columns = std::max(m.qkv_columns, (heads + 2 * p.num_kv_heads) * p.head_dim);
  m.attention_columns = std::max(m.attention_columns, heads * p.head_dim);
  m.head_dim = std::max(m.head_dim, p.head_dim);
}

void add(LatentProjection const& p, std::size_t heads, LayerMaxima& m) {
  std::size_t const key_dim = p.kv_rank + p.rope_dim;
  m.qkv_columns = std::max(m.qkv_columns, p.q_rank + key_dim + heads * (p.nope_dim + p.rope_dim));
  m.attention_columns = std::max({m.attention_columns, heads * p.value_dim, p.q_rank});
  m.latent_query_columns = std::max(m.latent_query_columns, heads * key_dim);
  m.latent_attention_columns = std::max(m.latent_attention_columns, heads * p.kv_rank);
  m.head_dim = std::max(m.head_dim, key_dim);
}

}  // namespace

LayerMaxima layer_maxima(ModelSpec const& spec) {
  LayerMaxima m;
  for (auto const& stack : spec.stacks) {
    for (auto const& layer : stack.layers) {
      auto const add_attention = [&](AttentionSpec const& a) {
        m.num_heads = std::max(m.num_heads, a.num_heads);
        std::visit([&](auto const& p) { add(p, a.num_heads, m); }, a.projection);
      };
      add_attention(layer.attention);
      if (layer.cross) add_attention(layer.cross->attention);
      if (auto const* dense = std::get_if<DenseFfnSpec>(&layer.ffn)) {
        m.dense_intermediate = std::max(m.dense_intermediate, dense->intermediate);
      } else {
        auto const& moe = std::get<MoeFfnSpec>(layer.ffn);
        m.expert_intermediate = std::max(m.expert_intermediate, moe.intermediate);
        m.num_experts = std::max(m.num_experts, moe.router.num_experts);
        m.experts_per_token = std::max(m.experts_per_token, moe.router.experts_per_token);
        m.has_noise = m.has_noise || moe.router.noise.has_value();
        m.has_shared_expert = m.has_shared_expert || moe.shared.has_value();
        m.has_gate_on_input = m.has_gate_on_input || moe.gate_on_input;
        if (moe.shared) m.dense_intermediate = std::max(m.dense_intermediate, moe.shared->ffn.intermediate);
      }
    }
  }
  return m;
}

namespace {
struct Sizes {
  std::size_t t, r;
  LayerMaxima m;
};
}  // namespace

Activations::Activations(ModelSpec const& spec, ActivationLimits const& limits, DeviceMemory* device) {
  auto const [t, r, m] = Sizes{limits.tokens, limits.logit_rows, layer_maxima(spec)};
  x = Matrix<float>(t, spec.hidden, device);
  normed = Matrix<float>(t, spec.hidden, device);
  qkv = Matrix<float>(t, m.qkv_columns, device);
  latent_queries = Matrix<float>(std::min(t, kLatentTokens), m.latent_query_columns, device);
  latent_attention = Matrix<float>(std::min(t, kLatentTokens), m.latent_attention_columns, device);
  attention = Matrix<float>(t, m.attention_columns, device);
  block_out = Matrix<float>(t, spec.hidden, device);
  gate_up = Matrix<float>(t, 2 * m.dense_intermediate, device);
  ffn_hidden = Matrix<float>(t, m.dense_intermediate, device);
  router = Matrix<float>(t, m.num_experts, device);
  noise_scale = Matrix<float>(m.has_noise ? t : 0, m.num_experts, device);
  noise = Matrix<float>(m.has_noise ? t : 0, m.num_experts, device);
  experts = AlignedBuffer<std::uint32_t>(t * m.experts_per_token);
  gate_weights = AlignedBuffer<float>(t * m.experts_per_token);
  max_experts_per_token = m.experts_per_token;
  if (device) {
    std::size_t const slots = moe_layers(spec).size() * t * m.experts_per_token;
    device_experts = AlignedBuffer<std::uint32_t>(slots, device);
    device_gate_weights = AlignedBuffer<float>(slots, device);
    std::vector<float> const ones(m.has_gate_on_input ? t * m.experts_per_token : 0, 1.0F);
    device_unit_weights = AlignedBuffer<float>(std::span(ones), device);
  }
  shared_out = Matrix<float>(m.has_shared_expert ? t : 0, spec.hidden, device);
  shared_gate = Matrix<float>(m.has_shared_expert ? t : 0, 1, device);
  std::size_t const input_slots = m.has_gate_on_input ? t * m.experts_per_token : 0;
  expert_in = Matrix<float>(input_slots, spec.hidden, device);
  expert_out = Matrix<float>(input_slots, spec.hidden, device);
  unit_weights = AlignedBuffer<float>(input_slots);
  head_in = Matrix<float>(r, spec.hidden, device);
  logits = Matrix<float>(r, spec.vocab, device);
}

std::size_t Activations::size_bytes() const {
  return x.size_bytes() + normed.size_bytes() + qkv.size_bytes() + latent_queries.size_bytes() +
         latent_attention.size_bytes() + attention.size_bytes() + block_out.size_bytes() + gate_up.size_bytes() +
         ffn_hidden.size_bytes() + router.size_bytes() + noise_scale.size_bytes() + noise.size_bytes() +
         experts.size_bytes() + gate_weights.size_bytes() + shared_out.size_bytes() + shared_gate.size_bytes() +
         expert_in.size_bytes() + expert_out.size_bytes() + unit_weights.size_bytes() + head_in.size_bytes() +
         logits.size_bytes();
}

}  // namespace expertmesh
