// An HTTP front of several coordinators: one address for clients, who get the answers of a coordinator as it gives
// them.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/front/backends.h"
#include "coordinator/http/http_server.h"

namespace expertmesh {

struct FrontOptions {
  HttpServerOptions http;
  BackendsOptions backends;
  std::vector<std::string> api_keys{};  // one of them must come with /metrics; the rest is the coordinators' business
  std::optional<std::string> allowed_origin{};  // of browser pages that may read the front's own answers: "*" or one
  std::function<void()>
      on_ready{};  // a coordinator is ready, for the first time; called once, on a thread of the front
};

class Front {
 public:
  // Listens at once; throws NetworkError.
  explicit Front(FrontOptions options);
  ~Front();
  [[nodiscard]] std::uint16_t port() const;
  // Accepts no connection any more, lets answers under way end until the deadline, then closes every connection.
  void stop(std::chrono::steady_clock::time_point deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
