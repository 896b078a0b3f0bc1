// A checkpoint of AWQ, GPTQ or compressed-tensors is the model whose weights are the numbers that it stands for,
// rounded to bfloat16: the same logits, bit for bit.
#include <gtest/gtest.h>

#include "tests/support/quantised_copy.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using test::Model;
using test::QuantisedCopy;

bool contains(std::string const& text, char const* part) {
  return text.find(part) != std::string::npos;
}

struct Case {
  char const* name;
  std::string config;                                                            // quantization_config
  StoredIntegers form;                                                           // of linear modules
  bool (*stays)(std::string const&) = [](std::string const&) { return false; };  // modules that stay numbers
  std::optional<StoredIntegers> head{};
  DType scale_type = DType::bf16;
};
void PrintTo(Case const& c, std::ostream* out) {
  *out << c.name;
}

// A config of compressed-tensors.
std::string compressed(std::string const& format, std::string const& weights, std::string const& ignore,
                       std::string const& activations = "null") {
  return R"({"quant_method": "compressed-tensors", "quantization_status": "compressed", "format": ")" + format +
         R"(", "ignore": [)" + ignore + R"(], "config_groups": {"group_0": {"targets": ["Linear"], "weights": {)" +
         weights + R"(}, "input_activations": )" + activations + R"(, "output_activations": null}}})";
}

constexpr auto kGptqZeros = ZeroPoints::stored_minus_one;
StoredIntegers const kGptq8{
    .layout = IntegerLayout::gptq, .bits = 8, .group_size = 32, .zero_points = kGptqZeros, .has_group_index = true};
StoredIntegers const kPacked{.layout = IntegerLayout::packed, .group_size = 32, .zero_points = ZeroPoints::middle};

class QuantisedModel : public testing::TestWithParam<Case> {};

TEST_P(QuantisedModel, IsTheModelOfItsNumbers) {
  Case const& c = GetParam();
  test::FormOfModule const form_of = [&](std::string const& module) -> std::optional<StoredIntegers> {
    if (module == "lm_head") return c.head;
    bool const linear = contains(module, "_proj");
    return linear && !c.stays(module) ? std::optional(c.form) : std::nullopt;
  };
  for (char const* family : {"qwen3_moe", "deepseek_v3"}) {
    QuantisedCopy const copy(family, json::parse(c.config), form_of, c.scale_type);
    EXPECT_GT(copy.num_quantised, 30U);
    ModelSpec const spec = read_model_spec(copy.quantised.path(), {});
    EXPECT_EQ(num_parameters(spec), num_parameters(read_model_spec(copy.dequantised.path(), {})));
    std::size_t quantised = 0;
    for (auto const& [form, parameters] : stored_forms(spec)) quantised += parameters;
    EXPECT_EQ(quantised, copy.num_quantised_parameters);
    EXPECT_NO_THROW(open_checkpoint(copy.quantised.path())->verify(expected_tensors(spec)));
    std::vector<TokenId> const prompt = {3, 141, 59, 26, 53, 58, 97, 9, 32, 38};
    Model model(copy.quantised.path(), DType::bf16, 2, best_isa());
    Model numbers(copy.dequantised.path(), DType::bf16, 2, best_isa());
    auto const logprobs = model.run({prompt}, test::kMaxTokens)[0].logprobs;
    EXPECT_EQ(logprobs, numbers.run({prompt}, test::kMaxTokens)[0].logprobs);
    EXPECT_TRUE(std::ranges::all_of(logprobs.back(), [](float x) { return std::isfinite(x); }));
    EXPECT_NE(logprobs.front(), logprobs.back());
  }
}

Case const kCases[] = {
    {"awq",
     R"({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM", "zero_point": true,
         "modules_to_not_convert": ["layers.1.self_attn"]})",
     {.layout = IntegerLayout::awq, .group_size = 32},
     [](std::string const& m) { return contains(m, "layers.1.self_attn"); },
     {},
     DType::f16},
    {"gptq",
     R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true, "sym": false, "lm_head": true,
         "checkpoint_format": "gptq", "dynamic": {"-:.*\\.layers\\.2\\..*down_proj": {}, "lm_head": {"bits": 8}}})",
     {.layout = IntegerLayout::gptq, .group_size = 32, .zero_points = kGptqZeros, .has_group_index = true},
     [](std::string const& m) { return contains(m, ".layers.2.") && contains(m, "down_proj"); },
     kGptq8,
     DType::f16},
    {"gptq_v2",
     R"({"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": false, "sym": true,
         "checkpoint_format": "gptq_v2"})",
     {.layout = IntegerLayout::gptq, .bits = 8, .zero_points = ZeroPoints::stored, .has_group_index = true},
     [](std::string const&) { return false; },
     {},
     DType::f16},
    {"packed",
     compressed("pack-quantized", R"("num_bits": 4, "type": "int", "strategy": "group", "group_size": 32)",
                R"("lm_head", "re:.*self_attn\\.o_proj$")"),
     kPacked, [](std::string const& m) { return contains(m, "o_proj"); }},
    {"packed_order",
     compressed("pack-quantized",
                R"("num_bits": 4, "type": "int", "group_size": 32, "symmetric": false, "actorder": "group")", ""),
     {.layout = IntegerLayout::packed, .group_size = 32, .has_group_index = true},
     [](std::string const&) { return false; },
     StoredIntegers{.layout = IntegerLayout::packed, .group_size = 32, .has_group_index = true}},
    {"packed_row",
     compressed("pack-quantized", R"("num_bits": 8, "type": "int", "strategy": "channel", "symmetric": false)",
                R"("lm_head")"),
     {.layout = IntegerLayout::packed, .bits = 8}},
    {"bytes_row",
     compressed("int-quantized", R"("num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true)",
                R"("lm_head")", R"({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true})"),
     {.layout = IntegerLayout::bytes, .bits = 8, .zero_points = ZeroPoints::middle}},
    {"bytes_one",
     compressed("naive-quantized", R"("num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": false)",
                R"("lm_head")"),
     {.layout = IntegerLayout::bytes, .bits = 8, .one_scale = true}},
};
INSTANTIATE_TEST_SUITE_P(Forms, QuantisedModel, testing::ValuesIn(kCases),
                         [](auto const& test_case) { return std::string(test_case.param.name); });

}  // namespace
}  // namespace expertmesh
