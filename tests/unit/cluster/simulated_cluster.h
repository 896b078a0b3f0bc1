// A whole cluster in one thread and simulated time: a coordinator's decisions (Membership, HeartbeatMonitor) and worker
// processes, with messages that are late, out of order, sent twice or lost with their connection, and processes that
// crash, stop or never come up. A seed gives one run, the same every time. What must always hold is looked at after
// every event; the first thing that does not is kept as the failure.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "common/protocol/control_messages.h"
#include "coordinator/cluster/heartbeat_monitor.h"
#include "coordinator/cluster/membership.h"

namespace expertmesh::test {

// Mistakes that a coordinator might make: the simulation has to notice each.
enum class Mistake : std::uint8_t { none, commits_before_loaded, believes_the_dead, lets_go_too_early };

class SimulatedCluster {
 public:
  SimulatedCluster(std::uint64_t seed, Mistake mistake);
  void run();

  [[nodiscard]] std::string const& failure() const { return failure_; }  // empty: none
  struct Counts {
    std::size_t events = 0;
    std::size_t crashes = 0;
    std::size_t stops = 0;
    std::size_t lost_messages = 0;
    std::size_t joins = 0;
    std::size_t drains = 0;
    std::size_t requests = 0;
    std::size_t moves = 0;
    std::size_t late_words = 0;  // of lives that were over
  };
  [[nodiscard]] Counts const& counts() const { return counts_; }

 private:
  using Ms = std::int64_t;
  using ConnectionId = std::uint64_t;

  struct Process {
    ConnectionId connection = 0;
    Life life{};  // of a remote one: once it was taken in
    bool remote = false;
    bool over = false;
    Ms stopped_until = 0;
    bool assigned = false;
    std::optional<std::uint32_t> serving;  // the placement of the last request
    std::map<std::uint32_t, HeldExperts> placements;
    std::deque<std::function<void()>> inbox;  // while it is stopped
  };
  // One end of a connection at the coordinator.
  struct Connection {
    std::size_t process = 0;
    Life life{};
    bool joined = false;
    bool open = true;
  };
  struct Event {
    Ms at = 0;
    std::uint64_t order = 0;
    std::function<void()> run;
    bool operator<(Event const& other) const { return std::pair(at, order) > std::pair(other.at, other.order); }
  };
  struct Request {
    PlacementEpoch epoch;
    HeldExperts held;
  };

  [[nodiscard]] Membership::Time time() const { return Membership::Time(std::chrono::milliseconds(now_)); }
  [[nodiscard]] Ms between(Ms low, Ms high) { return std::uniform_int_distribution<Ms>(low, high)(random_); }
  [[nodiscard]] bool chance(double p) { return std::uniform_real_distribution<double>(0, 1)(random_) < p; }
  [[nodiscard]] bool quiet() const { return now_ >= quiet_from_; }
  void after(Ms delay, std::function<void()> what);
  void fail(std::string const& what);

  // ---- the coordinator
  void want_tick();
  void tick();
  void start(Membership::Start const& start);
  void assign(Life life);
  void hear(ConnectionId id, std::string const& json);
  void hear_heartbeat(ConnectionId id);
  void bury(Life life);
  void hung_up(ConnectionId id);
  void step();
  void check();
  void check_at_the_end();

  // ---- the network
  void to_worker(Life life, control::Message const& message);  // nothing if it is over
  void to_coordinator(ConnectionId id, control::Message const& message);
  void deliver(ConnectionId id, std::function<void()> const& arrive);
  void lose(ConnectionId id);

  // ---- the workers
  void spawn(std::optional<Life> life);
  void at_process(std::size_t index, std::function<void()> what);
  void take(std::size_t index, std::string const& json);
  void end(std::size_t index);
  void beat(std::size_t index);
  void answer(std::size_t index, Request const& request);

  // ---- fate
  void meddle();

  std::mt19937_64 random_;
  Mistake const mistake_;
  std::vector<std::size_t> const num_experts_;
  Membership membership_;
  HeartbeatMonitor monitor_;
  std::priority_queue<Event> events_;
  std::uint64_t order_ = 0;
  Ms now_ = 0;
  Ms quiet_from_ = 0;
  Ms end_ = 0;
  bool tick_wanted_ = false;
  std::deque<Process> processes_;
  std::map<ConnectionId, Connection> connections_;
  ConnectionId last_connection_ = 0;
  std::map<std::uint32_t, ConnectionId> connection_of_;          // by worker: of the present life
  std::map<std::uint32_t, Incarnation> last_incarnation_;        // by worker
  std::map<std::uint32_t, PlacementEpoch> last_hold_;            // by worker
  std::map<std::uint32_t, Ms> last_request_;                     // by worker: requests keep their order
  std::set<std::pair<std::uint32_t, std::uint32_t>> served_;     // lives that said they had loaded
  std::set<std::pair<std::uint32_t, std::uint32_t>> over_;       // lives that ended
  std::set<std::pair<std::uint32_t, std::uint32_t>> went_last_;  // when nobody stayed: their experts went with them
  Counts counts_;
  std::string failure_;
};

}  // namespace expertmesh::test
