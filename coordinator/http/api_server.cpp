#include "coordinator/http/api_server.h"

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <map>
#include <string_view>

#include "common/base/log.h"
#include "coordinator/http/api_json.h"
#include "coordinator/http/api_keys.h"
#include "coordinator/http/cors.h"
#include "coordinator/http/generation_run.h"
#include "coordinator/http/request_target.h"
#include "coordinator/http/text_endpoints.h"
#include "coordinator/ui/page_files.h"

namespace expertmesh {
namespace {

ApiError unavailable(std::string const& reason) {
  return {.status = 503, .message = reason, .type = "service_unavailable", .param = {}, .code = {}, .retry_after_s = 5};
}

// The page may load what comes from here and nothing else, write text and no markup, and be part of no other page.
HttpResponse page_response(PageFile const& file) {
  return {.content_type = file.content_type,
          .body = std::string(file.text),
          .headers = {{"Content-Security-Policy",
                       "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                       "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                       "require-trusted-types-for 'script'; trusted-types 'none'"},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Cache-Control", "no-cache"}}};
}

}  // namespace

struct ApiServer::Impl {
  RunContext context;
  ApiCallbacks callbacks;
  ApiKeys keys;
  std::string version;
  bool live_page;
  RunThreads threads;
  std::unique_ptr<HttpServer> server;  // last: its handlers use the others

  using Responder = std::shared_ptr<HttpResponder>;
  // What one path does with one method; called on a server thread, so it must not wait.
  struct Route {
    std::string methods;  // as the Allow header lists them
    bool open = false;    // whoever asks, without a key
    std::function<void(HttpRequest, Responder)> action;
  };
  std::map<std::string, Route> routes = make_routes();

  void answer(Responder const& responder, HttpResponse response) const {
    context.metrics.count_http(response.status);
    responder->respond(std::move(response));
  }
  void refuse(Responder const& responder, ApiError const& error) const { answer(responder, error_response(error)); }

  std::map<std::string, Route> make_routes() {
    std::map<std::string, Route> table;
    auto const get = [&](char const* path, bool open, std::function<HttpResponse()> const& reply) {
      table[path] = {.methods = "GET, HEAD",
                     .open = open,
                     .action = [this, reply](HttpRequest const&, Responder const& r) { answer(r, reply()); }};
    };
    auto const json = [](std::string body) { return HttpResponse{.body = std::move(body), .headers = {}}; };
    get("/health", true, [json] { return json(R"({"status":"ok"})"); });
    get("/ready", true, [this, json] {
      std::string const reason = callbacks.not_ready();
      return reason.empty() ? json(R"({"status":"ready"})") : error_response(unavailable(reason));
    });
    get("/version", false, [this, json] { return json(version_body(version)); });
    get("/v1/models", false, [this, json] { return json(models_body(context.model)); });
    get("/v1/cluster", false, [this, json] { return json(callbacks.cluster_json()); });
    get("/v1/experts", false, [this, json] { return json(callbacks.experts_json()); });
    get("/v1/activity", false, [this, json] { return json(activity_body(context.metrics.activity())); });
    if (live_page)
      for (PageFile const& file : page_files()) get(file.path, true, [&file] { return page_response(file); });
    get("/metrics", false, [this] {
      return HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                          .body = context.metrics.serialise(),
                          .headers = {}};
    });
    auto const post = [&](char const* path, std::function<void(HttpRequest, Responder)> action) {
      table[path] = {.methods = "POST", .action = std::move(action)};
    };
    for (bool const chat : {false, true})
      post(chat ? "/v1/chat/completions" : "/v1/completions", [this, chat](HttpRequest request, Responder responder) {
        start_generation(context, threads, chat, std::move(request), std::move(responder));
      });
    for (bool const drain : {true, false})
      post(drain ? "/v1/cluster/drain" : "/v1/cluster/workers",
           [this, drain](HttpRequest const& request, Responder const& r) {
             if (!callbacks.cluster_changes.drain)
               return refuse(r, {.status = 409,
                                 .message = "there are no workers: the experts are in the coordinator",
                                 .param = {},
                                 .code = "cluster_conflict",
                                 .retry_after_s = {}});
             answer(r, (drain ? drain_worker : add_workers)(callbacks.cluster_changes, request.body));
           });
    post("/tokenize", [this](HttpRequest request, Responder responder) {
      on_template_thread(tokenize, std::move(request), std::move(responder));
    });
    post("/detokenize", [this](HttpRequest request, Responder responder) {
      on_template_thread(detokenize, std::move(request), std::move(responder));
    });
    return table;
  }

  template <class Work>
  void on_template_thread(Work work, HttpRequest request, Responder responder) {
    boost::asio::post(threads.templates, [this, work, http = std::move(request), r = std::move(responder)] {
      try {
        answer(r, work(context, http.body));
      } catch (std::exception const& failure) {
        spdlog::error("request {}: {}", http.request_id, failure.what());
        refuse(r, {.status = 500,
                   .message = "internal error",
                   .type = "internal_error",
                   .param = {},
                   .code = {},
                   .retry_after_s = {}});
      }
    });
  }

  void handle(HttpRequest request, Responder responder) {
    std::string const path = path_of(request.target);
    if (request.method == "OPTIONS") return answer(responder, {.status = 204, .body = {}, .headers = {}});
    auto const route = routes.find(path);
    std::string const one_model = "/v1/models/";
    bool const is_model = path.starts_with(one_model);
    bool const open = route != routes.end() && route->second.open;
    if (!open && !keys.allow(request.authorization)) {
      HttpResponse response = error_response({.status = 401,
                                              .message = "no valid API key: send 'Authorization: Bearer KEY'",
                                              .param = {},
                                              .code = "invalid_api_key",
                                              .retry_after_s = {}});
      response.headers.emplace_back("WWW-Authenticate", "Bearer");
      return answer(responder, std::move(response));
    }
    if (route == routes.end() && !is_model)
      return refuse(responder, {.status = 404,
                                .message = "no such path: " + path.substr(0, 200),
                                .param = {},
                                .code = "not_found",
                                .retry_after_s = {}});
    std::string const methods = is_model ? "GET, HEAD" : route->second.methods;
    if ((", " + methods + ",").find(" " + request.method + ",") == std::string::npos) {
      HttpResponse response = error_response({.status = 405,
                                              .message = path.substr(0, 200) + " does not take " + request.method,
                                              .param = {},
                                              .code = "method_not_allowed",
                                              .retry_after_s = {}});
      response.headers.emplace_back("Allow", methods);
      return answer(responder, std::move(response));
    }
    if (!is_model) return route->second.action(std::move(request), std::move(responder));
    std::string const name = path.substr(one_model.size());
    if (name == context.model.name) return answer(responder, {.body = model_body(context.model), .headers = {}});
    refuse(responder, {.status = 404,
                       .message = "the model '" + name.substr(0, 200) + "' does not exist",
                       .param = "model",
                       .code = "model_not_found",
                       .retry_after_s = {}});
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
                     .keys = ApiKeys(options.api_keys),
                     .version = options.version,
                     .live_page = options.live_page,
                     .threads = {.templates = boost::asio::thread_pool(options.text_threads),
                                 .text = boost::asio::thread_pool(options.text_threads)},
                     .server = nullptr}) {
  for (auto& header : cors_headers(options.allowed_origin)) options.http.headers.push_back(std::move(header));
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
  impl_->threads.templates.join();
  impl_->threads.text.join();
}

}  // namespace expertmesh
