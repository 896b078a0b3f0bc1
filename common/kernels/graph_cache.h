// What is asked of a device again and again: the second time it is recorded as a CUDA graph, and from then on the host
// launches it with one call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "common/kernels/device.h"

namespace expertmesh {

class GraphCache {
 public:
  // Everything that what is asked for depends on.
  using Key = std::span<std::uint64_t const>;

  explicit GraphCache(Device& device) : device_(device) {}

  // The graph of what `ops` asks of the device, which is the same whenever the key is; recorded here if the key has
  // been seen before. null: ops are to be done one by one, for the key is new or the device could not make a graph of
  // it. Throws what ops throws; nothing of it has been done then.
  DeviceGraph* find_or_record(Key key, std::function<void()> const& ops);
  [[nodiscard]] bool is_recording() const { return recording_; }

  // No graph is left. One that is under way comes to its end.
  void clear() { seen_.clear(); }

 private:
  static constexpr std::size_t kMostKeys = 64;  // kept, those used last

  struct Seen {
    std::vector<std::uint64_t> key;
    std::unique_ptr<DeviceGraph> graph{};  // null: seen once, or it could not be had
    bool refused = false;                  // by the device, which has no room for more
  };
  void record(Seen& seen, std::function<void()> const& ops);

  Device& device_;
  std::list<Seen> seen_;  // the one used last first
  bool recording_ = false;
};

}  // namespace expertmesh
