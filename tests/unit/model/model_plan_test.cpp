// Sizes of published models against their counts, and what `info` says of sound and broken directories.
#include "coordinator/model/model_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <sstream>

#include "coordinator/model/kv_cache.h"
#include "tests/support/model_copy.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using test::expect_words;
using test::ModelCopy;
using test::read_file;
using test::ScratchDir;
using test::write_file;

std::filesystem::path const kConfigs = std::filesystem::path(EM_SOURCE_DIR) / "launch/bench/configs";

// A directory with nothing but a published config.json.
class BareModel : public ScratchDir {
 public:
  explicit BareModel(std::string const& config) {
    std::filesystem::copy_file(kConfigs / (config + ".json"), path() / "config.json");
  }
};

TEST(ModelPlan, CountsThePublishedParameters) {
  std::size_t checked = 0;
  for (auto const& row : json::parse(read_file(kConfigs / "parameter_counts.json"))) {
    std::string const name = row.at("config");
    ModelSpec const spec = read_model_spec(BareModel(name).path(), {});
    ModelPlan const plan = plan_model(spec, kBfloat16Weights, DType::bf16, 1);
    auto const billions = [](std::size_t n) { return static_cast<double>(n) / 1e9; };
    double const kHalfADigit = 0.00051;  // the counts are rounded to three digits
    EXPECT_NEAR(billions(plan.parameters), row.at("parameters_b").get<double>(), kHalfADigit) << name;
    EXPECT_NEAR(billions(plan.routed_parameters), row.at("routed_expert_parameters_b").get<double>(), kHalfADigit);
    EXPECT_NEAR(billions(plan.active_parameters), row.at("active_b").get<double>(), kHalfADigit) << name;
    ++checked;
  }
  EXPECT_EQ(checked, 19U);
}

TEST(ModelPlan, SplitsTheExpertsEqually) {
  ModelSpec const spec = read_model_spec(BareModel("qwen3-30b-a3b").path(), {});
  std::size_t const all = plan_model(spec, kBfloat16Weights, DType::bf16, 1).worker_bytes.at(0);
  EXPECT_EQ(all, std::size_t{2} * 3 * 2048 * 768 * 128 * 48);
  for (std::size_t workers : {2U, 3U, 5U, 128U}) {
    auto const share = plan_model(spec, kBfloat16Weights, DType::bf16, workers).worker_bytes;
    ASSERT_EQ(share.size(), workers);
    EXPECT_EQ(std::accumulate(share.begin(), share.end(), std::size_t{0}), all);
    auto const [least, most] = std::ranges::minmax(share);
    EXPECT_LE(most - least, all / 128);  // one expert of each layer
  }
  auto const more_than_experts = plan_model(spec, kBfloat16Weights, DType::bf16, 200).worker_bytes;
  EXPECT_EQ(std::ranges::count(more_than_experts, std::size_t{0}), 72);
  EXPECT_TRUE(plan_model(spec, kBfloat16Weights, DType::bf16, 0).worker_bytes.empty());
  // A byte a number and a scale for 128 of them.
  EXPECT_EQ(plan_model(spec, kInt8Weights, DType::bf16, 1).worker_bytes.at(0), all / 2 / 32 * 33);
  // Half a byte and two bytes for 32.
  EXPECT_EQ(plan_model(spec, kInt4Weights, DType::bf16, 1).worker_bytes.at(0), all / 2 / 16 * 9);
}

// On processors and devices; in other formats they have as many bytes as numbers have.
TEST(ModelPlan, CodesOfACheckpointTakeTheirOwnBits) {
  Holders const on_devices{.coordinator = Holder::device, .experts = Holder::device};
  ModelSpec const mxfp4 = read_model_spec(BareModel("gpt-oss-20b").path(), {});
  std::size_t const matrices = std::size_t{3} * 2880 * 2880;
  std::size_t const biases = sizeof(float) * 3 * 2880;
  auto const experts = [&](WeightFormat const& format, Holders const& holders) {
    return plan_model(mxfp4, format, DType::bf16, 1, holders).worker_bytes.at(0) / (std::size_t{32} * 24);
  };
  EXPECT_EQ(experts(kBfloat16Weights, {}), matrices / 32 * 17 + biases);  // half a byte, and a byte for 32
  // 23 blocks of 64 bytes and 23 times four scales, a whole 32 bytes.
  EXPECT_EQ(experts(kBfloat16Weights, on_devices), std::size_t{3} * 2880 * 1568 + biases);
  EXPECT_EQ(experts(kFloat32Weights, {}), 4 * matrices + biases);

  ModelSpec const fp8 = read_model_spec(BareModel("deepseek-v3").path(), {});
  auto const plan = [&](Holders const& holders) { return plan_model(fp8, kBfloat16Weights, DType::bf16, 1, holders); };
  std::size_t const expert = std::size_t{3} * 7168 * 2048;
  EXPECT_EQ(plan({}).expert_bytes.at(0), expert / 32 * 33);  // a byte, and four for 128
  EXPECT_EQ(plan(on_devices).expert_bytes.at(0), expert / 32 * 33);
  std::size_t const numbers = plan_model(fp8, kFloat32Weights, DType::bf16, 1).coordinator_bytes / 2;
  for (Holders const& holders : {Holders{}, on_devices}) EXPECT_LT(plan(holders).coordinator_bytes, numbers / 10 * 7);
  EXPECT_EQ(plan({.experts = Holder::device}).coordinator_bytes, plan({}).coordinator_bytes);
}

TEST(ModelPlan, CoordinatorHoldsEverythingElse) {
  // Every width is a multiple of 16, so packing pads nothing; router and norms stay fp32.
  ModelSpec const spec = read_model_spec(BareModel("qwen3-30b-a3b").path(), {});
  ModelPlan const plan = plan_model(spec, kBfloat16Weights, DType::bf16, 2);
  std::size_t const fp32 = std::size_t{48} * (2 * 2048 + 2 * 128 + 128 * 2048) + 2048;
  EXPECT_EQ(plan.coordinator_bytes, 2 * (plan.parameters - plan.routed_parameters) + 2 * fp32);
  EXPECT_EQ(plan.kv_bytes_per_token, std::size_t{48} * 2 * 4 * 128 * 2);
  EXPECT_EQ(plan_model(spec, kFloat32Weights, DType::f32, 2).kv_bytes_per_token, 2 * plan.kv_bytes_per_token);
  // A byte a number, and a float for each key and value of a head.
  EXPECT_EQ(plan_model(spec, kBfloat16Weights, DType::i8, 2).kv_bytes_per_token,
            std::size_t{48} * 2 * 4 * (128 + sizeof(float)));
}

TEST(ModelPlan, KvBytesOfATokenAreThoseOfABlock) {
  for (char const* name : {"deepseek_v3", "gpt_oss", "llama4", "mixtral-window"}) {
    ModelSpec const spec = read_model_spec(ModelCopy::source(name), {});
    for (DType const dtype : {DType::f32, DType::bf16, DType::i8}) {
      std::size_t of_block = 0;
      for (KvCacheSpec const& group : kv_cache_specs(spec, dtype)) of_block += group.bytes_per_block;
      EXPECT_EQ(plan_model(spec, kBfloat16Weights, dtype, 1).kv_bytes_per_token * kKvBlockTokens, of_block)
          << name << ", " << name_of(dtype);
    }
  }
}

TEST(ModelPlan, ATiedHeadIsPackedBesideTheEmbedding) {
  ModelCopy const copy("llama");
  std::size_t const tied =
      plan_model(read_model_spec(copy.path(), {}), kFloat32Weights, DType::f32, 1).coordinator_bytes;
  copy.edit_config([](json& c) { c["tie_word_embeddings"] = false; });
  EXPECT_EQ(tied, plan_model(read_model_spec(copy.path(), {}), kFloat32Weights, DType::f32, 1).coordinator_bytes);
}

TEST(ModelPlan, NumericsFollowTheCheckpointUnlessAskedFor) {
  ModelSpec spec;
  for (auto const& [stored, served] :
       {std::pair(DType::f32, DType::f32), std::pair(DType::bf16, DType::bf16), std::pair(DType::f16, DType::bf16)}) {
    spec.stored_dtype = stored;
    EXPECT_EQ(numerics_dtype(spec, std::nullopt), served);
    EXPECT_EQ(numerics_dtype(spec, DType::f32), DType::f32);
  }
  EXPECT_EQ(weight_format_of(DType::f32), kFloat32Weights);
  EXPECT_EQ(weight_format_of(DType::bf16), kBfloat16Weights);
  for (DType type : {DType::f32, DType::bf16}) {
    EXPECT_EQ(weight_format_of(type, Quantization::int8), kInt8Weights);
    EXPECT_EQ(weight_format_of(type, Quantization::int4), kInt4Weights);
  }
}

std::size_t refusals(InfoReport const& report) {
  std::size_t count = 0;
  std::istringstream lines(report.text);
  for (std::string line; std::getline(lines, line);) count += line.starts_with("would be refused") ? 1 : 0;
  return count;
}

TEST(DescribeModel, ASoundDirectory) {
  InfoReport const report = describe_model(ModelCopy::source("mixtral-window"), 2, {.dtype = DType::f32});
  EXPECT_TRUE(report.servable);
  expect_words(report.text, {"mixtral", "3 (3 with experts, 0 dense)", "4 a layer, 2 for each token", "window of 16",
                             "64, 256", "512 tokens", "bfloat16", "float32", "worker 1", "worker 2",
                             "768 bytes a token", "3 files, 0.37 MB", "would be refused  nothing"});
  EXPECT_EQ(report.text.find("worker 3"), std::string::npos);
}

TEST(DescribeModel, QuantisedWeightsAreSmaller) {
  InfoReport const report =
      describe_model(BareModel("mixtral-8x7b").path(), 4, {.dtype = DType::bf16, .quantization = Quantization::int8});
  expect_words(report.text,
               {"bfloat16, weights int8", "worker 4          11.63 GB of experts", "131072 bytes a token, bfloat16"});
}

TEST(DescribeModel, AnInt8KvCacheIsSmaller) {
  BareModel const bare("mixtral-8x7b");
  expect_words(describe_model(bare.path(), 4, {.dtype = DType::bf16, .kv_dtype = DType::i8}).text,
               {"67584 bytes a token, int8"});
  expect_words(describe_model(bare.path(), 4, {.dtype = DType::bf16, .kv_dtype = DType::f32}).text,
               {"262144 bytes a token, float32"});
}

TEST(DescribeModel, ADenseModelHasNoWorkers) {
  InfoReport const report = describe_model(ModelCopy::source("llama"), 2);
  EXPECT_TRUE(report.servable);
  expect_words(report.text, {"3 (0 with experts, 3 dense)", "1 file, "});
  EXPECT_EQ(report.text.find("worker"), std::string::npos);
}

TEST(DescribeModel, ABareConfigIsForDummyWeights) {
  InfoReport const report = describe_model(BareModel("mixtral-8x7b").path(), 4);
  EXPECT_FALSE(report.servable);
  expect_words(report.text, {"46.70 B in all, 12.88 B active", "32768 tokens", "worker 4          22.55 GB of experts",
                             "131072 bytes a token", "model.safetensors", "--load-format dummy"});
  EXPECT_EQ(refusals(report), 1U);
}

TEST(DescribeModel, CollectsWhatIsWrong) {
  ModelCopy const copy("mixtral-window");
  copy.edit_config([](json& c) { c["hidden_act"] = "snake"; });
  std::filesystem::remove(copy.path() / "model-00001-of-00003.safetensors");
  std::filesystem::remove(copy.path() / "model-00003-of-00003.safetensors");
  InfoReport const report = describe_model(copy.path(), 2);
  EXPECT_FALSE(report.servable);
  EXPECT_EQ(refusals(report), 3U);
  expect_words(report.text, {"'hidden_act'", "model-00001-of-00003.safetensors: missing shard",
                             "model-00003-of-00003.safetensors: missing shard"});
}

TEST(DescribeModel, EveryFaultIsOneLine) {
  EXPECT_EQ(refusals(describe_model("/nonexistent/model", 1)), 1U);
  ModelCopy const copy("mixtral");
  std::filesystem::resize_file(copy.path() / "model.safetensors", 5000);
  InfoReport const truncated = describe_model(copy.path(), 1);
  EXPECT_FALSE(truncated.servable);
  EXPECT_EQ(refusals(truncated), 1U);
  expect_words(truncated.text, {"would be refused  model.safetensors: ", "truncated"});
  write_file(copy.path() / "config.json", "{");
  EXPECT_EQ(refusals(describe_model(copy.path(), 1)), 2U);
}

}  // namespace
}  // namespace expertmesh
