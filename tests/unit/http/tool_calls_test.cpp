// Tools, from the body to the chunks: a generator that repeats its prompt says what the user's message holds.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "coordinator/http/answer_builder.h"
#include "coordinator/http/api_server.h"
#include "echo_generator.h"
#include "http_client.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

using test::Answer;
using test::HttpClient;
using Json = nlohmann::json;

constexpr char const* kChat = "/v1/chat/completions";
std::string const kCall =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"K\u00f6ln\"}}\n</tool_call>";
Json const kTools = Json::parse(R"([{"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}])");

Tokenizer const& tokenizer_of(std::string const& kind) {
  static std::map<std::string, std::unique_ptr<Tokenizer>> loaded;
  auto& tokenizer = loaded[kind];
  if (!tokenizer) tokenizer = Tokenizer::load(test::goldens_dir() / "text/tokenizers" / kind);
  return *tokenizer;
}

std::vector<TokenId> marks_of(AnswerFormats const& formats, Tokenizer const& tokenizer) {
  std::vector<TokenId> ids;
  for (auto const& mark : answer_mark_tokens(formats, true))
    if (auto const encoded = tokenizer.encode(mark, false); encoded.size() == 1) ids.push_back(encoded[0]);
  return ids;
}

// Chunks put together, as clients do it.
Json assembled(std::vector<Json> const& choices) {
  Json message = {{"content", ""}, {"reasoning_content", ""}, {"tool_calls", Json::array()}};
  for (auto const& choice : choices) {
    auto const& delta = choice["delta"];
    for (char const* field : {"content", "reasoning_content"})
      if (delta.contains(field)) message[field] = message[field].get<std::string>() + delta[field].get<std::string>();
    for (auto const& call : delta.value("tool_calls", Json::array())) {
      auto const index = call["index"].get<std::size_t>();
      if (index == message["tool_calls"].size()) {
        EXPECT_EQ(call["type"], "function");
        EXPECT_FALSE(call["id"].get<std::string>().empty());
        message["tool_calls"].push_back({{"id", call["id"]}, {"name", call["function"]["name"]}, {"arguments", ""}});
      } else {
        EXPECT_FALSE(call.contains("id") || call["function"].contains("name")) << "said twice";
      }
      auto& arguments = message["tool_calls"].at(index)["arguments"];
      arguments = arguments.get<std::string>() + call["function"]["arguments"].get<std::string>();
    }
    message["finish_reason"] = choice["finish_reason"];
  }
  return message;
}

class ToolCallsTest : public testing::Test {
 protected:
  ToolCallsTest() {
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ / "chat_template.jinja")
        << "{% if messages|length > 1 %}{{ raise_exception('One at a time!') }}{% endif %}"
           "{% if tools %}{{ messages[-1].content }}{% else %}no tools{% endif %}";
    templates_.emplace(
        read_chat_templates(folder_),
        ChatTemplateOptions{.script = std::filesystem::path(EM_SOURCE_DIR) / "coordinator/text/render_chat_template.py",
                            .processes = 1,
                            .deadline = std::chrono::seconds(20),
                            .messages_of_api = true});
    model_.answer_formats = {.tool_calls = "hermes", .reasoning = "deepseek_r1"};
    server_ = std::make_unique<ApiServer>(ApiServerOptions{.http = {}, .model = model_}, generator_, &tokenizer_,
                                          &*templates_, metrics_, ApiCallbacks{});
  }
  ~ToolCallsTest() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  Answer ask(std::string const& says, Json more = Json::object()) {
    Json body = {{"messages", {{{"role", "user"}, {"content", says}}}},
                 {"tools", kTools},
                 {"max_tokens", tokenizer_.encode(says, false).size()}};
    body.update(more);
    return HttpClient(server_->port()).post(kChat, body.dump());
  }
  Json whole(std::string const& says, Json const& more = Json::object()) {
    auto const answer = ask(says, more);
    EXPECT_EQ(answer.status, 200) << answer.body;
    return answer.json()["choices"][0];
  }
  Json streamed(std::string const& says, Json more = Json::object()) {
    more["stream"] = true;
    auto const answer = ask(says, more);
    std::vector<Json> choices;
    for (std::size_t begin = 0; begin < answer.body.size();) {
      std::size_t const end = answer.body.find("\n\n", begin);
      std::string const data = answer.body.substr(begin + 6, end - begin - 6);
      if (data != "[DONE]") choices.push_back(Json::parse(data)["choices"][0]);
      begin = end + 2;
    }
    return assembled(choices);
  }

  std::filesystem::path const folder_ =
      std::filesystem::temp_directory_path() / ("em_tools_" + std::to_string(getpid()));
  Tokenizer const& tokenizer_ = tokenizer_of("olmoe");
  ApiModel model_{.name = "tiny",
                  .max_model_len = 10000,
                  .vocab_size = tokenizer_.vocab_size(),
                  .has_tokenizer = true,
                  .has_chat_template = true};
  test::EchoGenerator generator_;
  Metrics metrics_{{}, 0};
  std::optional<ChatTemplates> templates_;
  std::unique_ptr<ApiServer> server_;
};

TEST_F(ToolCallsTest, WholeAndStreamed) {
  std::string const says = "<think>Hm.</think>Let me look.\n" + kCall + "\n" + kCall + "END";
  Json const stop = {{"stop", "END"}};
  auto const choice = whole(says, stop);
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  auto const& message = choice["message"];
  EXPECT_EQ(message["content"], "Let me look.\n");
  EXPECT_EQ(message["reasoning_content"], "Hm.");
  ASSERT_EQ(message["tool_calls"].size(), 2U);
  EXPECT_NE(message["tool_calls"][0]["id"], message["tool_calls"][1]["id"]);
  for (auto const& call : message["tool_calls"]) {
    EXPECT_EQ(call["type"], "function");
    EXPECT_EQ(call["function"], (Json{{"name", "get_weather"}, {"arguments", "{\"city\":\"K\u00f6ln\"}"}}));
  }
  auto const stream = streamed(says, stop);
  EXPECT_EQ(stream["content"], "Let me look.\n");
  EXPECT_EQ(stream["reasoning_content"], "Hm.");
  EXPECT_EQ(stream["finish_reason"], "tool_calls");
  ASSERT_EQ(stream["tool_calls"].size(), 2U);
  EXPECT_EQ(stream["tool_calls"][1]["name"], "get_weather");
  EXPECT_EQ(stream["tool_calls"][1]["arguments"], "{\"city\":\"K\u00f6ln\"}");
}

TEST_F(ToolCallsTest, ContentIsNullWhereThereIsOnlyACall) {
  auto const choice = whole(kCall + "END", {{"stop", "END"}});
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_FALSE(choice["message"].contains("reasoning_content"));
}

TEST_F(ToolCallsTest, AnAnswerThatIsCutOffLosesNothing) {
  std::string const says = "So: " + kCall.substr(0, kCall.size() - 4);
  auto const choice = whole(says);
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_EQ(choice["message"]["content"], says);
  EXPECT_FALSE(choice["message"].contains("tool_calls"));
  EXPECT_EQ(streamed(says)["content"], says);
}

TEST_F(ToolCallsTest, WithoutParallelCallsTheFirstEndsTheAnswer) {
  Json const one = {{"parallel_tool_calls", false}, {"max_tokens", 500}};  // the generator says it again and again
  auto const answer = ask(kCall + "\n", one).json();
  auto const& choice = answer["choices"][0];
  EXPECT_EQ(choice["message"]["tool_calls"].size(), 1U);
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_EQ(answer["usage"]["completion_tokens"], tokenizer_.encode(kCall, false).size());
  EXPECT_EQ(streamed(kCall + "\n", one)["tool_calls"].size(), 1U);
}

TEST_F(ToolCallsTest, ToolsThatMayNotBeCalledAreNotShown) {
  std::size_t const size = tokenizer_.encode("no tools", false).size();
  for (Json const& more : {Json{{"tool_choice", "none"}}, Json{{"tools", Json::array()}}}) {
    Json with_size = more;
    with_size["max_tokens"] = size;
    EXPECT_EQ(whole(kCall, with_size)["message"]["content"], "no tools");
  }
  auto const forced = ask(kCall, {{"tool_choice", "required"}});
  EXPECT_EQ(forced.status, 400);
  EXPECT_EQ(forced.json()["error"]["param"], "tool_choice");
}

TEST_F(ToolCallsTest, ATemplatesRefusalIsTheClientsError) {
  Json const message = {{"role", "user"}, {"content", "a"}};
  for (char const* path : {kChat, "/tokenize"}) {
    auto const answer = HttpClient(server_->port()).post(path, Json{{"messages", {message, message}}}.dump());
    EXPECT_EQ(answer.status, 400);
    EXPECT_EQ(answer.json()["error"]["message"], "chat template: One at a time!");
    EXPECT_EQ(answer.json()["error"]["param"], "messages");
  }
}

TEST_F(ToolCallsTest, ReasoningMayBeLeftOut) {
  auto const choice = whole("<think>Hm.</think>Yes.", {{"include_reasoning", false}});
  EXPECT_EQ(choice["message"]["content"], "Yes.");
  EXPECT_FALSE(choice["message"].contains("reasoning_content"));
}

TEST_F(ToolCallsTest, LogprobsOfAStreamedCallComeOnce) {
  auto const answer = ask(kCall, {{"stream", true}, {"logprobs", true}});
  std::size_t entries = 0;
  for (std::size_t begin = 0; (begin = answer.body.find("\"bytes\"", begin)) != std::string::npos; ++begin) ++entries;
  EXPECT_EQ(entries, tokenizer_.encode(kCall, false).size());
}

TEST_F(ToolCallsTest, TokenizeRendersToolsToo) {
  HttpClient client(server_->port());
  Json body = {{"messages", {{{"role", "user"}, {"content", "hello"}}}}, {"tools", kTools}};
  EXPECT_EQ(client.post("/tokenize", body.dump()).json()["tokens"], tokenizer_.encode("hello", false));
  body.erase("tools");
  EXPECT_EQ(client.post("/tokenize", body.dump()).json()["tokens"], tokenizer_.encode("no tools", false));
}

// The olmoe tokenizer with these special tokens.
std::unique_ptr<Tokenizer> tokenizer_with(std::vector<std::string> const& special) {
  namespace fs = std::filesystem;
  fs::path const from = test::goldens_dir() / "text/tokenizers/olmoe";
  Json json = Json::parse(std::ifstream(from / "tokenizer.json"));
  std::size_t id = tokenizer_of("olmoe").vocab_size();
  for (auto const& token : special)
    json["added_tokens"].push_back({{"id", id++},
                                    {"content", token},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}});
  fs::path const folder = fs::temp_directory_path() / ("em_marks_" + std::to_string(getpid()));
  fs::create_directories(folder);
  fs::copy_file(from / "tokenizer_config.json", folder / "tokenizer_config.json", fs::copy_options::overwrite_existing);
  std::ofstream(folder / "tokenizer.json") << json.dump();
  auto tokenizer = Tokenizer::load(folder);
  fs::remove_all(folder);
  return tokenizer;
}

// Marks that are special tokens reach the parser, and no client.
TEST(SpecialMarks, HarmonyIsReadFromItsTokens) {
  ApiModel model{.name = "tiny"};
  model.answer_formats = {.tool_calls = "openai", .reasoning = "openai_gptoss"};
  auto const made = tokenizer_with(answer_mark_tokens(model.answer_formats, true));
  Tokenizer const& tokenizer = *made;
  model.answer_marks = model.marks_with_calls = marks_of(model.answer_formats, tokenizer);
  ASSERT_EQ(model.answer_marks.size(), 7U);
  ApiRequest request;
  request.chat = true;
  request.tools = kTools.dump();
  AnswerBuilder answer(request, model, &tokenizer, "id", 1, {{{1}, ""}});
  for (TokenId id : tokenizer.encode("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
                                     "to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Bonn\"}",
                                     false))
    answer.choice(0).token({.token = id, .logprobs = {}});
  answer.choice(0).finish({.reason = FinishReason::stop, .completion_tokens = 9, .routed_experts = {}});
  auto const choice = Json::parse(answer.body())["choices"][0];
  EXPECT_EQ(choice["message"]["reasoning_content"], "Hm.");
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"city\": \"Bonn\"}");
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
}

}  // namespace
}  // namespace expertmesh
