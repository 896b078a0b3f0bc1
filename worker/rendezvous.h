// Which requests a worker keeps for a moment, so that those of other coordinators for the same layer are in the batch
// with them, and one pass over an expert's weights serves the rows of all. Coordinators that decode do the same things
// in the same order, layer by layer and step by step: where each will be next is known from where it was. The first
// of a step waits for one that begins its next step soon, and so they fall into step; at each layer the faster one
// waits for the slower, and so they stay there. Not for one that is much slower, though.
//
// Who waits is not waited for, so no two wait for each other. One that did not come when it was due is not waited for
// again until it has begun another step.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "common/base/strong_id.h"
#include "common/transport/transport.h"

namespace expertmesh {

// One thread. The time is told.
class Rendezvous {
 public:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;
  using Duration = Clock::duration;

  // What a request is for.
  struct Stop {
    std::size_t layer;  // with experts, numbered through; or kUnknown
    std::uint32_t micro_batch;
  };
  static constexpr std::size_t kUnknown = std::numeric_limits<std::size_t>::max();

  // longest_wait: of a request, from its arrival.
  explicit Rendezvous(Duration longest_wait) : longest_wait_(longest_wait) {}

  // In this order: each request that is here, as often as one likes; decide(); what is not held is served.
  void arrived(PeerId coordinator, Stop const& stop, Time now);
  void decide(Time now);
  // All that it has here, or nothing of it, as of the last decision.
  [[nodiscard]] bool holds(PeerId coordinator) const;
  [[nodiscard]] bool holds_any() const;
  // What was here and is not held is answered.
  void served(Time now);

  void leave(PeerId coordinator);  // it is not waited for, nor does it wait
  void clear() { travellers_.clear(); }

  struct Counts {
    std::size_t waits = 0;     // that are over
    std::size_t meetings = 0;  // at whose end another coordinator's request for the layer was there
    Duration waited{0};
  };
  [[nodiscard]] Counts const& counts() const { return counts_; }

 private:
  // An average of what was seen last, that one odd sample changes by a quarter at most.
  class Usual {
   public:
    void add(Duration sample);
    [[nodiscard]] bool known() const { return known_; }
    [[nodiscard]] Duration value() const { return value_; }

   private:
    bool known_ = false;
    Duration value_{0};
  };
  // A micro-batch of a coordinator, step after step.
  struct Traveller {
    PeerId coordinator;
    std::uint32_t micro_batch;
    std::size_t layer = kUnknown;  // of its last request, and of the first of its step
    std::size_t first_layer = kUnknown;
    Time since{};    // it is here; else, since its last answer
    Time began{};    // its step, with that first request
    Usual stay{};    // of a request that does not wait, until its answer
    Usual way{};     // from there to the request of the next layer
    Usual period{};  // from step to step
    bool here = false;
    bool wants_to_wait = false;
    bool held = false;
    bool has_waited = false;  // for what it has here
    bool given_up = false;    // in this step

    [[nodiscard]] Duration lap() const { return stay.value() + way.value(); }
  };

  Traveller& find_or_add(PeerId coordinator, std::uint32_t micro_batch);
  [[nodiscard]] std::optional<Time> expected_until(Traveller const& other, Traveller const& waiting, Time now) const;
  bool is_worth_waiting(Traveller const& waiting, Time now);

  Duration const longest_wait_;
  std::vector<Traveller> travellers_;
  Counts counts_;
};

}  // namespace expertmesh
