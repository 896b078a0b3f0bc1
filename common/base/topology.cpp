#include "common/base/topology.h"

#include <hwloc.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "common/base/check.h"
#include "common/base/cores.h"
#include "common/base/error.h"

namespace expertmesh {
namespace {

struct Destroy {
  void operator()(hwloc_topology* topology) const { hwloc_topology_destroy(topology); }
};
using Loaded = std::unique_ptr<hwloc_topology, Destroy>;

Loaded make_topology() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return nullptr;
  Loaded topology(raw);
  hwloc_topology_set_cache_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_NONE);
  return topology;
}

// Neither other memory nor a cache of memory.
hwloc_obj_t place_of(hwloc_obj_t node) {
  hwloc_obj_t place = node->parent;
  while (hwloc_obj_type_is_memory(place->type) != 0) place = place->parent;
  return place;
}

// Where no node says how much it has, all have some.
std::vector<hwloc_obj_t> nodes_with_memory(hwloc_topology_t topology) {
  std::vector<hwloc_obj_t> all;
  for (hwloc_obj_t node = nullptr; (node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)) != nullptr;)
    all.push_back(node);
  auto some = all;
  std::erase_if(some, [](hwloc_obj_t node) { return node->attr->numanode.local_memory == 0; });
  return some.empty() ? all : some;
}

// How much of the machine lies around both: the less, the nearer.
int distance(hwloc_topology_t topology, hwloc_obj_t core, hwloc_obj_t node) {
  return hwloc_bitmap_weight(hwloc_get_common_ancestor_obj(topology, core, place_of(node))->cpuset);
}

Topology one_node(std::vector<int> const& cores) {
  return {.nodes = {{.index = 0, .cores = cores}}};
}

Topology topology_of(hwloc_topology_t topology, std::vector<int> const& allowed) {
  auto const nodes = nodes_with_memory(topology);
  if (nodes.empty()) return one_node(allowed);
  std::vector<Topology::Node> found;
  for (hwloc_obj_t node : nodes) found.push_back({.index = node->os_index, .cores = {}});
  for (hwloc_obj_t core = nullptr; (core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, core)) != nullptr;) {
    auto const number = static_cast<int>(core->os_index);
    if (std::ranges::find(allowed, number) == allowed.end()) continue;
    auto const nearest =
        std::ranges::min_element(nodes, {}, [&](hwloc_obj_t node) { return distance(topology, core, node); });
    found[static_cast<std::size_t>(nearest - nodes.begin())].cores.push_back(number);
  }
  std::erase_if(found, [](Topology::Node const& node) { return node.cores.empty(); });
  Topology out{.nodes = std::move(found)};
  return out.num_cores() == allowed.size() ? out : one_node(allowed);
}

}  // namespace

std::size_t Topology::num_cores() const {
  std::size_t count = 0;
  for (Node const& node : nodes) count += node.cores.size();
  return count;
}

Topology Topology::only(std::vector<int> const& cores) const {
  Topology out = *this;
  for (Node& node : out.nodes)
    std::erase_if(node.cores, [&](int core) { return std::ranges::find(cores, core) == cores.end(); });
  std::erase_if(out.nodes, [](Node const& node) { return node.cores.empty(); });
  return out;
}

Topology read_topology() {
  std::vector<int> const allowed = allowed_cores();
  Loaded const topology = make_topology();
  if (!topology || hwloc_topology_load(topology.get()) != 0) return one_node(allowed);
  return topology_of(topology.get(), allowed);
}

Topology read_topology(TopologyFormat format, std::string const& text, std::vector<int> const& allowed_cores) {
  Loaded const topology = make_topology();
  bool const read = topology &&
                    (format == TopologyFormat::synthetic ? hwloc_topology_set_synthetic(topology.get(), text.c_str())
                                                         : hwloc_topology_set_xml(topology.get(), text.c_str())) == 0 &&
                    hwloc_topology_load(topology.get()) == 0;
  if (!read) throw ModelError("hwloc cannot read the topology '" + text + "'");
  return topology_of(topology.get(), allowed_cores);
}

std::vector<std::vector<int>> share_cores(Topology const& topology, std::vector<std::size_t> const& threads) {
  std::vector<int> line;
  for (Topology::Node const& node : topology.nodes) line.insert(line.end(), node.cores.begin(), node.cores.end());
  std::size_t all = 0;
  for (std::size_t const count : threads) all += count;
  if (all == 0 || all > line.size()) return {};
  std::vector<std::vector<int>> shares;
  std::size_t before = 0;
  auto const at = [&](std::size_t thread) {
    return line.begin() + static_cast<std::ptrdiff_t>(line.size() * thread / all);
  };
  for (std::size_t const count : threads) {
    shares.emplace_back(at(before), at(before + count));
    before += count;
  }
  return shares;
}

ThreadPlan plan_threads(Topology const& host, std::size_t num_threads, ThreadPlan::Pinning pinning,
                        std::vector<int> const& own_cores) {
  Topology const topology = own_cores.empty() ? host : host.only(own_cores);
  std::size_t const cores = topology.num_cores();
  if (pinning == ThreadPlan::Pinning::none) return ThreadPlan::anywhere(num_threads, "not pinned, by --bind none");
  if (num_threads > cores)
    return ThreadPlan::anywhere(num_threads, "not pinned, " + std::to_string(num_threads) + " threads have " +
                                                 std::to_string(cores) + " cores");
  std::vector<ThreadPlan::Node> nodes;
  std::size_t before = 0;
  for (Topology::Node const& node : topology.nodes) {
    std::size_t const end = before + node.cores.size();
    std::size_t const count = num_threads * end / cores - num_threads * before / cores;
    if (count > 0) nodes.push_back({.index = node.index, .num_threads = count, .cores = node.cores});
    before = end;
  }
  if (pinning == ThreadPlan::Pinning::node && nodes.size() == 1 && topology == host)
    return ThreadPlan::anywhere(num_threads, topology.nodes.size() == 1
                                                 ? "not pinned, there is one NUMA node"
                                                 : "not pinned, too few threads for several NUMA nodes");
  if (pinning == ThreadPlan::Pinning::core) std::ranges::reverse(nodes);  // the first thread has the last core of all
  return {std::move(nodes), pinning};
}

ThreadPlan plan_own_threads(Topology const& topology, std::size_t num_threads, ThreadPlan::Pinning pinning,
                            std::vector<int> const& cores) {
  ThreadPlan plan = plan_threads(topology, num_threads, pinning, cores);
  std::vector<int> const home = allowed_cores();
  for (ThreadPlan::Node const& node : plan.nodes()) {
    bool const refused = !node.cores.empty() && !restrict_to_cores(node.cores);
    restrict_to_cores(home);
    if (refused) return ThreadPlan::anywhere(num_threads, "not pinned, the system refuses it");
  }
  return plan;
}

}  // namespace expertmesh
