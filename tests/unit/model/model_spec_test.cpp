// From a model directory to its ModelSpec: what every family yields, and how a wrong config or checkpoint is refused.
#include "coordinator/model/model_spec.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/model_copy.h"
#include "tests/unit/model/published_configs.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using test::expect_words;
using test::ModelCopy;
using test::refusal;
using test::ScratchDir;
using test::write_file;

ModelSpec spec_of(char const* golden_case, ModelOptions const& options = {}) {
  return read_model_spec(ModelCopy::source(golden_case), options);
}
std::vector<LayerSpec> const& layers_of(ModelSpec const& spec) {
  return spec.stacks.front().layers;
}
MoeFfnSpec const* moe_of(ModelSpec const& spec, std::size_t layer) {
  return std::get_if<MoeFfnSpec>(&layers_of(spec).at(layer).ffn);
}

class GoldenModel : public testing::TestWithParam<char const*> {};

TEST_P(GoldenModel, NamesExactlyTheTensorsOfItsCheckpoint) {
  ModelSpec const spec = spec_of(GetParam());
  EXPECT_NO_THROW(open_checkpoint(ModelCopy::source(GetParam()))->verify(expected_tensors(spec)));
  EXPECT_EQ(spec.stored_dtype, DType::bf16);
  EXPECT_EQ(spec.vocab, 256U);
}
INSTANTIATE_TEST_SUITE_P(Models, GoldenModel,
                         testing::Values("deepseek_v2", "deepseek_v3", "deepseek_v3-fp8", "dots1", "ernie4_5_moe",
                                         "glm4_moe", "gpt_oss", "gpt_oss-mxfp4", "granitemoe", "granitemoeshared",
                                         "hunyuan_v1_moe", "llama", "llama-dynamic", "llama-linear", "llama-llama3",
                                         "llama4", "minimax_m2", "mistral", "mixtral", "mixtral-window",
                                         "noisy_topk_moe", "olmoe", "phimoe", "phimoe-longrope", "qwen2", "qwen2_moe",
                                         "qwen3", "qwen3_moe"));

TEST(ModelSpec, Mixtral) {
  ModelSpec const spec = spec_of("mixtral");
  ASSERT_EQ(layers_of(spec).size(), 3U);
  AttentionSpec const& a = layers_of(spec)[2].attention;
  EXPECT_EQ(a.num_heads, 4U);
  auto const& p = std::get<GroupedProjection>(a.projection);
  EXPECT_EQ(p.num_kv_heads, 2U);
  EXPECT_EQ(p.head_dim, 16U);
  EXPECT_EQ(a.softmax_scale, 0.25F);
  EXPECT_EQ(a.span, AttentionSpan{});
  EXPECT_EQ(a.rope.theta, 1e6);
  EXPECT_EQ(p.k.weight.name, "model.layers.2.self_attn.k_proj.weight");
  EXPECT_FALSE(p.q_norm);
  MoeFfnSpec const* moe = moe_of(spec, 1);
  ASSERT_TRUE(moe);
  EXPECT_EQ(moe->router.num_experts, 8U);
  EXPECT_EQ(moe->router.experts_per_token, 2U);
  EXPECT_EQ(moe->router.scoring, RouterScoring::softmax);
  EXPECT_EQ(moe->router.normalisation, RouterNormalisation::sum_to_one);
  EXPECT_EQ(moe->experts[7].down.name, "model.layers.1.block_sparse_moe.experts.7.w2.weight");
  EXPECT_EQ(spec.lm_head, WeightSlice{"lm_head.weight"});
  EXPECT_EQ(spec.eos_ids, std::vector<TokenId>{2});
}

TEST(ModelSpec, MixtralWindowInTheNewerSpelling) {
  ModelSpec const spec = spec_of("mixtral-window");
  for (auto const& layer : layers_of(spec)) {
    EXPECT_EQ(layer.attention.span, (AttentionSpan{SpanKind::window, 16}));
    EXPECT_EQ(layer.attention.rope.theta, 1e6);
  }
}

TEST(ModelSpec, Qwen3Moe) {
  ModelSpec const spec = spec_of("qwen3_moe");
  EXPECT_FALSE(moe_of(spec, 0));  // mlp_only_layers
  EXPECT_EQ(std::get<DenseFfnSpec>(layers_of(spec)[0].ffn).intermediate, 48U);
  ASSERT_TRUE(moe_of(spec, 1));
  EXPECT_EQ(moe_of(spec, 1)->intermediate, 32U);
  EXPECT_EQ(moe_of(spec, 1)->router.experts_per_token, 3U);
  EXPECT_EQ(moe_of(spec, 1)->router.normalisation, RouterNormalisation::sum_to_one);
  auto const& p = std::get<GroupedProjection>(layers_of(spec)[1].attention.projection);
  EXPECT_EQ(p.head_dim, 24U);
  ASSERT_TRUE(p.q_norm);
  EXPECT_EQ(p.q_norm->weight, "model.layers.1.self_attn.q_norm.weight");
  EXPECT_EQ(p.q_norm->epsilon, 1e-6F);
  EXPECT_TRUE(spec.eos_ids.empty());
}

TEST(ModelSpec, Qwen3MoeMixesEverySecondLayerAndMayLeaveWeightsAsTheyAre) {
  ModelCopy const copy("qwen3_moe");
  copy.edit_config([](json& c) {
    c["mlp_only_layers"] = json::array();
    c["decoder_sparse_step"] = 2;
    c["norm_topk_prob"] = false;
    c["sliding_window"] = 4096;  // left behind: use_sliding_window is off
  });
  ModelSpec const spec = read_model_spec(copy.path(), {});
  EXPECT_FALSE(moe_of(spec, 0));
  ASSERT_TRUE(moe_of(spec, 1));
  EXPECT_FALSE(moe_of(spec, 2));
  EXPECT_EQ(moe_of(spec, 1)->router.normalisation, RouterNormalisation::none);
  EXPECT_EQ(layers_of(spec)[0].attention.span, AttentionSpan{});
}

TEST(ModelSpec, WindowsOfConfigsThatDoNotSayThemAreTheReferences) {
  struct Case {
    char const* model;
    json fields;
    std::size_t layer;
    AttentionSpan span;
  };
  AttentionSpan const wide{SpanKind::window, 4096};
  json const on = {{"use_sliding_window", true}};
  json const below = {{"use_sliding_window", true}, {"max_window_layers", 1}};
  for (Case const& c :
       {Case{"mistral", {}, 0, wide}, Case{"gpt_oss", {}, 0, {SpanKind::window, 128}}, Case{"gpt_oss", {}, 1, {}},
        Case{"dots1", {{"max_window_layers", 1}}, 1, wide}, Case{"dots1", {}, 2, {}}, Case{"qwen2", below, 1, wide},
        Case{"qwen2", below, 0, {}}, Case{"qwen3", below, 2, wide}, Case{"qwen3", on, 2, {}},
        Case{"qwen2_moe", on, 2, wide}, Case{"qwen3_moe", on, 1, wide}, Case{"qwen3_moe", {}, 1, {}},
        Case{"mixtral", {}, 1, {}}, Case{"llama4", {}, 0, {SpanKind::chunked, 8192}}, Case{"llama4", {}, 3, {}}}) {
    SCOPED_TRACE(c.model + c.fields.dump());
    ModelCopy const copy(c.model);
    copy.edit_config([&](json& config) {
      for (char const* field :
           {"sliding_window", "max_window_layers", "use_sliding_window", "attention_chunk_size", "layer_types"})
        config.erase(field);
      if (c.fields.is_object()) config.update(c.fields);
    });
    EXPECT_EQ(layers_of(read_model_spec(copy.path(), {})).at(c.layer).attention.span, c.span);
  }
}

TEST(ModelSpec, AWindowOfNullIsNone) {
  for (auto const& [model, field] : {std::pair("mistral", "sliding_window"), std::pair("gpt_oss", "sliding_window"),
                                     std::pair("llama4", "attention_chunk_size")}) {
    ModelCopy const copy(model);
    copy.edit_config([name = field](json& config) {
      config[name] = nullptr;
      config.erase("layer_types");
    });
    ModelSpec const spec = read_model_spec(copy.path(), {});
    for (auto const& layer : layers_of(spec)) EXPECT_EQ(layer.attention.span, AttentionSpan{}) << model;
  }
}

TEST(ModelSpec, LlamaIsDenseAndTied) {
  ModelSpec const spec = spec_of("llama");
  EXPECT_FALSE(moe_of(spec, 0));
  EXPECT_EQ(std::get<DenseFfnSpec>(layers_of(spec)[0].ffn).tensors.down.name, "model.layers.0.mlp.down_proj.weight");
  EXPECT_EQ(spec.lm_head, std::nullopt);
  EXPECT_TRUE(expert_model_spec(spec, kFloat32Weights, DType::f32).layers.empty());
}

TEST(ModelSpec, NoisyTopKHasNoiseOnlyWhereItIsAskedFor) {
  ModelSpec const quiet = spec_of("noisy_topk_moe");
  EXPECT_FALSE(moe_of(quiet, 0));  // a mixture in every second layer
  ASSERT_TRUE(moe_of(quiet, 1));
  EXPECT_FALSE(moe_of(quiet, 2));
  ASSERT_TRUE(moe_of(quiet, 3));
  EXPECT_EQ(moe_of(quiet, 3)->router.scoring, RouterScoring::none);
  EXPECT_EQ(moe_of(quiet, 3)->router.normalisation, RouterNormalisation::softmax_of_chosen);
  EXPECT_EQ(moe_of(quiet, 3)->router_noise_weight, "model.layers.3.block_sparse_moe.noise.weight");
  EXPECT_FALSE(moe_of(quiet, 3)->router.noise);

  ModelSpec const by_option = spec_of("noisy_topk_moe", {.router_noise_seed = 9});
  ASSERT_TRUE(moe_of(by_option, 1)->router.noise);
  EXPECT_EQ(moe_of(by_option, 1)->router.noise->seed, 9U);

  ModelCopy const copy("noisy_topk_moe");
  copy.edit_config([](json& c) { c["router_noise"] = true; });
  ModelSpec const by_config = read_model_spec(copy.path(), {});
  ASSERT_TRUE(moe_of(by_config, 1)->router.noise);
  EXPECT_EQ(moe_of(by_config, 1)->router.noise->seed, 0U);
  EXPECT_EQ(moe_of(read_model_spec(copy.path(), {.router_noise_seed = 5}), 1)->router.noise->seed, 5U);

  expect_words(refusal([] { (void)spec_of("mixtral", {.router_noise_seed = 1}); }), {"mixtral", "--router-noise"});
}

TEST(ModelSpec, ExpertsForTheWorkers) {
  ExpertModelSpec const experts = expert_model_spec(spec_of("noisy_topk_moe"), kBfloat16Weights, DType::bf16);
  ASSERT_EQ(experts.layers.size(), 2U);
  EXPECT_EQ(experts.layers[0].layer, 1U);
  EXPECT_EQ(experts.layers[1].layer, 3U);
  EXPECT_EQ(experts.layers[1].hidden, 64U);
  EXPECT_EQ(experts.layers[1].intermediate, 48U);
  EXPECT_EQ(experts.layers[1].experts.size(), 8U);
  EXPECT_EQ(experts.layers[1].experts[5].gate->name, "model.layers.3.block_sparse_moe.experts.5.w1.weight");
  EXPECT_EQ(experts.weights, kBfloat16Weights);
  EXPECT_EQ(experts.wire, DType::bf16);
}

TEST(ModelSpec, ANullFlagSaysNo) {
  ModelCopy const copy("deepseek_v3");
  copy.edit_config([](json& c) {
    c["norm_topk_prob"] = nullptr;
    c["rope_interleave"] = nullptr;
    c.erase("routed_scaling_factor");
  });
  ModelSpec const spec = read_model_spec(copy.path(), {});
  EXPECT_EQ(moe_of(spec, 1)->router.normalisation, RouterNormalisation::none);
  EXPECT_EQ(moe_of(spec, 1)->router.scale, 2.5F);  // the family's default
  EXPECT_FALSE(layers_of(spec)[1].attention.rope.interleaved);
}

TEST(ModelSpec, ModulesThatAreNotQuantisedAreNamedByComponents) {
  ModelCopy const copy("deepseek_v3-fp8");
  auto const storage = [&](char const* pattern) {
    copy.edit_config([&](json& c) { c["quantization_config"]["modules_to_not_convert"] = {pattern}; });
    ModelSpec const spec = read_model_spec(copy.path(), {});
    return std::pair(layers_of(spec)[0].attention.o.weight.storage,
                     std::get<DenseFfnSpec>(layers_of(spec)[0].ffn).tensors.gate->storage);
  };
  constexpr auto kNumbers = WeightStorage::numbers;
  constexpr auto kFp8 = WeightStorage::fp8_blocks;
  EXPECT_EQ(storage("lm_head"), std::pair(kFp8, kFp8));
  EXPECT_EQ(storage("self_attn"), std::pair(kNumbers, kFp8));
  EXPECT_EQ(storage("model.layers.*.self_attn"), std::pair(kNumbers, kFp8));
  EXPECT_EQ(storage("model.layers.0.mlp.gate"), std::pair(kFp8, kFp8));  // not gate_proj
  EXPECT_EQ(storage("gate_proj"), std::pair(kFp8, kNumbers));
  EXPECT_EQ(storage("layers.0"), std::pair(kNumbers, kNumbers));
}

TEST(ModelSpec, GenerationConfigGivesDefaults) {
  ModelCopy const copy("mixtral");
  auto const read_with = [&](char const* generation) {
    write_file(copy.path() / "generation_config.json", generation);
    return read_model_spec(copy.path(), {});
  };
  ModelSpec const spec = read_with(
      R"({"eos_token_id":[5,2],"temperature":0.6,"top_p":0.95,"do_sample":true,"top_k":20,"min_p":0.1,"repetition_penalty":1.05})");
  EXPECT_EQ(spec.eos_ids, (std::vector<TokenId>{5, 2}));
  EXPECT_EQ(spec.default_temperature, 0.6F);
  EXPECT_EQ(spec.default_top_p, 0.95F);
  EXPECT_EQ(spec.default_top_k, 20U);
  EXPECT_EQ(spec.default_min_p, 0.1F);
  EXPECT_EQ(spec.default_repetition_penalty, 1.05F);
  EXPECT_EQ(read_with(R"({"top_k":-1})").default_top_k, 0U);
  ModelSpec const bare = read_with("{}");
  EXPECT_EQ(bare.default_top_k, std::nullopt);
  EXPECT_EQ(bare.eos_ids, std::vector<TokenId>{2});
  EXPECT_EQ(bare.default_temperature, std::nullopt);
  for (auto const& [generation, field] :
       {std::pair(R"({"temperature":-1})", "temperature"), std::pair(R"({"top_p":0})", "top_p"),
        std::pair(R"({"top_p":1.5})", "top_p"), std::pair(R"({"top_k":-5})", "top_k"),
        std::pair(R"({"min_p":2})", "min_p"), std::pair(R"({"repetition_penalty":0})", "repetition_penalty"),
        std::pair(R"({"eos_token_id":"</s>"})", "eos_token_id"), std::pair("[]", "not a JSON object")})
    expect_words(refusal([&, text = generation] { (void)read_with(text); }), {"generation_config.json", field});
}

TEST(ModelSpec, PublishedConfigsAreAccepted) {
  for (auto const& published : test::kPublishedConfigs) {
    ScratchDir const dir;
    write_file(dir.path() / "config.json", published.json);
    EXPECT_NO_THROW({ EXPECT_FALSE(expected_tensors(read_model_spec(dir.path(), {})).required.empty()); })
        << published.name;
  }
}

// ---- refused configs
struct ConfigCase {
  char const* name;
  char const* model;
  json fields;                     // merged into config.json
  std::vector<std::string> words;  // of the message, beside "config.json"
};
void PrintTo(ConfigCase const& c, std::ostream* out) {
  *out << c.name;
}
class BadConfig : public testing::TestWithParam<ConfigCase> {};

TEST_P(BadConfig, IsRefusedByField) {
  ModelCopy const copy(GetParam().model);
  copy.edit_config([](json& config) { config.update(GetParam().fields); });
  std::string const message = refusal([&] { (void)read_model_spec(copy.path(), {}); });
  expect_words(message, {"config.json"});
  expect_words(message, GetParam().words);
}
json const kSpiral = {{"rope_type", "spiral"}, {"factor", 4.0}};
INSTANTIATE_TEST_SUITE_P(
    ModelSpec, BadConfig,
    testing::Values(
        ConfigCase{"family", "mixtral", {{"model_type", "perceptron"}}, {"'model_type'", "'perceptron'", "qwen3_moe"}},
        ConfigCase{"no_family", "mixtral", {{"model_type", nullptr}}, {"'model_type'", "missing"}},
        ConfigCase{"number_family", "mixtral", {{"model_type", 7}}, {"'model_type'", "a string", "7"}},
        ConfigCase{"control", "mixtral", {{"model_type", "a\nb"}}, {"'model_type'", "a?b"}},
        ConfigCase{"scoring", "mixtral", {{"scoring_func", "dice"}}, {"'scoring_func'", "dice"}},
        ConfigCase{"scoring_qwen", "qwen3_moe", {{"scoring_func", "sigmoid"}}, {"'scoring_func'", "sigmoid"}},
        ConfigCase{"scoring_dense", "llama", {{"scoring_func", "softmax"}}, {"'scoring_func'"}},
        ConfigCase{"text_size", "mixtral", {{"hidden_size", "x"}}, {"'hidden_size'", "whole number", "\"x\""}},
        ConfigCase{"negative", "mixtral", {{"num_hidden_layers", -3}}, {"'num_hidden_layers'", "-3"}},
        ConfigCase{"fraction", "mixtral", {{"vocab_size", 1.5}}, {"'vocab_size'", "1.5"}},
        ConfigCase{"zero", "mixtral", {{"num_attention_heads", 0}}, {"'num_attention_heads'", "0"}},
        ConfigCase{"missing", "mixtral", {{"intermediate_size", nullptr}}, {"'intermediate_size'", "missing"}},
        ConfigCase{"layers", "mixtral", {{"num_hidden_layers", 2000000000}}, {"'num_hidden_layers'", "1024"}},
        ConfigCase{"wide", "mixtral", {{"hidden_size", 1ULL << 40}}, {"'hidden_size'", "1099511627776"}},
        ConfigCase{"heads", "mixtral", {{"num_attention_heads", 6}}, {"'hidden_size'", "64", "6"}},
        ConfigCase{"kv_heads", "mixtral", {{"num_key_value_heads", 3}}, {"'num_key_value_heads'", "3", "4"}},
        ConfigCase{"odd_head", "qwen3_moe", {{"head_dim", 15}}, {"'head_dim'", "15"}},
        ConfigCase{"many_heads", "qwen3_moe", {{"head_dim", 1000000}}, {"'head_dim'", "1000000"}},
        ConfigCase{"k_over_e", "mixtral", {{"num_experts_per_tok", 9}}, {"'num_experts_per_tok'", "9", "8"}},
        ConfigCase{"experts", "mixtral", {{"num_local_experts", 5000}}, {"'num_local_experts'", "5000"}},
        ConfigCase{"two_counts", "mixtral", {{"num_experts", 4}}, {"'num_experts'", "num_local_experts"}},
        ConfigCase{"act", "mixtral", {{"hidden_act", "snake"}}, {"'hidden_act'", "snake"}},
        ConfigCase{"bias", "mixtral", {{"attention_bias", true}}, {"'attention_bias'", "true"}},
        ConfigCase{"mlp_bias", "qwen3", {{"mlp_bias", true}}, {"'mlp_bias'"}},
        ConfigCase{"quantised",
                   "llama",
                   {{"quantization_config", {{"quant_method", "bitsandbytes"}, {"bits", 4}}}},
                   {"quantization_config", "'quant_method'", "bitsandbytes"}},
        ConfigCase{"rope_scaling", "llama", {{"rope_scaling", kSpiral}}, {"rope_scaling", "'rope_type'", "spiral"}},
        ConfigCase{
            "rope_old", "llama", {{"rope_scaling", {{"type", "linear"}}}}, {"rope_scaling", "'factor'", "missing"}},
        ConfigCase{"rope_new", "llama", {{"rope_parameters", kSpiral}}, {"rope_parameters", "'rope_type'", "spiral"}},
        ConfigCase{"rope_extra", "llama", {{"rope_parameters", {{"factor", 2}}}}, {"rope_parameters", "'factor'"}},
        ConfigCase{"rope_twice", "llama", {{"rope_parameters", {{"rope_theta", 5}}}}, {"'rope_theta'", "differs"}},
        ConfigCase{"rope_text", "llama", {{"rope_scaling", "yarn"}}, {"'rope_scaling'", "an object"}},
        ConfigCase{"theta", "llama", {{"rope_theta", 0}}, {"'rope_theta'", "positive"}},
        ConfigCase{"theta_tiny", "llama", {{"rope_theta", 1e-320}}, {"'rope_theta'", "from 1.2e-38"}},
        ConfigCase{"theta_huge", "llama", {{"rope_theta", 1e39}}, {"'rope_theta'", "to 3.4e38"}},
        ConfigCase{"yarn_bare",
                   "llama",
                   {{"rope_scaling", {{"rope_type", "yarn"}, {"original_max_position_embeddings", 16}}}},
                   {"rope_scaling", "'factor'", "missing"}},
        ConfigCase{"theta_text", "llama", {{"rope_theta", "big"}}, {"'rope_theta'", "a number"}},
        ConfigCase{"partial", "llama", {{"partial_rotary_factor", 0.6}}, {"'partial_rotary_factor'", "whole heads"}},
        ConfigCase{
            "partial_odd", "glm4_moe", {{"partial_rotary_factor", 0.4}}, {"'partial_rotary_factor'", "even", "9"}},
        ConfigCase{"stretch",
                   "llama-dynamic",
                   {{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 1e30}}}},
                   {"rope_scaling", "'factor'", "1000000"}},
        ConfigCase{"groups", "deepseek_v3", {{"n_group", 3}}, {"'n_group'", "3", "8"}},
        ConfigCase{"few_groups", "deepseek_v3", {{"topk_group", 1}}, {"'topk_group'", "fewer"}},
        ConfigCase{"two_experts", "phimoe", {{"num_experts_per_tok", 3}}, {"'num_experts_per_tok'", "two"}},
        ConfigCase{
            "blocks", "deepseek_v3-fp8", {{"quantization_config", {{"quant_method", "fp8"}}}}, {"'weight_block_size'"}},
        ConfigCase{"epsilon", "llama", {{"rms_norm_eps", -1e-5}}, {"'rms_norm_eps'"}},
        ConfigCase{"window", "llama", {{"sliding_window", 16}}, {"'sliding_window'", "16"}},
        ConfigCase{"window_off",
                   "mixtral-window",
                   {{"use_sliding_window", false}},
                   {"'use_sliding_window'", "sliding_window"}},
        ConfigCase{"layer_types", "llama", {{"layer_types", {"a", "b", "c"}}}, {"'layer_types'", "'a'"}},
        ConfigCase{"layer_count", "llama", {{"layer_types", {"full_attention"}}}, {"'layer_types'", "1", "3"}},
        ConfigCase{"dtype", "llama", {{"torch_dtype", "int4"}}, {"'torch_dtype'", "int4"}},
        ConfigCase{"two_dtypes", "llama", {{"dtype", "float32"}}, {"'dtype'", "torch_dtype"}},
        ConfigCase{"tied", "llama", {{"tie_word_embeddings", "yes"}}, {"'tie_word_embeddings'", "true or false"}},
        ConfigCase{"eos_list", "llama", {{"eos_token_id", {2, "x"}}}, {"'eos_token_id'", "\"x\""}},
        ConfigCase{"dense_layer", "qwen3_moe", {{"mlp_only_layers", {3}}}, {"'mlp_only_layers'", "3"}},
        ConfigCase{"interval", "noisy_topk_moe", {{"moe_layer_interval", 5}}, {"'moe_layer_interval'", "4"}},
        ConfigCase{"unknown", "mixtral", {{"shared_expert_size", 64}}, {"'shared_expert_size'", "unknown", "64"}},
        ConfigCase{"encoder", "llama", {{"is_encoder_decoder", true}}, {"'is_encoder_decoder'"}}),
    [](auto const& test_case) { return std::string(test_case.param.name); });

TEST(ModelSpec, UnknownFieldsThatSayOffAreAccepted) {
  ModelCopy const copy("mixtral");
  copy.edit_config([](json& c) {
    c.update({{"a", nullptr}, {"b", false}, {"c", 0}, {"d", ""}, {"e", json::array()}, {"f", json::object()}});
  });
  EXPECT_NO_THROW((void)read_model_spec(copy.path(), {}));
}

TEST(ModelSpec, DirectoriesWithoutASoundConfigAreRefused) {
  ScratchDir const dir;
  auto const message = [&](std::filesystem::path const& path) {
    return refusal([&] { (void)read_model_spec(path, {}); });
  };
  expect_words(message(dir.path() / "nowhere"), {"nowhere", "no such directory"});
  expect_words(message(dir.path()), {"config.json", "no such file"});
  for (auto const& [text, why] : {std::pair("", "not valid JSON"), std::pair("{\"model_type\": ", "not valid JSON"),
                                  std::pair("[1]", "not a JSON object"), std::pair("{\"a\":1,\"a\":2}", "'a'")}) {
    write_file(dir.path() / "config.json", text);
    expect_words(message(dir.path()), {"config.json", why});
  }
  write_file(dir.path() / "config.json", "{\"model_type\":" + std::string(1000000, '['));
  expect_words(message(dir.path()), {"config.json", "nests"});
}

// ---- checkpoints that do not fit their config
TEST(ModelSpec, CheckpointsThatDoNotFitAreRefusedByFileAndTensor) {
  std::string const w2 = "model.layers.1.block_sparse_moe.experts.3.w2.weight";
  struct {
    std::function<void(json&, std::string&)> edit;
    std::vector<std::string> words;
  } const cases[] = {
      {[&](json& h, std::string&) { std::swap(h[w2]["shape"][0], h[w2]["shape"][1]); }, {w2, "[48,64]", "[64,48]"}},
      {[&](json& h, std::string&) {
         h["renamed"] = h[w2];
         h.erase(w2);
       },
       {w2, "missing"}},
      {[&](json& h, std::string& data) {
         h["mystery"] = {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {data.size(), data.size() + 4}}};
         data += "abcd";
       },
       {"'mystery'", "unexpected"}},
      {[&](json& h, std::string&) { h[w2]["dtype"] = "I16"; }, {w2, "I16"}},
  };
  for (auto const& c : cases) {
    ModelCopy const copy("mixtral");
    copy.edit_tensors("model.safetensors", c.edit);
    ModelSpec const spec = read_model_spec(copy.path(), {});
    auto const message = refusal([&] { open_checkpoint(copy.path())->verify(expected_tensors(spec)); });
    expect_words(message, {"model.safetensors"});
    expect_words(message, c.words);
  }
}

TEST(ModelSpec, ATiedHeadsCopyAndRotaryBuffersMayBeThere) {
  ModelCopy const copy("llama");
  copy.edit_tensors("model.safetensors", [](json& header, std::string& data) {
    auto const add = [&](char const* name, char const* dtype, std::vector<std::size_t> const& shape,
                         std::size_t bytes) {
      header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {data.size(), data.size() + bytes}}};
      data += std::string(bytes, '\0');
    };
    add("lm_head.weight", "BF16", {256, 64}, std::size_t{2} * 256 * 64);
    add("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {8}, 32);
  });
  ModelSpec const spec = read_model_spec(copy.path(), {});
  EXPECT_NO_THROW(open_checkpoint(copy.path())->verify(expected_tensors(spec)));
}

}  // namespace
}  // namespace expertmesh
