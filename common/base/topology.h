// The cores of this host by the NUMA nodes whose memory is nearest to them, as hwloc sees it, and plans by that. A core
// is what the system schedules on: a hardware thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/base/thread_plan.h"

namespace expertmesh {

struct Topology {
  struct Node {
    unsigned index = 0;      // the system's
    std::vector<int> cores;  // at least one; neighbours share caches
    bool operator==(Node const&) const = default;
  };
  std::vector<Node> nodes;  // neighbours are near each other

  [[nodiscard]] std::size_t num_cores() const;
  // Of these cores alone.
  [[nodiscard]] Topology only(std::vector<int> const& cores) const;
  bool operator==(Topology const&) const = default;
};

// Of the cores that the calling thread may use (which its cgroups, a launcher or taskset may have limited) and the
// memory that its cgroups allow. Nodes without memory count as the nearest one that has some; memory without cores
// (CXL) is nobody's. Where hwloc does not know all of the cores: one node.
Topology read_topology();
// The same of a description, such as hwloc's "node:2 core:4 pu:2", or of an XML file that hwloc has written.
enum class TopologyFormat : std::uint8_t { synthetic, xml_file };
Topology read_topology(TopologyFormat format, std::string const& text, std::vector<int> const& allowed_cores);

// Cores for processes with so many threads each: stretches of neighbours without overlap, in proportion to the threads,
// so that all nodes are used; empty where there are fewer cores than threads.
std::vector<std::vector<int>> share_cores(Topology const& topology, std::vector<std::size_t> const& threads);

// Threads of a process that is to run on these cores, all if there are none, spread over the nodes in proportion to the
// cores. Unpinned, and with a text that says why, if there are more threads than cores; by node also if there is but
// one node, and it may have all of that.
ThreadPlan plan_threads(Topology const& topology, std::size_t num_threads, ThreadPlan::Pinning pinning,
                        std::vector<int> const& cores = {});
// The same for the calling process, unpinned where the system refuses it.
ThreadPlan plan_own_threads(Topology const& topology, std::size_t num_threads, ThreadPlan::Pinning pinning,
                            std::vector<int> const& cores = {});

}  // namespace expertmesh
