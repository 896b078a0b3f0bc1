// The reference checkpoints on a device: the reference's logits, routing and hidden states; the same bits for any batch
// and chunk. The device is a GPU where EM_TEST_DEVICE names one (cuda), else its emulation on the host.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>

#include "tests/unit/device/test_device.h"
#include "tests/unit/engine/golden_rig.h"
#include "tests/unit/engine/widened_copy.h"

namespace expertmesh {
namespace {

using test::KeepLayers;
using test::kMaxTokens;
using test::kTolerance;
using test::largest_of;
using test::Model;
using test::num_prompts;
using test::prompt_of;

class DeviceModel : public testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path const dir = test::model_dir(GetParam());
  test::GoldenFile const golden{dir / "golden.safetensors"};
  Device& device = test::test_device();
};

TEST_P(DeviceModel, GivesTheReferencesLogitsRoutingAndHiddenStates) {
  Model model(dir, DType::f32, 1, best_isa(), &device);
  KeepLayers kept;
  model.runner->set_tap(&kept);
  for (std::size_t p = 0; p < num_prompts(golden); ++p) {
    auto const prompt = prompt_of(golden, p);
    std::string const prefix = "prompt" + std::to_string(p) + ".";
    auto const output = model.run({prompt}, kMaxTokens)[0];
    ASSERT_EQ(output.logprobs.size(), prompt.size());
    double const error = test::logit_error(output, golden.floats(prefix + "logits"), model.spec.vocab);
    EXPECT_LE(error, kTolerance) << prefix;
    RecordProperty(prefix + "logit_error", std::to_string(error));
    for (std::size_t m = 0; m < model.runner->num_moe_layers(); ++m) {
      std::string const name = prefix + "router." + std::to_string(model.runner->moe_layers()[m]) + ".experts";
      if (!golden.has(name)) continue;
      auto const experts = golden.ints(name);
      for (std::size_t t = 0; t < prompt.size(); ++t) {
        auto const& chosen = output.experts[t][m];
        EXPECT_TRUE(std::is_permutation(chosen.begin(), chosen.end(),
                                        experts.begin() + static_cast<std::ptrdiff_t>(t * chosen.size())))
            << "position " << t << ", mixture " << m;
      }
    }
    std::size_t const layers = model.spec.stacks.front().layers.size();
    for (std::size_t l = 0; l < layers; ++l) {
      auto const expected = golden.floats(prefix + "hidden." + std::to_string(l));
      auto const& got = kept.hidden_by_index.at(l);
      ASSERT_EQ(got.size(), expected.size());
      double const bound = kTolerance * static_cast<double>(largest_of(expected));
      for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], bound) << prefix << l << ", " << i;
    }
  }
  model.runner->set_tap(nullptr);
}

// One model of each kind of attention and mixture; all of them with EM_DEVICE_ALL=1, which takes minutes where the
// device is emulated.
TEST_P(DeviceModel, BitsDoNotDependOnBatchChunkOrPlaceOfTheExperts) {
  static std::set<std::string> const kSome{"deepseek_v3",   "deepseek_v3-fp8", "gpt_oss",
                                           "gpt_oss-mxfp4", "llama4",          "phimoe"};
  if (!kSome.contains(GetParam()) && std::getenv("EM_DEVICE_ALL") == nullptr)
    GTEST_SKIP() << "EM_DEVICE_ALL is not set";
  std::vector<std::vector<TokenId>> prompts;
  for (std::size_t p = 0; p < num_prompts(golden); ++p) prompts.push_back(prompt_of(golden, p));
  for (DType dtype : {DType::f32, DType::bf16}) {
    if (dtype == DType::f32 && GetParam().find('-') != std::string::npos)
      continue;  // numbers then, as others have them
    Model model(dir, dtype, 1, best_isa(), &device);
    auto const alone = model.run({prompts.back()}, kMaxTokens)[0];
    for (std::size_t budget : {9, 128}) {
      auto const got = model.run({prompts[prompts.size() - 2], prompts.back()}, budget)[1];
      EXPECT_EQ(got.logprobs, alone.logprobs) << name_of(dtype) << ", budget " << budget;
      EXPECT_EQ(got.experts, alone.experts);
    }
    // As workers would get them: rows by way of the host.
    Model by_host(dir, dtype, 1, best_isa(), &device, test::ExpertsAt::group_on_device);
    auto const got = by_host.run({prompts.back()}, kMaxTokens)[0];
    EXPECT_EQ(got.logprobs, alone.logprobs) << name_of(dtype) << ", by the host";
    EXPECT_EQ(got.experts, alone.experts);
    for (std::size_t m = 0; m < model.runner->num_moe_layers(); ++m) {
      double tokens = 0;
      for (double const load : by_host.runner->balance().layer(m).load) tokens += load;
      EXPECT_EQ(tokens, static_cast<double>(prompts.back().size() * alone.experts[0][m].size())) << "mixture " << m;
    }
  }
}

// In bfloat16, where weights are multiplied from their codes. The sums of MXFP4 are those of its numbers.
class DeviceCodedModel : public DeviceModel {};
constexpr double kBf16Tolerance = 0.03;  // seen: 0.018; FP8 0.0128, and 0.0125 of its numbers

TEST_P(DeviceCodedModel, IsNearTheReferenceAndTheModelOfItsNumbers) {
  auto const prompt = prompt_of(golden, num_prompts(golden) - 1);
  std::size_t const free = device.free_bytes();
  Model coded(dir, DType::bf16, 1, best_isa(), &device);
  std::size_t const coded_bytes = free - device.free_bytes();
  test::WidenedCopy const widened(GetParam());
  Model numbers(widened.path(), DType::bf16, 1, best_isa(), &device);
  EXPECT_LT(coded_bytes, free - coded_bytes - device.free_bytes());
  auto const output = coded.run({prompt}, kMaxTokens)[0];
  auto const expected = numbers.run({prompt}, kMaxTokens)[0];
  if (GetParam() == "gpt_oss-mxfp4") {
    EXPECT_EQ(output.logprobs, expected.logprobs);
  }
  auto const logits = golden.floats("prompt" + std::to_string(num_prompts(golden) - 1) + ".logits");
  EXPECT_LE(test::logit_error(output, logits, coded.spec.vocab), kBf16Tolerance);
}

INSTANTIATE_TEST_SUITE_P(Cases, DeviceCodedModel, testing::Values("deepseek_v3-fp8", "gpt_oss-mxfp4"),
                         test::name_of_model);

INSTANTIATE_TEST_SUITE_P(Cases, DeviceModel, testing::ValuesIn(test::kReferenceModels), test::name_of_model);

}  // namespace
}  // namespace expertmesh
