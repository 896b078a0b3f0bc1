// A cluster in one JSON file: where the coordinator is, and which workers run on which host. What it says is what the
// options of `serve` and `worker` say; README.md has an example.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/base/topology.h"

namespace expertmesh {

struct ClusterFile {
  struct Coordinator {
    std::string host;     // as the workers' hosts are named
    std::string address;  // at which those of other hosts reach it
    std::string device = "cpu";
    double gpu_memory_utilization = 0;  // 0: not said
  };
  struct Worker {  // one process
    std::string host;
    std::string device = "cpu";
    std::size_t threads = 0;                   // 0: not said, like the next
    double capacity = 0;                       // gigabytes of weights a second
    std::optional<std::uint32_t> gather_us{};  // none: not said
  };
  Coordinator coordinator;
  std::size_t coordinators = 1;       // on its host, which share all workers; of several, those of that host join, too
  std::string interface;              // none: all workers are on the coordinator's host
  std::uint16_t control_port = 7070;  // of the first coordinator; the others have the next ones
  std::string secret_file;
  std::vector<Worker> workers;  // in the order of the file

  [[nodiscard]] std::vector<Worker> of_host(std::string const& host) const;
};

// Throws ModelError that names the file and the field: unknown, missing, of another type, or one that would have no
// effect.
ClusterFile read_cluster_file(std::filesystem::path const& file);

// Of a host, which its workers share out.
struct HostCores {
  Topology topology;
  std::size_t usable = 0;  // where the file says no threads
};

// For each worker of a host that joins by itself (not on the one coordinator's): the arguments of `expertmesh worker`.
// Throws ModelError: the file knows no such workers there.
std::vector<std::vector<std::string>> worker_arguments(ClusterFile const& cluster, std::string const& host,
                                                       HostCores const& cores);

}  // namespace expertmesh
