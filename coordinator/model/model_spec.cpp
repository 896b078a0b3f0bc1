#include "coordinator/model/model_spec.h"

#include <algorithm>
#include <cmath>

#include "common/base/error.h"
#include "coordinator/model/config_reader.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

void add_attention(AttentionSpec const& a, std::size_t hidden, std::vector<TensorInfo>& out) {
  out.push_back({a.q, {a.num_heads * a.head_dim, hidden}});
  out.push_back({a.k, {a.num_kv_heads * a.head_dim, hidden}});
  out.push_back({a.v, {a.num_kv_heads * a.head_dim, hidden}});
  out.push_back({a.o, {hidden, a.num_heads * a.head_dim}});
  if (a.q_norm) out.push_back({a.q_norm->weight, {a.head_dim}});
  if (a.k_norm) out.push_back({a.k_norm->weight, {a.head_dim}});
}

void add_ffn(std::string const& gate, std::string const& up, std::string const& down, std::size_t hidden,
             std::size_t intermediate, std::vector<TensorInfo>& out) {
  out.push_back({gate, {intermediate, hidden}});
  out.push_back({up, {intermediate, hidden}});
  out.push_back({down, {hidden, intermediate}});
}

DType read_stored_dtype(ConfigReader& config) {
  char const* field = config.has("torch_dtype") ? "torch_dtype" : "dtype";
  std::string const name = config.text_or(field, "float32");
  if (std::string const other = config.text_or("dtype", name); other != name)
    config.refuse("dtype", "'" + other + "' differs from torch_dtype '" + name + "'");
  for (DType type : {DType::f32, DType::bf16, DType::f16})
    if (name == name_of(type)) return type;
  config.refuse(field, "unknown type '" + name + "'");
}

void check_token_ids(ModelSpec const& spec, ConfigReader& config) {
  for (TokenId id : spec.eos_ids)
    if (static_cast<std::size_t>(id) >= spec.vocab)
      config.refuse("eos_token_id", std::to_string(id) + " is not below vocab_size " + std::to_string(spec.vocab));
}

void read_generation_config(std::filesystem::path const& file, ModelSpec& spec) {
  ConfigReader config(file);
  if (config.has("eos_token_id")) spec.eos_ids = config.token_ids("eos_token_id");
  if (config.has("temperature")) {
    spec.default_temperature = static_cast<float>(config.number_or("temperature", 1));
    if (!(*spec.default_temperature >= 0 && std::isfinite(*spec.default_temperature)))
      config.refuse("temperature", "must not be negative");
  }
  if (config.has("top_p")) {
    spec.default_top_p = static_cast<float>(config.number_or("top_p", 1));
    if (!(*spec.default_top_p > 0 && *spec.default_top_p <= 1)) config.refuse("top_p", "must be above 0 and at most 1");
  }
  check_token_ids(spec, config);
  // Anything else there is a wish for how to sample, not a fact about the model.
}

bool has_router_noise(ModelSpec const& spec) {
  return std::ranges::any_of(spec.stacks.front().layers, [](LayerSpec const& layer) {
    auto const* moe = std::get_if<MoeFfnSpec>(&layer.ffn);
    return moe && moe->router.noise;
  });
}

}  // namespace

std::vector<TensorInfo> required_tensors(ModelSpec const& spec) {
  std::vector<TensorInfo> out{{spec.embedding, {spec.vocab, spec.hidden}}};
  if (spec.lm_head) out.push_back({*spec.lm_head, {spec.vocab, spec.hidden}});
  for (auto const& stack : spec.stacks) {
    out.push_back({stack.final_norm.weight, {spec.hidden}});
    for (auto const& layer : stack.layers) {
      out.push_back({layer.input_norm.weight, {spec.hidden}});
      out.push_back({layer.post_attention_norm.weight, {spec.hidden}});
      add_attention(layer.attention, spec.hidden, out);
      if (auto const* dense = std::get_if<DenseFfnSpec>(&layer.ffn)) {
        add_ffn(dense->gate, dense->up, dense->down, spec.hidden, dense->intermediate, out);
        continue;
      }
      auto const& moe = std::get<MoeFfnSpec>(layer.ffn);
      out.push_back({moe.router_weight, {moe.router.num_experts, spec.hidden}});
      if (moe.router_noise_weight) out.push_back({*moe.router_noise_weight, {moe.router.num_experts, spec.hidden}});
      for (auto const& e : moe.experts) add_ffn(e.gate, e.up, e.down, spec.hidden, moe.intermediate, out);
    }
  }
  return out;
}

std::vector<TensorInfo> optional_tensors(ModelSpec const& spec) {
  std::vector<TensorInfo> out;
  if (!spec.lm_head)
    out.push_back({"lm_head.weight", {spec.vocab, spec.hidden}});  // a stored copy of the tied embedding
  for (std::size_t l = 0; l < spec.stacks.front().layers.size(); ++l)
    out.push_back({"model.layers." + std::to_string(l) + ".self_attn.rotary_emb.inv_freq",
                   {spec.stacks.front().layers[l].attention.head_dim / 2}});
  return out;
}

ExpertModelSpec expert_model_spec(ModelSpec const& spec, WeightFormat weights, DType wire) {
  ExpertModelSpec out{.layers = {}, .weights = weights, .wire = wire};
  auto const& layers = spec.stacks.front().layers;
  for (std::size_t l = 0; l < layers.size(); ++l)
    if (auto const* moe = std::get_if<MoeFfnSpec>(&layers[l].ffn))
      out.layers.push_back({.layer = static_cast<std::uint32_t>(l),
                            .hidden = spec.hidden,
                            .intermediate = moe->intermediate,
                            .activation = moe->activation,
                            .experts = moe->experts});
  return out;
}

ModelSpec read_model_spec(std::filesystem::path const& model_dir, ModelOptions const& options) {
  std::error_code error;
  if (!std::filesystem::is_directory(model_dir, error)) throw ModelError(model_dir.string() + ": no such directory");
  ConfigReader config(model_dir / "config.json");
  std::string const type = config.text("model_type");
  for (Family const& family : families()) {
    if (family.model_type != type) continue;
    ModelSpec spec = family.build(config, options);
    if (options.router_noise_seed && !has_router_noise(spec))
      config.refuse("model_type", "family '" + type + "' has no router noise to turn on (--router-noise)");
    spec.family = type;
    spec.stored_dtype = read_stored_dtype(config);
    spec.eos_ids = config.token_ids("eos_token_id");
    check_token_ids(spec, config);
    config.finish();
    auto const generation = model_dir / "generation_config.json";
    if (std::filesystem::exists(generation, error)) read_generation_config(generation, spec);
    return spec;
  }
  std::string known;
  for (Family const& family : families()) known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  config.refuse("model_type", "unknown family '" + type + "' (known: " + known + ")");
}

}  // namespace expertmesh
