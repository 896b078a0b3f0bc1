#include "coordinator/model/model_plan.h"

#include <spdlog/fmt/fmt.h>

#include "common/base/error.h"
#include "common/kernels/packed_matrix.h"
#include "common/moe/placement.h"

namespace expertmesh {
namespace {

std::size_t elements(TensorInfo const& tensor) {
  std::size_t n = 1;
  for (std::size_t dimension : tensor.shape) n *= dimension;
  return n;
}

// The coordinator keeps matrices packed and vectors as fp32; the embedding is looked up in the mapped file.
std::size_t coordinator_bytes_of(TensorInfo const& tensor, WeightFormat weights) {
  return tensor.shape.size() == 1 ? tensor.shape[0] * sizeof(float)
                                  : packed_bytes(weights, tensor.shape[0], tensor.shape[1]);
}

std::string bytes_text(std::size_t bytes) {
  return bytes >= 1000000000 ? fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9)
                             : fmt::format("{:.2f} MB", static_cast<double>(bytes) / 1e6);
}

std::string parameters_text(std::size_t n) {
  return n >= 100000000 ? fmt::format("{:.2f} B", static_cast<double>(n) / 1e9)
                        : fmt::format("{:.2f} M", static_cast<double>(n) / 1e6);
}

}  // namespace

DType numerics_dtype(ModelSpec const& spec, std::optional<DType> wanted) {
  return wanted.value_or(spec.stored_dtype == DType::f32 ? DType::f32 : DType::bf16);
}

WeightFormat weight_format_of(DType dtype) {
  return dtype == DType::f32 ? kFloat32Weights : kBfloat16Weights;
}

ModelPlan plan_model(ModelSpec const& spec, WeightFormat weights, DType kv_dtype, std::size_t num_workers) {
  ModelPlan plan{.worker_bytes = std::vector<std::size_t>(num_workers)};
  for (auto const& tensor : required_tensors(spec)) plan.parameters += elements(tensor);
  std::size_t routed_active = 0;
  std::size_t routed_bytes = 0;  // as if the coordinator packed them
  for (auto const& stack : spec.stacks)
    for (auto const& layer : stack.layers) {
      plan.kv_bytes_per_token += 2 * layer.attention.num_kv_heads * layer.attention.head_dim * size_of(kv_dtype);
      auto const* moe = std::get_if<MoeFfnSpec>(&layer.ffn);
      if (!moe) continue;
      std::size_t const per_expert = 3 * spec.hidden * moe->intermediate;
      plan.routed_parameters += per_expert * moe->router.num_experts;
      routed_active += per_expert * moe->router.experts_per_token;
      std::size_t const expert_bytes = packed_bytes(weights, 2 * moe->intermediate, spec.hidden) +
                                       packed_bytes(weights, spec.hidden, moe->intermediate);
      routed_bytes += moe->router.num_experts * (2 * packed_bytes(weights, moe->intermediate, spec.hidden) +
                                                 packed_bytes(weights, spec.hidden, moe->intermediate));
      for (std::size_t w = 0; w < num_workers; ++w) {
        ExpertRange const share = contiguous_share(moe->router.num_experts, num_workers, w);
        plan.worker_bytes[w] += (share.end - share.begin) * expert_bytes;
      }
    }
  plan.active_parameters = plan.parameters - plan.routed_parameters + routed_active;
  for (auto const& tensor : required_tensors(spec)) plan.coordinator_bytes += coordinator_bytes_of(tensor, weights);
  plan.coordinator_bytes -= routed_bytes;
  return plan;
}

InfoReport describe_model(std::filesystem::path const& model_dir, std::size_t num_workers,
                          std::optional<DType> wanted) {
  InfoReport report;
  ModelSpec spec;
  try {
    spec = read_model_spec(model_dir, {});
  } catch (std::exception const& error) {
    report.text = fmt::format("model             {}\nwould be refused  {}\n", model_dir.string(), error.what());
    return report;
  }
  DType const dtype = numerics_dtype(spec, wanted);
  ModelPlan const plan = plan_model(spec, weight_format_of(dtype), dtype, num_workers);
  auto const& layers = spec.stacks.front().layers;
  MoeFfnSpec const* moe = nullptr;
  std::size_t moe_layers = 0;
  for (auto const& layer : layers)
    if (auto const* m = std::get_if<MoeFfnSpec>(&layer.ffn)) {
      moe = m;
      ++moe_layers;
    }
  auto const line = [&](char const* name, std::string const& value) {
    report.text += fmt::format("{:<18}{}\n", name, value);
  };
  line("model", model_dir.string());
  line("family", spec.family);
  line("layers", fmt::format("{} ({} with experts, {} dense)", layers.size(), moe_layers, layers.size() - moe_layers));
  if (moe)
    line("experts", fmt::format("{} a layer, {} for each token, FFN {}", moe->router.num_experts,
                                moe->router.experts_per_token, moe->intermediate));
  auto const& a = layers.front().attention;
  line("attention", fmt::format("{} heads, {} key/value heads of {}{}", a.num_heads, a.num_kv_heads, a.head_dim,
                                a.window ? fmt::format(", window {}", *a.window) : ""));
  line("hidden, vocab", fmt::format("{}, {}", spec.hidden, spec.vocab));
  line("context", fmt::format("{} tokens", spec.max_position));
  line("parameters",
       fmt::format("{} in all, {} active", parameters_text(plan.parameters), parameters_text(plan.active_parameters)));
  line("stored as", std::string(name_of(spec.stored_dtype)));
  line("served as", std::string(name_of(dtype)));
  line("coordinator", bytes_text(plan.coordinator_bytes) + " of weights");
  for (std::size_t w = 0; w < num_workers && moe; ++w)
    line(fmt::format("worker {}", w + 1).c_str(), bytes_text(plan.worker_bytes[w]) + " of experts");
  line("KV cache", fmt::format("{} bytes a token", plan.kv_bytes_per_token));
  try {
    bool const has_weights = std::filesystem::exists(model_dir / "model.safetensors") ||
                             std::filesystem::exists(model_dir / "model.safetensors.index.json");
    if (has_weights) {
      open_checkpoint(model_dir)->verify(required_tensors(spec), optional_tensors(spec));
      report.servable = true;
      line("would be refused", "nothing");
    } else {
      line("would be refused",
           "no weights here (neither model.safetensors nor an index): only --load-format dummy can serve this "
           "directory");
    }
  } catch (std::exception const& error) {
    line("would be refused", error.what());
  }
  return report;
}

}  // namespace expertmesh
