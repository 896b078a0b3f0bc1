// Tokens -> the JSON of answers and chunks, without sockets.
#include "coordinator/http/answer_builder.h"
#include "tests/support/goldens_dir.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

using Json = nlohmann::json;

TokenEvent token(TokenId id) {
  return {.token = id, .logprobs = {}};
}
TokenLogprobs logprobs_of(TokenId id) {
  return {.chosen = {.token = id, .logprob = -0.5F}, .top = {{id + 1, -0.25F}, {id, -0.5F}}};
}

// The JSON of each event; every one must be a single "data: ...\n\n" in ASCII.
std::vector<Json> events_of(std::string const& text) {
  std::vector<Json> events;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t const end = text.find("\n\n", begin);
    EXPECT_EQ(text.substr(begin, 6), "data: ");
    events.push_back(Json::parse(text.substr(begin + 6, end - begin - 6)));
    begin = end + 2;
  }
  for (char c : text) EXPECT_TRUE(c == '\n' || (c >= ' ' && c < 127));
  EXPECT_EQ(text.find('\r'), std::string::npos);
  return events;
}

class AnswerBuilderTest : public testing::Test {
 protected:
  AnswerBuilder make(std::vector<TokenId> prompt, std::string prompt_text = "") {
    return {request_, {.name = "tiny"}, tokenizer_, "cmpl-1", 77, {{std::move(prompt), std::move(prompt_text)}}};
  }
  void use_tokenizer() { tokenizer_ = shared_tokenizer(); }
  static Tokenizer const* shared_tokenizer() {
    static auto const tokenizer = Tokenizer::load(test::goldens_dir() / "text/tokenizers/olmoe");
    return tokenizer.get();
  }

  ApiRequest request_;
  Tokenizer const* tokenizer_ = nullptr;
};

TEST_F(AnswerBuilderTest, WholeCompletionWithoutTokenizer) {
  auto answer = make({1, 2, 3});
  answer.choice(0).prompt_done({});
  answer.choice(0).token(token(12));
  answer.choice(0).token(token(7));
  answer.choice(0).finish(
      {.reason = FinishReason::length, .prompt_tokens = 3, .completion_tokens = 2, .routed_experts = {}});
  EXPECT_EQ(Json::parse(answer.body()),
            (Json{{"id", "cmpl-1"},
                  {"object", "text_completion"},
                  {"created", 77},
                  {"model", "tiny"},
                  {"choices",
                   {{{"index", 0},
                     {"text", "token_id:12 token_id:7"},
                     {"logprobs", nullptr},
                     {"finish_reason", "length"},
                     {"stop_reason", nullptr}}}},
                  {"usage", {{"prompt_tokens", 3}, {"completion_tokens", 2}, {"total_tokens", 5}}}}));
}

TEST_F(AnswerBuilderTest, CachedTokensAreThoseOfEachPromptsFirstChoice) {
  request_.n = request_.best_of = 2;
  AnswerBuilder answer(request_, {.name = "tiny", .prefix_cache = true}, nullptr, "cmpl-1", 77,
                       {{{1, 2, 3}, ""}, {{4, 5}, ""}});
  for (std::size_t c = 0; c < 4; ++c) {
    answer.choice(c).prompt_done({.logprobs = {}, .cached_tokens = 10 + c});
    answer.choice(c).token(token(12));
    answer.choice(c).finish(
        {.reason = FinishReason::length, .prompt_tokens = 3, .completion_tokens = 1, .routed_experts = {}});
  }
  EXPECT_EQ(Json::parse(answer.body())["usage"], (Json{{"prompt_tokens", 5},
                                                       {"completion_tokens", 4},
                                                       {"total_tokens", 9},
                                                       {"prompt_tokens_details", {{"cached_tokens", 22}}}}));
}

TEST_F(AnswerBuilderTest, EndOfSequenceCountsAndShowsNothing) {
  auto answer = make({1});
  answer.choice(0).token(token(12));
  answer.choice(0).finish(
      {.reason = FinishReason::stop, .prompt_tokens = 1, .completion_tokens = 2, .routed_experts = {}});
  auto const body = Json::parse(answer.body());
  EXPECT_EQ(body["choices"][0]["text"], "token_id:12");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["usage"]["completion_tokens"], 2);
}

TEST_F(AnswerBuilderTest, EchoWithLogprobsPutsThePromptFirst) {
  request_.echo = true;
  request_.logprobs = 2;
  auto answer = make({1, 2}, "token_id:1 token_id:2");
  answer.choice(0).prompt_done({{std::nullopt, logprobs_of(2)}});
  answer.choice(0).token({5, logprobs_of(5)});
  answer.choice(0).finish(
      {.reason = FinishReason::length, .prompt_tokens = 2, .completion_tokens = 1, .routed_experts = {}});
  auto const choice = Json::parse(answer.body())["choices"][0];
  EXPECT_EQ(choice["text"], "token_id:1 token_id:2 token_id:5");
  EXPECT_EQ(
      choice["logprobs"],
      (Json{{"tokens", {"token_id:1", "token_id:2", "token_id:5"}},
            {"token_logprobs", {nullptr, -0.5, -0.5}},
            {"top_logprobs",
             {nullptr, {{"token_id:3", -0.25}, {"token_id:2", -0.5}}, {{"token_id:6", -0.25}, {"token_id:5", -0.5}}}},
            {"text_offset", {0, 10, 21}}}));
}

TEST_F(AnswerBuilderTest, LogprobsThatAreNoNumbersBecomeNumbers) {
  request_.logprobs = 0;
  auto answer = make({1});
  answer.choice(0).token({2, TokenLogprobs{.chosen = {2, -std::numeric_limits<float>::infinity()}, .top = {}}});
  answer.choice(0).token({3, TokenLogprobs{.chosen = {3, std::numeric_limits<float>::quiet_NaN()}, .top = {}}});
  answer.choice(0).finish(
      {.reason = FinishReason::length, .prompt_tokens = 1, .completion_tokens = 2, .routed_experts = {}});
  EXPECT_EQ(Json::parse(answer.body())["choices"][0]["logprobs"]["token_logprobs"], (Json{-9999.0, -9999.0}));
}

TEST_F(AnswerBuilderTest, TokenIdsAndRoutedExpertsWhereAsked) {
  request_.return_token_ids = request_.return_routed_experts = true;
  auto answer = make({1, 2});
  answer.choice(0).token(token(12));
  answer.choice(0).finish({.reason = FinishReason::length,
                           .prompt_tokens = 2,
                           .completion_tokens = 1,
                           .routed_experts = {{{0, 3}}, {{1, 2}}}});
  auto const choice = Json::parse(answer.body())["choices"][0];
  EXPECT_EQ(choice["prompt_token_ids"], (Json{1, 2}));
  EXPECT_EQ(choice["token_ids"], (Json{12}));
  EXPECT_EQ(choice["routed_experts"], Json::parse("[[[0,3]],[[1,2]]]"));
}

TEST_F(AnswerBuilderTest, StreamedPiecesJoinToTheWholeText) {
  request_.include_usage = request_.return_token_ids = true;
  auto answer = make({1});
  EXPECT_EQ(answer.take_events(), "");
  std::string text;
  std::vector<TokenId> ids;
  std::vector<Json> reasons;
  std::size_t with_prompt = 0;
  std::vector<Json> events;
  auto const take = [&] {
    for (auto& event : events_of(answer.take_events())) events.push_back(std::move(event));
  };
  for (TokenId id : {4, 5, 6}) {
    answer.choice(0).token(token(id));
    take();
  }
  answer.choice(0).finish(
      {.reason = FinishReason::length, .prompt_tokens = 1, .completion_tokens = 3, .routed_experts = {}});
  take();
  EXPECT_EQ(answer.take_events(), "") << "nothing is said twice";
  EXPECT_EQ(events.back()["choices"], Json::array());
  EXPECT_EQ(events.back()["usage"], (Json{{"prompt_tokens", 1}, {"completion_tokens", 3}, {"total_tokens", 4}}));
  events.pop_back();
  for (auto const& event : events) {
    EXPECT_EQ(event["id"], "cmpl-1");
    EXPECT_EQ(event["object"], "text_completion");
    EXPECT_FALSE(event.contains("usage"));
    auto const& choice = event["choices"][0];
    text += choice["text"].get<std::string>();
    for (TokenId id : choice["token_ids"]) ids.push_back(id);
    with_prompt += choice.contains("prompt_token_ids");
    reasons.push_back(choice["finish_reason"]);
  }
  EXPECT_EQ(text, "token_id:4 token_id:5 token_id:6");
  EXPECT_EQ(ids, (std::vector<TokenId>{4, 5, 6}));
  EXPECT_EQ(with_prompt, 1);
  EXPECT_EQ(reasons.back(), "length");
  for (std::size_t i = 0; i + 1 < reasons.size(); ++i) EXPECT_TRUE(reasons[i].is_null());
}

TEST_F(AnswerBuilderTest, ChatChunksBeginWithTheRoleAndHoldNoNulls) {
  use_tokenizer();
  request_.chat = true;
  request_.logprobs = 1;
  auto answer = make({1});
  answer.choice(0).prompt_done({});
  EXPECT_EQ(answer.take_events(), "") << "the role comes with the first token";
  std::vector<Json> events;
  std::string const text = "na\u00efve \U0001F434!";
  auto const take = [&] {
    for (auto& event : events_of(answer.take_events())) events.push_back(std::move(event));
  };
  auto const ids = tokenizer_->encode(text, false);
  for (TokenId id : ids) {
    answer.choice(0).token({id, TokenLogprobs{.chosen = {id, -1}, .top = {{id, -1}}}});
    take();
  }
  answer.choice(0).finish(
      {.reason = FinishReason::stop, .prompt_tokens = 1, .completion_tokens = ids.size(), .routed_experts = {}});
  take();
  EXPECT_EQ(events[0]["choices"][0]["delta"], (Json{{"role", "assistant"}, {"content", ""}}));
  std::string joined;
  std::string bytes;
  for (std::size_t i = 1; i < events.size(); ++i) {
    auto const& choice = events[i]["choices"][0];
    EXPECT_EQ(events[i]["object"], "chat.completion.chunk");
    EXPECT_FALSE(choice["delta"].contains("role"));
    joined += choice["delta"].value("content", "");
    EXPECT_EQ(joined.find("\xEF\xBF\xBD"), std::string::npos) << "a part of a character was shown";
    if (!choice["logprobs"].is_null())
      for (auto const& entry : choice["logprobs"]["content"]) {
        for (int byte : entry["bytes"]) bytes += static_cast<char>(byte);
        EXPECT_EQ(entry["logprob"], -1);
        EXPECT_EQ(entry["top_logprobs"].size(), 1);
      }
  }
  EXPECT_EQ(joined, text);
  EXPECT_EQ(bytes, text);
  EXPECT_EQ(events.back()["choices"][0]["delta"], Json::object());
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "stop");
}

TEST_F(AnswerBuilderTest, StopStringCutsTheTextAndCountsItsTokens) {
  use_tokenizer();
  std::string const text = "one two three four five six";
  auto const ids = tokenizer_->encode(text, false);
  for (bool include : {false, true}) {
    request_.stops = {"never", "ee fo"};
    request_.include_stop = include;
    auto answer = make({1});
    std::size_t count = 0;
    for (TokenId id : ids) {
      if (answer.choice(0).stopped()) break;
      answer.choice(0).token(token(id));
      ++count;
    }
    ASSERT_TRUE(answer.choice(0).stopped());
    answer.choice(0).token(token(ids.back()));  // came before the engine heard of the stop
    answer.choice(0).finish_early();
    auto const body = Json::parse(answer.body());
    EXPECT_EQ(body["choices"][0]["text"], include ? "one two three fo" : "one two thr");
    EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
    EXPECT_EQ(body["choices"][0]["stop_reason"], "ee fo");
    EXPECT_EQ(body["usage"]["completion_tokens"], count);
    EXPECT_LT(count, ids.size());
  }
}

TEST_F(AnswerBuilderTest, HeldBackTextComesWithTheEnd) {
  use_tokenizer();
  request_.stops = {"four!"};
  auto answer = make({1});
  std::string streamed;
  auto const take = [&] {
    for (auto const& event : events_of(answer.take_events()))
      streamed += event["choices"][0]["text"].get<std::string>();
  };
  for (TokenId id : tokenizer_->encode("three four", false)) {
    answer.choice(0).token(token(id));
    take();
  }
  EXPECT_EQ(streamed, "three ");
  answer.choice(0).finish(
      {.reason = FinishReason::length, .prompt_tokens = 1, .completion_tokens = 2, .routed_experts = {}});
  take();
  EXPECT_EQ(streamed, "three four");
}

TEST_F(AnswerBuilderTest, TokensAsIdsShowsIdsInLogprobsAndTextAsText) {
  use_tokenizer();
  request_.tokens_as_ids = true;
  request_.logprobs = 0;
  auto const ids = tokenizer_->encode("hello", false);
  auto answer = make({1});
  for (TokenId id : ids) answer.choice(0).token({id, TokenLogprobs{.chosen = {id, -1}, .top = {}}});
  answer.choice(0).finish(
      {.reason = FinishReason::length, .prompt_tokens = 1, .completion_tokens = ids.size(), .routed_experts = {}});
  auto const choice = Json::parse(answer.body())["choices"][0];
  EXPECT_EQ(choice["text"], "hello");
  EXPECT_EQ(choice["logprobs"]["tokens"][0], "token_id:" + std::to_string(ids[0]));
}

TEST_F(AnswerBuilderTest, ChoicesOfSeveralPromptsKeepTheirPlaces) {
  request_.n = request_.best_of = 2;
  request_.include_usage = true;
  AnswerBuilder answer(request_, {.name = "tiny"}, nullptr, "cmpl-1", 77, {{{1}, ""}, {{2, 3}, ""}});
  ASSERT_EQ(answer.num_choices(), 4U);
  std::vector<std::string> texts(4);
  auto const take = [&] {
    for (auto const& event : events_of(answer.take_events()))
      for (auto const& choice : event["choices"])
        texts.at(choice["index"].get<std::size_t>()) += choice["text"].get<std::string>();
  };
  for (TokenId i : {2, 0, 3, 1}) {
    answer.choice(static_cast<std::size_t>(i)).token(token(10 + i));
    take();
  }
  for (std::size_t i : {3, 1, 0, 2}) {
    EXPECT_FALSE(answer.finished());
    answer.choice(i).finish(
        {.reason = FinishReason::length, .prompt_tokens = 1, .completion_tokens = 1, .routed_experts = {}});
    take();
  }
  EXPECT_TRUE(answer.finished());
  EXPECT_EQ(texts, (std::vector<std::string>{"token_id:10", "token_id:11", "token_id:12", "token_id:13"}));
  auto const body = Json::parse(answer.body());
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["choices"][i]["text"], texts[i]);
  }
  EXPECT_EQ(body["usage"], (Json{{"prompt_tokens", 3}, {"completion_tokens", 4}, {"total_tokens", 7}}));
}

TEST_F(AnswerBuilderTest, BestOfShowsTheMostProbableAnswers) {
  request_.n = 2;
  request_.best_of = 3;
  AnswerBuilder answer(request_, {.name = "tiny"}, nullptr, "cmpl-1", 77, {{{1}, ""}});
  float const logprobs[] = {-2.0F, -0.5F, -1.0F};
  for (std::size_t c = 0; c < 3; ++c) {
    auto const id = static_cast<TokenId>(c);
    for (std::size_t i = 0; i <= 2 - c; ++i)  // the longest is the worst: the mean decides
      answer.choice(c).token({id, TokenLogprobs{.chosen = {id, logprobs[c]}, .top = {}}});
    answer.choice(c).finish({.reason = FinishReason::stop, .completion_tokens = 3 - c, .routed_experts = {}});
  }
  auto const body = Json::parse(answer.body());
  ASSERT_EQ(body["choices"].size(), 2U);
  EXPECT_EQ(body["choices"][0]["text"], "token_id:1 token_id:1");
  EXPECT_EQ(body["choices"][1]["text"], "token_id:2");
  EXPECT_EQ(body["choices"][1]["index"], 1);
  EXPECT_TRUE(body["choices"][0]["logprobs"].is_null()) << "nobody asked for them";
  EXPECT_EQ(body["usage"]["completion_tokens"], 6) << "all that were generated";
}

TEST_F(AnswerBuilderTest, ContinuousUsageCountsInEveryChunk) {
  request_.continuous_usage = true;
  auto answer = make({1, 2});
  for (std::size_t count = 1; count <= 3; ++count) {
    answer.choice(0).token(token(5));
    EXPECT_EQ(events_of(answer.take_events()).at(0)["usage"],
              (Json{{"prompt_tokens", 2}, {"completion_tokens", count}, {"total_tokens", 2 + count}}));
  }
}

TEST_F(AnswerBuilderTest, StopTokenIsTheReason) {
  auto answer = make({1});
  answer.choice(0).token(token(12));
  answer.choice(0).finish(
      {.reason = FinishReason::stop, .stop_token = 7, .completion_tokens = 2, .routed_experts = {}});
  auto const choice = Json::parse(answer.body())["choices"][0];
  EXPECT_EQ(choice["text"], "token_id:12");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], 7);
}

}  // namespace
}  // namespace expertmesh
