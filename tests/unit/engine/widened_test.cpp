// A model whose weights are FP8 or MXFP4 has, in bfloat16, the bits of the same checkpoint in bfloat16 numbers.
#include <gtest/gtest.h>

#include "tests/unit/engine/widened_copy.h"

namespace expertmesh {
namespace {

class CodedModel : public testing::TestWithParam<std::string> {};

TEST_P(CodedModel, HasTheBitsOfItsNumbers) {
  test::WidenedCopy const widened(GetParam());
  std::filesystem::path const dir = test::model_dir(GetParam());
  test::GoldenFile const golden(dir / "golden.safetensors");
  std::vector<std::vector<TokenId>> const prompts = {test::prompt_of(golden, 0), test::prompt_of(golden, 1)};
  for (Isa const isa : runnable_isas()) {
    test::Model coded(dir, DType::bf16, 2, isa);
    test::Model numbers(widened.path(), DType::bf16, 2, isa);
    EXPECT_LT(plan_model(coded.spec, kBfloat16Weights, DType::bf16, 1).worker_bytes,
              plan_model(numbers.spec, kBfloat16Weights, DType::bf16, 1).worker_bytes);
    auto const outputs = coded.run(prompts, test::kMaxTokens);
    auto const expected = numbers.run(prompts, test::kMaxTokens);
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      EXPECT_EQ(outputs[p].logprobs, expected[p].logprobs) << name_of(isa) << " prompt " << p;
      EXPECT_EQ(outputs[p].experts, expected[p].experts) << name_of(isa) << " prompt " << p;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, CodedModel, testing::Values("deepseek_v3-fp8", "gpt_oss-mxfp4"), test::name_of_model);

}  // namespace
}  // namespace expertmesh
