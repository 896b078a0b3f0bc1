// What quantization_config says of every module's weight, and how it is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "coordinator/model/model_plan.h"
#include "coordinator/model/model_spec.h"
#include "tests/support/model_copy.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using test::expect_words;
using test::ModelCopy;
using test::refusal;

constexpr char const* kModel = "qwen3_moe";  // a dense layer, two with experts

class QuantisedSpec : public testing::Test {
 protected:
  ModelCopy const copy{kModel};

  ModelSpec spec_of(json const& quantisation) const {
    copy.edit_config([&](json& config) { config["quantization_config"] = quantisation; });
    return read_model_spec(copy.path(), {});
  }
  static json gptq(json const& more = json::object()) {
    json config = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}, {"desc_act", false}, {"sym", true}};
    config.update(more);
    return config;
  }
  static json awq(json const& more = json::object()) {
    json config = {
        {"quant_method", "awq"}, {"bits", 4}, {"group_size", 128}, {"zero_point", true}, {"version", "gemm"}};
    config.update(more);
    return config;
  }
  static json compressed(std::string const& format, json const& weights, json const& more = json::object()) {
    json config = {{"quant_method", "compressed-tensors"},
                   {"format", format},
                   {"quantization_status", "compressed"},
                   {"ignore", {"lm_head"}},
                   {"kv_cache_scheme", nullptr},
                   {"sparsity_config", json::object()},
                   {"global_compression_ratio", 1.5},
                   {"version", "0.12"},
                   {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}}};
    config.update(more);
    return config;
  }
  static json packed(json const& more = json::object()) {
    json weights = {{"num_bits", 4},       {"type", "int"},        {"strategy", "group"},
                    {"group_size", 128},   {"symmetric", true},    {"dynamic", false},
                    {"actorder", nullptr}, {"observer", "minmax"}, {"observer_kwargs", json::object()}};
    weights.update(more);
    return weights;
  }
};

WeightSlice const& gate_of(ModelSpec const& spec, std::size_t layer, std::size_t expert) {
  return *std::get<MoeFfnSpec>(spec.decoder().layers.at(layer).ffn).experts.at(expert).gate;
}
WeightSlice const& dense_gate_of(ModelSpec const& spec) {
  return *std::get<DenseFfnSpec>(spec.decoder().layers.front().ffn).tensors.gate;
}
WeightSlice const& o_of(ModelSpec const& spec, std::size_t layer) {
  return spec.decoder().layers.at(layer).attention.o.weight;
}
WeightSlice integers(std::string const& module, StoredIntegers const& form) {
  return {.name = module, .storage = WeightStorage::integers, .integers = form};
}

TEST_F(QuantisedSpec, GptqHasZeroPointsAndGroupIndexWhateverItSays) {
  constexpr auto kMinusOne = ZeroPoints::stored_minus_one;
  std::string const expert = "model.layers.2.mlp.experts.7.gate_proj";
  struct {
    json config;
    StoredIntegers form;
  } const cases[] = {
      {gptq(), {IntegerLayout::gptq, 4, 128, kMinusOne, true}},
      {gptq({{"bits", 8}, {"group_size", -1}, {"desc_act", true}, {"sym", false}}),
       {IntegerLayout::gptq, 8, 0, kMinusOne, true}},
      {gptq({{"checkpoint_format", "gptq_v2"}, {"pack_dtype", "int32"}, {"meta", {{"quantizer", "gptqmodel:2.0"}}}}),
       {IntegerLayout::gptq, 4, 128, ZeroPoints::stored, true}},
      {gptq({{"format", "gptq"}, {"checkpoint_format", "gptq"}, {"method", "gptq"}, {"damp_percent", 0.1}}),
       {IntegerLayout::gptq, 4, 128, kMinusOne, true}},
  };
  for (auto const& c : cases) {
    ModelSpec const spec = spec_of(c.config);
    EXPECT_EQ(gate_of(spec, 2, 7), integers(expert, c.form)) << c.config;
    EXPECT_EQ(o_of(spec, 0), integers("model.layers.0.self_attn.o_proj", c.form)) << c.config;
    EXPECT_EQ(spec.lm_head, WeightSlice{"lm_head.weight"});
  }
  EXPECT_EQ(spec_of(gptq({{"lm_head", true}})).lm_head, integers("lm_head", cases[0].form));
}

TEST_F(QuantisedSpec, DynamicRulesOfGptqAreOfTheModulesTheyMatch) {
  ModelSpec const spec = spec_of(gptq({{"dynamic",
                                        {{"-:model\\.layers\\.0\\.", json::object()},
                                         {"+:.*\\.experts\\.[0-3]\\.gate", {{"bits", 8}, {"group_size", -1}}},
                                         {".*layers\\.[12]\\.self_attn\\.o_proj$", {{"bits", 8}, {"sym", true}}},
                                         {".*layers\\.[12]\\.self_attn\\.q_proj$", nullptr}}}}));
  EXPECT_EQ(o_of(spec, 0), WeightSlice{"model.layers.0.self_attn.o_proj.weight"});
  EXPECT_EQ(dense_gate_of(spec), WeightSlice{"model.layers.0.mlp.gate_proj.weight"});
  EXPECT_EQ(o_of(spec, 1).integers.bits, 8U);
  EXPECT_EQ(o_of(spec, 1).integers.group_size, 128U);
  auto const& q = std::get<GroupedProjection>(spec.decoder().layers[1].attention.projection).q.weight;
  EXPECT_EQ(q.integers.bits, 4U);
  EXPECT_EQ(gate_of(spec, 1, 3).integers.bits, 8U);
  EXPECT_EQ(gate_of(spec, 1, 3).integers.group_size, 0U);
  EXPECT_EQ(gate_of(spec, 1, 4).integers.bits, 4U);
}

TEST_F(QuantisedSpec, RulesThatContradictEachOtherAreRefused) {
  json const rules = {
      {"-:.*layers\\.1\\.", json::object()}, {"-:.*mlp", json::object()}, {".*experts\\.2\\.", {{"bits", 8}}}};
  expect_words(refusal([&] {
                 (void)spec_of(gptq({{"dynamic", rules}}));
               }),
               {"config.json", "'dynamic'", "layers\\.1\\.", "experts\\.2\\.", "model.layers.1.mlp.experts.2."});
}

TEST_F(QuantisedSpec, AwqLeavesOutWhatAPatternIsPartOf) {
  StoredIntegers const form{.layout = IntegerLayout::awq, .group_size = 64};
  ModelSpec const all = spec_of(awq({{"group_size", 64}, {"modules_to_not_convert", nullptr}}));
  EXPECT_EQ(gate_of(all, 1, 0), integers("model.layers.1.mlp.experts.0.gate_proj", form));
  EXPECT_EQ(all.lm_head, WeightSlice{"lm_head.weight"});
  ModelSpec const some = spec_of(awq({{"modules_to_not_convert", {"mlp.gate", "layers.2.self"}}}));
  EXPECT_EQ(dense_gate_of(some).storage, WeightStorage::numbers);
  EXPECT_EQ(gate_of(some, 1, 0).storage, WeightStorage::integers);
  EXPECT_EQ(o_of(some, 2).storage, WeightStorage::numbers);
  EXPECT_EQ(o_of(some, 1).storage, WeightStorage::integers);
}

TEST_F(QuantisedSpec, FormatsOfCompressedTensors) {
  std::string const module = "model.layers.1.mlp.experts.0.gate_proj";
  auto const form_of = [&](std::string const& format, json const& weights) {
    return gate_of(spec_of(compressed(format, weights)), 1, 0);
  };
  constexpr auto kMiddle = ZeroPoints::middle;
  EXPECT_EQ(form_of("pack-quantized", packed()), integers(module, {IntegerLayout::packed, 4, 128, kMiddle}));
  EXPECT_EQ(form_of("pack-quantized", packed({{"symmetric", false}, {"actorder", "dynamic"}})),
            integers(module, {IntegerLayout::packed, 4, 128, ZeroPoints::stored, true}));
  EXPECT_EQ(form_of("pack-quantized", packed({{"actorder", "static"}})),
            integers(module, {IntegerLayout::packed, 4, 128, kMiddle}));
  EXPECT_EQ(form_of("pack-quantized", {{"num_bits", 8}, {"strategy", "channel"}}),
            integers(module, {IntegerLayout::packed, 8, 0, kMiddle}));
  EXPECT_EQ(form_of("int-quantized", {{"num_bits", 8}, {"group_size", -1}}),
            integers(module, {IntegerLayout::bytes, 8, 0, kMiddle}));
  EXPECT_EQ(form_of("naive-quantized", {{"num_bits", 8}, {"symmetric", false}}),
            integers(module, {IntegerLayout::bytes, 8, 0, ZeroPoints::stored, false, true}));
  auto const fp8 = [&](json const& more) {
    json weights = {{"num_bits", 8}, {"type", "float"}};
    weights.update(more);
    WeightSlice const w = form_of("float-quantized", weights);
    EXPECT_EQ(w.name, module + ".weight");
    EXPECT_EQ(w.storage, WeightStorage::fp8_scaled);
    return std::pair(w.block_rows, w.block_columns);
  };
  using Pair = std::pair<std::size_t, std::size_t>;
  EXPECT_EQ(fp8({{"strategy", "tensor"}}), Pair(0, 0));
  EXPECT_EQ(fp8({{"strategy", "channel"}}), Pair(1, 0));
  EXPECT_EQ(fp8({{"strategy", "group"}, {"group_size", 64}}), Pair(1, 64));
  EXPECT_EQ(fp8({{"strategy", "block"}, {"block_structure", {128, 64}}}), Pair(128, 64));
}

TEST_F(QuantisedSpec, TargetsOfCompressedTensorsGoByNameThenRegexThenClass) {
  json groups;
  groups["a"] = {{"targets", {"Linear"}}, {"weights", packed()}};
  groups["b"] = {{"targets", {"re:.*experts"}}, {"weights", packed({{"group_size", 64}})}};
  groups["c"] = {{"targets", {"model.layers.1.mlp.experts.5.gate_proj", "lm_head"}},
                 {"format", "int-quantized"},
                 {"weights", {{"num_bits", 8}, {"strategy", "channel"}}}};
  ModelSpec const spec = spec_of(
      compressed("pack-quantized", {},
                 {{"ignore", {"model.layers.2.self_attn.o_proj", "re:.*experts\\.7"}}, {"config_groups", groups}}));
  EXPECT_EQ(gate_of(spec, 1, 4).integers.group_size, 64U);
  EXPECT_EQ(gate_of(spec, 1, 5).integers.layout, IntegerLayout::bytes);
  EXPECT_EQ(gate_of(spec, 2, 5).integers.layout, IntegerLayout::packed);
  EXPECT_EQ(gate_of(spec, 1, 7).storage, WeightStorage::numbers);
  EXPECT_EQ(o_of(spec, 1).integers.group_size, 128U);
  EXPECT_EQ(o_of(spec, 2).storage, WeightStorage::numbers);
  EXPECT_EQ(spec.lm_head->integers.layout, IntegerLayout::bytes);
  // A regex matches from the name's beginning, a name is all of it.
  ModelSpec const none = spec_of(compressed("pack-quantized", packed(), {{"ignore", {"re:experts", "experts"}}}));
  EXPECT_EQ(gate_of(none, 1, 4).storage, WeightStorage::integers);
  EXPECT_EQ(none.lm_head->storage, WeightStorage::integers);
}

TEST_F(QuantisedSpec, InfoSaysHowManyParametersAreStoredHow) {
  copy.edit_config([&](json& config) { config["quantization_config"] = gptq({{"group_size", 32}}); });
  InfoReport const report = describe_model(copy.path(), 1);
  expect_words(report.text, {"bfloat16; 0.16 M parameters as int4 in groups of 32 (gptq, zero points, group index)",
                             "would be refused", "'model.layers.0.self_attn.q_proj.qweight' is missing"});
  auto const facts = json::parse(report.json);
  EXPECT_EQ(facts["stored_forms"].size(), 1U);
  EXPECT_EQ(facts["parameters"]["total"], num_parameters(read_model_spec(ModelCopy::source(kModel), {})));
}

// The first tool stored a bias with every module.
TEST_F(QuantisedSpec, BiasesOfGptqMayBeThereIfTheyAreZero) {
  ExpectedTensors const expected = expected_tensors(spec_of(gptq()));
  auto const bias =
      std::ranges::find(expected.optional, "model.layers.1.mlp.experts.0.down_proj.bias", &TensorInfo::name);
  ASSERT_NE(bias, expected.optional.end());
  EXPECT_EQ(bias->shape, std::vector<std::size_t>{64});
  EXPECT_EQ(bias->values, std::vector<std::size_t>{0});
  ModelCopy const biased("qwen2_moe");  // its own are no such ones
  biased.edit_config([&](json& config) { config["quantization_config"] = gptq(); });
  ExpectedTensors const own = expected_tensors(read_model_spec(biased.path(), {}));
  std::string const q = "model.layers.0.self_attn.q_proj.bias";
  EXPECT_NE(std::ranges::find(own.required, q, &TensorInfo::name), own.required.end());
  EXPECT_EQ(std::ranges::find(own.optional, q, &TensorInfo::name), own.optional.end());
}

TEST_F(QuantisedSpec, WhatIsNotSupportedIsRefusedByField) {
  constexpr char const* kGroup = "/config_groups/group_0";
  constexpr char const* kWeights = "/config_groups/group_0/weights";
  std::map<std::string, json> const bases = {
      {"gptq", gptq()},
      {"awq", awq()},
      {"pack", compressed("pack-quantized", packed())},
      {"float", compressed("float-quantized", {{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}})}};
  struct Refused {
    char const* base;
    char const* where;   // JSON pointer to the object that changes
    char const* change;  // merged into it; null takes a field away
    std::vector<std::string> words;
  } const cases[] = {
      {"gptq", "", R"({"quant_method": "bitsandbytes"})", {"'quant_method'", "bitsandbytes"}},
      {"gptq", "", R"({"bits": 3})", {"'bits'", "3"}},
      {"gptq", "", R"({"bits": null})", {"'bits'", "missing"}},
      {"gptq", "", R"({"group_size": 0})", {"'group_size'", "-1"}},
      {"gptq", "", R"({"group_size": 1.5})", {"'group_size'"}},
      {"gptq", "", R"({"checkpoint_format": "marlin"})", {"'checkpoint_format'", "marlin"}},
      {"gptq", "", R"({"checkpoint_format": "gptq_v2", "format": "gptq"})", {"'format'", "gptq_v2", "differ"}},
      {"gptq", "", R"({"is_marlin_format": true})", {"'is_marlin_format'"}},
      {"gptq", "", R"({"method": "gptaq"})", {"'method'", "gptaq"}},
      {"gptq", "", R"({"pack_dtype": "int16"})", {"'pack_dtype'", "int16"}},
      {"gptq", "", R"({"sym": "yes"})", {"'sym'", "true or false"}},
      {"gptq", "", R"({"desc_act": 1})", {"'desc_act'", "true or false"}},
      {"gptq", "", R"({"lm_head": "x"})", {"'lm_head'", "true or false"}},
      {"gptq", "", R"({"modules_in_block_to_quantize": [["mlp.up"]]})", {"'modules_in_block_to_quantize'"}},
      {"gptq", "", R"({"block_name_to_quantize": "model.h"})", {"'block_name_to_quantize'", "model.h"}},
      {"gptq", "", R"({"adapter": {"rank": 8}})", {"'adapter'"}},
      {"gptq", "", R"({"rotation": "hadamard"})", {"'rotation'", "unknown"}},
      {"gptq", "", R"({"dynamic": {"+:.*(": {"bits": 8}}})", {"dynamic", ".*("}},
      {"gptq", "", R"({"dynamic": {".*": {"bits": 2}}})", {"dynamic", "'bits'", "2"}},
      {"gptq", "", R"({"dynamic": {".*": {"format": "x"}}})", {"dynamic", "'format'"}},
      {"awq", "", R"({"bits": 8})", {"'bits'", "8"}},
      {"awq", "", R"({"group_size": -2})", {"'group_size'"}},
      {"awq", "", R"({"version": "gemv"})", {"'version'", "gemv"}},
      {"awq", "", R"({"zero_point": false})", {"'zero_point'"}},
      {"awq", "", R"({"lm_head": true})", {"'lm_head'"}},
      {"awq", "", R"({"desc_act": true})", {"'desc_act'"}},
      {"awq", "", R"({"modules_to_not_convert": "gate"})", {"'modules_to_not_convert'", "a list"}},
      {"awq", "", R"({"dynamic": {".*": {"bits": 4}}})", {"'dynamic'"}},
      {"pack", "", R"({"format": "nvfp4-pack-quantized"})", {"'format'", "nvfp4"}},
      {"pack", "", R"({"format": null})", {"'format'", "missing"}},
      {"pack", "", R"({"config_groups": null})", {"'config_groups'", "missing"}},
      {"pack", "", R"({"config_groups": {"W4A16": ["Linear"]}})", {"'W4A16'", "an object"}},
      {"pack", "", R"({"ignore": ["re:*"]})", {"'ignore'", "*"}},
      {"pack", "", R"({"kv_cache_scheme": {"num_bits": 8}})", {"'kv_cache_scheme'"}},
      {"pack", "", R"({"transform_config": {"x": 1}})", {"'transform_config'"}},
      {"pack", "", R"({"sparsity_config": {"format": "sparse-24"}})", {"sparsity_config", "'format'", "sparse-24"}},
      {"pack", "", R"({"quantization_status": "frozen"})", {"'quantization_status'", "frozen"}},
      {"pack", kGroup, R"({"format": "marlin-24"})", {"group_0", "'format'", "marlin-24"}},
      {"pack", kGroup, R"({"weights": null})", {"'weights'", "missing"}},
      {"pack", kGroup, R"({"targets": ["Conv2d"]})", {"'targets'", "Conv2d"}},
      {"pack", kGroup, R"({"targets": []})", {"'targets'"}},
      {"pack", kGroup, R"({"targets": ["re:("]})", {"'targets'", "("}},
      {"pack", kGroup, R"({"output_activations": {"num_bits": 8}})", {"'output_activations'"}},
      {"pack", kGroup, R"({"input_activations": {"dynamic": false}})", {"input_activations", "'dynamic'"}},
      {"pack", kGroup, R"({"extra": 1})", {"'extra'", "unknown"}},
      {"pack", kWeights, R"({"num_bits": 3})", {"'num_bits'", "3"}},
      {"pack", kWeights, R"({"strategy": "tensor", "group_size": null})", {"'strategy'", "tensor"}},
      {"pack", kWeights, R"({"group_size": null})", {"'group_size'", "group"}},
      {"pack", kWeights, R"({"strategy": "channel"})", {"'group_size'", "channel"}},
      {"pack", kWeights, R"({"type": "float"})", {"'type'", "float"}},
      {"pack", kWeights, R"({"dynamic": true})", {"'dynamic'"}},
      {"pack", kWeights, R"({"symmetric": "no"})", {"'symmetric'", "true or false"}},
      {"pack", kWeights, R"({"actorder": "random"})", {"'actorder'", "random"}},
      {"pack", kWeights, R"({"strategy": "channel", "group_size": null, "actorder": true})", {"'actorder'", "groups"}},
      {"pack", kWeights, R"({"block_structure": [8, 8]})", {"'block_structure'"}},
      {"pack", kWeights, R"({"zero_bits": 3})", {"'zero_bits'", "unknown"}},
      {"float", kWeights, R"({"num_bits": 4})", {"'num_bits'", "8"}},
      {"float", kWeights, R"({"type": "int"})", {"'type'", "int", "float-quantized"}},
      {"float", kWeights, R"({"symmetric": false})", {"'symmetric'"}},
      {"float", kWeights, R"({"strategy": "block"})", {"'block_structure'"}},
      {"float", kWeights, R"({"strategy": "token"})", {"'strategy'", "token"}},
  };
  for (Refused const& c : cases) {
    SCOPED_TRACE(std::string(c.base) + c.where + c.change);
    json config = bases.at(c.base);
    config.at(json::json_pointer(c.where)).merge_patch(json::parse(c.change));
    std::string const message = refusal([&] { (void)spec_of(config); });
    expect_words(message, {"config.json", "quantization_config"});
    expect_words(message, c.words);
  }
}

}  // namespace
}  // namespace expertmesh
