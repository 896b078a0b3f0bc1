// The front over real sockets on the loopback, with HTTP servers that a test leads in the coordinators' place.
#include "coordinator/front/front.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <thread>

#include "tests/unit/http/http_client.h"

namespace expertmesh {
namespace {

using test::Answer;
using test::HttpClient;

constexpr char const* kCompletions = "/v1/completions";
constexpr char const* kBody = R"({"prompt": "x"})";

// Is ready, and leaves what else it is asked to the test.
class Backend {
 public:
  struct Asked {
    HttpRequest request;
    std::shared_ptr<HttpResponder> responder;
  };
  explicit Backend(std::uint16_t port = 0)
      : server_(std::make_unique<HttpServer>(
            HttpServerOptions{.port = port},
            [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
              if (request.target == "/ready") return responder->respond({.body = "{}", .headers = {}});
              std::lock_guard lock(mutex_);
              asked_.push_back({std::move(request), std::move(responder)});
              changed_.notify_all();
            },
            [](int status, std::string const&) { return HttpResponse{.status = status, .body = {}, .headers = {}}; })) {
  }

  [[nodiscard]] std::uint16_t port() const { return server_->port(); }
  [[nodiscard]] HttpAddress address() const { return {.host = "127.0.0.1", .port = std::to_string(port())}; }
  Asked next() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(30), [this] { return !asked_.empty(); }))
      throw std::runtime_error("the backend was not asked");
    Asked asked = std::move(asked_.front());
    asked_.pop_front();
    return asked;
  }
  bool was_asked() {
    std::lock_guard lock(mutex_);
    return !asked_.empty();
  }
  void die() { server_.reset(); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Asked> asked_;
  std::unique_ptr<HttpServer> server_;
};

class FrontTest : public testing::Test {
 protected:
  FrontTest() {
    std::mutex mutex;
    std::condition_variable changed;
    bool ready = false;
    front_ = std::make_unique<Front>(FrontOptions{.http = {.max_body_bytes = 1000},
                                                  .backends = {.addresses = {first_.address(), second_.address()},
                                                               .poll_interval = std::chrono::milliseconds(20)},
                                                  .api_keys = {},
                                                  .allowed_origin = "http://pages",
                                                  .on_ready = [&] {
                                                    std::lock_guard lock(mutex);
                                                    ready = true;
                                                    changed.notify_all();
                                                  }});
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return ready; });
    for (Backend const* backend : {&first_, &second_})
      while (metrics().find("expertmesh:front_backend_up{backend=\"" + backend->address().text() + "\"} 1") ==
             std::string::npos) {
      }
  }

  [[nodiscard]] HttpClient client() const { return HttpClient(front_->port()); }
  [[nodiscard]] std::string metrics() const { return client().get("/metrics").body; }
  void expect_metric(std::string const& line) const {
    EXPECT_NE(metrics().find("expertmesh:front_" + line + "\n"), std::string::npos) << metrics();
  }

  Backend first_;
  Backend second_;
  std::unique_ptr<Front> front_;
};

TEST_F(FrontTest, PassesARequestAndItsAnswerOn) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, kBody, "x-request-id: mine\r\nAuthorization: Bearer key\r\n"));
  auto const asked = first_.next();
  EXPECT_EQ(asked.request.method, "POST");
  EXPECT_EQ(asked.request.target, kCompletions);
  EXPECT_EQ(asked.request.body, kBody);
  EXPECT_EQ(asked.request.request_id, "mine");
  EXPECT_EQ(asked.request.authorization, "Bearer key");
  asked.responder->respond({.status = 429, .body = "full", .headers = {{"Retry-After", "7"}}});
  Answer const answer = c.receive();
  EXPECT_EQ(answer.status, 429);
  EXPECT_EQ(answer.body, "full");
  EXPECT_EQ(answer.header("Retry-After"), "7");
  EXPECT_EQ(answer.header("x-request-id"), "mine");
  EXPECT_EQ(answer.header("x-expertmesh-coordinator"), "0");
  EXPECT_TRUE(answer.keep_alive);
  c.send("HEAD /version HTTP/1.1\r\nHost: x\r\n\r\n");
  first_.next().responder->respond({.body = "1234", .headers = {}});
  Answer const head = c.receive(true);
  EXPECT_EQ(head.header("Content-Length"), "4");
  EXPECT_EQ(head.body, "");
}

TEST_F(FrontTest, PassesAStreamOnAsItComes) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, kBody));
  auto const asked = first_.next();
  asked.responder->begin_stream({.content_type = "text/event-stream; charset=utf-8", .body = {}, .headers = {}});
  for (char const* event : {"data: 1\n\n", "data: 2\n\n"}) {
    asked.responder->send(event);
    c.receive_until(event);  // before the next one is sent
  }
  asked.responder->end_stream();
  c.receive_until("0\r\n\r\n");
  EXPECT_EQ(c.get("/health").status, 200);
}

TEST_F(FrontTest, AsksAnotherOneWhileNothingHasBegun) {
  for (bool const dies : {false, true}) {
    auto c = client();
    c.send(HttpClient::post_text(kCompletions, kBody));
    auto const refused = first_.next();
    if (dies) {
      refused.responder->begin_stream({.content_type = "text/event-stream", .body = {}, .headers = {}});
      refused.responder->send("data: half an ev");
      first_.die();
    } else {
      refused.responder->respond({.status = 503, .body = "busy", .headers = {}});
    }
    second_.next().responder->respond({.body = "good", .headers = {}});
    EXPECT_EQ(c.receive().body, "good");
  }
  expect_metric("retries_total 2");
  expect_metric("requests_total{backend=\"" + second_.address().text() + "\"} 2");
  expect_metric("outstanding_tokens{backend=\"" + second_.address().text() + "\"} 0");
}

TEST_F(FrontTest, ARefusalOfAllIsTheLastOnes) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, kBody));
  first_.next().responder->respond({.status = 503, .body = "one", .headers = {}});
  second_.next().responder->respond({.status = 503, .body = "two", .headers = {}});
  EXPECT_EQ(c.receive().body, "two");
}

TEST_F(FrontTest, AStreamThatHasBegunEndsWithAnError) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, kBody));
  auto const asked = first_.next();
  asked.responder->begin_stream({.content_type = "text/event-stream", .body = {}, .headers = {}});
  asked.responder->send("data: 1\n\ndata: half an ev");
  c.receive_until("data: 1\n\n");
  first_.die();
  c.receive_until("data: {\"error\":{\"message\":\"the coordinator ended");
  c.receive_until("\n\n");
  c.receive_until("data: [DONE]\n\n");
  c.receive_until("0\r\n\r\n");
  EXPECT_FALSE(second_.was_asked());
  expect_metric("broken_answers_total 1");
}

TEST_F(FrontTest, AClientThatGoesAwayIsNoticedByTheBackend) {
  for (bool const begun : {false, true}) {
    auto c = client();
    c.send(HttpClient::post_text(kCompletions, kBody));
    auto const asked = (begun ? second_ : first_).next();
    std::promise<void> gone;
    asked.responder->on_disconnect([&] { gone.set_value(); });
    if (begun) {
      asked.responder->begin_stream({.content_type = "text/event-stream", .body = {}, .headers = {}});
      asked.responder->send("data: 1\n\n");
      c.receive_until("data: 1\n\n");
    }
    c.close();
    EXPECT_EQ(gone.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  }
}

TEST_F(FrontTest, AClientThatDoesNotReadHoldsTheBackendUp) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, kBody));
  auto const asked = first_.next();
  asked.responder->begin_stream({.content_type = "application/json", .body = {}, .headers = {}});
  std::string const part(std::size_t{1} << 20, 'x');
  std::atomic<int> taken = 0;
  // The sockets in between take some MiB, of 48.
  std::function<void()> const send_more = [&] {
    if (++taken > 48) return asked.responder->end_stream();
    asked.responder->send(part);
    asked.responder->when_sent(send_more);
  };
  send_more();
  // The rest of the front goes on, and by then what can be taken was.
  for (int i = 0; i < 200; ++i) EXPECT_EQ(client().get("/health").status, 200);
  EXPECT_LT(taken, 40);
  EXPECT_EQ(c.receive().body.size(), 48 * part.size());
}

TEST_F(FrontTest, SaysWhatIsWrong) {
  auto c = client();
  EXPECT_EQ(c.get("/v1/cluster?coordinator=2").status, 404);
  EXPECT_EQ(c.get("/v1/cluster?coordinator=x").status, 404);
  EXPECT_EQ(c.post("/ready", "").status, 405);
  EXPECT_EQ(c.post("/v1/completions", std::string(1001, ' ')).status, 413);
  auto d = client();
  d.send("GET /metrics?x=1&coordinator=1 HTTP/1.1\r\nHost: x\r\n\r\n");
  second_.next().responder->respond({.body = "of the second", .headers = {}});
  EXPECT_EQ(d.receive().body, "of the second");
  first_.die();
  second_.die();
  Answer const none = d.post(kCompletions, kBody);
  EXPECT_EQ(none.status, 503);
  EXPECT_EQ(none.json()["error"]["code"], "no_coordinator");
  EXPECT_EQ(none.header("Retry-After"), "5");
  while (d.get("/ready").status != 503) {
  }
}

// A coordinator's answers keep what it says of that itself.
TEST_F(FrontTest, ItsOwnAnswersMayBeReadByPages) {
  auto c = client();
  for (char const* target : {"/health", "/ready", "/metrics", "/v1/cluster?coordinator=2"})
    EXPECT_EQ(c.get(target).header("Access-Control-Allow-Origin"), "http://pages") << target;
  c.send("OPTIONS /health HTTP/1.1\r\nHost: x\r\nOrigin: http://pages\r\nAccess-Control-Request-Method: GET\r\n\r\n");
  Answer const asked_before = c.receive();
  EXPECT_EQ(asked_before.status, 204);
  EXPECT_EQ(asked_before.header("Access-Control-Allow-Methods"), "GET, HEAD, POST, OPTIONS");
  EXPECT_EQ(c.post(kCompletions, std::string(1001, ' ')).header("Access-Control-Allow-Origin"), "http://pages");
  for (char const* theirs : {"*", ""}) {
    auto d = client();
    d.send("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n");
    HttpResponse answer{.body = "theirs", .headers = {}};
    if (*theirs != '\0') answer.headers.emplace_back("Access-Control-Allow-Origin", theirs);
    first_.next().responder->respond(std::move(answer));
    EXPECT_EQ(d.receive().header("Access-Control-Allow-Origin"), theirs);
  }
  first_.die();
  second_.die();
  EXPECT_EQ(client().post(kCompletions, kBody).header("Access-Control-Allow-Origin"), "http://pages");
  // A page is to hear of the 503, so what its browser asks before must not fail.
  auto last = client();
  last.send("OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\nOrigin: http://pages\r\n\r\n");
  EXPECT_EQ(last.receive().status, 204);
}

// Each coordinator has numbers of its own for its workers.
TEST_F(FrontTest, WorkersOfOneCoordinatorAreChangedByItsNumber) {
  for (char const* target : {"/v1/cluster/drain", "/v1/cluster/workers"}) {
    auto c = client();
    Answer const refused = c.post(target, R"({"worker": 1})");
    EXPECT_EQ(refused.status, 400);
    EXPECT_EQ(refused.json()["error"]["param"], "coordinator");
    EXPECT_NE(refused.body.find("?coordinator=K, K from 0 to 1"), std::string::npos) << refused.body;
    c.send(HttpClient::post_text(std::string(target) + "?coordinator=1", "{}"));
    second_.next().responder->respond({.status = 202, .body = "done", .headers = {}});
    EXPECT_EQ(c.receive().status, 202);
  }
}

TEST_F(FrontTest, TheEndWaitsForAnswers) {
  auto c = client();
  c.send(HttpClient::post_text(kCompletions, kBody));
  auto const asked = first_.next();
  std::thread stopping([this] { front_->stop(std::chrono::steady_clock::now() + std::chrono::seconds(30)); });
  asked.responder->respond({.body = "the last", .headers = {}});
  EXPECT_EQ(c.receive().body, "the last");
  stopping.join();
}

}  // namespace
}  // namespace expertmesh
