// Requests that change the group of workers: POST /v1/cluster/drain and /v1/cluster/workers.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "coordinator/http/http_server.h"

namespace expertmesh {

// Each says why not, or nothing; what was asked for goes on after the return. Any thread.
struct ClusterChanges {
  std::function<std::optional<std::string>(std::uint32_t worker)> drain;
  std::function<std::optional<std::string>()> add_worker;
};

// {"worker": ID} -> 202, or 409 with the reason.
HttpResponse drain_worker(ClusterChanges const& changes, std::string const& body);
// {"count": N}, 1 if absent -> 202, or 409 with the reason.
HttpResponse add_workers(ClusterChanges const& changes, std::string const& body);

}  // namespace expertmesh
