// Encoder-decoder checkpoints on a device: the reference's encoder output, hidden states and logits, the processor's
// routing; the same bits for any batch, any part of an input, any chunk, wherever the experts are. The device is that
// of device_golden_test.cpp.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/unit/device/test_device.h"
#include "tests/unit/engine/encoder_decoder_rig.h"

namespace expertmesh::encoder_decoder {
namespace {

class DeviceEncoderDecoder : public testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] std::unique_ptr<Model> on_device(DType dtype, std::size_t max_tokens = kMaxTokens,
                                                 test::ExpertsAt experts_at = test::ExpertsAt::device) const {
    return std::make_unique<Model>(dir, dtype, 1, best_isa(), max_tokens, kBlocks, &test::test_device(), experts_at);
  }

  fs::path const dir = model_dir(GetParam());
  Golden const golden{dir};
};

TEST_P(DeviceEncoderDecoder, GivesTheReferencesStatesAndLogitsAndTheProcessorsRouting) {
  constexpr std::size_t kPart = 7;  // of which the longest input has several
  Model processor(dir, DType::f32, 1, best_isa(), kPart);
  auto const model = on_device(DType::f32, kPart);
  for (std::size_t i = 0; i < golden.forced.size(); ++i) {
    SCOPED_TRACE(Golden::prefix(i));
    KeepRows kept;
    model->runner->set_tap(&kept);
    auto const output = model->run({golden.forced[i]})[0];
    EXPECT_LE(error_of(kept.encoded, golden.floats(i, "encoder_output")), kTolerance);
    for (std::size_t l = 0; l < model->spec.decoder().layers.size(); ++l)
      EXPECT_LE(error_of(kept.hidden_by_index.at(l), golden.floats(i, "decoder_hidden." + std::to_string(l))),
                kTolerance)
          << "hidden " << l;
    ASSERT_EQ(output.logprobs.size(), golden.forced[i].tokens.size());
    double const error = logit_error(output, golden.floats(i, "logits"), model->spec.vocab);
    EXPECT_LE(error, kTolerance);
    RecordProperty(Golden::prefix(i) + "logit_error", std::to_string(error));
    EXPECT_EQ(output.experts, processor.run({golden.forced[i]})[0].experts);
  }
  model->runner->set_tap(nullptr);
  for (std::size_t m = 0; m < model->runner->num_moe_layers(); ++m)  // of both stacks
    EXPECT_EQ(model->runner->balance().layer(m).load, processor.runner->balance().layer(m).load) << "mixture " << m;
}

// Experts elsewhere: as workers have them, rows by way of the host. In float32 too with EM_DEVICE_ALL=1.
TEST_P(DeviceEncoderDecoder, BitsDoNotDependOnBatchPartsChunksOrPlaceOfTheExperts) {
  using test::ExpertsAt;
  Case last = golden.forced.back();
  last.tokens.resize(6);
  Case talker = golden.forced.front();
  talker.tokens.resize(1);
  talker.num_new = 5;
  std::vector<DType> dtypes{DType::bf16};
  if (std::getenv("EM_DEVICE_ALL") != nullptr) dtypes.push_back(DType::f32);
  for (DType dtype : dtypes) {
    auto const expected = on_device(dtype)->run({last})[0];
    auto const check = [&](std::size_t max_tokens, ExpertsAt experts_at) {
      auto const model = on_device(dtype, max_tokens, experts_at);
      EXPECT_EQ(model->run({talker, last}, max_tokens)[1], expected)
          << name_of(dtype) << ", " << max_tokens << " tokens a step";
      return model->num_encoder_steps;
    };
    EXPECT_GT(check(6, ExpertsAt::device), 4U);  // and the talker decodes beside them
    EXPECT_EQ(check(31, ExpertsAt::group_on_device), 1U);
  }
}

TEST_P(DeviceEncoderDecoder, AnEncodersStepTakesNoMemoryOfTheDevice) {
  auto const model = on_device(DType::bf16, 20);
  Device const& device = test::test_device();
  Scheduler scheduler(model->limits, model->groups, model->blocks);
  Sequence sequence;
  sequence.id = SequenceId(0);
  sequence.input = golden.forced.back().input;
  while (sequence.input.size() < kMaxLength) sequence.input.push_back(sequence.input.front());
  sequence.tokens = {golden.forced.back().tokens.front()};
  sequence.prompt_length = 1;
  sequence.max_length = 2;
  scheduler.submit(sequence);
  std::size_t const before = device.free_bytes();
  for (int step = 0; step < 2; ++step) {
    (void)scheduler.schedule();
    ASSERT_FALSE(model->runner->encode(scheduler.encoder_batch()).all);
    EXPECT_EQ(device.free_bytes(), before) << "step " << step;
  }
  scheduler.remove(sequence);
}

INSTANTIATE_TEST_SUITE_P(Cases, DeviceEncoderDecoder, testing::ValuesIn(kModels), test::name_of_model);

}  // namespace
}  // namespace expertmesh::encoder_decoder
