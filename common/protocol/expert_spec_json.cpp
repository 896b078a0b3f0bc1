#include "common/protocol/expert_spec_json.h"

#include <array>
#include <nlohmann/json.hpp>

#include "common/base/check.h"
#include "common/protocol/json_reader.h"

namespace expertmesh::control {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxDimension = std::uint64_t{1} << 24;  // of a weight

template <class Enum, std::size_t N>
using Names = std::array<std::pair<char const*, Enum>, N>;

constexpr Names<Activation, 5> kActivations{{{"silu", Activation::silu},
                                             {"gelu", Activation::gelu},
                                             {"gelu_tanh", Activation::gelu_tanh},
                                             {"relu", Activation::relu},
                                             {"clamped_silu", Activation::clamped_silu}}};
constexpr Names<WeightStorage, 5> kStorages{{{"numbers", WeightStorage::numbers},
                                             {"fp8_blocks", WeightStorage::fp8_blocks},
                                             {"mxfp4", WeightStorage::mxfp4},
                                             {"fp8_scaled", WeightStorage::fp8_scaled},
                                             {"integers", WeightStorage::integers}}};
constexpr Names<IntegerLayout, 4> kLayouts{{{"gptq", IntegerLayout::gptq},
                                            {"awq", IntegerLayout::awq},
                                            {"packed", IntegerLayout::packed},
                                            {"bytes", IntegerLayout::bytes}}};
constexpr Names<ZeroPoints, 3> kZeroPoints{{{"middle", ZeroPoints::middle},
                                            {"stored", ZeroPoints::stored},
                                            {"stored_minus_one", ZeroPoints::stored_minus_one}}};
constexpr Names<ActivationRule, 3> kRules{{{"none", ActivationRule::none},
                                           {"round_to_bf16", ActivationRule::round_to_bf16},
                                           {"quantise_to_int8", ActivationRule::quantise_to_int8}}};
constexpr Names<DType, 4> kPackedTypes{
    {{"float32", DType::f32}, {"bfloat16", DType::bf16}, {"int8", DType::i8}, {"int4", DType::i4}}};
constexpr Names<DType, 2> kDTypes{{{"float32", DType::f32}, {"bfloat16", DType::bf16}}};

template <class Enum, std::size_t N>
char const* name_in(Names<Enum, N> const& names, Enum value) {
  for (auto const& [name, named] : names)
    if (named == value) return name;
  EM_CHECK(false, "no name for " << static_cast<int>(value));
  return "";
}

// ---- slices
// Adds the field unless it has its default.
template <class T>
void put(json& object, char const* field, T const& value, T const& otherwise) {
  if (value != otherwise) object[field] = value;
}

json to_json(StoredIntegers const& i) {
  StoredIntegers const plain;
  json out = {{"layout", name_in(kLayouts, i.layout)}};
  put(out, "bits", i.bits, plain.bits);
  put(out, "group_size", i.group_size, plain.group_size);
  if (i.zero_points != plain.zero_points) out["zero_points"] = name_in(kZeroPoints, i.zero_points);
  put(out, "has_group_index", i.has_group_index, plain.has_group_index);
  put(out, "one_scale", i.one_scale, plain.one_scale);
  return out;
}

json to_json(WeightSlice const& w) {
  WeightSlice const plain;
  json out = {{"name", w.name}};
  put(out, "stack", w.stack, plain.stack);
  put(out, "index", w.index, plain.index);
  put(out, "stored_rows", w.stored_rows, plain.stored_rows);
  put(out, "first_row", w.first_row, plain.first_row);
  put(out, "row_step", w.row_step, plain.row_step);
  put(out, "transposed", w.transposed, plain.transposed);
  if (w.storage != plain.storage) out["storage"] = name_in(kStorages, w.storage);
  put(out, "block_rows", w.block_rows, plain.block_rows);
  put(out, "block_columns", w.block_columns, plain.block_columns);
  if (w.integers != plain.integers) out["integers"] = to_json(w.integers);
  return out.size() == 1 ? json(w.name) : out;
}

json to_json(VectorSlice const& v) {
  VectorSlice const plain;
  json out = {{"name", v.name}};
  put(out, "stack", v.stack, plain.stack);
  put(out, "index", v.index, plain.index);
  put(out, "stored_length", v.stored_length, plain.stored_length);
  put(out, "first", v.first, plain.first);
  put(out, "step", v.step, plain.step);
  return out.size() == 1 ? json(v.name) : out;
}

// Leaves a field that is not there as it is.
void get(JsonReader& in, char const* field, std::size_t& value) {
  if (in.has(field)) value = in.number(field, kMaxDimension);
}

StoredIntegers stored_integers(json const& object, std::string const& where) {
  JsonReader in(object, where);
  StoredIntegers out;
  out.layout = in.choice("layout", kLayouts);
  get(in, "bits", out.bits);
  get(in, "group_size", out.group_size);
  if (in.has("zero_points")) out.zero_points = in.choice("zero_points", kZeroPoints);
  if (in.has("has_group_index")) out.has_group_index = in.boolean("has_group_index");
  if (in.has("one_scale")) out.one_scale = in.boolean("one_scale");
  in.finish();
  return out;
}

void read(JsonReader& in, WeightSlice& w, std::string const& where) {
  get(in, "stack", w.stack);
  get(in, "index", w.index);
  get(in, "stored_rows", w.stored_rows);
  get(in, "first_row", w.first_row);
  get(in, "row_step", w.row_step);
  if (in.has("transposed")) w.transposed = in.boolean("transposed");
  if (in.has("storage")) w.storage = in.choice("storage", kStorages);
  get(in, "block_rows", w.block_rows);
  get(in, "block_columns", w.block_columns);
  if (in.has("integers")) w.integers = stored_integers(in.at("integers"), where + ".integers");
}

void read(JsonReader& in, VectorSlice& v, std::string const& /*where*/) {
  get(in, "stack", v.stack);
  get(in, "index", v.index);
  get(in, "stored_length", v.stored_length);
  get(in, "first", v.first);
  get(in, "step", v.step);
}

template <class Slice>
Slice slice(JsonReader& in, char const* field, std::string const& where) {
  json const& value = in.at(field);
  Slice out;
  if (value.is_string()) {
    out.name = value.get<std::string>();
    return out;
  }
  std::string const here = where + "." + field;
  JsonReader fields(value, here);
  out.name = fields.text("name");
  read(fields, out, here);
  fields.finish();
  return out;
}

template <class Slice>
std::optional<Slice> optional_slice(JsonReader& in, char const* field, std::string const& where) {
  return in.has(field) ? std::optional(slice<Slice>(in, field, where)) : std::nullopt;
}

// ---- experts and layers
json to_json(FfnTensors const& t) {
  json out = {{"up", to_json(t.up)}, {"down", to_json(t.down)}};
  if (t.gate) out["gate"] = to_json(*t.gate);
  if (t.gate_bias) out["gate_bias"] = to_json(*t.gate_bias);
  if (t.up_bias) out["up_bias"] = to_json(*t.up_bias);
  if (t.down_bias) out["down_bias"] = to_json(*t.down_bias);
  return out;
}

FfnTensors ffn_tensors(json const& object, std::string const& where) {
  JsonReader in(object, where);
  FfnTensors out{.gate = optional_slice<WeightSlice>(in, "gate", where),
                 .up = slice<WeightSlice>(in, "up", where),
                 .down = slice<WeightSlice>(in, "down", where),
                 .gate_bias = optional_slice<VectorSlice>(in, "gate_bias", where),
                 .up_bias = optional_slice<VectorSlice>(in, "up_bias", where),
                 .down_bias = optional_slice<VectorSlice>(in, "down_bias", where)};
  in.finish();
  return out;
}

json to_json(ExpertLayerSpec const& layer) {
  json experts = json::array();
  for (auto const& e : layer.experts) experts.push_back(to_json(e));
  json out = {{"layer", layer.layer},
              {"hidden", layer.hidden},
              {"intermediate", layer.intermediate},
              {"activation", name_in(kActivations, layer.activation.kind)},
              {"experts", std::move(experts)}};
  put(out, "alpha", layer.activation.alpha, 0.0F);
  put(out, "limit", layer.activation.limit, 0.0F);
  return out;
}

ExpertLayerSpec layer_spec(json const& object, std::string const& where) {
  JsonReader in(object, where);
  ExpertLayerSpec out;
  out.layer = in.number<std::uint32_t>("layer");
  out.hidden = in.number("hidden", kMaxDimension);
  if (out.hidden == 0) in.fail("hidden", "is 0");
  out.intermediate = in.number("intermediate", kMaxDimension);
  if (out.intermediate == 0) in.fail("intermediate", "is 0");
  out.activation.kind = in.choice("activation", kActivations);
  if (in.has("alpha")) out.activation.alpha = in.real("alpha");
  if (in.has("limit")) out.activation.limit = in.real("limit");
  for (auto const& item : in.array("experts"))
    out.experts.push_back(ffn_tensors(item, where + ".experts[" + std::to_string(out.experts.size()) + "]"));
  in.finish();
  if (auto const problem = problem_of(out); !problem.empty()) throw MessageError(where + "." + problem);
  return out;
}

json to_json(WeightFormat const& format) {
  return {{"storage", name_in(kPackedTypes, format.storage)},
          {"group_size", format.group_size},
          {"scale_type", name_in(kDTypes, format.scale_type)},
          {"has_zero_point", format.has_zero_point},
          {"activation", name_in(kRules, format.activation)}};
}

WeightFormat weight_format(json const& object, std::string const& where) {
  JsonReader in(object, where);
  WeightFormat out;
  out.storage = in.choice("storage", kPackedTypes);
  out.group_size = in.number("group_size", kMaxDimension);
  out.scale_type = in.choice("scale_type", kDTypes);
  out.has_zero_point = in.boolean("has_zero_point");
  out.activation = in.choice("activation", kRules);
  in.finish();
  return out;
}

}  // namespace

json model_to_json(ExpertModelSpec const& model) {
  json layers = json::array();
  for (auto const& layer : model.layers) layers.push_back(to_json(layer));
  return {{"layers", std::move(layers)}, {"weights", to_json(model.weights)}, {"wire", name_in(kDTypes, model.wire)}};
}

ExpertModelSpec model_from_json(json const& object, std::string const& where) {
  JsonReader in(object, where);
  ExpertModelSpec out;
  for (auto const& item : in.array("layers")) {
    out.layers.push_back(layer_spec(item, where + ".layers[" + std::to_string(out.layers.size()) + "]"));
    if (out.layers.size() > 1 && out.layers.back().layer <= out.layers[out.layers.size() - 2].layer)
      in.fail("layers", "not in ascending order");
  }
  out.weights = weight_format(in.at("weights"), where + ".weights");
  out.wire = in.choice("wire", kDTypes);
  in.finish();
  return out;
}

}  // namespace expertmesh::control
