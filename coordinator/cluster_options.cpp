#include "coordinator/cluster_options.h"

#include <algorithm>

#include "common/base/error.h"
#include "common/protocol/cluster_file.h"

namespace expertmesh {

void apply_cluster_file(std::filesystem::path const& file, ModelRuntimeOptions& options) {
  ClusterFile const cluster = read_cluster_file(file);
  if (cluster.coordinators > 1)
    throw ModelError(file.string() + ".coordinators: this program is one of them; launch/expertmesh starts several");
  auto const on_cpu = [](ClusterFile::Worker const& worker) { return worker.device == "cpu"; };
  auto const count = std::ranges::count_if(cluster.workers, on_cpu);
  if (count != 0 && count != std::ssize(cluster.workers) && !options.mixed_numerics)
    throw ModelError(file.string() +
                     ": workers on processors and on GPUs: bits depend on who runs what (--allow-mixed-numerics "
                     "permits it)");
  options.device = cluster.coordinator.device;
  if (cluster.coordinator.gpu_memory_utilization > 0)
    options.device_memory_share = cluster.coordinator.gpu_memory_utilization;
  options.interface = cluster.interface;
  options.control_port = cluster.control_port;
  options.secret_file = cluster.secret_file;
  options.worker_device = cluster.workers.front().device;
  for (auto const& worker : cluster.of_host(cluster.coordinator.host))
    options.local_workers.push_back({.device = worker.device, .threads = worker.threads, .capacity = worker.capacity});
  options.workers = options.local_workers.size();
  options.remote_workers = cluster.workers.size() - options.workers;
}

}  // namespace expertmesh
