// What becomes of the configurations of encoder-decoder families, field by field.
#include <gtest/gtest.h>

#include <functional>

#include "coordinator/model/kv_cache.h"
#include "coordinator/model/model_plan.h"
#include "tests/support/model_copy.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using test::ModelCopy;

constexpr char const* kSwitch = "switch_transformers";
constexpr char const* kNllb = "nllb-moe";

ModelSpec spec_with(char const* model, std::function<void(json&)> const& edit) {
  ModelCopy const copy(model);
  copy.edit_config(edit);
  return read_model_spec(copy.path(), {});
}

std::vector<std::uint32_t> sparse_layers(ModelSpec const& spec) {
  std::vector<std::uint32_t> numbers;
  for (auto const& layer : moe_layers(spec)) numbers.push_back(layer.number);
  return numbers;
}

TEST(EncoderDecoderSpec, LayersAreNumberedThroughBothStacks) {
  ModelSpec const spec = read_model_spec(ModelCopy::source(kSwitch), {});
  ASSERT_NE(spec.encoder(), nullptr);
  EXPECT_EQ(spec.encoder()->kind, StackKind::encoder);
  EXPECT_EQ(spec.decoder().kind, StackKind::decoder);
  EXPECT_EQ(spec.first_decoder_layer(), 4U);
  EXPECT_EQ(sparse_layers(spec), (std::vector<std::uint32_t>{1, 3, 5, 7}));
  auto const experts = expert_model_spec(spec, kFloat32Weights, DType::f32);
  ASSERT_EQ(experts.layers.size(), 4U);
  EXPECT_EQ(experts.layers[2].layer, 5U);
  EXPECT_EQ(experts.layers[2].experts[3].up.name, "decoder.block.1.layer.2.mlp.experts.expert_3.wi.weight");
  EXPECT_EQ(num_expert_counts(spec), 16U);
  EXPECT_EQ(num_expert_counts(read_model_spec(ModelCopy::source(kNllb), {})), 0U);
}

TEST(EncoderDecoderSpec, SparseLayersAreTheReferences) {
  auto const layers = [](json const& fields) {
    return sparse_layers(spec_with(kSwitch, [&](json& c) {
      c.erase("encoder_sparse_step");
      c.erase("decoder_sparse_step");
      c.update(fields);
    }));
  };
  using List = std::vector<std::uint32_t>;
  EXPECT_EQ(layers(json::object()), (List{1, 3, 5, 7}));  // 4 layers, 2 of them sparse: step 2
  EXPECT_EQ(layers({{"num_sparse_encoder_layers", 4}}), (List{0, 1, 2, 3, 5, 7}));
  EXPECT_EQ(layers({{"num_sparse_encoder_layers", 5}}), (List{5, 7}));     // step 0: none
  EXPECT_EQ(layers({{"num_sparse_decoder_layers", 0}}), (List{1, 3, 5}));  // as transformers has it
  EXPECT_EQ(layers({{"decoder_sparse_step", 3}}), (List{1, 3, 5}));        // the step counts where it is there
  auto const nllb = [](std::size_t step) {
    return sparse_layers(spec_with(kNllb, [&](json& c) { c["decoder_sparse_step"] = step; }));
  };
  EXPECT_EQ(nllb(2), (List{1, 3, 5, 7}));
  EXPECT_EQ(nllb(3), (List{1, 3, 6}));
  EXPECT_EQ(nllb(0), (List{1, 3}));
}

TEST(EncoderDecoderSpec, WhereAnswersBeginAndEnd) {
  auto const start = [](char const* model, json const& fields) {
    return spec_with(model, [&](json& c) {
      for (char const* field : {"decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id"})
        c.erase(field);
      c.update(fields);
    });
  };
  EXPECT_EQ(start(kSwitch, json::object()).decoder_start->token, 0);
  EXPECT_EQ(start(kSwitch, {{"pad_token_id", 5}}).decoder_start->token, 5);
  EXPECT_EQ(start(kSwitch, {{"pad_token_id", 5}, {"bos_token_id", 6}}).decoder_start->token, 6);
  EXPECT_EQ(start(kSwitch, {{"pad_token_id", 5}, {"decoder_start_token_id", 7}}).decoder_start->token, 7);
  EXPECT_EQ(start(kSwitch, json::object()).eos_ids, std::vector<TokenId>{1});
  EXPECT_EQ(start(kNllb, json::object()).decoder_start->token, 2);
  EXPECT_EQ(start(kNllb, json::object()).eos_ids, std::vector<TokenId>{2});
  EXPECT_EQ(start(kNllb, {{"eos_token_id", 9}}).eos_ids, std::vector<TokenId>{9});
  EXPECT_EQ(start(kNllb, json::object()).decoder_start->forced_bos, std::nullopt);
  EXPECT_EQ(start(kNllb, {{"forced_bos_token_id", 8}}).decoder_start->forced_bos, TokenId{8});

  ModelCopy const copy(kNllb);
  test::write_file(copy.path() / "generation_config.json",
                   R"({"decoder_start_token_id": 4, "forced_bos_token_id": 11, "eos_token_id": [2, 3]})");
  ModelSpec const spec = read_model_spec(copy.path(), {});
  EXPECT_EQ(spec.decoder_start->token, 4);
  EXPECT_EQ(spec.decoder_start->forced_bos, TokenId{11});
  EXPECT_EQ(spec.eos_ids, (std::vector<TokenId>{2, 3}));
}

TEST(EncoderDecoderSpec, GatedFeedForwardsAreThoseOfT5) {
  for (json const& fields :
       {json{{"dense_act_fn", "gelu_new"}, {"feed_forward_proj", "gated-gelu"}}, json{{"dense_act_fn", "gated-gelu"}},
        json{{"dense_act_fn", "gated-gelu"}, {"is_gated_act", true}}}) {
    ModelSpec const spec = spec_with(kSwitch, [&](json& c) { c.update(fields); });
    auto const& ffn = std::get<DenseFfnSpec>(spec.decoder().layers[0].ffn);
    EXPECT_EQ(ffn.activation.kind, Activation::gelu_tanh);
    EXPECT_EQ(ffn.tensors.gate->name, "decoder.block.0.layer.2.mlp.wi_0.weight");
    EXPECT_EQ(ffn.tensors.up.name, "decoder.block.0.layer.2.mlp.wi_1.weight");
  }
}

TEST(EncoderDecoderSpec, RefusesByName) {
  struct Bad {
    char const* model;
    char const* field;
    json value;
  };
  for (Bad const& bad : std::vector<Bad>{{kSwitch, "router_dtype", "bfloat16"},
                                         {kSwitch, "relative_attention_num_buckets", 2},
                                         {kSwitch, "relative_attention_max_distance", 16},
                                         {kSwitch, "d_kv", 0},
                                         {kSwitch, "dense_act_fn", "swiglu"},
                                         {kSwitch, "feed_forward_proj", "gelu"},
                                         {kSwitch, "is_gated_act", true},
                                         {kSwitch, "router_type", "tokens_choose"},
                                         {kSwitch, "num_selected_experts", 2},
                                         {kSwitch, "is_encoder_decoder", false},
                                         {kSwitch, "decoder_start_token_id", 256},
                                         {kSwitch, "forced_bos_token_id", -1},
                                         {kSwitch, "forced_eos_token_id", 1},
                                         {kSwitch, "layer_norm_epsilon", -1},
                                         {kSwitch, "some_new_field", 3},
                                         {kSwitch, "quantization_config", {{"quant_method", "fp8"}}},
                                         {kNllb, "moe_eval_capacity_token_fraction", 0.99},
                                         {kNllb, "moe_eval_capacity_token_fraction", -1.0},
                                         {kNllb, "second_expert_policy", "sampling"},
                                         {kNllb, "moe_token_dropout", 1.0},
                                         {kNllb, "num_experts", 1},
                                         {kNllb, "encoder_attention_heads", 5},
                                         {kNllb, "d_model", 2},
                                         {kNllb, "num_hidden_layers", 7},
                                         {kNllb, "router_dtype", "float16"}}) {
    try {
      (void)spec_with(bad.model, [&](json& c) { c[bad.field] = bad.value; });
      ADD_FAILURE() << bad.model << ": " << bad.field << " = " << bad.value << " was taken";
    } catch (ModelError const& refused) {
      EXPECT_NE(std::string(refused.what()).find(bad.field), std::string::npos) << refused.what();
    }
  }
}

TEST(EncoderDecoderSpec, CrossAttentionHasAKvGroupOfItsOwn) {
  ModelSpec const spec = read_model_spec(ModelCopy::source(kNllb), {});
  auto const groups = kv_cache_specs(spec, DType::f32);
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].kind, KvCacheKind::full);
  EXPECT_EQ(groups[1].kind, KvCacheKind::cross);
  EXPECT_EQ(groups[1].layers.size(), 4U);
  EXPECT_EQ(groups[1].bytes_per_block, groups[0].bytes_per_block / 4 * 5);  // and the encoder layer under way
}

TEST(EncoderDecoderSpec, InfoSaysWhatEachStackHas) {
  InfoReport const report = describe_model(ModelCopy::source(kSwitch), 2, {.dtype = DType::f32});
  EXPECT_TRUE(report.servable) << report.text;
  test::expect_words(report.text, {"encoder layers", "4 (2 with experts, 2 dense)", "expert capacity",
                                   "4 tokens of a sequence", "512 tokens of prompt and of answer", "--max-model-len",
                                   "of the answer, 2048 of the prompt", "worker 2", "would be refused  nothing"});
  EXPECT_TRUE(describe_model(ModelCopy::source(kNllb), 0, {.dtype = DType::f32}).servable);
}

}  // namespace
}  // namespace expertmesh
