// A group of workers that share out the experts of one model, as the exchange of rows sees it: how to reach each one,
// and which are gone.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "common/base/strong_id.h"
#include "common/experts/expert_store.h"
#include "common/transport/transport.h"

namespace expertmesh {

struct WorkerPeer {
  WorkerId worker;
  Incarnation incarnation;
  PeerId peer;  // of the transport
};

class WorkerGroup {
 public:
  virtual ~WorkerGroup() = default;

  [[nodiscard]] virtual Transport& transport() = 0;
  [[nodiscard]] virtual std::vector<WorkerPeer> const& peers() const = 0;  // [N] worker i + 1 at index i
  [[nodiscard]] virtual PlacementEpoch epoch() const = 0;
  [[nodiscard]] virtual HeldExperts const& held(WorkerId worker) const = 0;
  [[nodiscard]] virtual std::size_t resident_bytes() const = 0;  // packed experts, all workers together
  // Memory that was registered with the transport: held until the transport is gone.
  virtual void keep(std::shared_ptr<void const> memory) = 0;

  // Thread-safe, cheap enough for every round of the step path.
  [[nodiscard]] virtual bool dead(WorkerId worker) const = 0;
  // One line; empty while the worker lives.
  [[nodiscard]] virtual std::string death_reason(WorkerId worker) const = 0;
  // The step path met something that only a broken worker does: it is dead from now on, for this reason.
  virtual void declare_dead(WorkerId worker, std::string const& reason) = 0;

  // Workers go to sleep on their control socket, or wake from it. Returns at once.
  virtual void idle() = 0;
  virtual void wake() = 0;
};

}  // namespace expertmesh
