#include "common/protocol/cluster_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/checkpoint/strict_json.h"
#include "common/kernels/device.h"
#include "common/protocol/json_reader.h"

namespace expertmesh {
namespace {

using control::JsonReader;

constexpr std::uint64_t kMostThreads = 4096;
constexpr std::uint64_t kMostWorkers = 256;  // of an entry
constexpr std::uint64_t kMostCoordinators = 64;
constexpr std::uint64_t kMostGatherUs = 1'000'000;

void check_device(JsonReader const& in, std::string const& field, std::string const& device) {
  if (std::string const wrong = valid_device_name(device); !wrong.empty()) in.fail(field, wrong);
}

double positive(JsonReader& in, std::string const& field) {
  double const value = in.real(field);
  if (!(value > 0 && value < 1e6)) in.fail(field, "not above 0 and below a million");
  return value;
}

ClusterFile::Coordinator read_coordinator(JsonReader in) {
  ClusterFile::Coordinator out;
  out.host = in.text("host");
  if (in.has("address")) out.address = in.text("address");
  if (in.has("device")) check_device(in, "device", out.device = in.text("device"));
  if (in.has("gpu_memory_utilization")) {
    out.gpu_memory_utilization = positive(in, "gpu_memory_utilization");
    if (out.gpu_memory_utilization > 1) in.fail("gpu_memory_utilization", "more than 1");
    if (out.device == "cpu") in.fail("gpu_memory_utilization", "the coordinator's device is no GPU");
  }
  in.finish();
  return out;
}

// An entry's workers: `count` on each of its devices.
std::vector<ClusterFile::Worker> read_workers(JsonReader in) {
  ClusterFile::Worker worker;
  worker.host = in.text("host");
  if (in.has("threads")) {
    worker.threads = in.number<std::size_t>("threads", kMostThreads);
    if (worker.threads == 0) in.fail("threads", "is 0");
  }
  if (in.has("capacity")) worker.capacity = positive(in, "capacity");
  if (in.has("gather_us")) worker.gather_us = in.number<std::uint32_t>("gather_us", kMostGatherUs);
  std::size_t count = 1;
  if (in.has("count")) count = in.number<std::size_t>("count", kMostWorkers);
  if (count == 0) in.fail("count", "is 0");
  std::vector<std::string> devices = {"cpu"};
  if (in.has("devices")) devices = in.texts("devices");
  if (devices.empty()) in.fail("devices", "is empty");
  std::vector<ClusterFile::Worker> out;
  for (std::string const& device : devices) {
    check_device(in, "devices", device);
    worker.device = device;
    out.insert(out.end(), count, worker);
  }
  in.finish();
  return out;
}

ClusterFile read(nlohmann::json const& object, std::string const& where) {
  JsonReader in(object, where);
  ClusterFile out;
  out.coordinator = read_coordinator(JsonReader(in.at("coordinator"), where + ".coordinator"));
  std::size_t index = 0;
  for (auto const& entry : in.array("workers")) {
    auto workers = read_workers(JsonReader(entry, where + ".workers[" + std::to_string(index++) + "]"));
    out.workers.insert(out.workers.end(), workers.begin(), workers.end());
  }
  if (out.workers.empty()) in.fail("workers", "is empty");
  if (in.has("coordinators")) out.coordinators = in.number<std::size_t>("coordinators", kMostCoordinators);
  if (out.coordinators == 0) in.fail("coordinators", "is 0");
  if (out.coordinators == 1 && std::ranges::any_of(out.workers, [](auto const& w) { return w.gather_us.has_value(); }))
    in.fail("workers.gather_us", "has no effect: there is one coordinator");
  if (out.coordinators == 1 &&
      std::ranges::all_of(out.workers, [&](auto const& w) { return w.host == out.coordinator.host; })) {
    for (char const* field : {"interface", "control_port", "secret_file"})
      if (in.has(field)) in.fail(field, "has no effect: all workers are on the coordinator's host");
  } else {
    out.interface = in.text("interface");
    out.secret_file = in.text("secret_file");
    if (in.has("control_port")) out.control_port = in.number<std::uint16_t>("control_port");
    if (out.control_port == 0) in.fail("control_port", "is 0: workers of other hosts have to know it");
    if (out.control_port + out.coordinators > 65536) in.fail("control_port", "leaves no ports for the coordinators");
    if (out.coordinator.address.empty()) in.fail("coordinator.address", "missing: workers of other hosts join there");
  }
  in.finish();
  return out;
}

}  // namespace

std::vector<ClusterFile::Worker> ClusterFile::of_host(std::string const& host) const {
  std::vector<Worker> out;
  std::ranges::copy_if(workers, std::back_inserter(out), [&](Worker const& w) { return w.host == host; });
  return out;
}

ClusterFile read_cluster_file(std::filesystem::path const& file) {
  try {
    return read(read_strict_json(file), file.string());
  } catch (control::MessageError const& error) {
    throw ModelError(error.what());
  }
}

std::vector<std::vector<std::string>> worker_arguments(ClusterFile const& cluster, std::string const& host,
                                                       HostCores const& cores) {
  if (host == cluster.coordinator.host && cluster.coordinators == 1)
    throw ModelError("host '" + host + "' is the coordinator's: it starts its workers itself");
  auto const workers = cluster.of_host(host);
  if (workers.empty()) throw ModelError("the cluster file has no workers for host '" + host + "'");
  std::string join;
  for (std::size_t c = 0; c < cluster.coordinators; ++c)
    join += (c == 0 ? "" : ",") + cluster.coordinator.address + ":" + std::to_string(cluster.control_port + c);
  std::vector<std::size_t> all_threads;
  for (auto const& worker : workers)
    all_threads.push_back(worker.threads != 0 ? worker.threads
                                              : std::max<std::size_t>(1, cores.usable / workers.size()));
  // On one NUMA node the system places them well enough.
  auto const shares =
      cores.topology.nodes.size() > 1 ? share_cores(cores.topology, all_threads) : std::vector<std::vector<int>>();
  std::vector<std::vector<std::string>> out;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    auto const& worker = workers[w];
    auto& arguments =
        out.emplace_back(std::vector<std::string>{"--join", join, "--secret-file", cluster.secret_file, "--device",
                                                  worker.device, "--threads", std::to_string(all_threads[w])});
    if (!shares.empty()) arguments.insert(arguments.end(), {"--cores", list_of(shares[w])});
    if (worker.capacity > 0) arguments.insert(arguments.end(), {"--capacity", std::to_string(worker.capacity)});
    if (worker.gather_us) arguments.insert(arguments.end(), {"--gather-us", std::to_string(*worker.gather_us)});
  }
  return out;
}

}  // namespace expertmesh
