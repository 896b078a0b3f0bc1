#include "coordinator/http/api_server.h"

#include <algorithm>
#include <boost/asio/thread_pool.hpp>
#include <charconv>
#include <string_view>

#include "coordinator/http/api_json.h"
#include "coordinator/http/generation_run.h"

namespace expertmesh {
namespace {

// "%2F" -> "/". A malformed escape stays as it is.
std::string percent_decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    char const* const end = text.data() + std::min(i + 3, text.size());
    if (text[i] == '%' && end - text.data() == static_cast<std::ptrdiff_t>(i + 3) &&
        std::from_chars(text.data() + i + 1, end, byte, 16).ptr == end) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

// Path of a target: no scheme and host, no query, no doubled or trailing slash; decoded.
std::string path_of(std::string_view target) {
  if (target.starts_with("http://") || target.starts_with("https://")) {  // as proxies send it
    target.remove_prefix(target.find("//") + 2);
    target.remove_prefix(std::min(target.find('/'), target.size()));
  }
  std::string path;
  for (char c : target.substr(0, target.find_first_of("?#")))
    if (c != '/' || path.empty() || path.back() != '/') path += c;
  if (path.size() > 1 && path.back() == '/') path.pop_back();
  return percent_decoded(path);
}

}  // namespace

struct ApiServer::Impl {
  RunContext context;
  ApiCallbacks callbacks;
  boost::asio::thread_pool text_threads;
  std::unique_ptr<HttpServer> server;  // last: its handlers use the others

  void answer(std::shared_ptr<HttpResponder> const& responder, HttpResponse response) const {
    context.metrics.count_http(response.status);
    responder->respond(std::move(response));
  }

  // A path that answers at once.
  using Reply = std::function<HttpResponse()>;
  [[nodiscard]] Reply find_get(std::string const& path) const {
    std::string const models = "/v1/models";
    if (path == models) return [this] { return HttpResponse{.body = models_body(context.model), .headers = {}}; };
    if (path.starts_with(models + "/")) {
      std::string const name = path.substr(models.size() + 1);
      return [this, name] {
        if (name == context.model.name) return HttpResponse{.body = model_body(context.model), .headers = {}};
        return error_response({.status = 404,
                               .message = "the model '" + name + "' does not exist",
                               .param = "model",
                               .code = "model_not_found",
                               .retry_after_s = {}});
      };
    }
    if (path == "/health") return [] { return HttpResponse{.body = R"({"status":"ok"})", .headers = {}}; };
    if (path == "/ready")
      return [this] {
        std::string const reason = callbacks.not_ready();
        if (reason.empty()) return HttpResponse{.body = R"({"status":"ready"})", .headers = {}};
        return error_response({.status = 503,
                               .message = reason,
                               .type = "service_unavailable",
                               .param = {},
                               .code = {},
                               .retry_after_s = 5});
      };
    if (path == "/v1/cluster") return [this] { return HttpResponse{.body = callbacks.cluster_json(), .headers = {}}; };
    if (path == "/metrics")
      return [this] {
        return HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                            .body = context.metrics.serialise(),
                            .headers = {}};
      };
    return nullptr;
  }

  void handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    std::string const path = path_of(request.target);
    bool const chat = path == "/v1/chat/completions";
    bool const generation = chat || path == "/v1/completions";
    Reply const reply = find_get(path);
    if (!generation && !reply)
      return answer(responder, error_response({.status = 404,
                                               .message = "no such path: " + path.substr(0, 200),
                                               .param = {},
                                               .code = "not_found",
                                               .retry_after_s = {}}));
    bool const right = generation ? request.method == "POST" : request.method == "GET" || request.method == "HEAD";
    if (!right) {
      HttpResponse response = error_response({.status = 405,
                                              .message = path.substr(0, 200) + " does not take " + request.method,
                                              .param = {},
                                              .code = "method_not_allowed",
                                              .retry_after_s = {}});
      response.headers.emplace_back("Allow", generation ? "POST" : "GET, HEAD");
      return answer(responder, std::move(response));
    }
    if (reply) return answer(responder, reply());
    start_generation(context, text_threads, chat, std::move(request), std::move(responder));
  }
};

ApiServer::ApiServer(ApiServerOptions options, Generator& generator, Tokenizer const* tokenizer,
                     ChatTemplates* templates, Metrics& metrics, ApiCallbacks callbacks)
    : impl_(new Impl{.context = {.model = options.model,
                                 .generator = generator,
                                 .tokenizer = tokenizer,
                                 .templates = templates,
                                 .metrics = metrics},
                     .callbacks = std::move(callbacks),
                     .text_threads = boost::asio::thread_pool(options.text_threads),
                     .server = nullptr}) {
  impl_->server = std::make_unique<HttpServer>(
      options.http,
      [impl = impl_.get()](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
        impl->handle(std::move(request), std::move(responder));
      },
      [impl = impl_.get()](int status, std::string const& message) {
        impl->context.metrics.count_http(status);
        return error_response({.status = status,
                               .message = message,
                               .type = status < 500 ? "invalid_request_error" : "internal_error",
                               .param = {},
                               .code = {},
                               .retry_after_s = {}});
      });
}

ApiServer::~ApiServer() {
  stop(std::chrono::steady_clock::now());
}

std::uint16_t ApiServer::port() const {
  return impl_->server->port();
}

void ApiServer::stop(std::chrono::steady_clock::time_point deadline) {
  impl_->server->stop(deadline);
  impl_->text_threads.join();
}

}  // namespace expertmesh
