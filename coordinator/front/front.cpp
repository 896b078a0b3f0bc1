#include "coordinator/front/front.h"

#include <spdlog/fmt/fmt.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <charconv>
#include <set>
#include <thread>

#include "coordinator/front/exchange.h"
#include "coordinator/front/prompt_summary.h"
#include "coordinator/http/api_json.h"
#include "coordinator/http/api_keys.h"
#include "coordinator/http/cors.h"
#include "coordinator/http/request_target.h"

namespace expertmesh {
namespace {

ApiError client_error(int status, std::string message, std::optional<std::string> code) {
  return {.status = status, .message = std::move(message), .param = {}, .code = std::move(code), .retry_after_s = {}};
}

bool is_generation(HttpRequest const& request, std::string const& path) {
  return request.method == "POST" && (path == "/v1/completions" || path == "/v1/chat/completions");
}

bool changes_cluster(HttpRequest const& request, std::string const& path) {
  return request.method == "POST" && path.starts_with("/v1/cluster/");
}

// Each coordinator has numbers of its own for its workers, and those that it starts itself are no other's: asked of all
// at once, they would let different ones go.
ApiError which_coordinator(std::string const& path, std::size_t num_backends) {
  ApiError error = client_error(
      400,
      fmt::format(
          "{} is for one coordinator, whose workers have its numbers: say which by ?coordinator=K, K from 0 to {}",
          path, num_backends - 1),
      "coordinator_required");
  error.param = "coordinator";
  return error;
}

// The coordinator that a target names; an error if there is no such one.
Result<std::optional<std::size_t>> coordinator_of(std::string_view target, std::size_t num_backends) {
  auto const text = query_value(target, "coordinator");
  if (!text) return std::optional<std::size_t>();
  std::size_t coordinator = 0;
  auto const [end, error] = std::from_chars(text->data(), text->data() + text->size(), coordinator);
  if (error != std::errc{} || end != text->data() + text->size() || coordinator >= num_backends)
    return client_error(404, fmt::format("'coordinator': there are those from 0 to {}", num_backends - 1), "not_found");
  return std::optional(coordinator);
}

}  // namespace

struct Front::Impl {
  explicit Impl(FrontOptions& options)
      : keys(std::move(options.api_keys)),
        own_headers(cors_headers(options.allowed_origin)),
        on_ready(std::move(options.on_ready)),
        backends(io, with_callbacks(options)) {}

  boost::asio::io_context io{1};
  ApiKeys keys;
  std::vector<std::pair<std::string, std::string>> const own_headers;  // a coordinator's answers bring theirs
  // Of the io thread, like all that follows.
  std::function<void()> on_ready;
  Backends backends;
  ExchangeCounts counts;
  std::set<std::shared_ptr<Exchange>> exchanges;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{io.get_executor()};
  std::thread thread;
  std::unique_ptr<HttpServer> server;  // last: its handlers use the others

  using Responder = std::shared_ptr<HttpResponder>;

  BackendsOptions with_callbacks(FrontOptions& options) {
    BackendsOptions out = std::move(options.backends);
    out.on_up = [this](std::size_t) {
      if (auto const tell = std::exchange(on_ready, nullptr)) tell();
    };
    out.on_unreachable = [this](std::size_t backend) {
      auto const all = exchanges;  // some may end
      for (auto const& exchange : all) exchange->on_unresponsive(backend);
    };
    return out;
  }

  [[nodiscard]] HttpResponse own(HttpResponse response) const {
    response.headers.insert(response.headers.end(), own_headers.begin(), own_headers.end());
    return response;
  }
  void answer(Responder const& responder, HttpResponse response) const { responder->respond(own(std::move(response))); }

  template <class Action>
  void on_io(Action action) {
    boost::asio::post(io, std::move(action));
  }

  // On a thread of the server.
  void handle(HttpRequest request, Responder responder) {
    std::string const path = path_of(request.target);
    auto const coordinator = coordinator_of(request.target, backends.size());
    if (!coordinator) return answer(responder, error_response(coordinator.error()));
    // What a page of another origin asks first: it is to hear of what comes then, also where no coordinator is ready.
    if (request.method == "OPTIONS" && !own_headers.empty())
      return answer(responder, {.status = 204, .body = {}, .headers = {}});
    if (!coordinator.value() && (path == "/health" || path == "/ready" || path == "/metrics"))
      return answer_itself(path, request, responder);
    if (!coordinator.value() && changes_cluster(request, path) && backends.size() > 1)
      return answer(responder, error_response(which_coordinator(path, backends.size())));
    ExchangeRoute route{.coordinator = coordinator.value(), .repeatable = !path.starts_with("/v1/cluster/")};
    if (is_generation(request, path)) route.prompt = summarise(request.body);
    on_io([this, r = std::move(request), to = std::move(responder), by = std::move(route)]() mutable {
      auto const exchange = std::make_shared<Exchange>(
          Exchange::Context{.io = io,
                            .backends = backends,
                            .counts = counts,
                            .own_headers = own_headers,
                            .on_done = [this](Exchange& done) { exchanges.erase(done.shared_from_this()); }},
          std::move(r), std::move(to), std::move(by));
      exchanges.insert(exchange);
      exchange->start();
    });
  }

  void answer_itself(std::string const& path, HttpRequest const& request, Responder const& responder) {
    if (request.method != "GET" && request.method != "HEAD") {
      HttpResponse response =
          error_response(client_error(405, path + " does not take " + request.method, "method_not_allowed"));
      response.headers.emplace_back("Allow", "GET, HEAD");
      return answer(responder, std::move(response));
    }
    if (path == "/health") return answer(responder, {.body = R"({"status":"ok"})", .headers = {}});
    if (path == "/metrics" && !keys.allow(request.authorization)) {
      HttpResponse response =
          error_response(client_error(401, "no valid API key: send 'Authorization: Bearer KEY'", "invalid_api_key"));
      response.headers.emplace_back("WWW-Authenticate", "Bearer");
      return answer(responder, std::move(response));
    }
    on_io([this, responder, is_metrics = path == "/metrics"] {
      if (is_metrics)
        return answer(responder,
                      {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics(), .headers = {}});
      if (backends.any_up()) return answer(responder, {.body = R"({"status":"ready"})", .headers = {}});
      answer(responder, error_response({.status = 503,
                                        .message = "no coordinator is ready",
                                        .type = "service_unavailable",
                                        .param = {},
                                        .code = {},
                                        .retry_after_s = 5}));
    });
  }

  // Prometheus' text form.
  [[nodiscard]] std::string metrics() const {
    std::string text;
    auto const family = [&](char const* name, char const* type, char const* help) {
      text += fmt::format("# HELP expertmesh:front_{0} {2}\n# TYPE expertmesh:front_{0} {1}\n", name, type, help);
    };
    auto const of_each = [&](char const* name, char const* type, char const* help, auto value) {
      family(name, type, help);
      for (std::size_t b = 0; b < backends.size(); ++b)
        text += fmt::format("expertmesh:front_{}{{backend=\"{}\"}} {}\n", name, backends.address(b).text(), value(b));
    };
    auto const single = [&](char const* name, char const* type, char const* help, std::uint64_t value) {
      family(name, type, help);
      text += fmt::format("expertmesh:front_{} {}\n", name, value);
    };
    of_each("backend_up", "gauge", "1: it is ready.", [&](std::size_t b) { return backends.is_up(b) ? 1 : 0; });
    of_each("requests_total", "counter", "Generations sent to it.",
            [&](std::size_t b) { return backends.counts(b).requests; });
    of_each("known_prefixes_total", "counter", "Those of them that began like one it had before.",
            [&](std::size_t b) { return backends.counts(b).known; });
    of_each("outstanding_tokens", "gauge", "Estimated tokens of the requests that it has.",
            [&](std::size_t b) { return backends.counts(b).outstanding_tokens; });
    single("requests_open", "gauge", "Requests of all kinds under way.", exchanges.size());
    single("retries_total", "counter", "Requests sent again, to another coordinator.", counts.retries);
    single("broken_answers_total", "counter", "Answers that ended with an error after they had begun.", counts.broken);
    return text;
  }
};

Front::Front(FrontOptions options) : impl_(std::make_unique<Impl>(options)) {
  Impl& s = *impl_;
  s.server = std::make_unique<HttpServer>(
      std::move(options.http),
      [&s](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
        s.handle(std::move(request), std::move(responder));
      },
      [&s](int status, std::string const& message) {
        ApiError error = client_error(status, message, {});
        if (status >= 500) error.type = "internal_error";
        return s.own(error_response(error));
      });
  s.on_io([&s] { s.backends.start(); });
  s.thread = std::thread([&s] { s.io.run(); });
}

Front::~Front() {
  stop(std::chrono::steady_clock::now());
}

std::uint16_t Front::port() const {
  return impl_->server->port();
}

void Front::stop(std::chrono::steady_clock::time_point deadline) {
  Impl& s = *impl_;
  if (!s.thread.joinable()) return;
  s.server->stop(deadline);
  s.on_io([&s] { s.backends.stop(); });
  s.work.reset();
  s.thread.join();  // clients that were cut off have cancelled their requests by now
}

}  // namespace expertmesh
