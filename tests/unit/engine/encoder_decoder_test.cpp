// Encoder-decoder checkpoints through the step runner: the reference's encoder output, hidden states, logits and greedy
// paths; the same bits for any batch, any part of an input, any chunk, after preemptions; no allocation on the step
// path.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/unit/engine/allocation_counter.h"
#include "tests/unit/engine/changed_models.h"
#include "tests/unit/engine/encoder_decoder_rig.h"

// Of its own: it has a rig, outputs and a golden of its own kind, and is compiled together with the decoders' tests.
namespace expertmesh::encoder_decoder {
namespace {

class EncoderDecoder : public testing::TestWithParam<std::string> {
 protected:
  fs::path const dir = model_dir(GetParam());
  Golden const golden{dir};

  [[nodiscard]] std::vector<Case> from_start(std::size_t num_new) const {
    std::vector<Case> cases = golden.forced;
    for (Case& c : cases) {
      c.tokens.resize(1);
      c.num_new = num_new;
    }
    return cases;
  }
};

TEST_P(EncoderDecoder, LogitsAreTheReferences) {
  Model model(dir, DType::f32, 2, best_isa());
  auto const outputs = model.run(golden.forced);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    ASSERT_EQ(outputs[i].logprobs.size(), golden.forced[i].tokens.size());
    double const error = logit_error(outputs[i], golden.floats(i, "logits"), model.spec.vocab);
    EXPECT_LE(error, kTolerance) << "prompt " << i;
    RecordProperty(Golden::prefix(i) + "logit_error", std::to_string(error));
  }
}

// Where none of an input's tokens, which are not seen here, goes to another expert.
TEST_P(EncoderDecoder, LogitsWithAnInt8KvCacheAreNearTheReferences) {
  auto const exact = Model(dir, DType::f32, 2, best_isa()).run(golden.forced);
  Model model(dir, {DType::f32, DType::i8}, 2, best_isa());
  auto outputs = model.run(golden.forced);
  double best = 1;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].logprobs.resize(test::num_routed_alike(outputs[i], exact[i]));
    best = std::min(best, logit_error(outputs[i], golden.floats(i, "logits"), model.spec.vocab));
  }
  EXPECT_LE(best, test::kInt8KvTolerance);
  EXPECT_GT(best, kTolerance) << "as if nothing had been rounded";
}

// Each token in a step of its own: what a step leaves for the next one matters.
TEST_P(EncoderDecoder, LogitsAreTheReferencesTokenByToken) {
  Model model(dir, DType::f32, 2, best_isa());
  model.limits.max_num_seqs = 1;
  model.limits.max_num_batched_tokens = 1;
  for (std::size_t i = 0; i < golden.forced.size(); ++i) {
    auto const output = model.run({golden.forced[i]})[0];
    EXPECT_LE(logit_error(output, golden.floats(i, "logits"), model.spec.vocab), kTolerance) << "prompt " << i;
    EXPECT_GE(model.num_steps, golden.forced[i].tokens.size());
  }
}

TEST_P(EncoderDecoder, EncoderOutputAndHiddenStatesAreTheReferences) {
  for (std::size_t max_tokens : {kMaxTokens, std::size_t{7}}) {  // the longest input in one part, in several
    Model model(dir, DType::f32, 2, best_isa(), max_tokens);
    std::size_t const layers = model.spec.decoder().layers.size();
    for (std::size_t i = 0; i < golden.forced.size(); ++i) {
      KeepRows kept;
      model.runner->set_tap(&kept);
      (void)model.run({golden.forced[i]});
      EXPECT_LE(error_of(kept.encoded, golden.floats(i, "encoder_output")), kTolerance) << "prompt " << i;
      // The last one is behind the final norm in the reference: the logits are its witness.
      for (std::size_t l = 0; l < layers; ++l)
        EXPECT_LE(error_of(kept.hidden_by_index.at(l), golden.floats(i, "decoder_hidden." + std::to_string(l))),
                  kTolerance)
            << "prompt " << i << ", hidden " << l;
    }
    model.runner->set_tap(nullptr);
  }
}

TEST_P(EncoderDecoder, GreedyPathsAreTheReferences) {
  Model model(dir, DType::f32, 2, best_isa());
  auto const outputs = model.run(from_start(golden.greedy(0).size()));
  for (std::size_t i = 0; i < outputs.size(); ++i) EXPECT_EQ(outputs[i].new_tokens, golden.greedy(i)) << "prompt " << i;
}

TEST_P(EncoderDecoder, BitsDoNotDependOnBatchPartsChunksOrThreads) {
  Case const last = golden.forced.back();
  for (test::Numerics const& numerics :
       {test::Numerics(DType::f32), test::Numerics(DType::bf16), test::Numerics(DType::bf16, DType::i8)}) {
    auto const expected = Model(dir, numerics, 1, best_isa()).run({last})[0];
    for (std::size_t max_tokens : {4, 7, 16, 31, 128}) {
      Model three(dir, numerics, 3, best_isa(), max_tokens);
      std::vector<Case> crowd(5, golden.forced.front());
      crowd[1].num_new = 20;  // decodes while the others' inputs are encoded
      crowd[3] = last;
      EXPECT_EQ(three.run(crowd, 5)[3], expected) << numerics << ", " << max_tokens << " tokens a step";
    }
  }
}

TEST_P(EncoderDecoder, BitsDoNotDependOnPreemptions) {
  std::vector<Case> cases(4, from_start(40).back());
  cases[0].num_new = cases[2].num_new = 60;
  std::vector<Output> expected;
  for (Case const& c : cases) expected.push_back(Model(dir, DType::bf16, 1, best_isa()).run({c})[0]);
  Model tight(dir, DType::bf16, 2, best_isa(), 16, 9);  // four times four blocks would be needed
  tight.limits.max_model_len = 9 * kKvBlockTokens;
  EXPECT_EQ(tight.run(cases, 8), expected);
  EXPECT_GT(tight.num_preemptions, 0U);
}

TEST_P(EncoderDecoder, ALongInputLetsOthersDecode) {
  Model model(dir, DType::f32, 1, best_isa(), 8);
  Case talker = from_start(40).front();
  Case reader = from_start(1).back();
  reader.input.clear();
  for (TokenId id = 0; id < 90; ++id) reader.input.push_back(4 + id * 7 % 90);
  auto const alone = model.run({reader})[0];
  auto const together = model.run({talker, reader}, 4);
  EXPECT_EQ(together[1], alone);
  EXPECT_EQ(together[0].new_tokens.size(), 40U);
  EXPECT_GE(model.num_encoder_steps, 90U / 5);  // and each of them has a token of the talker
  EXPECT_LE(model.num_steps, 45U);
}

// One leaves while its input is half through: the others' are taken up again.
TEST_P(EncoderDecoder, AnInputThatIsGivenUpLeavesNothingBehind) {
  Case const last = from_start(4).back();
  auto const expected = Model(dir, DType::f32, 1, best_isa()).run({last})[0];
  Model model(dir, DType::f32, 1, best_isa(), 4);
  Scheduler scheduler(model.limits, model.groups, model.blocks);
  Sequence gone;
  gone.id = SequenceId(7);
  gone.input = std::vector<TokenId>(50, 9);
  gone.tokens = last.tokens;
  gone.prompt_length = 1;
  gone.max_length = 4;
  scheduler.submit(gone);
  for (int step = 0; step < 3; ++step) {
    EXPECT_EQ(scheduler.schedule().num_tokens(), 0U);
    ASSERT_FALSE(model.runner->encode(scheduler.encoder_batch()).all);
  }
  scheduler.remove(gone);
  EXPECT_TRUE(scheduler.encoder_batch().empty());
  scheduler.check_integrity();
  EXPECT_TRUE(model.run(scheduler, {last})[0] == expected);
}

TEST_P(EncoderDecoder, Float32BitsDoNotDependOnTheInstructionSet) {
  auto const expected = Model(dir, DType::f32, 1, Isa::scalar).run(golden.forced);
  for (Isa isa : runnable_isas())
    EXPECT_EQ(Model(dir, DType::f32, 1, isa).run(golden.forced), expected) << name_of(isa);
}

TEST_P(EncoderDecoder, AStepDoesNotAllocate) {
  Model model(dir, DType::bf16, 2, best_isa(), 20);
  Scheduler scheduler(model.limits, model.groups, model.blocks);
  std::vector<Sequence> sequences(2);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = sequences[i];
    s.id = SequenceId(i);
    s.input = golden.forced.back().input;
    s.tokens.reserve(64);
    s.tokens = {golden.forced.back().tokens.front()};
    s.prompt_length = 1;
    s.max_length = 40;
  }
  scheduler.submit(sequences[0]);
  SamplingParams const greedy{.temperature = 0};
  std::vector<RowWish> const wishes(2, RowWish{.sampling = &greedy, .token_logprobs = {}, .prompt_logprobs = {}});
  for (int step = 0; step < 32; ++step) {
    if (step == 12) scheduler.submit(sequences[1]);  // its input is encoded beside the other's tokens
    std::size_t const before = test::allocations_so_far();
    StepBatch const& batch = scheduler.schedule();
    if (!scheduler.encoder_batch().empty() && model.runner->encode(scheduler.encoder_batch()).all)
      scheduler.complete_encoding();
    std::span<RowResult const> results;
    if (batch.num_tokens() > 0) results = model.runner->run(batch, std::span(wishes).first(batch.logit_rows().size()));
    scheduler.complete_step();
    std::size_t const during = test::allocations_so_far() - before;
    if (step > 0) {  // in the first one the experts set themselves up
      EXPECT_EQ(during, 0U) << "step " << step;
    }
    for (std::size_t i = 0; i < results.size(); ++i)
      batch.sequences()[batch.logit_rows()[i].sequence]->tokens.push_back(*results[i].token);
  }
  EXPECT_GT(sequences[1].tokens.size(), 2U);
}

INSTANTIATE_TEST_SUITE_P(Cases, EncoderDecoder, testing::ValuesIn(kModels), test::name_of_model);

// ---- every knob matters, and every tensor that only one thing reads
void expect_other_model(fs::path const& dir, Golden const& golden) {
  test::expect_other_model([&] {
    std::size_t const last = golden.forced.size() - 1;
    Model model(dir, DType::f32, 1, best_isa());
    auto const output = model.run({golden.forced[last]})[0];
    return logit_error(output, golden.floats(last, "logits"), model.spec.vocab);
  });
}

class TurnedEncoderDecoderKnob : public testing::TestWithParam<test::Knob> {};
TEST_P(TurnedEncoderDecoderKnob, MakesAnotherModel) {
  expect_other_model(test::ChangedModel(GetParam()).path(), Golden(model_dir(GetParam().model)));
}
constexpr test::Knob kKnobs[] = {{"switch_transformers", "/expert_capacity", "1"},
                                 {"switch_transformers", "/relative_attention_num_buckets", "16"},
                                 {"switch_transformers", "/relative_attention_max_distance", "20"},
                                 {"switch_transformers", "/dense_act_fn", R"("gelu")"},
                                 {"switch_transformers", "/d_kv", "8"},
                                 {"switch_transformers", "/encoder_sparse_step", "3"},
                                 {"switch_transformers", "/decoder_sparse_step", "1"},
                                 {"switch_transformers", "/layer_norm_epsilon", "0.1"},
                                 {"switch_transformers", "/tie_word_embeddings", "false"},
                                 {"switch_transformers", "/router_bias", "true"},
                                 {"switch_transformers", "/num_experts", "3"},
                                 {"nllb-moe", "/scale_embedding", "false"},
                                 {"nllb-moe", "/moe_token_dropout", "0.0"},
                                 {"nllb-moe", "/pad_token_id", "0"},
                                 {"nllb-moe", "/encoder_attention_heads", "2"},
                                 {"nllb-moe", "/decoder_attention_heads", "8"},
                                 {"nllb-moe", "/activation_function", R"("gelu")"},
                                 {"nllb-moe", "/moe_eval_capacity_token_fraction", "0.5"},
                                 {"nllb-moe", "/second_expert_policy", R"("random")"},
                                 {"nllb-moe", "/decoder_sparse_step", "4"},
                                 {"nllb-moe", "/router_bias", "true"},
                                 {"nllb-moe", "/decoder_layers", "3"}};
INSTANTIATE_TEST_SUITE_P(Knobs, TurnedEncoderDecoderKnob, testing::ValuesIn(kKnobs), test::name_of_change<test::Knob>);

class ZeroedEncoderDecoderTensor : public testing::TestWithParam<test::LoneTensor> {};
TEST_P(ZeroedEncoderDecoderTensor, MakesAnotherModel) {
  expect_other_model(test::ChangedModel(GetParam()).path(), Golden(model_dir(GetParam().model)));
}
constexpr test::LoneTensor kLoneTensors[] = {
    {"switch_transformers", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
    {"switch_transformers", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
    {"switch_transformers", "encoder.block.3.layer.1.mlp.router.classifier.weight"},
    {"switch_transformers", "encoder.final_layer_norm.weight"},
    {"switch_transformers", "decoder.final_layer_norm.weight"},
    {"switch_transformers", "decoder.block.2.layer.1.layer_norm.weight"},
    {"switch_transformers", "decoder.block.3.layer.1.EncDecAttention.k.weight"},
    {"switch_transformers", "decoder.block.3.layer.1.EncDecAttention.v.weight"},
    {"nllb-moe", "model.encoder.layer_norm.bias"},
    {"nllb-moe", "model.decoder.layer_norm.bias"},
    {"nllb-moe", "model.decoder.layers.0.cross_attention.q_proj.bias"},
    {"nllb-moe", "model.decoder.layers.0.cross_attention.v_proj.bias"},
    {"nllb-moe", "model.decoder.layers.0.cross_attention.out_proj.bias"},
    {"nllb-moe", "model.decoder.layers.0.cross_attention_layer_norm.bias"},
    {"nllb-moe", "model.decoder.layers.1.ffn.router.classifier.weight"},
    {"nllb-moe", "model.encoder.layers.1.ffn.experts.expert_2.fc1.bias"},
    {"nllb-moe", "model.encoder.layers.1.ffn.experts.expert_2.fc2.bias"}};
INSTANTIATE_TEST_SUITE_P(Tensors, ZeroedEncoderDecoderTensor, testing::ValuesIn(kLoneTensors),
                         test::name_of_change<test::LoneTensor>);

}  // namespace
}  // namespace expertmesh::encoder_decoder
