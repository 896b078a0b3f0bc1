#include "coordinator/engine/step_memory.h"

#include <algorithm>
#include <vector>

#include "common/experts/packed_weights.h"
#include "coordinator/experts/resident_experts.h"
#include "coordinator/model/activations.h"
#include "coordinator/model/kv_cache.h"
#include "coordinator/model/rope_table.h"
#include "coordinator/model/step_inputs.h"
#include "coordinator/model/token_embedding.h"
#include "coordinator/sampling/device_sampler.h"

namespace expertmesh {
namespace {

// Adds up what is asked for, and has none of it.
class CountedMemory final : public DeviceMemory {
 public:
  void* allocate(std::size_t bytes) override {
    bytes_ += bytes;
    return this;  // nobody follows it
  }
  void release(void* /*memory*/) noexcept override {}
  void upload(void* /*to*/, void const* /*from*/, std::size_t /*bytes*/) override {}
  void download(void* /*to*/, void const* /*from*/, std::size_t /*bytes*/) override {}
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

std::vector<RopeSpec> different_ropes(ModelSpec const& spec) {
  std::vector<RopeSpec> ropes;
  for (LayerSpec const& layer : spec.decoder().layers)
    if (std::ranges::find(ropes, layer.attention.rope) == ropes.end()) ropes.push_back(layer.attention.rope);
  return ropes;
}

// Of the sinusoids of all stacks, and of what an encoder has besides the decoder's buffers, which serve it, too.
std::size_t encoder_bytes(ModelSpec const& spec, StepSizes const& sizes) {
  std::size_t const rows = std::max(sizes.length, sizes.tokens);
  std::size_t const sinusoids = TokenEmbedding::sinusoid_bytes(spec, rows);
  if (!spec.encoder()) return sinusoids;
  return sinusoids + rows * spec.hidden * sizeof(float) + StepInputs::most_numbers(rows) * sizeof(std::uint32_t);
}

// CUDA gives small allocations parts of a page, and whole pages to others.
std::size_t in_pages(std::size_t bytes) {
  constexpr std::size_t kPage = std::size_t{2} << 20;
  return bytes < kPage / 2 ? bytes : (bytes + kPage - 1) / kPage * kPage;
}

}  // namespace

ExecLimits exec_limits(ModelSpec const& spec, StepSizes const& sizes, bool rows_leave) {
  LayerMaxima const m = layer_maxima(spec);
  return {
      .max_rows = std::max(sizes.tokens * std::max<std::size_t>(m.experts_per_token, 1), sizes.logit_rows),
      .max_columns = std::max({spec.hidden, m.attention_columns, 2 * m.dense_intermediate, 2 * m.expert_intermediate}),
      .max_head_dim = m.head_dim,
      .max_heads = m.num_heads,
      .max_positions = sizes.length,
      .max_hidden = rows_leave ? spec.hidden : 0};
}

std::size_t device_buffer_bytes(ModelSpec const& spec, StepSizes const& sizes, ExpertModelSpec const* experts,
                                Device const& device) {
  ExecLimits const limits = exec_limits(spec, sizes, experts == nullptr);
  std::size_t scratch = device.scratch_bytes(limits);
  std::size_t resident = 0;
  if (experts != nullptr && !experts->layers.empty()) {
    ExchangeShape const shape = exchange_shape(spec, sizes.tokens);
    scratch = std::max(scratch,
                       device.scratch_bytes(ResidentExperts::exec_limits(*experts, shape.rows, shape.experts_per_row)));
    resident = ResidentExperts::buffer_bytes(*experts, shape.rows, shape.experts_per_row);
  }
  CountedMemory counted;
  Activations const activations(spec, {.tokens = sizes.tokens, .logit_rows = sizes.logit_rows}, &counted);
  for (RopeSpec const& rope : different_ropes(spec)) RopeTable const table(rope, sizes.tokens, &counted);
  std::size_t const inputs =
      StepInputs::most_bytes(kv_cache_specs(spec, DType::f32).size(), sizes.tokens, sizes.sequences, sizes.length);
  return Exec::device_bytes(limits) + scratch + resident + counted.bytes() + inputs + encoder_bytes(spec, sizes) +
         DeviceSampler::device_bytes(spec.vocab, sizes.logit_rows);
}

std::size_t device_expert_bytes(ExpertModelSpec const& experts) {
  std::size_t bytes = 0;
  for (ExpertLayerSpec const& layer : experts.layers)
    for (FfnTensors const& ffn : layer.experts) {
      auto const [gate_up, gate_up_bias, down, down_bias] =
          ffn_byte_counts(experts.weights, ffn, {layer.hidden, layer.intermediate}, Holder::device);
      bytes += in_pages(gate_up) + gate_up_bias + in_pages(down) + down_bias;
    }
  return bytes;
}

}  // namespace expertmesh
