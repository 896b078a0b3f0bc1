// Bodies -> requests: what each field may be, and which field an error names. No sockets.
#include "coordinator/http/request_parsing.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

using Json = nlohmann::json;

ApiModel tiny_model() {
  return {.name = "tiny",
          .max_model_len = 64,
          .vocab_size = 100,
          .max_logprobs = 5,
          .max_choices = 8,
          .has_tokenizer = true,
          .has_chat_template = true,
          .default_temperature = 0.5F,
          .default_top_p = 0.75F,
          .default_min_p = 0.125F,
          .default_repetition_penalty = 1.5F,
          .default_top_k = 7};
}

struct BadCase {
  char const* body;
  std::string param;  // empty: none
  int status = 400;
};

void expect_refused(Result<ApiRequest> const& result, BadCase const& bad) {
  ASSERT_FALSE(result) << bad.body;
  auto const& error = result.error();
  EXPECT_EQ(error.status, bad.status) << bad.body;
  EXPECT_EQ(error.param.value_or(""), bad.param) << bad.body << ": " << error.message;
  EXPECT_EQ(error.type, "invalid_request_error") << bad.body;
  EXPECT_NE(error.message.find(bad.param), std::string::npos) << error.message;
}

TEST(RequestParsing, RefusesBadCompletions) {
  for (BadCase const& bad : std::vector<BadCase>{
           {"", ""},
           {"{", ""},
           {"[]", ""},
           {"null", ""},
           {"\"text\"", ""},
           {"{\"prompt\": \"a\"} x", ""},
           {"{\"prompt\": \"\xff\"}", ""},
           {R"({"prompt": "\ud800"})", ""},
           {R"({"prompt": "a", "temperature": NaN})", ""},
           {R"({"prompt": "a", "temperature": 1e999})", ""},
           {"{}", "prompt"},
           {R"({"prompt": null})", "prompt"},
           {R"({"prompt": ""})", "prompt"},
           {R"({"prompt": []})", "prompt"},
           {R"({"prompt": 7})", "prompt"},
           {R"({"prompt": {}})", "prompt"},
           {R"({"prompt": true})", "prompt"},
           {R"({"prompt": ["a", ""]})", "prompt"},
           {R"({"prompt": ["a", 1]})", "prompt"},
           {R"({"prompt": [[1], []]})", "prompt"},
           {R"({"prompt": [[1], [100]]})", "prompt"},
           {R"({"prompt": ["1","2","3","4","5","6","7","8","9"]})", "prompt"},
           {R"({"prompt": [[]]})", "prompt"},
           {R"({"prompt": [[[1]]]})", "prompt"},
           {R"({"prompt": [true]})", "prompt"},
           {R"({"prompt": [1, 100]})", "prompt"},
           {R"({"prompt": [-1]})", "prompt"},
           {R"({"prompt": [1.5]})", "prompt"},
           {R"({"prompt": [1, "a"]})", "prompt"},
           {R"({"prompt": [1, null]})", "prompt"},
           {R"({"prompt": [18446744073709551615]})", "prompt"},
           {R"({"prompt": [4294967297]})", "prompt"},
           {R"({"model": "huge", "prompt": "a"})", "model", 404},
           {R"({"model": 5, "prompt": "a"})", "model"},
           {R"({"prompt": "a", "max_tokens": 0})", "max_tokens"},
           {R"({"prompt": "a", "max_tokens": -1})", "max_tokens"},
           {R"({"prompt": "a", "max_tokens": 1.5})", "max_tokens"},
           {R"({"prompt": "a", "max_tokens": true})", "max_tokens"},
           {R"({"prompt": "a", "max_tokens": "16"})", "max_tokens"},
           {R"({"prompt": "a", "max_tokens": 99999999999999999999})", "max_tokens"},
           {R"({"prompt": "a", "max_tokens": 18446744073709551615})", "max_tokens"},
           {R"({"prompt": "a", "temperature": -0.01})", "temperature"},
           {R"({"prompt": "a", "temperature": 2.01})", "temperature"},
           {R"({"prompt": "a", "temperature": true})", "temperature"},
           {R"({"prompt": "a", "temperature": "1"})", "temperature"},
           {R"({"prompt": "a", "temperature": [1]})", "temperature"},
           {R"({"prompt": "a", "top_p": 0})", "top_p"},
           {R"({"prompt": "a", "top_p": -1})", "top_p"},
           {R"({"prompt": "a", "top_p": 1.0001})", "top_p"},
           {R"({"prompt": "a", "seed": 1.5})", "seed"},
           {R"({"prompt": "a", "seed": true})", "seed"},
           {R"({"prompt": "a", "seed": 18446744073709551616})", "seed"},
           {R"({"prompt": "a", "stop": ""})", "stop"},
           {R"({"prompt": "a", "stop": ["x", ""]})", "stop"},
           {R"({"prompt": "a", "stop": 1})", "stop"},
           {R"({"prompt": "a", "stop": [1]})", "stop"},
           {R"({"prompt": "a", "stop": {"x": "y"}})", "stop"},
           {R"({"prompt": "a", "stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]})",
            "stop"},
           {R"({"prompt": "a", "logprobs": 6})", "logprobs"},
           {R"({"prompt": "a", "logprobs": -1})", "logprobs"},
           {R"({"prompt": "a", "logprobs": true})", "logprobs"},
           {R"({"prompt": "a", "echo": 1})", "echo"},
           {R"({"prompt": "a", "n": 9})", "n"},
           {R"({"prompt": ["a", "b"], "n": 5})", "n"},
           {R"({"prompt": "a", "n": 1.5})", "n"},
           {R"({"prompt": "a", "n": 0})", "n"},
           {R"({"prompt": "a", "n": true})", "n"},
           {R"({"prompt": "a", "best_of": 0})", "best_of"},
           {R"({"prompt": "a", "best_of": 9})", "best_of"},
           {R"({"prompt": "a", "n": 3, "best_of": 2})", "best_of"},
           {R"({"prompt": "a", "best_of": 2, "stream": true})", "best_of"},
           {R"({"prompt": "a", "stream": "yes"})", "stream"},
           {R"({"prompt": "a", "stream": 1})", "stream"},
           {R"({"prompt": "a", "stream_options": {}})", "stream_options"},
           {R"({"prompt": "a", "stream": true, "stream_options": []})", "stream_options"},
           {R"({"prompt": "a", "stream": true, "stream_options": {"include_usage": 1}})",
            "stream_options.include_usage"},
           {R"({"prompt": "a", "ignore_eos": "no"})", "ignore_eos"},
           {R"({"prompt": "a", "return_tokens_as_token_ids": 1})", "return_tokens_as_token_ids"},
           {R"({"prompt": "a", "include_stop_str_in_output": 0})", "include_stop_str_in_output"},
           {R"({"prompt": "a", "skip_special_tokens": 0})", "skip_special_tokens"},
           {R"({"prompt": "a", "add_special_tokens": 0})", "add_special_tokens"},
           {R"({"prompt": "a", "return_routed_experts": true})", "return_routed_experts"},
           {R"({"prompt": "a", "suffix": "b"})", "suffix"},
           {R"({"prompt": "a", "presence_penalty": 2.1})", "presence_penalty"},
           {R"({"prompt": "a", "presence_penalty": "1"})", "presence_penalty"},
           {R"({"prompt": "a", "frequency_penalty": -2.1})", "frequency_penalty"},
           {R"({"prompt": "a", "repetition_penalty": 0})", "repetition_penalty"},
           {R"({"prompt": "a", "repetition_penalty": -1})", "repetition_penalty"},
           {R"({"prompt": "a", "logit_bias": {"100": 1}})", "logit_bias"},
           {R"({"prompt": "a", "logit_bias": {"-1": 1}})", "logit_bias"},
           {R"({"prompt": "a", "logit_bias": {"5x": 1}})", "logit_bias"},
           {R"({"prompt": "a", "logit_bias": {"": 1}})", "logit_bias"},
           {R"({"prompt": "a", "logit_bias": {"5": 101}})", "logit_bias"},
           {R"({"prompt": "a", "logit_bias": {"5": "1"}})", "logit_bias"},
           {R"({"prompt": "a", "logit_bias": {"5": 1, "05": 2}})", "logit_bias"},
           {R"({"prompt": "a", "logit_bias": [5]})", "logit_bias"},
           {R"({"prompt": "a", "min_p": 1.1})", "min_p"},
           {R"({"prompt": "a", "min_p": -0.1})", "min_p"},
           {R"({"prompt": "a", "top_k": -2})", "top_k"},
           {R"({"prompt": "a", "top_k": 1.5})", "top_k"},
           {R"({"prompt": "a", "min_tokens": -1})", "min_tokens"},
           {R"({"prompt": "a", "min_tokens": 5, "max_tokens": 4})", "min_tokens"},
           {R"({"prompt": "a", "response_format": {"type": "json_object"}})", "response_format"},
           {R"({"prompt": "a", "stop_token_ids": [100]})", "stop_token_ids"},
           {R"({"prompt": "a", "stop_token_ids": 1})", "stop_token_ids"},
           {R"({"prompt": "a", "stop_token_ids": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]})", "stop_token_ids"},
           {R"({"prompt": "a", "bad_words": ["x"]})", "bad_words"},
           {R"({"prompt": "a", "use_beam_search": true})", "use_beam_search"},
           {R"({"prompt": "a", "prompt_logprobs": 1})", "prompt_logprobs"},
           {R"({"prompt": "a", "guided_json": {}})", "guided_json"},
           {R"({"prompt": "a", "grammar": "root ::= \"a\""})", "grammar"},
           {R"({"prompt": "a", "allowed_token_ids": [1]})", "allowed_token_ids"},
       })
    expect_refused(parse_completion(bad.body, tiny_model()), bad);
}

TEST(RequestParsing, RefusesBadChats) {
  for (
      BadCase const& bad : std::vector<BadCase>{
          {"{}", "messages"},
          {R"({"messages": []})", "messages"},
          {R"({"messages": "hello"})", "messages"},
          {R"({"messages": ["hello"]})", "messages[0]"},
          {R"({"messages": [{"content": "a"}]})", "messages[0].role"},
          {R"({"messages": [{"role": 1, "content": "a"}]})", "messages[0].role"},
          {R"({"messages": [{"role": "user", "content": 1}]})", "messages[0].content"},
          {R"({"messages": [{"role": "user", "content": {}}]})", "messages[0].content"},
          {R"({"messages": [{"role": "user", "content": ["a"]}]})", "messages[0].content"},
          {R"({"messages": [{"role": "user", "content": [{"type": 5, "text": "a"}]}]})", "messages[0].content"},
          {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})", "messages[0].content"},
          {R"({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]})", "messages[0].content"},
          {R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]})",
           "messages[0].content"},
          {R"({"messages": [{"role": "user", "content": "a"}, {}]})", "messages[1].role"},
          {R"({"messages": [{"role": "user", "content": "a"}], "logprobs": 1})", "logprobs"},
          {R"({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2})", "top_logprobs"},
          {R"({"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": 6})", "top_logprobs"},
          {R"({"messages": [{"role": "user", "content": "a"}], "max_tokens": 0})", "max_tokens"},
          {R"({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 0})", "max_completion_tokens"},
          {R"({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": []})", "chat_template_kwargs"},
          {R"({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": 1})", "add_generation_prompt"},
          {R"({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": true, "continue_final_message": true})",
           "continue_final_message"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]})", "tools[0].function"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tools": {}})", "tools"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tools": [1]})", "tools[0]"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "f"}}]})",
           "tools[0].type"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "x", "function": {"name": "f"}}]})",
           "tools[0].type"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {}}]})",
           "tools[0].function.name"},
          {R"({"messages": [{"role": "user", "content": "a"}],
               "tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]})",
           "tools[0].function.parameters"},
          {R"({"messages": [{"role": "user", "content": "a"}],
               "tools": [{"type": "function", "function": {"name": "f", "description": 1}}]})",
           "tools[0].function.description"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": "f"}}]})",
           "tools"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": "f"}}],
               "tool_choice": {"type": "function", "function": {"name": "f"}}})",
           "tool_choice"},
          {R"({"messages": [{"role": "user", "content": "a"}],
               "tool_choice": {"type": "function", "function": {"name": "g"}}})",
           "tool_choice"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tool_choice": {"type": "function"}})",
           "tool_choice.function"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tool_choice": "sometimes"})", "tool_choice"},
          {R"({"messages": [{"role": "user", "content": "a"}], "documents": ["a"]})", "documents[0]"},
          {R"({"messages": [{"role": "user", "content": "a"}], "reasoning_effort": 3})", "reasoning_effort"},
          {R"({"messages": [{"role": "tool", "content": "a", "tool_call_id": 1}]})", "messages[0].tool_call_id"},
          {R"({"messages": [{"role": "assistant", "tool_calls": {}}]})", "messages[0].tool_calls"},
          {R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]})",
           "messages[0].tool_calls[0].function.name"},
          {R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "no"}}]}]})",
           "messages[0].tool_calls[0].function.arguments"},
          {R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]}]})",
           "messages[0].tool_calls[0].function.arguments"},
          {R"({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"})", "tool_choice"},
          {R"({"messages": [{"role": "user", "content": "a"}], "echo": true})", "echo"},
          {R"({"messages": [{"role": "user", "content": "a"}], "n": 9})", "n"},
          {R"({"messages": [{"role": "user", "content": "a"}], "best_of": 2})", "best_of"},
          {R"({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 2, "min_tokens": 3})",
           "min_tokens"},
          {R"({"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ 1 }}"})", "chat_template"},
          {R"({"messages": [{"role": "user", "content": "a"}], "model": "huge"})", "model", 404},
      })
    expect_refused(parse_chat(bad.body, tiny_model()), bad);
}

TEST(RequestParsing, TellsWhereJsonBreaks) {
  auto const result = parse_completion(R"({"prompt": "a", ])", tiny_model());
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message.find("byte 17"), std::string::npos) << result.error().message;
  EXPECT_EQ(result.error().code, "invalid_json");
}

TEST(RequestParsing, BoundsDepthAndFields) {
  auto const nested = [](std::size_t levels) {
    return R"({"prompt": "a", "x": )" + std::string(levels, '[') + std::string(levels, ']') + "}";
  };
  EXPECT_TRUE(parse_completion(nested(60), tiny_model()));
  for (std::size_t levels : {70, 100000}) EXPECT_EQ(parse_completion(nested(levels), tiny_model()).error().status, 400);
  EXPECT_EQ(parse_completion(std::string(100000, '['), tiny_model()).error().status, 400);

  auto const wide = [](int fields) {
    Json json = {{"prompt", "a"}};
    for (int i = 1; i < fields; ++i) json["f" + std::to_string(i)] = Json::object({{"a", i}});
    return json.dump();
  };
  EXPECT_TRUE(parse_completion(wide(1024), tiny_model()));
  EXPECT_EQ(parse_completion(wide(1025), tiny_model()).error().status, 400);
}

TEST(RequestParsing, ReadsEveryFieldOfACompletion) {
  ApiModel model = tiny_model();
  model.return_routed_experts = true;
  auto const result = parse_completion(
      R"({"model": "tiny", "prompt": [1, 99], "max_tokens": 3, "temperature": 0, "top_p": 1, "seed": -1,
          "stop": ["x", "y"], "logprobs": 5, "echo": true, "n": 2, "best_of": 3, "ignore_eos": true,
          "top_k": 7, "min_p": 0.25, "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.5,
          "min_tokens": 2, "stop_token_ids": [5, 0], "logit_bias": {"3": -100, "98": 1.5},
          "include_stop_str_in_output": true, "skip_special_tokens": false, "add_special_tokens": false,
          "return_tokens_as_token_ids": true, "return_token_ids": true, "return_routed_experts": true})",
      model);
  ASSERT_TRUE(result) << result.error().message;
  ApiRequest const& r = result.value();
  EXPECT_EQ(r.prompts, (std::vector<ApiPrompt>{std::vector<TokenId>{1, 99}}));
  EXPECT_EQ(r.n, 2U);
  EXPECT_EQ(r.best_of, 3U);
  EXPECT_EQ(r.sampling.top_k, 7U);
  EXPECT_EQ(r.sampling.min_p, 0.25F);
  EXPECT_EQ(r.sampling.presence_penalty, -2.0F);
  EXPECT_EQ(r.sampling.frequency_penalty, 2.0F);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.5F);
  EXPECT_EQ(r.sampling.min_tokens, 2U);
  EXPECT_EQ(r.sampling.stop_token_ids, (std::vector<TokenId>{5, 0}));
  EXPECT_EQ(r.sampling.logit_bias, (std::vector<std::pair<TokenId, float>>{{3, -100.0F}, {98, 1.5F}}));
  EXPECT_EQ(r.max_tokens, 3);
  EXPECT_EQ(r.sampling.temperature, 0);
  EXPECT_EQ(r.sampling.top_p, 1);
  EXPECT_TRUE(r.seed_given);
  EXPECT_EQ(r.sampling.seed, ~std::uint64_t{0});
  EXPECT_EQ(r.stops, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(r.logprobs, 5);
  EXPECT_TRUE(r.echo && r.ignore_eos && r.include_stop && r.tokens_as_ids && r.return_token_ids &&
              r.return_routed_experts);
  EXPECT_FALSE(r.skip_special_tokens || r.add_special_tokens || r.stream || r.chat);
  EXPECT_TRUE(r.unknown_fields.empty());
}

TEST(RequestParsing, FillsInDefaults) {
  auto const result =
      parse_completion(R"({"prompt": "a", "max_tokens": null, "stop": null, "seed": null})", tiny_model());
  ASSERT_TRUE(result) << result.error().message;
  ApiRequest const& r = result.value();
  EXPECT_EQ(r.prompts, (std::vector<ApiPrompt>{"a"}));
  EXPECT_EQ(r.n, 1U);
  EXPECT_EQ(r.best_of, 1U);
  EXPECT_FALSE(r.max_tokens || r.logprobs || r.seed_given || r.stream || r.echo || r.ignore_eos || r.include_stop);
  EXPECT_EQ(r.sampling.temperature, 0.5F);
  EXPECT_EQ(r.sampling.top_p, 0.75F);
  EXPECT_EQ(r.sampling.min_p, 0.125F);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.5F);
  EXPECT_EQ(r.sampling.top_k, 7U);
  auto const all = parse_completion(R"({"prompt": "a", "top_k": -1})", tiny_model());
  EXPECT_EQ(all.value().sampling.top_k, 0U);
  EXPECT_TRUE(r.skip_special_tokens && r.add_special_tokens && r.stops.empty());
}

TEST(RequestParsing, TakesPromptsInEveryForm) {
  auto const prompts = [](char const* body) { return parse_completion(body, tiny_model()).value().prompts; };
  EXPECT_EQ(prompts(R"({"prompt": ["a"]})"), (std::vector<ApiPrompt>{"a"}));
  EXPECT_EQ(prompts(R"({"prompt": ["a", "b"]})"), (std::vector<ApiPrompt>{"a", "b"}));
  EXPECT_EQ(prompts(R"({"prompt": [[4, 2]]})"), (std::vector<ApiPrompt>{std::vector<TokenId>{4, 2}}));
  EXPECT_EQ(prompts(R"({"prompt": [[4, 2], [3]]})"),
            (std::vector<ApiPrompt>{std::vector<TokenId>{4, 2}, std::vector<TokenId>{3}}));
}

TEST(RequestParsing, TokenizeTakesAPromptOrMessages) {
  auto const plain = parse_tokenize(R"({"prompt": "", "add_special_tokens": false, "x": 1})", tiny_model());
  ASSERT_TRUE(plain);
  EXPECT_FALSE(plain.value().add_special_tokens);
  EXPECT_EQ(plain.value().unknown_fields, std::vector<std::string>{"x"});
  auto const chat = parse_tokenize(R"({"messages": [{"role": "user", "content": "a"}]})", tiny_model());
  ASSERT_TRUE(chat);
  EXPECT_FALSE(chat.value().add_special_tokens) << "the template brings its own";
  EXPECT_EQ(parse_tokenize("{}", tiny_model()).error().param, "prompt");
  EXPECT_EQ(parse_tokenize(R"({"prompt": 1})", tiny_model()).error().param, "prompt");
  EXPECT_EQ(parse_tokenize(R"({"prompt": "a", "messages": []})", tiny_model()).error().param, "prompt");
  EXPECT_EQ(parse_detokenize(R"({"tokens": [1, 99]})", tiny_model()).value().tokens, (std::vector<TokenId>{1, 99}));
  EXPECT_EQ(parse_detokenize(R"({"tokens": [100]})", tiny_model()).error().param, "tokens");
  EXPECT_EQ(parse_detokenize("{}", tiny_model()).error().param, "tokens");
}

TEST(RequestParsing, TakesZeroTokensWithEchoOnly) {
  EXPECT_EQ(parse_completion(R"({"prompt": "a", "max_tokens": 0, "echo": true})", tiny_model()).value().max_tokens, 0);
}

TEST(RequestParsing, LastOfRepeatedFieldsCounts) {
  EXPECT_EQ(parse_completion(R"({"prompt": "a", "prompt": "b"})", tiny_model()).value().prompts,
            (std::vector<ApiPrompt>{"b"}));
}

TEST(RequestParsing, TakesAllSeedsOf64Bits) {
  for (char const* seed : {"0", "-9223372036854775808", "9223372036854775807", "18446744073709551615"})
    EXPECT_TRUE(parse_completion(std::string(R"({"prompt": "a", "seed": )") + seed + "}", tiny_model())) << seed;
}

TEST(RequestParsing, TakesWholeNumbersAsClientsWithoutIntegersWriteThem) {
  auto const result = parse_completion(
      R"({"prompt": [1.0, 99e0], "max_tokens": 2.0, "seed": -1.0, "n": 2.0, "top_k": -1.0, "logprobs": 5.0,
          "stop_token_ids": [5.0], "best_of": 2.0})",
      tiny_model());
  ASSERT_TRUE(result) << result.error().message;
  ApiRequest const& r = result.value();
  EXPECT_EQ(r.prompts, (std::vector<ApiPrompt>{std::vector<TokenId>{1, 99}}));
  EXPECT_EQ(r.max_tokens, 2);
  EXPECT_EQ(r.sampling.seed, ~std::uint64_t{0});
  EXPECT_EQ(r.n, 2U);
  EXPECT_EQ(r.sampling.top_k, 0U);
  EXPECT_EQ(r.logprobs, 5);
  EXPECT_EQ(r.sampling.stop_token_ids, (std::vector<TokenId>{5}));
  EXPECT_EQ(parse_completion(R"({"prompt": "a", "seed": 9007199254740991.0})", tiny_model()).value().sampling.seed,
            9007199254740991U);
  for (auto const& [field, value] : std::vector<std::pair<std::string, std::string>>{{"max_tokens", "2.5"},
                                                                                     {"max_tokens", "1e300"},
                                                                                     {"max_tokens", "-1.0"},
                                                                                     {"seed", "9007199254740992.0"},
                                                                                     {"seed", "-9223372036854775809"},
                                                                                     {"seed", "-9.3e18"},
                                                                                     {"seed", "0.5"},
                                                                                     {"stop_token_ids", "[-1.0]"},
                                                                                     {"stop_token_ids", "[100.0]"},
                                                                                     {"stop_token_ids", "[1e10]"}}) {
    auto const refused = parse_completion(R"({"prompt": "a", ")" + field + "\": " + value + "}", tiny_model());
    ASSERT_FALSE(refused) << field << value;
    EXPECT_EQ(refused.error().param, field);
  }
}

TEST(RequestParsing, TakesNeutralValuesOfWhatIsNotBuilt) {
  auto const result = parse_completion(
      R"({"prompt": "a", "suffix": null, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "min_p": 0,
          "top_k": -1, "repetition_penalty": 1.0, "min_tokens": 0, "best_of": 1, "response_format": {"type": "text"}, "n": 1, "user": "me",
          "stop_token_ids": []})",
      tiny_model());
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_TRUE(result.value().unknown_fields.empty());
  EXPECT_TRUE(parse_chat(
      R"({"messages": [{"role": "user", "content": "a"}], "tools": [], "tool_choice": "none", "top_logprobs": 0,
          "metadata": {"a": "b"}, "store": false})",
      tiny_model()));
}

TEST(RequestParsing, ListsUnknownFields) {
  auto const result = parse_completion(
      R"({"prompt": "a", "frobnicate": 1, "stream": true, "stream_options": {"shine": 2, "include_usage": true}})",
      tiny_model());
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(result.value().unknown_fields, (std::vector<std::string>{"stream_options.shine", "frobnicate"}));
  EXPECT_TRUE(result.value().include_usage);
}

TEST(RequestParsing, WithoutTokenizerOnlyIdsAreTaken) {
  ApiModel model = tiny_model();
  model.has_tokenizer = model.has_chat_template = false;
  EXPECT_TRUE(parse_completion(R"({"prompt": [1]})", model));
  expect_refused(parse_completion(R"({"prompt": "a"})", model), {"string prompt", "prompt"});
  expect_refused(parse_completion(R"({"prompt": [1], "stop": "x"})", model), {"stop", "stop"});
  expect_refused(parse_chat(R"({"messages": [{"role": "user", "content": "a"}]})", model), {"chat", "messages"});
}

TEST(RequestParsing, WithoutTemplateThereIsNoChat) {
  ApiModel model = tiny_model();
  model.has_chat_template = false;
  auto const result = parse_chat(R"({"messages": [{"role": "user", "content": "a"}]})", model);
  expect_refused(result, {"chat", "messages"});
  EXPECT_NE(result.error().message.find("chat template"), std::string::npos);
}

TEST(RequestParsing, HandsMessagesOnToTheTemplate) {
  auto const result = parse_chat(
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "b"}], "name": "x"},
                       {"role": "assistant", "content": null, "extra": {"z": 1, "a": 2}}],
          "chat_template_kwargs": {"enable_thinking": false}, "max_completion_tokens": 9, "max_tokens": 4,
          "logprobs": true, "top_logprobs": 2})",
      tiny_model());
  ASSERT_TRUE(result) << result.error().message;
  ApiRequest const& r = result.value();
  EXPECT_TRUE(r.chat);
  EXPECT_EQ(r.max_tokens, 9);
  EXPECT_EQ(r.logprobs, 2);
  EXPECT_FALSE(r.add_special_tokens);
  Json const sent = Json::parse(r.template_request);
  EXPECT_EQ(sent["messages"][0], (Json{{"role", "user"}, {"content", "\nb"}, {"name", "x"}}));
  EXPECT_EQ(sent["chat_template_kwargs"], (Json{{"enable_thinking", false}}));
  EXPECT_EQ(sent["add_generation_prompt"], true);
  EXPECT_EQ(sent["continue_final_message"], false);
  EXPECT_NE(r.template_request.find(R"({"z":1,"a":2})"), std::string::npos) << "order of fields is kept";
}

TEST(RequestParsing, HandsToolsOnToTheTemplateAndTheParser) {
  ApiModel model = tiny_model();
  model.answer_formats.tool_calls = "hermes";
  std::string const tools =
      R"("tools": [{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}])";
  std::string const messages = R"("messages": [{"role": "user", "content": "a"},
      {"role": "assistant", "content": null, "tool_calls": [
          {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1.0}"}},
          {"id": "c2", "type": "function", "function": {"name": "f", "arguments": ""}},
          {"id": "c3", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
      {"role": "tool", "tool_call_id": "c1", "name": "f", "content": [{"type": "text", "text": "42"}]}])";
  auto const result =
      parse_chat("{" + messages + ", " + tools + R"(, "tool_choice": "auto", "parallel_tool_calls": false,
      "documents": [{"title": "t"}], "reasoning_effort": "low", "include_reasoning": false})",
                 model);
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_TRUE(result.value().unknown_fields.empty());
  Json const sent = Json::parse(result.value().template_request);
  auto const& calls = sent["messages"][1]["tool_calls"];
  EXPECT_EQ(calls[0]["function"]["arguments"], R"({"b": 1.0})");
  EXPECT_EQ(calls[1]["function"]["arguments"], "{}");
  EXPECT_EQ(calls[2]["function"]["arguments"], R"({"x":1})");
  EXPECT_EQ(sent["messages"][2], (Json{{"role", "tool"}, {"tool_call_id", "c1"}, {"name", "f"}, {"content", "42"}}));
  EXPECT_EQ(sent["tools"][0]["function"]["name"], "f");
  EXPECT_NE(result.value().tools.find(R"({"z":1,"a":2})"), std::string::npos) << "order of fields is kept";
  EXPECT_EQ(sent["documents"], (Json{{{"title", "t"}}}));
  EXPECT_EQ(sent["reasoning_effort"], "low");
  EXPECT_FALSE(result.value().parallel_tool_calls);
  EXPECT_FALSE(result.value().include_reasoning);

  // "none" hides them, and is fine for a model whose calls nobody can read.
  auto const none = parse_chat("{" + messages + ", " + tools + R"(, "tool_choice": "none"})", tiny_model());
  ASSERT_TRUE(none) << none.error().message;
  EXPECT_EQ(none.value().tools, "");
  EXPECT_FALSE(Json::parse(none.value().template_request).contains("tools"));

  auto const tokenized = parse_tokenize("{" + messages + ", " + tools + R"(, "documents": [{"a": 1}],
      "chat_template_kwargs": {"k": 1}})",
                                        tiny_model());
  ASSERT_TRUE(tokenized) << tokenized.error().message;
  Json const row = Json::parse(tokenized.value().template_request);
  EXPECT_EQ(row["tools"][0]["function"]["name"], "f");
  EXPECT_EQ(row["documents"][0]["a"], 1);
  EXPECT_EQ(row["chat_template_kwargs"]["k"], 1);
}

TEST(RequestParsing, ContinuesTheFinalMessage) {
  auto const result =
      parse_chat(R"({"messages": [{"role": "user", "content": "a"}], "continue_final_message": true})", tiny_model());
  ASSERT_TRUE(result) << result.error().message;
  Json const sent = Json::parse(result.value().template_request);
  EXPECT_EQ(sent["add_generation_prompt"], false);
  EXPECT_EQ(sent["continue_final_message"], true);
}

TEST(RequestParsing, AnEncodersModelHasAFirstTokenAndNoEcho) {
  ApiModel model = tiny_model();
  char const* const forced = R"({"prompt": "a", "forced_bos_token_id": 99})";
  expect_refused(parse_completion(forced, model), {forced, "forced_bos_token_id"});
  EXPECT_TRUE(parse_completion(R"({"prompt": "a", "forced_bos_token_id": null, "echo": true})", model).ok());
  model.has_encoder = true;
  auto const request = parse_completion(forced, model);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request.value().sampling.forced_first, TokenId{99});
  EXPECT_EQ(parse_completion(R"({"prompt": "a"})", model).value().sampling.forced_first, std::nullopt);
  for (BadCase const& bad :
       std::vector<BadCase>{{R"({"prompt": "a", "forced_bos_token_id": 100})", "forced_bos_token_id"},
                            {R"({"prompt": "a", "forced_bos_token_id": -1})", "forced_bos_token_id"},
                            {R"({"prompt": "a", "forced_bos_token_id": "fr"})", "forced_bos_token_id"},
                            {R"({"prompt": "a", "echo": true})", "echo"},
                            {R"({"prompt": "a", "echo": true, "max_tokens": 0})", "echo"}})
    expect_refused(parse_completion(bad.body, model), bad);
  char const* const chat = R"({"messages": [{"role": "user", "content": "a"}], "forced_bos_token_id": 7})";
  EXPECT_EQ(parse_chat(chat, model).value().sampling.forced_first, TokenId{7});
}

}  // namespace
}  // namespace expertmesh
