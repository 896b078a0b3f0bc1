// What is planned of a device's memory, and what a model then takes.
#include "coordinator/engine/step_memory.h"

#include <gtest/gtest.h>

#include "coordinator/scheduler/kv_sizing.h"
#include "tests/unit/device/test_device.h"
#include "tests/unit/engine/encoder_decoder_rig.h"

namespace expertmesh {
namespace {

using test::ExpertsAt;
using test::ModelRig;

class StepMemory : public testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path const dir = test::model_dir(GetParam());
  ModelSpec const spec = read_model_spec(dir, {});

  // Of two sequences.
  [[nodiscard]] std::shared_ptr<ModelRig const> after_steps(DType dtype, Device& device) const {
    if (spec.encoder()) {
      std::vector<TokenId> const first(10, 1);
      std::vector<TokenId> const second(3, 2);
      auto model = std::make_shared<encoder_decoder::Model>(dir, dtype, 1, best_isa(), ModelRig::kMaxTokens,
                                                            encoder_decoder::kBlocks, &device);
      (void)model->run({{.input = first, .tokens = second}, {.input = second, .tokens = second}}, 32);
      return model;
    }
    auto model = std::make_shared<test::Model>(dir, dtype, 1, best_isa(), &device);
    (void)model->run({std::vector<TokenId>(40, 1), std::vector<TokenId>(20, 2)}, 32);
    return model;
  }
};

// Of an emulated device, which knows of every byte.
TEST_P(StepMemory, AModelTakesWhatWasPlanned) {
  for (DType const dtype : {DType::f32, DType::bf16}) {
    auto const device = open_device_on_host();
    auto const experts = expert_model_spec(spec, weight_format_of(dtype), dtype);
    ModelPlan const plan =
        plan_model(spec, weight_format_of(dtype), dtype, 1, {.coordinator = Holder::device, .experts = Holder::device});
    std::size_t const before = device->free_bytes();
    std::shared_ptr<ModelRig const> const model = after_steps(dtype, *device);
    std::size_t const taken = before - device->free_bytes();
    std::size_t const buffers = device_buffer_bytes(spec, ModelRig::sizes(ModelRig::kMaxTokens), &experts, *device);
    std::size_t const planned =
        plan.coordinator_bytes + plan.worker_bytes[0] + kv_bytes(model->groups, model->blocks) + buffers;
    EXPECT_LE(taken, planned + planned / 50) << name_of(dtype);  // small allocations are rounded up
    EXPECT_GE(taken, planned - planned / 20) << name_of(dtype);  // and nothing is reserved for nobody
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, StepMemory,
                         testing::Values("deepseek_v3", "deepseek_v3-fp8", "gpt_oss", "gpt_oss-mxfp4", "llama4",
                                         "mixtral", "nllb-moe", "qwen3_moe", "switch_transformers"),
                         test::name_of_model);

TEST(StepMemory, RowsThatStayOnTheDeviceTakeNoRoomOnTheirWay) {
  ModelSpec const spec = read_model_spec(test::model_dir("mixtral"), {});
  StepSizes const sizes{.tokens = 512, .logit_rows = 64, .sequences = 64, .length = 4096};
  EXPECT_EQ(exec_limits(spec, sizes, false).max_hidden, 0U);
  EXPECT_EQ(exec_limits(spec, sizes, true).max_hidden, spec.hidden);
  EXPECT_EQ(exec_limits(spec, sizes, true).max_positions, 4096U);
  ExecLimits const stay = exec_limits(spec, sizes, false);
  std::size_t const slots = 512 * layer_maxima(spec).experts_per_token;
  EXPECT_EQ(Exec::device_bytes(exec_limits(spec, sizes, true)) - Exec::device_bytes(stay),
            slots * spec.hidden * sizeof(float));
}

// Mixtral 8x7B, Qwen3 30B-A3B: by hand.
TEST(StepMemory, ExpertsTakeWholePages) {
  auto const model = [](std::size_t hidden, std::size_t intermediate, std::size_t experts,
                        WeightSlice const& weights = {}) {
    ExpertLayerSpec layer{.layer = 0, .hidden = hidden, .intermediate = intermediate, .activation = {}, .experts = {}};
    FfnTensors const ffn{.gate = weights, .up = weights, .down = weights};
    layer.experts.assign(experts, ffn);
    return ExpertModelSpec{.layers = {layer}, .weights = kBfloat16Weights, .wire = DType::bf16};
  };
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  EXPECT_EQ(device_expert_bytes(model(4096, 14336, 8)), 8 * (224 + 112) * kMiB);
  EXPECT_EQ(device_expert_bytes(model(2048, 768, 128)), 128 * (6 + 4) * kMiB);  // 3 MiB of them used
  EXPECT_EQ(device_expert_bytes(model(64, 32, 4)), std::size_t{4} * 3 * 64 * 32 * 2);
  WeightSlice const fp8{.name = "w", .storage = WeightStorage::fp8_blocks};
  EXPECT_EQ(device_expert_bytes(model(4096, 14336, 8, fp8)), 8 * (116 + 58) * kMiB);  // 115.5 and 57.8 of them used
}

}  // namespace
}  // namespace expertmesh
