#include "coordinator/model/model_spec.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <unordered_set>

#include "common/base/error.h"
#include "common/checkpoint/weight_reader.h"
#include "coordinator/model/config_reader.h"
#include "coordinator/model/families/families.h"

namespace expertmesh {
namespace {

// Collects the tensors behind weights and vectors; one that holds several is listed once.
class TensorList {
 public:
  void matrix(WeightSlice const& w, std::size_t n, std::size_t k) {
    parameters_ += n * k;
    if (std::string form = form_of(w); !form.empty()) forms_[std::move(form)] += n * k;
    for (TensorInfo& tensor : tensors_of(w, n, k)) add(std::move(tensor));
    // The first GPTQ tool stored a bias with every linear module, zero where the model has none.
    if (w.storage == WeightStorage::integers && w.integers.layout == IntegerLayout::gptq)
      no_biases_.push_back(
          {.name = w.name + ".bias", .shape = {w.stored_rows == 0 ? n : w.stored_rows}, .values = {0}});
  }
  void vector(VectorSlice const& v, std::size_t n) {
    parameters_ += n;
    add(tensor_of(v, n));
  }
  void vector(std::optional<VectorSlice> const& v, std::size_t n) {
    if (v) vector(*v, n);
  }
  void linear(LinearSpec const& l, std::size_t n, std::size_t k) {
    matrix(l.weight, n, k);
    vector(l.bias, n);
  }
  void norm(NormSpec const& norm, std::size_t n) {
    vector(VectorSlice{norm.weight}, n);
    if (norm.bias) vector(VectorSlice{*norm.bias}, n);
  }
  void norm(std::optional<QkNormSpec> const& norm, std::size_t heads, std::size_t head_dim) {
    if (norm && norm->weight)
      vector(VectorSlice{*norm->weight}, norm->scope == QkNormScope::head ? head_dim : heads * head_dim);
  }
  // The same tensor in several layers is one.
  void shared_matrix(std::string const& name, std::size_t n, std::size_t k) {
    if (!names_.contains(name)) matrix(WeightSlice{name}, n, k);
  }
  void ffn(FfnTensors const& f, std::size_t hidden, std::size_t intermediate) {
    if (f.gate) matrix(*f.gate, intermediate, hidden);
    matrix(f.up, intermediate, hidden);
    matrix(f.down, hidden, intermediate);
    vector(f.gate_bias, intermediate);
    vector(f.up_bias, intermediate);
    vector(f.down_bias, hidden);
  }

  [[nodiscard]] ExpectedTensors take() {
    std::erase_if(no_biases_, [&](TensorInfo const& bias) { return names_.contains(bias.name); });
    return {.required = std::move(tensors_), .optional = std::move(no_biases_), .skipped_prefixes = {}};
  }
  [[nodiscard]] std::size_t parameters() const { return parameters_; }
  [[nodiscard]] std::map<std::string, std::size_t> const& forms() const { return forms_; }

 private:
  void add(TensorInfo tensor) {
    if (names_.insert(tensor.name).second) tensors_.push_back(std::move(tensor));
  }
  std::vector<TensorInfo> tensors_;
  std::vector<TensorInfo> no_biases_;  // that may be there if they are zero
  std::unordered_set<std::string> names_;
  std::map<std::string, std::size_t> forms_;
  std::size_t parameters_ = 0;
};

void add_projection(GroupedProjection const& p, std::size_t num_heads, std::size_t hidden, TensorList& out) {
  out.linear(p.q, num_heads * p.head_dim, hidden);
  out.linear(p.k, p.num_kv_heads * p.head_dim, hidden);
  out.linear(p.v, p.num_kv_heads * p.head_dim, hidden);
  out.norm(p.q_norm, num_heads, p.head_dim);
  out.norm(p.k_norm, p.num_kv_heads, p.head_dim);
}

void add_projection(LatentProjection const& p, std::size_t num_heads, std::size_t hidden, TensorList& out) {
  if (p.q_a) {
    out.linear(*p.q_a, p.q_rank, hidden);
    out.norm(*p.q_a_norm, p.q_rank);
  }
  out.linear(p.q_b, num_heads * (p.nope_dim + p.rope_dim), p.q_a ? p.q_rank : hidden);
  out.linear(p.kv_a, p.kv_rank + p.rope_dim, hidden);
  out.norm(p.kv_a_norm, p.kv_rank);
  out.matrix(p.kv_b, num_heads * (p.nope_dim + p.value_dim), p.kv_rank);
}

void add_ffn(MoeFfnSpec const& moe, std::size_t hidden, TensorList& out) {
  std::size_t const num_experts = moe.router.num_experts;
  out.matrix(WeightSlice{moe.router_weight}, num_experts, hidden);
  if (moe.router_noise_weight) out.matrix(WeightSlice{*moe.router_noise_weight}, num_experts, hidden);
  out.vector(moe.router_bias, num_experts);
  out.vector(moe.selection_bias, num_experts);
  for (auto const& e : moe.experts) out.ffn(e, hidden, moe.intermediate);
  if (!moe.shared) return;
  out.ffn(moe.shared->ffn.tensors, hidden, moe.shared->ffn.intermediate);
  if (moe.shared->gate) out.matrix(WeightSlice{*moe.shared->gate}, 1, hidden);
}

void add_ffn(DenseFfnSpec const& dense, std::size_t hidden, TensorList& out) {
  out.ffn(dense.tensors, hidden, dense.intermediate);
}

void add_attention(AttentionSpec const& a, std::size_t hidden, TensorList& out) {
  std::visit([&](auto const& p) { add_projection(p, a.num_heads, hidden, out); }, a.projection);
  out.linear(a.o, hidden, a.num_heads * a.value_dim());
  if (a.sinks) out.vector(VectorSlice{*a.sinks}, a.num_heads);
  if (a.relative_bias) out.shared_matrix(a.relative_bias->weight, a.relative_bias->buckets, a.num_heads);
}

TensorList list_tensors(ModelSpec const& spec) {
  TensorList out;
  for (auto const& stack : spec.stacks)
    out.shared_matrix(stack.embedding.value_or(spec.embedding), spec.vocab, spec.hidden);
  if (spec.lm_head) out.matrix(*spec.lm_head, spec.vocab, spec.hidden);
  if (spec.lm_head_bias) out.vector(VectorSlice{*spec.lm_head_bias}, spec.vocab);
  for (auto const& stack : spec.stacks) {
    out.norm(stack.final_norm, spec.hidden);
    for (auto const& layer : stack.layers) {
      out.norm(layer.input_norm, spec.hidden);
      out.norm(layer.post_attention_norm, spec.hidden);
      add_attention(layer.attention, spec.hidden, out);
      if (layer.cross) {
        out.norm(layer.cross->norm, spec.hidden);
        add_attention(layer.cross->attention, spec.hidden, out);
      }
      std::visit([&](auto const& ffn) { add_ffn(ffn, spec.hidden, out); }, layer.ffn);
    }
  }
  return out;
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

// Ids beyond the vocabulary can never be sampled.
std::vector<TokenId> read_eos_ids(ConfigReader& config, std::size_t vocab) {
  auto ids = config.token_ids("eos_token_id");
  std::erase_if(ids, [&](TokenId id) { return static_cast<std::size_t>(id) >= vocab; });
  return ids;
}

void read_generation_config(std::filesystem::path const& file, ModelSpec& spec) {
  ConfigReader config(file);
  if (config.has("eos_token_id")) spec.eos_ids = read_eos_ids(config, spec.vocab);
  if (config.has("temperature")) {
    spec.default_temperature = static_cast<float>(config.number_or("temperature", 1));
    if (!(*spec.default_temperature >= 0 && std::isfinite(*spec.default_temperature)))
      config.refuse("temperature", "must not be negative");
  }
  if (config.has("top_p")) {
    spec.default_top_p = static_cast<float>(config.number_or("top_p", 1));
    if (!(*spec.default_top_p > 0 && *spec.default_top_p <= 1)) config.refuse("top_p", "must be above 0 and at most 1");
  }
  if (config.has("min_p")) {
    spec.default_min_p = static_cast<float>(config.number_or("min_p", 0));
    if (!(*spec.default_min_p >= 0 && *spec.default_min_p <= 1)) config.refuse("min_p", "must be from 0 to 1");
  }
  if (config.has("repetition_penalty")) {
    spec.default_repetition_penalty = static_cast<float>(config.number_or("repetition_penalty", 1));
    if (!(*spec.default_repetition_penalty > 0 && *spec.default_repetition_penalty <= 100))
      config.refuse("repetition_penalty", "must be above 0 and at most 100");
  }
  if (config.has("top_k"))  // -1 says all, too
    spec.default_top_k = config.number_or("top_k", 0) == -1 ? 0 : config.index("top_k");
  if (spec.decoder_start) {
    auto const token = [&](std::string_view field) {
      std::size_t const id = config.index(field);
      if (id >= spec.vocab) config.refuse(field, std::to_string(id) + " is not in the vocabulary");
      return static_cast<TokenId>(id);
    };
    if (config.has("decoder_start_token_id")) spec.decoder_start->token = token("decoder_start_token_id");
    if (config.has("forced_bos_token_id")) spec.decoder_start->forced_bos = token("forced_bos_token_id");
  }
  // Anything else there is a wish for how to sample, not a fact about the model.
}

bool has_router_noise(ModelSpec const& spec) {
  return std::ranges::any_of(moe_layers(spec), [](NumberedLayer const& l) {
    return std::get<MoeFfnSpec>(l.layer->ffn).router.noise.has_value();
  });
}

}  // namespace

std::size_t AttentionSpec::value_dim() const {
  if (auto const* latent = std::get_if<LatentProjection>(&projection)) return latent->value_dim;
  return std::get<GroupedProjection>(projection).head_dim;
}

std::vector<NumberedLayer> all_layers(ModelSpec const& spec) {
  std::vector<NumberedLayer> layers;
  std::uint32_t moe_index = 0;
  std::size_t first_count = 0;
  for (auto const& stack : spec.stacks)
    for (auto const& layer : stack.layers) {
      layers.push_back({.layer = &layer,
                        .stack = stack.kind,
                        .number = static_cast<std::uint32_t>(layers.size()),
                        .moe_index = moe_index,
                        .first_count = first_count});
      auto const* moe = std::get_if<MoeFfnSpec>(&layer.ffn);
      if (moe) ++moe_index;
      if (moe && moe->capacity) first_count += moe->router.num_experts;
    }
  return layers;
}

std::vector<NumberedLayer> moe_layers(ModelSpec const& spec) {
  auto layers = all_layers(spec);
  std::erase_if(layers, [](NumberedLayer const& l) { return !std::holds_alternative<MoeFfnSpec>(l.layer->ffn); });
  return layers;
}

std::size_t num_expert_counts(ModelSpec const& spec) {
  std::size_t count = 0;
  for (auto const& numbered : moe_layers(spec))
    if (auto const& moe = std::get<MoeFfnSpec>(numbered.layer->ffn); moe.capacity) count += moe.router.num_experts;
  return count;
}

ExpectedTensors expected_tensors(ModelSpec const& spec) {
  ExpectedTensors out = list_tensors(spec).take();
  out.skipped_prefixes = spec.skipped_prefixes;
  if (!spec.lm_head) out.optional.push_back({kStoredHead, {spec.vocab, spec.hidden}});
  for (auto const& name : spec.embedding_copies) out.optional.push_back({name, {spec.vocab, spec.hidden}});
  if (spec.encoder()) return out;
  auto const& layers = spec.decoder().layers;
  for (std::size_t l = 0; l < layers.size(); ++l)
    out.optional.push_back({"model.layers." + std::to_string(l) + ".self_attn.rotary_emb.inv_freq",
                            {layers[l].attention.rope.rotary_dim / 2}});
  return out;
}

std::size_t num_parameters(ModelSpec const& spec) {
  return list_tensors(spec).parameters();
}

std::map<std::string, std::size_t> stored_forms(ModelSpec const& spec) {
  return list_tensors(spec).forms();
}

ExpertModelSpec expert_model_spec(ModelSpec const& spec, WeightFormat weights, DType wire) {
  ExpertModelSpec out{.layers = {}, .weights = weights, .wire = wire};
  for (auto const& numbered : moe_layers(spec)) {
    auto const& moe = std::get<MoeFfnSpec>(numbered.layer->ffn);
    out.layers.push_back({.layer = numbered.number,
                          .hidden = spec.hidden,
                          .intermediate = moe.intermediate,
                          .activation = moe.activation,
                          .experts = moe.experts});
  }
  return out;
}

ExchangeShape exchange_shape(ModelSpec const& spec, std::size_t tokens) {
  ExchangeShape shape{.rows = tokens, .experts_per_row = 1};
  for (auto const& numbered : moe_layers(spec)) {
    auto const& moe = std::get<MoeFfnSpec>(numbered.layer->ffn);
    std::size_t const k = moe.router.experts_per_token;
    if (moe.gate_on_input)
      shape.rows = std::max(shape.rows, tokens * k);
    else
      shape.experts_per_row = std::max(shape.experts_per_row, k);
  }
  return shape;
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
    if (config.has("eos_token_id") || !spec.encoder()) spec.eos_ids = read_eos_ids(config, spec.vocab);
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
