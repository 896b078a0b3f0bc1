// A group of workers that share out the experts of one model, as the exchange of rows sees it: who serves, how to reach
// each one, and which are gone. Workers come and go; a version counts the changes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/strong_id.h"
#include "common/experts/expert_store.h"
#include "common/transport/transport.h"

namespace expertmesh {

// One life of one worker, with the experts it holds.
struct WorkerPeer {
  WorkerId worker;
  Incarnation incarnation;
  PeerId peer;           // of the transport; never used again
  PlacementEpoch epoch;  // in which it was given its experts
  std::shared_ptr<HeldExperts const> held;
  std::string link_id{};  // that its end of a RowLink is made of; empty: its rows go with the messages
  bool by_shm = false;    // its messages go through shared memory
};

class WorkerGroup {
 public:
  virtual ~WorkerGroup() = default;

  // ---- engine thread
  [[nodiscard]] virtual Transport& transport() = 0;
  // Those that serve now; the transport knows them when this returns. Throws OutsideError.
  [[nodiscard]] virtual std::vector<WorkerPeer> members() = 0;
  // Memory that the transport may still use: held until the transport is gone.
  virtual void keep(std::shared_ptr<void const> memory) = 0;

  // ---- any thread
  // Grows whenever members() would say something new. One atomic load.
  [[nodiscard]] virtual std::uint64_t version() const = 0;
  // Whether that life is over: it died, or left. Cheap enough for every round of the step path.
  [[nodiscard]] virtual bool dead(WorkerPeer const& member) const = 0;
  // One line; empty while this life lasts.
  [[nodiscard]] virtual std::string death_reason(WorkerPeer const& member) const = 0;
  // The step path met something that only a broken worker does: it is dead from now on, for this reason.
  virtual void declare_dead(WorkerPeer const& member, std::string const& reason) = 0;
  // The step path goes by this version from now on: it sends nothing more to who is no member in it, and has nothing
  // under way there. Cheap where it is no news.
  virtual void adopted(std::uint64_t /*version*/) {}
  // How this member's rows go, for people: "nccl", or "host" and why.
  virtual void set_row_transport(WorkerPeer const& /*member*/, std::string const& /*how*/) {}
  [[nodiscard]] virtual std::size_t resident_bytes() const = 0;  // packed experts, all workers together

  // Workers go to sleep on their control socket, or wake from it. Returns at once.
  virtual void idle() = 0;
  virtual void wake() = 0;
};

}  // namespace expertmesh
