// The engine benchmark of a device, emulated here: its figures are complete and fit together, whatever they are.
#include "coordinator/bench/engine_bench.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "coordinator/bench/engine_report.h"
#include "device_on_host.h"

namespace expertmesh {
namespace {

constexpr char const* kModel = R"({"model_type": "mixtral", "torch_dtype": "bfloat16", "hidden_act": "silu",
  "vocab_size": 48, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
  "rms_norm_eps": 1e-5, "rope_theta": 1e4, "sliding_window": null, "tie_word_embeddings": false})";

class EngineBench : public testing::Test {
 protected:
  EngineBench() : file_(testing::TempDir() + "/engine_bench_config.json") { std::ofstream(file_) << kModel; }
  ~EngineBench() override { std::filesystem::remove(file_); }

  EngineBenchOptions options(std::string const& device) const {
    EngineBenchOptions options;
    options.runtime.model_dir = file_;
    options.runtime.threads = 1;
    options.runtime.dtype = DType::bf16;
    options.runtime.device = device;
    options.runtime.open_device = [](std::size_t) { return open_device_on_host(); };
    options.batch_sizes = {1, 3};
    options.input_len = 9;
    options.output_len = 4;
    options.prefill_tokens = 16;
    options.read_bytes = 1 << 20;
    return options;
  }

 private:
  std::filesystem::path const file_;
};

double stage(BatchFigures const& b, Stage s) {
  return b.decode_stages.seconds[static_cast<std::size_t>(s)];
}

TEST_F(EngineBench, OfADeviceHasItsCeilingsItsStagesAndItsGaps) {
  EngineBenchOptions const given = options("cuda");
  EngineFigures const figures = run_engine_bench(given);
  EXPECT_EQ(figures.device, "cuda:0 emulated on the host");
  EXPECT_GT(figures.memory_bytes_per_second, 0);
  EXPECT_GT(figures.flops_per_second, 0);
  EXPECT_FALSE(figures.tensor_flops_per_second);
  ASSERT_EQ(figures.batches.size(), 2U);
  for (BatchFigures const& b : figures.batches) {
    for (Stage s : {Stage::embedding, Stage::attention, Stage::router, Stage::experts, Stage::combine, Stage::lm_head,
                    Stage::fetch, Stage::sampling})
      EXPECT_GT(stage(b, s), 0) << kStageNames[static_cast<std::size_t>(s)];
    EXPECT_EQ(stage(b, Stage::dispatch), 0);  // on a device it computes
    EXPECT_EQ(stage(b, Stage::dense_ffn), 0);
    double const all = std::accumulate(b.decode_stages.seconds.begin(), b.decode_stages.seconds.end(), 0.0);
    EXPECT_NEAR(b.device_seconds, all - stage(b, Stage::fetch), 1e-12);
    EXPECT_GT(b.step_seconds, 0);
    EXPECT_GT(b.bytes(), 0);
    EXPECT_EQ(b.share_of_graphs, 1);
  }

  auto const json = nlohmann::json::parse(to_json(given, figures));
  EXPECT_EQ(json["device"], "cuda:0 emulated on the host");
  EXPECT_GT(json["ceilings"]["memory_gb_per_second"], 0);
  EXPECT_FALSE(json["ceilings"].contains("tensor_gflop_per_second"));
  for (auto const& result : json["results"]) {
    auto const& decode = result["decode"];
    EXPECT_NEAR(decode["device_busy_ms"].get<double>() + decode["host_gap_ms"].get<double>(),
                decode["mean_step_ms"].get<double>(), 1e-9);
    EXPECT_GT(decode["share_of_memory_ceiling_while_busy"], 0);
    EXPECT_TRUE(decode["stage_ms"].contains("fetch"));
    EXPECT_FALSE(result["prefill"].contains("share_of_tensor_ceiling"));
  }
  std::string const table = to_table(given, figures);
  for (char const* word : {"cuda:0 emulated on the host", "not measured", "busy", "gap", "fetch", "on the device"})
    EXPECT_NE(table.find(word), std::string::npos) << word << " in\n" << table;

  EngineFigures with_tensor_cores = figures;
  with_tensor_cores.tensor_flops_per_second = 2 * figures.flops_per_second;
  auto const more = nlohmann::json::parse(to_json(given, with_tensor_cores));
  auto const& prefill = more["results"][0]["prefill"];
  EXPECT_NEAR(prefill["share_of_tensor_ceiling"].get<double>(), prefill["share_of_compute_ceiling"].get<double>() / 2,
              1e-12);
}

// The same steps as on the processor: the same experts, and the same bytes.
TEST_F(EngineBench, OfADeviceTakesTheStepsOfTheProcessor) {
  EngineBenchOptions here = options("cpu");
  here.runtime.dtype = DType::f32;
  EngineBenchOptions there = options("cuda");
  there.runtime.dtype = DType::f32;
  EngineFigures const own = run_engine_bench(here);
  EngineFigures const device = run_engine_bench(there);
  for (std::size_t i = 0; i < own.batches.size(); ++i) {
    EXPECT_EQ(own.batches[i].experts_hit, device.batches[i].experts_hit);
    EXPECT_EQ(own.batches[i].bytes(), device.batches[i].bytes());
    EXPECT_EQ(stage(own.batches[i], Stage::fetch), 0);
    EXPECT_EQ(own.batches[i].device_seconds, 0);
  }
  auto const json = nlohmann::json::parse(to_json(here, own));
  EXPECT_EQ(json["device"], "cpu");
  EXPECT_FALSE(json["results"][0]["decode"]["stage_ms"].contains("fetch"));
  EXPECT_FALSE(json["results"][0]["decode"].contains("device_busy_ms"));
}

// The stages' work is the step's, and what is said of a stage can be read.
TEST_F(EngineBench, StagesShareTheWorkOfTheStep) {
  EngineBenchOptions given = options("cpu");
  given.stages = true;
  EngineFigures const figures = run_engine_bench(given);
  auto const all = [](std::array<double, kNumStages> const& stages) {
    return std::accumulate(stages.begin(), stages.end(), 0.0);
  };
  for (BatchFigures const& b : figures.batches) {
    EXPECT_NEAR(all(b.decode_stages.operations) / b.step_flops, 1, 1e-9);
    EXPECT_NEAR(all(b.prefill_stages.operations) * static_cast<double>(b.prefill_stages.num_steps) / b.prefill_flops, 1,
                1e-9);
    EXPECT_GT(all(b.decode_stages.bytes), b.bytes() * 0.9);
  }
  ASSERT_FALSE(figures.ceilings.empty());
  for (CeilingsOf const& c : figures.ceilings)
    for (double const rate :
         {c.memory_bytes_per_second, c.cache_bytes_per_second, c.f32, c.bf16, c.int8, c.barrier_seconds})
      EXPECT_GT(rate, 0) << c.threads;
  std::string const table = to_table(given, figures);
  for (char const* word : {"ceilings", "floor ms", "lm_head"}) EXPECT_NE(table.find(word), std::string::npos) << word;
  given.stages = false;
  EXPECT_EQ(to_table(given, figures).find("floor ms"), std::string::npos);
  auto const json = nlohmann::json::parse(to_json(given, figures));
  auto const& attention = json["results"][0]["decode"]["stages"]["attention"];
  EXPECT_GT(attention["bytes"], 0);
  EXPECT_GT(attention["floor_ms"], 0);
  EXPECT_EQ(attention["ms"], json["results"][0]["decode"]["stage_ms"]["attention"]);
}

}  // namespace
}  // namespace expertmesh
