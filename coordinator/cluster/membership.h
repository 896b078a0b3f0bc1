// Decides what becomes of a cluster's workers: who is started when, what each one holds, who is replaced, given up or
// let go. Pure: events and times come in, actions go out; no thread, no socket, no clock. Cluster carries the actions
// out, and a test drives it through a world of lost and late messages.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/base/strong_id.h"
#include "common/experts/expert_store.h"
#include "common/protocol/dispatch_layout.h"

namespace expertmesh {

// One life of one worker.
struct Life {
  WorkerId worker;
  Incarnation incarnation;
  friend bool operator==(Life const&, Life const&) = default;
};

// What one life is given to hold.
struct Share {
  PlacementEpoch epoch;
  std::shared_ptr<HeldExperts const> held;
};

// What a worker is able to hold.
struct WorkerCapacity {
  double rate = 1;              // of reading weights, in a unit that is the same for all
  std::size_t room = SIZE_MAX;  // experts of every layer that its memory takes
  friend bool operator==(WorkerCapacity const&, WorkerCapacity const&) = default;
};

struct MembershipOptions {
  std::vector<std::size_t> num_experts;  // [layers] E
  std::size_t num_local = 1;             // workers that the coordinator starts, and starts again
  std::size_t num_remote = 0;            // places of workers that come by themselves, and come again
  std::size_t redundant_experts = 0;
  std::size_t max_workers = 256;                  // places, those of the dead and gone included
  std::size_t max_failed_starts = 3;              // in a row, then a local worker is left dead
  std::chrono::milliseconds restart_pause{200};   // after one failed start; twice that after two
  std::chrono::milliseconds return_time{10'000};  // for a remote worker, before others take its experts over
};

class Membership {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // The places, with an equal contiguous share of every layer each.
  explicit Membership(MembershipOptions options);

  // ---- actions
  struct Start {  // bring this life up, and then ask what it is to_load(); a remote one is there already
    Life life;
    bool remote = false;
  };
  struct Hold {  // have a serving life load this as well
    Life life;
    Share share;
  };
  struct LetGo {  // end this life: nobody needs it
    Life life;
  };
  using Action = std::variant<Start, Hold, LetGo>;

  // What is to be done now, in this order. Plans placements, so it may take a while.
  std::vector<Action> tick(Time now);
  // When tick() has something to do without a further event.
  [[nodiscard]] std::optional<Time> next_tick() const;

  // ---- events; those of a life that is over have no effect
  void start_all();          // the first lives of the local workers: the next tick() starts them
  void supervise(Time now);  // from now on the dead are replaced, those of before as well
  // A worker has come from elsewhere: its life, or none: there are as many places as there may be.
  std::optional<Life> join();
  void set_capacity(Life life, WorkerCapacity capacity);
  // What this life, which does not serve yet, is given to begin with.
  Share to_load(Life life);
  void serves(Life life);  // it has that
  void moved(Life life, PlacementEpoch epoch);
  void ended(Life life, Time now);
  // None, or why not.
  std::optional<std::string> drain(WorkerId worker);
  // Its own host wants it to end: as drain(), but the last one goes at once and leaves its experts to the coordinator.
  void leave(Life life);
  std::optional<std::string> add_local();
  void consider_load(std::vector<std::vector<double>> load);  // [layers][E] tokens lately
  void set_speed(Life life, double speed);  // relative to the others: placements follow it from now on

  // ---- what stands
  struct Member {
    Life life;
    Share share;
  };
  [[nodiscard]] std::vector<Member> members() const;                // those that serve
  [[nodiscard]] std::uint64_t version() const { return version_; }  // grows whenever members() changes
  struct Place {
    WorkerId worker;
    bool remote = false;
    Incarnation incarnation;  // of the present or the last life; 0: none yet
    bool alive = false;       // that life has not ended
    bool serving = false;
    bool given_up = false;  // left dead, or stayed away
    bool draining = false;  // leaves when its experts are elsewhere
    bool left = false;
    double speed = 1;
    std::optional<WorkerCapacity> capacity;   // none: not known yet, taken as the middle one of the others'
    std::shared_ptr<HeldExperts const> held;  // by the present placement
    Share share;                              // what the present life was given

    [[nodiscard]] bool stays() const { return !given_up && !draining && !left; }
    [[nodiscard]] Life life() const { return {.worker = worker, .incarnation = incarnation}; }
  };
  [[nodiscard]] std::size_t num_places() const { return places_.size(); }
  [[nodiscard]] Place const& place(WorkerId worker) const { return places_[worker.value() - 1]; }
  struct Balance {
    std::size_t num_moves = 0;  // placements since start, but the first
    std::size_t experts_moved = 0;
    bool moving = false;
    // Of the last move, for the load and speeds known then: the most loaded worker's share over its fair share, mean of
    // the layers.
    double before = 1;
    double after = 1;
  };
  [[nodiscard]] Balance balance() const;

 private:
  struct FullPlace : Place {
    std::size_t failed_starts = 0;  // in a row
    std::optional<Time> due;        // a local one is started again, a remote one given up
    // Of the move under way: what it will hold.
    std::shared_ptr<HeldExperts const> target;
    bool asked = false;   // this life has been told
    bool loaded = false;  // and has done it
  };
  struct Move {
    PlacementEpoch epoch;
    std::size_t experts = 0;  // that get another holder
    double before = 1;
    double after = 1;
  };
  enum class Reason : std::uint8_t { members, load };
  enum class Whose : std::uint8_t { who_stay, leaving_too };

  [[nodiscard]] FullPlace* present(Life life);
  FullPlace& add_place(bool remote);
  void divide();
  [[nodiscard]] std::vector<double> capacities(Whose whose) const;
  Life begin_life(FullPlace& place);
  void let_go(FullPlace& place);
  void take_due(Time now);
  void begin_move(Reason reason);
  void ask_and_commit();
  [[nodiscard]] std::vector<HeldExperts> plan(std::vector<HeldExperts> const& current) const;
  [[nodiscard]] double mean_imbalance(std::vector<HeldExperts> const& held, std::vector<double> const& capacity) const;
  [[nodiscard]] std::vector<double> load_of(std::size_t layer) const;

  MembershipOptions const options_;
  std::deque<FullPlace> places_;  // worker w at w - 1
  bool supervising_ = false;
  bool replan_ = false;        // the members changed
  bool look_at_load_ = false;  // load or speeds changed
  bool capacities_changed_ = false;
  bool anything_given_ = false;            // to load: until then the placement costs nothing
  std::vector<std::vector<double>> load_;  // [layers][E] lately; empty: unknown
  std::optional<Move> move_;               // under way
  Balance balance_;
  std::uint32_t last_epoch_ = 0;
  std::uint64_t version_ = 1;
  std::vector<Action> actions_;  // for the next tick()
};

}  // namespace expertmesh
