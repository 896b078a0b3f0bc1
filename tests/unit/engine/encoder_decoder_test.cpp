// Encoder-decoder checkpoints through the step runner: the reference's encoder output, hidden states, logits and greedy
// paths; the same bits for any batch, any part of an input, any chunk, after preemptions; no allocation on the step
// path.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>

#include "tests/support/golden_file.h"
#include "tests/unit/engine/allocation_counter.h"
#include "tests/unit/engine/changed_models.h"
#include "tests/unit/engine/golden_rig.h"

// Of its own: it has a rig, outputs and a golden of its own kind, and is compiled together with the decoders' tests.
namespace expertmesh::encoder_decoder {
namespace {

namespace fs = std::filesystem;
using test::kMaxTokens;
using test::kTolerance;
using test::largest_of;
using test::model_dir;
constexpr std::size_t kMaxLength = test::ModelRig::kMaxInput;
constexpr std::size_t kBlocks = 96;

// What the encoder gave and what the decoder's layers left, of one sequence that runs alone.
class KeepRows final : public LayerTap {
 public:
  void hidden(std::size_t index, MatrixView<float const> x) override { append(hidden_by_index[index], x); }
  void encoder_output(std::size_t begin, MatrixView<float const> x) override {
    encoded.resize(begin * x.cols);
    append(encoded, x);
  }
  void moe_output(std::size_t, MatrixView<float const>, MatrixView<float const>) override {}
  std::map<std::size_t, std::vector<float>> hidden_by_index;
  std::vector<float> encoded;

 private:
  static void append(std::vector<float>& out, MatrixView<float const> x) {
    for (std::size_t t = 0; t < x.rows; ++t) out.insert(out.end(), x.row(t), x.row(t) + x.cols);
  }
};

struct Case {
  std::vector<TokenId> input;
  std::vector<TokenId> tokens;  // of the decoder
  std::size_t num_new = 0;      // greedy tokens to add
};
struct Output {
  std::vector<std::vector<float>> logprobs;                      // [tokens][V] of all ids in order
  std::vector<std::vector<std::vector<std::uint32_t>>> experts;  // [tokens][MoE layers][K] with kNoExpert
  std::vector<TokenId> new_tokens;
  bool operator==(Output const&) const = default;
};

struct Model : test::ModelRig {
  Model(fs::path const& dir, test::Numerics numerics, std::size_t threads, Isa isa, std::size_t max_tokens = kMaxTokens,
        std::size_t blocks_of_each = kBlocks)
      : Model(read_model_spec(dir, {}), dir, numerics, threads, isa, max_tokens, blocks_of_each) {}
  Model(ModelSpec const& model, fs::path const& dir, test::Numerics numerics, std::size_t threads, Isa isa,
        std::size_t max_tokens, std::size_t blocks_of_each)
      : ModelRig(model, dir, numerics, threads, isa,
                 std::vector<std::size_t>(kv_cache_specs(model, numerics.kv).size(), blocks_of_each), max_tokens),
        limits{.max_num_seqs = 4,
               .max_num_batched_tokens = max_tokens,
               .max_model_len = kMaxLength,
               .num_expert_counts = num_expert_counts(spec)} {}

  // Side by side. prefill_tokens: of prompts beside decodes. The steps are counted.
  std::vector<Output> run(std::vector<Case> const& cases, std::size_t prefill_tokens = kMaxTokens) {
    Scheduler scheduler(limits, groups, blocks);
    return run(scheduler, cases, prefill_tokens);
  }
  std::vector<Output> run(Scheduler& scheduler, std::vector<Case> const& cases,
                          std::size_t prefill_tokens = kMaxTokens) {
    std::vector<Sequence> sequences(cases.size());
    std::vector<Output> outputs(cases.size());
    for (std::size_t i = 0; i < cases.size(); ++i) {
      Sequence& s = sequences[i];
      s.id = SequenceId(i);
      s.input = cases[i].input;
      s.tokens = cases[i].tokens;
      s.prompt_length = s.tokens.size();
      s.max_length = s.prompt_length + std::max<std::size_t>(cases[i].num_new, 1);
      s.prompt_logits = true;
      scheduler.submit(s);
    }
    SamplingParams const greedy{.temperature = 0};
    num_steps = num_encoder_steps = 0;
    for (;; ++num_steps) {
      StepBatch const& batch = scheduler.schedule(prefill_tokens);
      bool const encodes = !scheduler.encoder_batch().empty();
      if (batch.num_tokens() == 0 && !encodes) break;
      if (encodes) {
        ++num_encoder_steps;
        if (runner->encode(scheduler.encoder_batch()).all) scheduler.complete_encoding();
      }
      if (batch.num_tokens() == 0) continue;
      std::vector<RowWish> const wishes(
          batch.logit_rows().size(),
          RowWish{.sampling = &greedy, .token_logprobs = spec.vocab, .prompt_logprobs = spec.vocab});
      auto const results = runner->run(batch, wishes);
      std::vector<std::pair<std::size_t, TokenId>> sampled;
      for (std::size_t i = 0; i < results.size(); ++i) {
        LogitRow const& row = batch.logit_rows()[i];
        std::size_t const which = batch.sequences()[row.sequence]->id.value();
        if (row.sample) sampled.emplace_back(which, *results[i].token);
        Output& output = outputs[which];
        if (row.position < output.logprobs.size()) continue;  // known from before a preemption
        auto const& top = row.sample ? results[i].token_logprobs->top : results[i].prompt_logprobs->top;
        auto& line = output.logprobs.emplace_back(spec.vocab);
        for (auto const& entry : top) line[static_cast<std::size_t>(entry.token)] = entry.logprob;
        auto& experts = output.experts.emplace_back();
        for (std::size_t m = 0; m < runner->num_routed_layers(); ++m) {
          auto const chosen = runner->routed(m, row.row);
          experts.emplace_back(chosen.begin(), chosen.end());
        }
      }
      scheduler.complete_step();
      scheduler.check_integrity();
      for (auto const& [which, token] : sampled) {
        if (outputs[which].new_tokens.size() == cases[which].num_new) continue;
        outputs[which].new_tokens.push_back(token);
        if (outputs[which].new_tokens.size() < cases[which].num_new)
          sequences[which].tokens.push_back(token);
        else
          scheduler.remove(sequences[which]);
      }
    }
    for (std::size_t i = 0; i < cases.size(); ++i)
      if (cases[i].num_new == 0) scheduler.remove(sequences[i]);
    num_preemptions = scheduler.num_preemptions();
    return outputs;
  }

  SchedulerLimits limits;
  std::size_t num_steps = 0, num_encoder_steps = 0, num_preemptions = 0;
};

// In units of the largest value.
double error_of(std::vector<float> const& got, std::vector<float> const& expected) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
  return worst / static_cast<double>(largest_of(expected));
}

// Log-probabilities are the logits less a constant of the row.
double logit_error(Output const& output, std::vector<float> const& logits, std::size_t vocab) {
  std::vector<float> shifted;
  for (std::size_t t = 0; t < output.logprobs.size(); ++t) {
    double shift = 0;
    for (std::size_t v = 0; v < vocab; ++v)
      shift += static_cast<double>(logits[t * vocab + v] - output.logprobs[t][v]) / static_cast<double>(vocab);
    for (std::size_t v = 0; v < vocab; ++v) shifted.push_back(output.logprobs[t][v] + static_cast<float>(shift));
  }
  return error_of(shifted, logits);
}

struct Golden {
  explicit Golden(fs::path const& dir)
      : file(dir / "golden.safetensors"), json(nlohmann::json::parse(test::read_file(dir / "golden.json"))) {
    for (std::size_t i = 0; i < json.at("prompts").size(); ++i)
      forced.push_back({.input = ids(i, "input_ids"), .tokens = ids(i, "decoder_ids")});
  }
  [[nodiscard]] std::vector<TokenId> ids(std::size_t i, std::string const& name) const {
    auto const list = file.ints(prefix(i) + name);
    return {list.begin(), list.end()};
  }
  [[nodiscard]] std::vector<float> floats(std::size_t i, std::string const& name) const {
    return file.floats(prefix(i) + name);
  }
  [[nodiscard]] std::vector<TokenId> greedy(std::size_t i) const { return json.at("prompts").at(i).at("greedy"); }
  static std::string prefix(std::size_t i) { return "prompt" + std::to_string(i) + "."; }

  test::GoldenFile file;
  nlohmann::json json;
  std::vector<Case> forced;  // by the reference's decoder ids
};

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

INSTANTIATE_TEST_SUITE_P(Cases, EncoderDecoder, testing::Values("nllb-moe", "switch_transformers"),
                         test::name_of_model);

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
