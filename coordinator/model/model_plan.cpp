#include "coordinator/model/model_plan.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>

#include "common/base/error.h"
#include "common/checkpoint/strict_json.h"
#include "common/experts/packed_weights.h"
#include "common/moe/placement.h"
#include "coordinator/model/layer_cost.h"
#include "coordinator/model/model_facts.h"

namespace expertmesh {
namespace {

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

std::string_view name_of(Quantization quantization) {
  switch (quantization) {
    case Quantization::none:
      return "none";
    case Quantization::int8:
      return "int8";
    case Quantization::int4:
      return "int4";
  }
  return {};
}

WeightFormat weight_format_of(DType dtype, Quantization quantization) {
  if (quantization == Quantization::int8) return kInt8Weights;
  if (quantization == Quantization::int4) return kInt4Weights;
  return dtype == DType::f32 ? kFloat32Weights : kBfloat16Weights;
}

ModelPlan plan_model(ModelSpec const& spec, WeightFormat weights, DType kv_dtype, std::size_t num_workers,
                     Holders const& holders) {
  ModelPlan plan;
  plan.parameters = num_parameters(spec);
  plan.worker_bytes.resize(num_workers);
  // Without one of its own a stack looks up the same table.
  std::size_t const own_tables = static_cast<std::size_t>(
      std::ranges::count_if(spec.stacks, [](StackSpec const& stack) { return stack.embedding.has_value(); }));
  plan.embedding_bytes = std::max<std::size_t>(own_tables, 1) * spec.vocab * spec.hidden * size_of(spec.stored_dtype);
  plan.coordinator_bytes = plan.embedding_bytes + packed_bytes(weights, spec.vocab, spec.hidden);
  std::size_t routed_active = 0;
  for (auto const& stack : spec.stacks) {
    plan.coordinator_bytes += spec.hidden * sizeof(float);  // final norm
    for (auto const& layer : stack.layers) {
      LayerCost const cost = cost_of(layer, spec.hidden, weights, kv_dtype, holders);
      plan.coordinator_bytes += cost.coordinator_bytes();
      if (stack.kind == StackKind::decoder) plan.kv_bytes_per_token += cost.kv_bytes;
      plan.cross_kv_bytes_per_token += cost.cross_kv_bytes;
      if (cost.num_experts == 0) continue;
      plan.routed_parameters += cost.expert_parameters * cost.num_experts;
      routed_active += cost.expert_parameters * cost.experts_per_token;
      plan.expert_bytes.push_back(cost.expert.bytes);
      for (std::size_t w = 0; w < num_workers; ++w) {
        ExpertRange const share = contiguous_share(cost.num_experts, num_workers, w);
        plan.worker_bytes[w] += (share.end - share.begin) * plan.expert_bytes.back();
      }
    }
  }
  plan.active_parameters = plan.parameters - plan.routed_parameters + routed_active;
  return plan;
}

namespace {

// The lines of a report: a name, a value.
class Lines {
 public:
  void add(std::string_view name, std::string const& value) { text_ += fmt::format("{:<18}{}\n", name, value); }
  [[nodiscard]] std::string const& text() const { return text_; }

 private:
  std::string text_;
};

std::string attention_text(AttentionSpec const& a) {
  if (auto const* latent = std::get_if<LatentProjection>(&a.projection))
    return fmt::format("{} heads over a latent of {} and {} rotated elements", a.num_heads, latent->kv_rank,
                       latent->rope_dim);
  auto const& p = std::get<GroupedProjection>(a.projection);
  return fmt::format("{} heads, {} key/value heads of {}", a.num_heads, p.num_kv_heads, p.head_dim);
}

// Empty if all layers see everything.
std::string spans_text(std::vector<LayerSpec> const& layers) {
  std::map<std::pair<SpanKind, std::size_t>, std::size_t> counts;
  for (auto const& layer : layers) ++counts[{layer.attention.span.kind, layer.attention.span.tokens}];
  std::string text;
  for (auto const& [span, count] : counts) {
    char const* const kind = span.first == SpanKind::window ? "window" : "chunks";
    text += (text.empty() ? "" : ", ") + (span.first == SpanKind::full
                                              ? fmt::format("all positions in {} layers", count)
                                              : fmt::format("{} of {} in {} layers", kind, span.second, count));
  }
  return counts.size() == 1 && counts.begin()->first.first == SpanKind::full ? "" : text;
}

void describe_layers(ModelSpec const& spec, Lines& lines) {
  auto const& layers = spec.decoder().layers;
  MoeFfnSpec const* moe = nullptr;  // families here have one kind of mixture
  for (auto const& stack : spec.stacks) {
    std::size_t moe_layers = 0;
    for (auto const& layer : stack.layers)
      if (auto const* m = std::get_if<MoeFfnSpec>(&layer.ffn)) {
        moe = m;
        ++moe_layers;
      }
    lines.add(stack.kind == StackKind::encoder ? "encoder layers" : "layers",
              fmt::format("{} ({} with experts, {} dense)", stack.layers.size(), moe_layers,
                          stack.layers.size() - moe_layers));
  }
  if (moe)
    lines.add("experts", fmt::format("{} a layer, {} for each token, FFN {}", moe->router.num_experts,
                                     moe->router.experts_per_token, moe->intermediate));
  if (moe && moe->capacity) lines.add("expert capacity", fmt::format("{} tokens of a sequence", *moe->capacity));
  if (moe && moe->shared)
    lines.add("shared expert", fmt::format("FFN {}, for every token", moe->shared->ffn.intermediate));
  lines.add("attention", attention_text(layers.front().attention));
  if (std::string const spans = spans_text(layers); !spans.empty()) lines.add("attention span", spans);
}

// Of the checkpoint's weights, what stays as it is stored.
std::string codes_text(ModelSpec const& spec, ServedAs const& served, DType dtype) {
  if (weight_format_of(dtype, served.quantization) != kBfloat16Weights) return "";
  auto const stored = [tensors = expected_tensors(spec).required](std::string_view name) {
    return std::ranges::any_of(tensors, [&](TensorInfo const& tensor) { return tensor.name.ends_with(name); });
  };
  if (stored("_scale_inv")) return ", from the bits of FP8 where it is stored so";
  return stored("_blocks") ? ", from the bits of MXFP4 where it is stored so" : "";
}

void describe_spec(ModelSpec const& spec, std::size_t num_workers, ServedAs const& served, Lines& lines,
                   nlohmann::ordered_json& json) {
  DType const dtype = numerics_dtype(spec, served.dtype);
  Quantization const quantization = served.quantization;
  Holders const holders{.coordinator = served.holder, .experts = served.holder};
  DType const kv_dtype = served.kv_dtype.value_or(dtype);
  json.update(model_facts(spec, dtype, quantization, kv_dtype, num_workers, holders));
  ModelPlan const plan = plan_model(spec, weight_format_of(dtype, quantization), kv_dtype, num_workers, holders);
  lines.add("family", spec.family);
  describe_layers(spec, lines);
  lines.add("hidden, vocab", fmt::format("{}, {}", spec.hidden, spec.vocab));
  lines.add("context", fmt::format("{} tokens{}{}", spec.max_position, spec.encoder() ? " of prompt and of answer" : "",
                                   spec.goes_beyond_max_position ? " unless --max-model-len says more" : ""));
  lines.add("parameters", fmt::format("{} in all, {} active", parameters_text(plan.parameters),
                                      parameters_text(plan.active_parameters)));
  std::string stored(name_of(spec.stored_dtype));
  for (auto const& [form, parameters] : stored_forms(spec))
    stored += fmt::format("; {} parameters as {}", parameters_text(parameters), form);
  lines.add("stored as", stored);
  lines.add("served as", std::string(name_of(dtype)) + (quantization == Quantization::none
                                                            ? codes_text(spec, served, dtype)
                                                            : fmt::format(", weights {}", name_of(quantization))));
  lines.add("coordinator", bytes_text(plan.coordinator_bytes) + " of weights");
  for (std::size_t w = 0; w < num_workers && plan.routed_parameters > 0; ++w)
    lines.add(fmt::format("worker {}", w + 1), bytes_text(plan.worker_bytes[w]) + " of experts");
  lines.add(
      "KV cache",
      fmt::format("{} bytes a token{}, {}", plan.kv_bytes_per_token,
                  spec.encoder() ? fmt::format(" of the answer, {} of the prompt", plan.cross_kv_bytes_per_token) : "",
                  name_of(kv_dtype)));
}

// spec: none if config.json was refused; the files are checked for themselves then.
void describe_checkpoint(std::filesystem::path const& model_dir, std::optional<ModelSpec> const& spec, Lines& lines,
                         nlohmann::ordered_json& json, std::vector<std::string>& problems) {
  auto const files = checkpoint_files(model_dir);
  if (files.empty()) {
    problems.emplace_back(
        "no weights here (neither model.safetensors nor an index): only --load-format dummy can serve this directory");
    return;
  }
  std::size_t bytes = 0;
  bool missing = false;
  for (auto const& file : files) {
    std::error_code error;
    std::size_t const size = std::filesystem::file_size(file, error);
    if (error) {
      missing = true;
      problems.push_back(one_line(file.filename().string()) + ": missing shard (" + error.message() + ")");
    } else {
      bytes += size;
    }
  }
  lines.add("checkpoint", fmt::format("{} file{}, {}", files.size(), files.size() == 1 ? "" : "s", bytes_text(bytes)));
  json["checkpoint"] = {{"files", files.size()}, {"bytes", bytes}};
  if (missing) return;
  auto const checkpoint = open_checkpoint(model_dir);
  if (spec) checkpoint->verify(expected_tensors(*spec));
}

}  // namespace

InfoReport describe_model(std::filesystem::path const& model_dir, std::size_t num_workers, ServedAs const& served) {
  Lines lines;
  std::vector<std::string> problems;
  auto const collect = [&problems](auto const& step) {
    try {
      step();
    } catch (std::exception const& error) {
      problems.emplace_back(error.what());
    }
  };
  lines.add("model", model_dir.string());
  nlohmann::ordered_json json{{"model", model_dir.string()}};
  std::optional<ModelSpec> spec;
  collect([&] { spec = read_model_spec(model_dir, {}); });
  if (spec) collect([&] { describe_spec(*spec, num_workers, served, lines, json); });
  std::error_code error;
  if (std::filesystem::is_directory(model_dir, error))
    collect([&] { describe_checkpoint(model_dir, spec, lines, json, problems); });
  for (auto const& problem : problems) lines.add("would be refused", problem);
  if (problems.empty()) lines.add("would be refused", "nothing");
  json["would_be_refused"] = problems;
  return {.text = lines.text(), .json = to_text(json), .servable = problems.empty()};
}

}  // namespace expertmesh
