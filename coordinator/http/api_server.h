// The OpenAI-compatible API over one engine.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine/generate_request.h"
#include "coordinator/http/api_types.h"
#include "coordinator/http/cluster_endpoints.h"
#include "coordinator/http/http_server.h"
#include "coordinator/observe/metrics.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace expertmesh {

struct ApiServerOptions {
  HttpServerOptions http;
  ApiModel model;
  std::string version{};                // of the program, at /version
  bool live_page = false;               // the page at "/" and its files, for whoever asks
  std::vector<std::string> api_keys{};  // one of them must come as "Authorization: Bearer …"; empty: none asked
  std::optional<std::string> allowed_origin{};  // of browser pages that may use the API (CORS): "*" or one origin
  std::size_t text_threads = 2;                 // that encode prompts and decode answers; as many render templates
};

// What others know; called from any thread.
struct ApiCallbacks {
  std::function<std::string()> not_ready;     // why requests cannot be served; empty if they can
  std::function<std::string()> cluster_json;  // body of /v1/cluster
  std::function<std::string()> experts_json;  // body of /v1/experts
  ClusterChanges cluster_changes{};           // set if there are workers
};

class ApiServer {
 public:
  // Listens at once. tokenizer and templates may be null; all others must outlive the server. Throws NetworkError.
  ApiServer(ApiServerOptions options, Generator& generator, Tokenizer const* tokenizer, ChatTemplates* templates,
            Metrics& metrics, ApiCallbacks callbacks);
  ~ApiServer();
  [[nodiscard]] std::uint16_t port() const;
  // Accepts no connection any more, lets answers under way end until the deadline, cancels the rest, and returns when
  // the generator has let go of every request.
  void stop(std::chrono::steady_clock::time_point deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
