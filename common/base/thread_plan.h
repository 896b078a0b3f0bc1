// Where the threads of a pool run, and where the memory lies that they read: plain data, and what is done by it. Who
// makes it: topology.h.
//
// On several NUMA nodes, memory is dealt out in regions (as large as a huge page), in turn, by their addresses: so it
// is known of any address which node's threads are to read it, and small pieces that share a huge page agree on it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

namespace expertmesh {

class ThreadPlan {
 public:
  // Threads of one NUMA node, of which there is at least one.
  struct Node {
    unsigned index = 0;           // the system's
    std::size_t num_threads = 0;  // they come behind those of the nodes before it
    std::vector<int> cores;       // of this node, that the process may use
  };
  enum class Pinning : std::uint8_t {
    none,
    node,  // a thread runs on any of its node's cores
    core   // on one, its own: the last of the node for its first thread
  };

  // One node, no thread is pinned. text: why.
  static ThreadPlan anywhere(std::size_t num_threads, std::string text);
  // Pinning by core: no node has more threads than cores.
  ThreadPlan(std::vector<Node> nodes, Pinning pinning);

  [[nodiscard]] std::vector<Node> const& nodes() const { return nodes_; }
  [[nodiscard]] std::size_t num_threads() const { return cores_.size(); }
  [[nodiscard]] std::vector<int> const& cores_of(std::size_t thread) const { return cores_[thread]; }  // empty: any
  [[nodiscard]] std::size_t node_of_thread(std::size_t thread) const { return node_of_thread_[thread]; }
  [[nodiscard]] std::size_t first_thread(std::size_t node) const {
    return first_thread_[node];
  }  // up to nodes().size()
  // Which of nodes() is to have the memory at this address: each as many regions as it has threads.
  [[nodiscard]] std::size_t node_of(std::byte const* address) const {
    return nodes_.size() == 1 ? 0 : owners_[reinterpret_cast<std::uintptr_t>(address) / kRegionBytes % owners_.size()];
  }
  static constexpr std::size_t kRegionBytes = std::size_t{2} << 20;
  [[nodiscard]] std::string const& text() const { return text_; }  // for the user: "64 threads on NUMA node 0, ..."

 private:
  ThreadPlan() = default;
  void number_threads();

  std::vector<Node> nodes_;
  std::vector<std::vector<int>> cores_;      // [threads]
  std::vector<std::size_t> node_of_thread_;  // [threads]
  std::vector<std::size_t> first_thread_;    // [nodes + 1]
  std::vector<std::size_t> owners_;          // of regions, over and over
  std::string text_;
};

// Gives each region its pages from its node, by having them touched by a thread that runs there: the calling one, which
// comes back. So no permission is needed, and where a node is full the system takes another. Nothing on one node.
//
// Of memory in which nothing has been written, and nothing is meanwhile. False: one node.
bool place_fresh_pages(std::span<std::byte> memory, ThreadPlan const& plan);
// Of any memory, others may use it; pages that are there already stay where they are. As touch_pages(), also on one
// node.
bool touch_pages(std::span<std::byte> memory, ThreadPlan const& plan, std::stop_token const& stop = {});

}  // namespace expertmesh
