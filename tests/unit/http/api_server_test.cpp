// The server over real sockets on the loopback, with a generator that repeats its prompt.
#include "coordinator/http/api_server.h"

#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <iterator>

#include "coordinator/ui/page_files.h"
#include "echo_generator.h"
#include "http_client.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

using test::Answer;
using test::HttpClient;
using Json = nlohmann::json;

constexpr char const* kCompletions = "/v1/completions";
std::string const kEventStream = "text/event-stream; charset=utf-8";

std::vector<std::string> data_lines(std::string const& body) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < body.size();) {
    std::size_t const end = body.find("\n\n", begin);
    EXPECT_EQ(body.substr(begin, 6), "data: ");
    lines.push_back(body.substr(begin + 6, end - begin - 6));
    begin = end + 2;
  }
  return lines;
}

class ApiServerTest : public testing::Test {
 protected:
  ApiServerTest() { start(); }

  void start() {
    server_.reset();
    server_ = std::make_unique<ApiServer>(options_, generator_, nullptr, nullptr, metrics_,
                                          ApiCallbacks{.not_ready = [this] { return not_ready_; },
                                                       .cluster_json = [] { return std::string(R"({"workers":[]})"); },
                                                       .experts_json = [] { return std::string(R"({"layers":[]})"); }});
  }
  [[nodiscard]] HttpClient client() const { return HttpClient(server_->port()); }
  void stop(std::chrono::seconds patience) { server_->stop(std::chrono::steady_clock::now() + patience); }

  static void expect_error(Answer const& answer, int status, std::string const& in_message) {
    EXPECT_EQ(answer.status, status) << answer.body;
    auto const error = answer.json().at("error");
    EXPECT_EQ(error.size(), 4) << answer.body;
    for (char const* field : {"message", "type", "param", "code"}) EXPECT_TRUE(error.contains(field)) << field;
    EXPECT_NE(error["message"].get<std::string>().find(in_message), std::string::npos) << answer.body;
  }

  test::EchoGenerator generator_;
  Metrics metrics_{{}, 0};
  std::string not_ready_;
  ApiServerOptions options_{
      .http = {.max_body_bytes = 100000, .max_header_bytes = 4096},
      .model = {.name = "org/tiny", .max_model_len = 1000000, .vocab_size = 100, .created = 7},
  };
  std::unique_ptr<ApiServer> server_;
};

TEST_F(ApiServerTest, AnswersOneConnectionAfterTheOther) {
  auto c = client();
  EXPECT_EQ(c.get("/health").status, 200);
  EXPECT_EQ(c.get("/ready").status, 200);
  EXPECT_EQ(c.get("/v1/cluster").json(), (Json{{"workers", Json::array()}}));
  EXPECT_EQ(c.get("/v1/experts").json(), (Json{{"layers", Json::array()}}));
  auto const models = c.get("/v1/models").json();
  EXPECT_EQ(models["object"], "list");
  EXPECT_EQ(models["data"][0]["id"], "org/tiny");
  for (char const* target : {"/v1/models/org/tiny", "/v1/models/org%2Ftiny", "//v1//models/org/tiny/",
                             "/v1/models/org/tiny?x=/y", "http://host:1/v1/models/org/tiny"})
    EXPECT_EQ(c.get(target).json()["id"], "org/tiny") << target;
  auto const metrics = c.get("/metrics");
  EXPECT_EQ(metrics.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_NE(metrics.body.find("expertmesh:http_requests_total{status=\"200\"} 10"), std::string::npos) << metrics.body;
}

TEST_F(ApiServerTest, SaysWhyItIsNotReady) {
  not_ready_ = "worker 2 is dead";
  auto c = client();
  auto const answer = c.get("/ready");
  expect_error(answer, 503, "worker 2 is dead");
  EXPECT_GT(std::stoi(answer.header("retry-after")), 0);
  EXPECT_EQ(c.get("/health").status, 200);
}

TEST_F(ApiServerTest, RefusesPathsAndMethods) {
  auto c = client();
  for (char const* target : {"/", "/v1/nothing", "/v1/models/other", "/v1/models/org", "/metrics/x", "*", "/%ff%zz%"})
    EXPECT_EQ(c.get(target).status, 404) << target;
  expect_error(c.get("/v1/nothing?x"), 404, "/v1/nothing");
  auto const get = c.get(kCompletions);
  expect_error(get, 405, "GET");
  EXPECT_EQ(get.header("allow"), "POST");
  auto const post = c.post("/v1/models", "{}");
  expect_error(post, 405, "POST");
  EXPECT_EQ(post.header("allow"), "GET, HEAD");
}

TEST_F(ApiServerTest, HeadIsGetWithoutABody) {
  auto c = client();
  c.send("HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n");
  auto const head = c.receive(true);
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.header("content-length"), std::to_string(c.get("/v1/models").body.size()));
}

TEST_F(ApiServerTest, CompletesAndStreams) {
  auto c = client();
  auto const whole = c.post(kCompletions, R"({"prompt": [1, 2], "max_tokens": 3})");
  EXPECT_EQ(whole.status, 200);
  EXPECT_EQ(whole.json()["choices"][0]["text"], "token_id:1 token_id:2 token_id:1");

  auto const streamed = c.post(kCompletions, R"({"prompt": [1, 2], "max_tokens": 3, "stream": true})");
  EXPECT_EQ(streamed.header("content-type"), kEventStream);
  auto lines = data_lines(streamed.body);
  EXPECT_EQ(lines.back(), "[DONE]");
  lines.pop_back();
  std::string text;
  for (auto const& line : lines) text += Json::parse(line)["choices"][0]["text"].get<std::string>();
  EXPECT_EQ(text, "token_id:1 token_id:2 token_id:1");
  EXPECT_EQ(c.get("/health").status, 200) << "the connection goes on after a stream";
}

TEST_F(ApiServerTest, MakesOrEchoesRequestIds) {
  auto c = client();
  auto const own = c.post(kCompletions, R"({"prompt": [1]})", "x-request-id: abc-1\r\n");
  EXPECT_EQ(own.header("x-request-id"), "abc-1");
  EXPECT_EQ(own.json()["id"], "cmpl-abc-1");
  auto const made = c.post(kCompletions, R"({"prompt": [1]})");
  EXPECT_EQ(made.header("x-request-id").size(), 32);
  EXPECT_EQ(made.json()["id"], "cmpl-" + made.header("x-request-id"));
  EXPECT_NE(c.get("/health").header("x-request-id"), c.get("/health").header("x-request-id"));
  EXPECT_EQ(c.post(kCompletions, "{", "x-request-id: bad-1\r\n").header("x-request-id"), "bad-1");
}

TEST_F(ApiServerTest, BadBodiesAreRefusedAndTheConnectionGoesOn) {
  auto c = client();
  expect_error(c.post(kCompletions, "{"), 400, "byte");
  expect_error(c.post(kCompletions, ""), 400, "JSON");
  expect_error(c.post(kCompletions, R"({"prompt": "text"})"), 400, "token ids");
  expect_error(c.post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "a"}]})"), 400, "tokenizer");
  expect_error(c.post(kCompletions, R"({"prompt": [1], "max_tokens": 1000000})"), 400, "1000000");
  expect_error(c.post(kCompletions, R"({"prompt": [92]})"), 429, "full");
  EXPECT_EQ(c.post(kCompletions, R"({"prompt": [92]})").header("retry-after"), "3");
  EXPECT_EQ(c.get("/health").status, 200);
}

TEST_F(ApiServerTest, LongPromptsAreRefusedWithBothNumbers) {
  options_.model.max_model_len = 8;
  start();
  auto c = client();
  auto const full = c.post(kCompletions, R"({"prompt": [1, 2, 3, 4, 5], "max_tokens": 4})");
  expect_error(full, 400, "8");
  EXPECT_EQ(full.json()["error"]["code"], "context_length_exceeded");
  EXPECT_EQ(full.json()["error"]["param"], "max_tokens");
  EXPECT_EQ(c.post(kCompletions, R"({"prompt": [1, 2, 3, 4, 5, 6, 7, 8]})").json()["error"]["param"], "prompt");
  auto const clipped = c.post(kCompletions, R"({"prompt": [1, 2, 3, 4, 5]})");
  EXPECT_EQ(clipped.json()["usage"]["completion_tokens"], 3) << "the default of 16 is cut to what is left";
}

TEST_F(ApiServerTest, OversizedRequestsAreRefused) {
  std::string const big(200000, 'a');
  {
    auto c = client();
    expect_error(c.post(kCompletions, big), 413, "100000");
    EXPECT_EQ(c.rest(), "");
  }
  {
    auto c = client();
    c.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 3; ++i) c.send("a000\r\n" + std::string(0xa000, 'a') + "\r\n");
    expect_error(c.receive(), 413, "100000");
    EXPECT_EQ(c.rest(), "");
  }
  {
    auto c = client();
    c.send("GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + std::string(9000, 'a') + "\r\n\r\n");
    expect_error(c.receive(), 431, "4096");
  }
}

TEST_F(ApiServerTest, WhatIsNoHttpIsRefused) {
  for (std::string const& text :
       {std::string("nonsense\r\n\r\n"), std::string("GET / HTTP/9.9\r\n\r\n"),
        std::string("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), std::string(50, '\0')}) {
    auto c = client();
    c.send(text);
    expect_error(c.receive(), 400, "HTTP");
    EXPECT_EQ(c.rest(), "");
  }
}

TEST_F(ApiServerTest, TakesChunkedBodiesAndExpectContinue) {
  auto c = client();
  c.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"prompt\"\r\n");
  c.send("6\r\n: [5]}\r\n0\r\n\r\n");
  EXPECT_EQ(c.receive().status, 200);
  std::string const body = R"({"prompt": [5], "max_tokens": 1})";
  c.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n\r\n");
  c.receive_until("HTTP/1.1 100 Continue\r\n\r\n");
  c.send(body);
  EXPECT_EQ(c.receive().json()["choices"][0]["text"], "token_id:5");
}

TEST_F(ApiServerTest, PipelinedRequestsAreAnsweredInOrder) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, R"({"prompt": [1], "max_tokens": 2000, "stream": true})") +
         HttpClient::post_text(kCompletions, R"({"prompt": [2], "max_tokens": 1})") +
         "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(c.receive().header("content-type"), kEventStream);
  EXPECT_EQ(c.receive().json()["choices"][0]["text"], "token_id:2");
  EXPECT_EQ(c.receive().json()["status"], "ok");
}

TEST_F(ApiServerTest, RequestsThatComeWhileAnAnswerIsMadeAreKept) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, Json{{"prompt", {test::kHold}}, {"stream", true}}.dump()));
  c.receive_until("token_id:90");
  c.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  generator_.release();
  c.receive_until("data: [DONE]\n\n\r\n0\r\n\r\n");
  EXPECT_EQ(c.receive().json()["status"], "ok");
}

TEST_F(ApiServerTest, Http10StreamsUntilTheConnectionEnds) {
  auto c = client();
  std::string const body = R"({"prompt": [1], "max_tokens": 2, "stream": true})";
  c.send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  auto const answer = c.receive();
  EXPECT_EQ(data_lines(answer.body).back(), "[DONE]");
  EXPECT_EQ(c.rest(), "");
}

TEST_F(ApiServerTest, ConnectionCloseIsHonoured) {
  auto c = client();
  c.send("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_FALSE(c.receive().keep_alive);
  EXPECT_EQ(c.rest(), "");
}

TEST_F(ApiServerTest, ClientThatGoesAwayStopsTheGeneration) {
  for (bool stream : {true, false}) {
    auto c = client();
    c.send(HttpClient::post_text(kCompletions, Json{{"prompt", {test::kHold}}, {"stream", stream}}.dump()));
    if (stream) c.receive_until("token_id:90");
    c.close();
    EXPECT_EQ(generator_.next_abort(), Generator::AbortReason::cancelled);
  }
}

TEST_F(ApiServerTest, ClientThatGoesAwayBehindAPipelinedRequestStopsTheGeneration) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, Json{{"prompt", {test::kHold}}, {"stream", true}}.dump()) +
         "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  c.receive_until("token_id:90");
  c.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  c.close();
  EXPECT_EQ(generator_.next_abort(), Generator::AbortReason::cancelled);
}

TEST_F(ApiServerTest, ReaderTooSlowForItsStreamIsCutOff) {
  options_.http.max_unsent_bytes = 100000;
  start();
  HttpClient slow(server_->port(), 4096);
  slow.send(
      HttpClient::post_text(kCompletions, R"({"prompt": [1], "max_tokens": 900000, "stream": true, "logprobs": 0})"));
  EXPECT_EQ(generator_.next_abort(), Generator::AbortReason::cancelled);
}

// More than the sockets hold: its end waits here, and goes out in order once the client reads.
TEST_F(ApiServerTest, SlowReaderThatIsNotCutOffGetsAllOfItsStream) {
  constexpr std::size_t kTokens = 20000;
  options_.http.max_unsent_bytes = std::size_t{1} << 30;
  start();
  HttpClient slow(server_->port(), 4096);
  slow.send(HttpClient::post_text(kCompletions,
                                  R"({"prompt": [1, 2, 3], "max_tokens": 20000, "stream": true, "logprobs": 0})"));
  auto c = client();  // whose answer is computed beside that, and as long
  EXPECT_EQ(c.post(kCompletions, R"({"prompt": [1], "max_tokens": 20000})").status, 200);
  auto const lines = data_lines(slow.receive().body);
  ASSERT_EQ(lines.size(), kTokens + 2);  // why it ended, and [DONE]
  for (std::size_t i = 0; i < kTokens; ++i)
    ASSERT_NE(lines[i].find("token_id:" + std::to_string(i % 3 + 1) + "\""), std::string::npos) << lines[i];
}

TEST_F(ApiServerTest, FailureIsAStatusOrAnEventOfTheStream) {
  auto c = client();
  expect_error(c.post(kCompletions, R"({"prompt": [91]})"), 503, "worker 2 is dead");
  auto const lines = data_lines(c.post(kCompletions, R"({"prompt": [91], "stream": true})").body);
  ASSERT_EQ(lines.size(), 3);
  EXPECT_EQ(Json::parse(lines[0])["choices"][0]["text"], "token_id:91");
  EXPECT_EQ(Json::parse(lines[1])["error"]["message"], "worker 2 is dead");
  EXPECT_EQ(lines[2], "[DONE]");
}

TEST_F(ApiServerTest, EveryRequestGetsAnAnswerWhateverTheGeneratorDoes) {
  auto c = client();
  expect_error(c.post(kCompletions, R"({"prompt": [93]})"), 503, "cancelled");
  expect_error(c.post(kCompletions, R"({"prompt": [94]})"), 500, "internal error");
  EXPECT_EQ(c.get("/health").status, 200);
}

TEST_F(ApiServerTest, ConnectionsBeyondTheLimitWait) {
  options_.http.max_connections = 1;
  start();
  auto first = client();
  EXPECT_EQ(first.get("/health").status, 200);
  auto second = client();
  second.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(first.get("/health").status, 200);
  first.close();
  EXPECT_EQ(second.receive().status, 200);
}

TEST_F(ApiServerTest, StopEndsIdleConnectionsAndCancelsWhatDoesNotEnd) {
  auto idle = client();
  EXPECT_EQ(idle.get("/health").status, 200);
  auto busy = client();
  busy.send(HttpClient::post_text(kCompletions, Json{{"prompt", {test::kHold}}, {"stream", true}}.dump()));
  busy.receive_until("token_id:90");
  stop(std::chrono::seconds(0));
  EXPECT_EQ(idle.rest(), "");
  EXPECT_EQ(busy.rest().find("[DONE]"), std::string::npos);
  EXPECT_EQ(generator_.next_abort(), Generator::AbortReason::cancelled);
  EXPECT_THROW(client(), boost::system::system_error);
}

TEST_F(ApiServerTest, StopLetsAnswersUnderWayEnd) {
  auto idle = client();
  EXPECT_EQ(idle.get("/health").status, 200);
  auto busy = client();
  busy.send(HttpClient::post_text(kCompletions, Json{{"prompt", {test::kHold}}, {"stream", true}}.dump()));
  busy.receive_until("token_id:90");
  auto stopped = std::async(std::launch::async, [&] { stop(std::chrono::seconds(60)); });
  EXPECT_EQ(idle.rest(), "") << "the server is stopping";
  generator_.release();
  EXPECT_TRUE(busy.rest().ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
  stopped.get();
}

TEST_F(ApiServerTest, ManyClientsAtOnce) {
  std::vector<std::future<bool>> clients;
  for (int i = 0; i < 16; ++i)
    clients.push_back(std::async(std::launch::async, [&, i] {
      auto c = client();
      bool good = true;
      for (int k = 0; k < 10; ++k) {
        auto const answer =
            c.post(kCompletions, Json{{"prompt", {i}}, {"max_tokens", 5}, {"stream", k % 2 == 1}}.dump());
        good = good && answer.status == 200 && answer.body.find("token_id:" + std::to_string(i)) != std::string::npos;
      }
      return good;
    }));
  for (auto& c : clients) EXPECT_TRUE(c.get());
}

TEST_F(ApiServerTest, PortInUseAndBadHostsAreErrors) {
  auto options = options_;
  options.http.port = server_->port();
  auto const make = [&] { ApiServer(options, generator_, nullptr, nullptr, metrics_, {}); };
  EXPECT_THROW(make(), NetworkError);
  options.http = {.host = "no-such-host.invalid"};
  EXPECT_THROW(make(), NetworkError);
}

TEST_F(ApiServerTest, UnknownFieldsAreCounted) {
  auto c = client();
  c.post(kCompletions, R"({"prompt": [1], "max_tokens": 1, "frobnicate": 1})");
  EXPECT_NE(metrics_.serialise().find("expertmesh:unknown_request_fields_total{field=\"frobnicate\"} 1"),
            std::string::npos);
}

TEST_F(ApiServerTest, SeveralPromptsAndChoicesInOneAnswer) {
  auto c = client();
  std::string const body = R"({"prompt": [[1, 2], [3, 4]], "n": 2, "max_tokens": 2)";
  auto const whole = c.post(kCompletions, body + "}").json();
  ASSERT_EQ(whole["choices"].size(), 4U);
  std::vector<std::string> const expected{"token_id:1 token_id:2", "token_id:2 token_id:1", "token_id:3 token_id:4",
                                          "token_id:4 token_id:3"};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(whole["choices"][i]["text"], expected[i]);
  EXPECT_EQ(whole["usage"], (Json{{"prompt_tokens", 4}, {"completion_tokens", 8}, {"total_tokens", 12}}));

  auto lines = data_lines(c.post(kCompletions, body + R"(, "stream": true})").body);
  EXPECT_EQ(lines.back(), "[DONE]");
  lines.pop_back();
  std::vector<std::string> texts(4);
  for (auto const& line : lines) {
    auto const choice = Json::parse(line)["choices"][0];
    texts.at(choice["index"].get<std::size_t>()) += choice["text"].get<std::string>();
  }
  EXPECT_EQ(texts, expected);
}

TEST_F(ApiServerTest, OneFailedChoiceEndsTheOthers) {
  auto c = client();
  expect_error(c.post(kCompletions, R"({"prompt": [[90], [91]], "max_tokens": 5})"), 503, "worker 2 is dead");
  EXPECT_EQ(generator_.next_abort(), Generator::AbortReason::cancelled);
}

TEST_F(ApiServerTest, BestOfIsChosenByLogprob) {
  auto c = client();
  auto const answer = c.post(kCompletions, R"({"prompt": [9, 3], "best_of": 2, "max_tokens": 1})").json();
  ASSERT_EQ(answer["choices"].size(), 1U);
  EXPECT_EQ(answer["choices"][0]["text"], "token_id:3");
  EXPECT_TRUE(answer["choices"][0]["logprobs"].is_null());
}

TEST_F(ApiServerTest, KeysAreAskedForButNotToSeeThatItLives) {
  options_.api_keys = {"secret-1", "secret-2"};
  start();
  auto c = client();
  for (char const* open : {"/health", "/ready"}) EXPECT_EQ(c.get(open).status, 200);
  std::string const body = R"({"prompt": [1], "max_tokens": 1})";
  for (char const* header : {"", "Authorization: Bearer secret-3\r\n", "Authorization: Bearer secret-1x\r\n",
                             "Authorization: Bearer secret-\r\n", "Authorization: Bearer \r\n",
                             "Authorization: Basic secret-1\r\n", "Authorization: secret-1\r\n"}) {
    auto const refused = c.post(kCompletions, body, header);
    expect_error(refused, 401, "API key");
    EXPECT_EQ(refused.json()["error"]["code"], "invalid_api_key") << header;
    EXPECT_EQ(refused.header("www-authenticate"), "Bearer");
  }
  for (char const* target : {"/metrics", "/v1/models", "/v1/cluster", "/version", "/v1/models/org/tiny", "/nothing"})
    EXPECT_EQ(c.get(target).status, 401) << target;
  for (char const* header : {"Authorization: Bearer secret-1\r\n", "authorization: bearer  secret-2\r\n"})
    EXPECT_EQ(c.post(kCompletions, body, header).status, 200) << header;
}

TEST_F(ApiServerTest, BrowsersMayAsk) {
  options_.allowed_origin = "*";
  options_.api_keys = {"secret"};
  start();
  auto c = client();
  c.send(
      "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: http://a.example\r\n"
      "Access-Control-Request-Method: POST\r\n\r\n");
  auto const preflight = c.receive();
  EXPECT_EQ(preflight.status, 204) << "a browser sends no key with it";
  EXPECT_EQ(preflight.header("access-control-allow-origin"), "*");
  EXPECT_NE(preflight.header("access-control-allow-headers").find("Authorization"), std::string::npos);
  EXPECT_NE(preflight.header("access-control-allow-methods").find("POST"), std::string::npos);
  EXPECT_EQ(c.get("/health").header("access-control-allow-origin"), "*");
  options_.allowed_origin.reset();
  start();
  EXPECT_EQ(client().get("/health").header("access-control-allow-origin"), "");
}

TEST_F(ApiServerTest, ShowsThePageToWhoeverAsksAndNothingElse) {
  options_.api_keys = {"secret"};
  options_.live_page = true;
  start();
  auto c = client();
  ASSERT_FALSE(page_files().empty());
  for (auto const& file : page_files()) {
    auto const answer = c.get(file.path);
    EXPECT_EQ(answer.status, 200) << file.path;
    EXPECT_EQ(answer.header("content-type"), file.content_type) << file.path;
    EXPECT_EQ(answer.body, file.text) << file.path;
    EXPECT_TRUE(answer.header("content-security-policy").starts_with("default-src 'none'; script-src 'self';"));
    EXPECT_EQ(answer.header("x-content-type-options"), "nosniff");
  }
  auto const page = c.get("/");
  EXPECT_EQ(page.header("content-type"), "text/html; charset=utf-8");
  for (char const* inside : {"<script>", "<style", " style=", " onclick=", "http://", "https://", "//"})
    EXPECT_EQ(page.body.find(inside), std::string::npos) << "the policy forbids it, or it is not here: " << inside;
  for (char const* target : {"/v1/experts", "/v1/activity", "/ui", "/ui/", "/ui/other.js", "/index.html"})
    EXPECT_EQ(c.get(target).status, 401) << target;
  options_.api_keys = {};
  options_.live_page = false;
  start();
  for (auto const& file : page_files()) EXPECT_EQ(client().get(file.path).status, 404) << file.path;
}

// Byte for byte what lies in the source tree, whatever CMake and C++ think of its signs.
TEST(PageFiles, AreTheSourcesOwn) {
  for (auto const& file : page_files()) {
    std::string const path(file.path);
    std::ifstream in(EM_SOURCE_DIR "/coordinator" + (path == "/" ? "/ui/index.html" : path));
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), file.text) << path;
  }
}

TEST_F(ApiServerTest, TellsItsActivity) {
  metrics_.count_generation_tokens(3);
  metrics_.observe_step(0.5, 4);
  metrics_.observe_time_to_first_token(0.25);
  StageSeconds floors{};
  floors[static_cast<std::size_t>(Stage::attention)] = 0.125;
  metrics_.count_floors(floors);
  auto const now = client().get("/v1/activity").json();
  EXPECT_EQ(now["generation_tokens"], 3);
  EXPECT_EQ(now["steps"], (Json{{"count", 1}, {"seconds", 0.5}}));
  EXPECT_EQ(now["time_to_first_token"], (Json{{"count", 1}, {"seconds", 0.25}}));
  EXPECT_EQ(now["stage_seconds"].size(), kNumStages);
  EXPECT_EQ(now["stage_floor_seconds"].size(), kNumStages);
  EXPECT_EQ(now["stage_floor_seconds"]["attention"], 0.125);
  EXPECT_GT(now["seconds"], 0);
}

TEST_F(ApiServerTest, TellsItsVersion) {
  options_.version = "1.2.3";
  start();
  EXPECT_EQ(client().get("/version").json(), (Json{{"version", "1.2.3"}}));
}

TEST_F(ApiServerTest, TokenizesAndBack) {
  auto const tokenizer = Tokenizer::load(test::goldens_dir() / "text/tokenizers/olmoe");
  options_.model.has_tokenizer = true;
  options_.model.vocab_size = tokenizer->vocab_size();
  server_ = std::make_unique<ApiServer>(options_, generator_, tokenizer.get(), nullptr, metrics_, ApiCallbacks{});
  auto c = client();
  std::string const text = "na\u00efve horse \U0001F434";
  auto const tokens = c.post("/tokenize", Json{{"prompt", text}, {"return_token_strs", true}}.dump()).json();
  EXPECT_EQ(tokens["tokens"], tokenizer->encode(text, true));
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["token_strs"].size(), tokens["tokens"].size());
  EXPECT_EQ(tokens["max_model_len"], 1000000);
  EXPECT_EQ(c.post("/detokenize", Json{{"tokens", tokens["tokens"]}}.dump()).json()["prompt"], text);
  expect_error(c.post("/tokenize", "{}"), 400, "prompt");
  expect_error(c.post("/detokenize", R"({"tokens": "a"})"), 400, "tokens");
  server_.reset();
}

}  // namespace
}  // namespace expertmesh
