#include "common/base/thread_plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/base/aligned_buffer.h"
#include "common/base/check.h"
#include "common/base/cores.h"
#include "common/base/divided_up.h"

namespace expertmesh {
namespace {

constexpr std::size_t kLeastPageBytes = std::size_t{4} << 10;

std::string text_of(std::vector<ThreadPlan::Node> const& nodes, ThreadPlan::Pinning pinning) {
  std::string text;
  for (ThreadPlan::Node const& node : nodes)
    text += (text.empty() ? "" : ", ") + std::to_string(node.num_threads) + " on " + std::to_string(node.cores.size()) +
            " cores of NUMA node " + std::to_string(node.index);
  text += pinning == ThreadPlan::Pinning::core ? ", each pinned to one" : ", pinned to them";
  return text + (nodes.size() > 1 ? "; each node has its share of the weights and the KV cache" : "");
}

// body(part) for the parts of the memory that lie in regions of the node.
template <class Body>
bool each_part(std::span<std::byte> memory, ThreadPlan const& plan, std::size_t node, Body body) {
  for (std::byte* at = memory.data(); at != memory.data() + memory.size();) {
    std::size_t const to_end =
        ThreadPlan::kRegionBytes - reinterpret_cast<std::uintptr_t>(at) % ThreadPlan::kRegionBytes;
    std::size_t const bytes =
        std::min<std::size_t>(to_end, static_cast<std::size_t>(memory.data() + memory.size() - at));
    if (plan.node_of(at) == node && !body(std::span(at, bytes))) return false;
    at += bytes;
  }
  return true;
}

// The calling thread goes from node to node.
template <class Body>
bool each_part_on_its_node(std::span<std::byte> memory, ThreadPlan const& plan, Body body) {
  std::vector<int> const home = allowed_cores();
  bool done = true;
  for (std::size_t node = 0; done && node < plan.nodes().size(); ++node) {
    restrict_to_cores(plan.nodes()[node].cores);
    done = each_part(memory, plan, node, body);
  }
  restrict_to_cores(home);
  return done;
}

}  // namespace

ThreadPlan ThreadPlan::anywhere(std::size_t num_threads, std::string text) {
  ThreadPlan plan;
  plan.nodes_ = {{.index = 0, .num_threads = num_threads, .cores = {}}};
  plan.cores_.resize(num_threads);
  plan.text_ = std::move(text);
  plan.number_threads();
  return plan;
}

void ThreadPlan::number_threads() {
  first_thread_.push_back(0);
  for (std::size_t j = 0; j < nodes_.size(); ++j) {
    node_of_thread_.insert(node_of_thread_.end(), nodes_[j].num_threads, j);
    first_thread_.push_back(node_of_thread_.size());
  }
}

ThreadPlan::ThreadPlan(std::vector<Node> nodes, Pinning pinning)
    : nodes_(std::move(nodes)), text_(text_of(nodes_, pinning)) {
  std::vector<std::pair<double, std::size_t>> turns;  // each node's are spread evenly
  std::size_t common = 0;
  for (Node const& node : nodes_) common = std::gcd(common, node.num_threads);
  for (std::size_t j = 0; j < nodes_.size(); ++j) {
    Node const& node = nodes_[j];
    EM_CHECK(node.num_threads > 0 && (pinning != Pinning::core || node.num_threads <= node.cores.size()),
             node.num_threads << " threads on " << node.cores.size() << " cores");
    for (std::size_t i = 0; i < node.num_threads; ++i) {
      if (pinning == Pinning::node)
        cores_.push_back(node.cores);
      else if (pinning == Pinning::core)
        cores_.push_back({node.cores[node.cores.size() - 1 - i * node.cores.size() / node.num_threads]});
      else
        cores_.emplace_back();
    }
    std::size_t const share = node.num_threads / common;
    for (std::size_t i = 0; i < share; ++i)
      turns.emplace_back((static_cast<double>(i) + 0.5) / static_cast<double>(share), j);
  }
  std::ranges::sort(turns);
  for (auto const& [when, node] : turns) owners_.push_back(node);
  number_threads();
}

bool place_fresh_pages(std::span<std::byte> memory, ThreadPlan const& plan) {
  if (plan.nodes().size() == 1) return false;
  each_part_on_its_node(memory, plan, [](std::span<std::byte> part) {
    for (std::size_t i = 0; i < part.size(); i += kLeastPageBytes)
      const_cast<std::byte volatile&>(part[i]) = std::byte{};
    return true;
  });
  return true;
}

bool touch_pages(std::span<std::byte> memory, ThreadPlan const& plan, std::stop_token const& stop) {
  if (plan.nodes().size() == 1) return touch_pages(memory, stop);
  return each_part_on_its_node(memory, plan, [&](std::span<std::byte> part) { return touch_pages(part, stop); });
}

}  // namespace expertmesh
