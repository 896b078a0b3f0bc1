// The reference checkpoints through the step runner, in this process: hidden states, logits and routing of the
// reference; the same bits for any batch, chunk and thread count; no allocation on the step path.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>

#include "tests/support/few_cases.h"
#include "tests/support/golden_file.h"
#include "tests/support/model_copy.h"
#include "tests/unit/engine/allocation_counter.h"
#include "tests/unit/engine/changed_models.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;
using test::KeepLayers;
using test::kFewCases;
using test::kMaxTokens;
using test::kTolerance;
using test::largest_of;
using test::logit_error;
using test::Model;
using test::model_dir;
using test::num_prompts;
using test::Numerics;
using test::prompt_of;

class ReferenceModel : public testing::TestWithParam<std::string> {
 protected:
  ReferenceModel() {
    for (std::size_t i = 0; i < num_prompts(golden); ++i) prompts.push_back(prompt_of(golden, i));
  }
  fs::path const dir = model_dir(GetParam());
  test::GoldenFile const golden{dir / "golden.safetensors"};
  std::vector<std::vector<TokenId>> prompts;  // the last one is the longest
};

TEST_P(ReferenceModel, LogitsAndRoutingAreTheReferences) {
  Model model(dir, DType::f32, 2, best_isa());
  auto const outputs = model.run(prompts, kMaxTokens);
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    std::string const prefix = "prompt" + std::to_string(p) + ".";
    auto const logits = golden.floats(prefix + "logits");  // [T,V]
    ASSERT_EQ(outputs[p].logprobs.size(), prompts[p].size());
    double const error = logit_error(outputs[p], logits, model.spec.vocab);
    EXPECT_LE(error, kTolerance) << "prompt " << p;
    RecordProperty(prefix + "logit_error", std::to_string(error));
    for (std::size_t t = 0; t < prompts[p].size(); ++t)
      for (std::size_t m = 0; m < model.runner->num_moe_layers(); ++m) {
        std::string const name = prefix + "router." + std::to_string(model.runner->moe_layers()[m]) + ".experts";
        if (!golden.has(name)) continue;  // one reference does not tell: its mixtures' outputs are its witness
        auto const experts = golden.ints(name);
        auto const& chosen = outputs[p].experts[t][m];
        // The reference does not sort the choice of all families.
        auto const first = experts.begin() + static_cast<std::ptrdiff_t>(t * chosen.size());
        EXPECT_TRUE(std::is_permutation(chosen.begin(), chosen.end(), first)) << "position " << t << ", mixture " << m;
      }
  }
}

TEST_P(ReferenceModel, LogitsWithAnInt8KvCacheAreNearTheReferences) {
  auto const exact = Model(dir, DType::f32, 2, best_isa()).run(prompts, kMaxTokens);
  Model model(dir, {DType::f32, DType::i8}, 2, best_isa());
  auto outputs = model.run(prompts, kMaxTokens);
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    std::string const prefix = "prompt" + std::to_string(p) + ".";
    outputs[p].logprobs.resize(test::num_routed_alike(outputs[p], exact[p]));
    if (outputs[p].logprobs.empty()) continue;
    double const error = logit_error(outputs[p], golden.floats(prefix + "logits"), model.spec.vocab);
    EXPECT_LE(error, test::kInt8KvTolerance) << "prompt " << p;
    EXPECT_GT(error, kTolerance) << "prompt " << p << ": as if nothing had been rounded";
    RecordProperty(prefix + "int8_kv_logit_error", std::to_string(error));
  }
}

TEST_P(ReferenceModel, HiddenStatesAndMixturesAreTheReferences) {
  Model model(dir, DType::f32, 2, best_isa());
  KeepLayers kept;
  model.runner->set_tap(&kept);
  auto const expect_near = [](std::vector<float> const& got, std::vector<float> const& expected,
                              std::string const& what) {
    ASSERT_EQ(got.size(), expected.size()) << what;
    double const bound = kTolerance * static_cast<double>(largest_of(expected));
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], bound) << what << ", element " << i;
  };
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    (void)model.run({prompts[p]}, kMaxTokens);
    std::string const prefix = "prompt" + std::to_string(p) + ".";
    // The last one is behind the final norm in the reference: the logits are its witness.
    std::size_t const layers = model.spec.stacks.front().layers.size();
    for (std::size_t l = 0; l < layers; ++l)
      expect_near(kept.hidden_by_index.at(l), golden.floats(prefix + "hidden." + std::to_string(l)),
                  prefix + "hidden " + std::to_string(l));
    for (auto& [layer, out] : kept.moe_by_layer) {
      std::string const name = prefix + "moe_output." + std::to_string(layer);
      if (!golden.has(name)) continue;
      // Where the shared expert stands beside the mixture, not in it, the reference's output is without it.
      bool const shared_inside = model.spec.family != "granitemoeshared";
      auto const& shared = kept.shared_by_layer.at(layer);
      for (std::size_t i = 0; shared_inside && i < shared.size(); ++i) out[i] += shared[i];
      expect_near(out, golden.floats(name), name);
    }
  }
  model.runner->set_tap(nullptr);
}

TEST_P(ReferenceModel, BitsDoNotDependOnBatchChunkOrThreads) {
  for (Numerics const& numerics : {Numerics(DType::f32), Numerics(DType::bf16), Numerics(DType::bf16, DType::i8)}) {
    Model one(dir, numerics, 1, best_isa());
    auto const expected = one.run({prompts.back()}, kMaxTokens)[0];
    for (std::size_t budget : kFewCases ? std::vector<std::size_t>{31} : std::vector<std::size_t>{8, 16, 31, 128}) {
      Model three(dir, numerics, 3, best_isa());
      std::vector<std::vector<TokenId>> crowd(4, prompts[prompts.size() - 2]);
      crowd[3] = prompts.back();
      auto const got = three.run(crowd, budget)[3];
      EXPECT_EQ(got.logprobs, expected.logprobs) << numerics << ", budget " << budget;
      EXPECT_EQ(got.experts, expected.experts);
    }
  }
}

// Where they meet is in the middle of a sequence here, or of a prompt.
TEST_P(ReferenceModel, TwoMicroBatchesHaveTheBitsOfOne) {
  for (DType const dtype : {DType::f32, DType::bf16}) {
    Model model(dir, dtype, 2, best_isa());
    for (std::size_t const budget : {std::size_t{31}, kMaxTokens}) {
      model.make_runner(kMaxTokens, MicroBatchRule::one);
      auto const whole = model.run(prompts, budget);
      model.make_runner(kMaxTokens, MicroBatchRule::two);
      auto const split = model.run(prompts, budget);
      for (std::size_t p = 0; p < prompts.size(); ++p) {
        EXPECT_EQ(split[p].logprobs, whole[p].logprobs) << name_of(dtype) << ", budget " << budget << ", prompt " << p;
        EXPECT_EQ(split[p].experts, whole[p].experts) << name_of(dtype) << ", budget " << budget << ", prompt " << p;
      }
      EXPECT_GT(model.runner->num_split_steps(), 0U);
    }
  }
}

TEST_P(ReferenceModel, Float32BitsDoNotDependOnTheInstructionSet) {
  for (Numerics const& numerics : {Numerics(DType::f32), Numerics(DType::f32, DType::i8)}) {
    auto const expected = Model(dir, numerics, 1, Isa::scalar).run({prompts[prompts.size() - 2]}, kMaxTokens)[0];
    for (Isa isa : runnable_isas())
      EXPECT_EQ(Model(dir, numerics, 1, isa).run({prompts[prompts.size() - 2]}, kMaxTokens)[0].logprobs,
                expected.logprobs)
          << name_of(isa) << ", " << numerics;
  }
}

class AStep : public testing::TestWithParam<std::tuple<std::string, MicroBatchRule>> {};

TEST_P(AStep, DoesNotAllocate) {
  auto const& [name, rule] = GetParam();
  fs::path const dir = model_dir(name);
  test::GoldenFile const golden(dir / "golden.safetensors");
  auto const prompt = prompt_of(golden, num_prompts(golden) - 1);
  Model model(dir, DType::bf16, 2, best_isa());
  model.make_runner(kMaxTokens, rule);
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = kMaxTokens, .max_model_len = 128}, model.groups,
                      model.blocks);
  std::array<Sequence, 2> sequences;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    Sequence& sequence = sequences[i];
    sequence.id = SequenceId(i);
    sequence.tokens.reserve(128);
    sequence.tokens = prompt;
    sequence.prompt_length = prompt.size();
    sequence.max_length = sequence.prompt_length + 36;
    scheduler.submit(sequence);
  }
  StageFloors const floors(model.spec, weight_format_of(DType::bf16), DType::bf16, DType::i8,
                           {.bytes_per_second = 1e9});
  model.runner->count_floors(&floors);
  SamplingParams const greedy{.temperature = 0};
  std::vector<RowWish> const wishes(2, RowWish{.sampling = &greedy, .token_logprobs = {}, .prompt_logprobs = {}});
  for (int step = 0; step < 32; ++step) {  // windows move on meanwhile
    std::size_t const before = test::allocations_so_far();
    StepBatch const& batch = scheduler.schedule();
    auto const results = model.runner->run(batch, std::span(wishes).first(batch.logit_rows().size()));
    scheduler.complete_step();
    std::size_t const during = test::allocations_so_far() - before;
    if (step > 0) {  // in the first one the experts set themselves up
      EXPECT_EQ(during, 0U) << "step " << step;
    }
    for (std::size_t i = 0; i < results.size(); ++i)
      batch.sequences()[batch.logit_rows()[i].sequence]->tokens.push_back(*results[i].token);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, AStep,
                         testing::Combine(testing::ValuesIn(test::kReferenceModels),
                                          testing::Values(MicroBatchRule::one, MicroBatchRule::two)),
                         [](auto const& test) {
                           std::string name = std::get<0>(test.param);
                           std::ranges::replace(name, '-', '_');
                           return name + (std::get<1>(test.param) == MicroBatchRule::one ? "_whole" : "_split");
                         });
INSTANTIATE_TEST_SUITE_P(Cases, ReferenceModel, testing::ValuesIn(test::kReferenceModels), test::name_of_model);

// ---- what has kernels of its own for every instruction set: plain, biased and clamped, latent
class EveryIsa : public testing::TestWithParam<std::tuple<Isa, char const*>> {};

TEST_P(EveryIsa, HasTheGoldensAndBitsOfTheRowAlone) {
  auto const [isa, name] = GetParam();
  test::GoldenFile const golden(model_dir(name) / "golden.safetensors");
  std::vector<std::vector<TokenId>> prompts;
  for (std::size_t i = 0; i < num_prompts(golden); ++i) prompts.push_back(prompt_of(golden, i));
  for (DType dtype : {DType::f32, DType::bf16}) {
    Model model(model_dir(name), dtype, 2, isa);
    auto const together = model.run(prompts, 31);
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      Model alone(model_dir(name), dtype, 1, isa);
      EXPECT_EQ(alone.run({prompts[p]}, kMaxTokens)[0].logprobs, together[p].logprobs) << name_of(dtype) << ", " << p;
      if (dtype == DType::f32) {
        double const error =
            logit_error(together[p], golden.floats("prompt" + std::to_string(p) + ".logits"), model.spec.vocab);
        EXPECT_LE(error, kTolerance) << "prompt " << p;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, EveryIsa,
                         testing::Combine(testing::ValuesIn(runnable_isas()),
                                          testing::Values("mixtral", "gpt_oss", "deepseek_v3")),
                         [](auto const& test) {
                           return std::string(name_of(std::get<0>(test.param))) + "_" + std::get<1>(test.param);
                         });

// ---- every knob of a family matters: with it turned, the model is another one, or none
// By the longest prompt.
void expect_other_model(fs::path const& dir, test::GoldenFile const& golden) {
  test::expect_other_model([&] {
    std::size_t const last = num_prompts(golden) - 1;
    Model model(dir, DType::f32, 1, best_isa());
    auto const output = model.run({prompt_of(golden, last)}, kMaxTokens)[0];
    return logit_error(output, golden.floats("prompt" + std::to_string(last) + ".logits"), model.spec.vocab);
  });
}

class TurnedKnob : public testing::TestWithParam<test::Knob> {};
TEST_P(TurnedKnob, MakesAnotherModel) {
  expect_other_model(test::ChangedModel(GetParam()).path(),
                     test::GoldenFile(model_dir(GetParam().model) / "golden.safetensors"));
}
constexpr test::Knob kKnobs[] = {
    {"deepseek_v2", "/routed_scaling_factor", "1.0"},
    {"deepseek_v2", "/topk_method", R"("greedy")"},
    {"deepseek_v2", "/topk_group", "3"},
    {"deepseek_v2", "/n_group", "2"},
    {"deepseek_v2", "/num_experts_per_tok", "2"},
    {"deepseek_v2", "/rope_theta", "500.0"},
    {"deepseek_v2", "/first_k_dense_replace", "0"},
    {"deepseek_v3", "/routed_scaling_factor", "1.0"},
    {"deepseek_v3", "/norm_topk_prob", "false"},
    {"deepseek_v3", "/topk_group", "3"},
    {"deepseek_v3", "/rope_interleave", "false"},
    {"deepseek_v3", "/rope_scaling/factor", "10.0"},
    {"deepseek_v3", "/rope_scaling/mscale_all_dim", "0.5"},
    {"deepseek_v3", "/rope_scaling/original_max_position_embeddings", "64"},
    {"deepseek_v3-fp8", "/quantization_config", "null"},
    {"dots1", "/routed_scaling_factor", "1.0"},
    {"dots1", "/norm_topk_prob", "false"},
    {"dots1", "/num_experts_per_tok", "2"},
    {"ernie4_5_moe", "/moe_norm_min", "2.0"},
    {"ernie4_5_moe", "/moe_k", "2"},
    {"ernie4_5_moe", "/moe_layer_end_index", "1"},
    {"ernie4_5_moe", "/moe_num_shared_experts", "0"},
    {"ernie4_5_moe", "/use_bias", "false"},
    {"ernie4_5_moe", "/rope_theta", "500.0"},
    {"glm4_moe", "/partial_rotary_factor", "1.0"},
    {"glm4_moe", "/routed_scaling_factor", "2.0"},
    {"glm4_moe", "/norm_topk_prob", "false"},
    {"glm4_moe", "/use_qk_norm", "false"},
    {"glm4_moe", "/attention_bias", "false"},
    {"gpt_oss", "/swiglu_limit", "7.0"},
    {"gpt_oss", "/swiglu_alpha", "1.0"},
    {"gpt_oss", "/sliding_window", "7"},
    {"gpt_oss", "/layer_types", R"(["full_attention", "sliding_attention", "full_attention"])"},
    {"gpt_oss", "/rope_scaling/factor", "4.0"},
    {"gpt_oss", "/rope_scaling/beta_slow", "4.0"},
    {"gpt_oss", "/num_experts_per_tok", "1"},
    {"gpt_oss-mxfp4", "/swiglu_alpha", "1.0"},
    {"gpt_oss-mxfp4", "/quantization_config", "null"},
    {"granitemoe", "/embedding_multiplier", "1.0"},
    {"granitemoe", "/attention_multiplier", "0.25"},
    {"granitemoe", "/residual_multiplier", "1.0"},
    {"granitemoe", "/logits_scaling", "1.0"},
    {"granitemoeshared", "/shared_intermediate_size", "0"},
    {"granitemoeshared", "/residual_multiplier", "1.0"},
    {"hunyuan_v1_moe", "/moe_topk", "1"},
    {"hunyuan_v1_moe", "/rope_theta", "500.0"},
    {"llama", "/tie_word_embeddings", "false"},
    {"llama", "/rope_theta", "500.0"},
    {"llama-dynamic", "/rope_scaling/factor", "2.0"},
    {"llama-linear", "/rope_scaling/factor", "2.0"},
    {"llama-llama3", "/rope_scaling/factor", "2.0"},
    {"llama-llama3", "/rope_scaling/low_freq_factor", "2.0"},
    {"llama-llama3", "/rope_scaling/high_freq_factor", "2.0"},
    {"llama-llama3", "/rope_scaling/original_max_position_embeddings", "64"},
    {"llama4", "/attention_chunk_size", "15"},
    {"llama4", "/floor_scale", "4"},
    {"llama4", "/attn_scale", "0.1"},
    {"llama4", "/attn_temperature_tuning", "false"},
    {"llama4", "/use_qk_norm", "false"},
    {"llama4", "/no_rope_layers", "[1, 1, 1, 1]"},
    {"llama4", "/num_experts_per_tok", "2"},
    {"llama4", "/moe_layers", "[3]"},
    {"minimax_m2", "/partial_rotary_factor", "1.0"},
    {"minimax_m2", "/num_experts_per_tok", "2"},
    {"mistral", "/sliding_window", "11"},
    {"mixtral", "/num_experts_per_tok", "1"},
    {"mixtral", "/rope_theta", "500.0"},
    {"mixtral", "/rms_norm_eps", "0.1"},
    {"mixtral-window", "/sliding_window", "15"},
    {"noisy_topk_moe", "/num_experts_per_tok", "1"},
    {"noisy_topk_moe", "/router_noise", "true"},
    {"noisy_topk_moe", "/moe_layer_interval", "1"},
    {"olmoe", "/clip_qkv", "null"},
    {"olmoe", "/clip_qkv", "1.0"},
    {"olmoe", "/norm_topk_prob", "true"},
    {"phimoe", "/router_jitter_noise", "0.3"},
    {"phimoe", "/lm_head_bias", "false"},
    {"phimoe", "/attention_bias", "false"},
    {"phimoe-longrope", "/rope_scaling/long_mscale", "1.0"},
    {"phimoe-longrope", "/rope_scaling/short_factor", "[1, 1, 1, 1, 1, 1, 1, 1]"},
    {"qwen2", "/rope_theta", "500.0"},
    {"qwen2_moe", "/norm_topk_prob", "true"},
    {"qwen2_moe", "/qkv_bias", "false"},
    {"qwen2_moe", "/decoder_sparse_step", "1"},
    {"qwen3", "/rms_norm_eps", "0.1"},
    {"qwen3_moe", "/norm_topk_prob", "false"},
    {"qwen3_moe", "/mlp_only_layers", "[1]"}};
INSTANTIATE_TEST_SUITE_P(Knobs, TurnedKnob, testing::ValuesIn(kKnobs), test::name_of_change<test::Knob>);

TEST(TiedModel, HasItsStoredHead) {
  test::ModelCopy const copy("mixtral");
  copy.edit_config([](nlohmann::json& config) { config["tie_word_embeddings"] = true; });
  test::GoldenFile const golden(model_dir("mixtral") / "golden.safetensors");
  Model model(copy.path(), DType::f32, 1, best_isa());
  auto const output = model.run({prompt_of(golden, 1)}, kMaxTokens)[0];
  EXPECT_LE(logit_error(output, golden.floats("prompt1.logits"), model.spec.vocab), kTolerance);
}

// ---- and so does every tensor that only one thing reads
class ZeroedTensor : public testing::TestWithParam<test::LoneTensor> {};
TEST_P(ZeroedTensor, MakesAnotherModel) {
  expect_other_model(test::ChangedModel(GetParam()).path(),
                     test::GoldenFile(model_dir(GetParam().model) / "golden.safetensors"));
}
constexpr test::LoneTensor kLoneTensors[] = {
    {"deepseek_v2", "model.layers.1.self_attn.q_a_layernorm.weight"},
    {"deepseek_v2", "model.layers.1.self_attn.kv_a_layernorm.weight"},
    {"deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias"},
    {"deepseek_v3", "model.layers.1.mlp.shared_experts.up_proj.weight"},
    {"deepseek_v3-fp8", "model.layers.1.mlp.shared_experts.up_proj.weight_scale_inv"},
    {"deepseek_v3-fp8", "model.layers.1.self_attn.kv_b_proj.weight_scale_inv"},
    {"dots1", "model.layers.1.mlp.gate.e_score_correction_bias"},
    {"ernie4_5_moe", "model.layers.1.mlp.moe_statics.e_score_correction_bias"},
    {"ernie4_5_moe", "lm_head.bias"},
    {"ernie4_5_moe", "model.layers.0.mlp.down_proj.bias"},
    {"ernie4_5_moe", "model.layers.1.mlp.shared_experts.gate_proj.bias"},
    {"glm4_moe", "model.layers.1.mlp.gate.e_score_correction_bias"},
    {"glm4_moe", "model.layers.1.self_attn.v_proj.bias"},
    {"gpt_oss", "model.layers.1.self_attn.sinks"},
    {"gpt_oss", "model.layers.1.mlp.router.bias"},
    {"gpt_oss", "model.layers.1.mlp.experts.gate_up_proj_bias"},
    {"gpt_oss", "model.layers.1.mlp.experts.down_proj_bias"},
    {"gpt_oss", "model.layers.1.self_attn.o_proj.bias"},
    {"gpt_oss-mxfp4", "model.layers.1.mlp.experts.down_proj_scales"},
    {"hunyuan_v1_moe", "model.layers.1.mlp.shared_mlp.down_proj.weight"},
    {"llama4", "model.layers.1.feed_forward.shared_expert.down_proj.weight"},
    {"minimax_m2", "model.layers.1.block_sparse_moe.e_score_correction_bias"},
    {"phimoe", "model.norm.bias"},
    {"phimoe", "model.layers.1.input_layernorm.bias"},
    {"phimoe", "lm_head.bias"},
    {"qwen2_moe", "model.layers.1.mlp.shared_expert_gate.weight"},
    {"qwen2_moe", "model.layers.1.self_attn.k_proj.bias"}};
INSTANTIATE_TEST_SUITE_P(Tensors, ZeroedTensor, testing::ValuesIn(kLoneTensors),
                         test::name_of_change<test::LoneTensor>);

}  // namespace
}  // namespace expertmesh
