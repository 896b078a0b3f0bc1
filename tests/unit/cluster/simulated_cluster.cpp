#include "tests/unit/cluster/simulated_cluster.h"

#include <algorithm>
#include <utility>

#include "common/protocol/secret_proof.h"

namespace expertmesh::test {
namespace {

constexpr std::int64_t kHeartbeatMs = 25;
constexpr auto kDeathTimeout = std::chrono::milliseconds(200);
constexpr std::int64_t kStartTimeoutMs = 400;
constexpr std::size_t kMaxWorkers = 8;

std::vector<std::size_t> some_layers(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::size_t> layers(1 + random() % 3);
  for (auto& experts : layers) experts = 1 + random() % 9;
  return layers;
}

control::Assign assignment(std::vector<std::size_t> const& num_experts, Share const& share) {
  control::Assign assign;
  assign.model_dir = "/model";
  for (std::uint32_t i = 0; i < num_experts.size(); ++i)
    assign.model.layers.push_back({.layer = i,
                                   .hidden = 8,
                                   .intermediate = 8,
                                   .experts = std::vector<FfnTensors>(
                                       num_experts[i], {.gate = WeightSlice{"gate"}, .up = {"up"}, .down = {"down"}})});
  assign.held = *share.held;
  assign.epoch = share.epoch;
  assign.limits = {.max_rows = 1, .max_entries = 1};
  return assign;
}

std::string name_of(Life life) {
  return "worker " + std::to_string(life.worker.value()) + ", incarnation " + std::to_string(life.incarnation.value());
}

std::pair<std::uint32_t, std::uint32_t> key(Life life) {
  return {life.worker.value(), life.incarnation.value()};
}

}  // namespace

SimulatedCluster::SimulatedCluster(std::uint64_t seed, Mistake mistake)
    : random_(seed),
      mistake_(mistake),
      num_experts_(some_layers(seed)),
      membership_({.num_experts = num_experts_,
                   .num_local = 1 + seed % 4,
                   .num_remote = seed / 4 % 3,
                   .redundant_experts = seed / 12 % 3,
                   .max_workers = kMaxWorkers,
                   .max_failed_starts = 3,
                   .restart_pause = std::chrono::milliseconds(20),
                   .return_time = std::chrono::milliseconds(500)}),
      monitor_(kMaxWorkers) {
  quiet_from_ = between(500, 2000);
  end_ = quiet_from_ + 4000;
}

void SimulatedCluster::run() {
  membership_.start_all();
  membership_.supervise(time());
  want_tick();
  for (std::size_t i = 0; i < membership_.num_places(); ++i)
    if (membership_.place(WorkerId(static_cast<std::uint32_t>(i + 1))).remote) spawn(std::nullopt);
  after(5, [this] { step(); });
  after(kHeartbeatMs, [this] { check(); });
  after(between(20, 100), [this] { meddle(); });
  while (failure_.empty() && !events_.empty() && events_.top().at <= end_) {
    Event const event = events_.top();
    events_.pop();
    now_ = event.at;
    ++counts_.events;
    event.run();
  }
  if (failure_.empty()) check_at_the_end();
  counts_.moves = membership_.balance().num_moves;
}

void SimulatedCluster::after(Ms delay, std::function<void()> what) {
  events_.push({.at = now_ + delay, .order = ++order_, .run = std::move(what)});
}

void SimulatedCluster::fail(std::string const& what) {
  if (failure_.empty()) failure_ = "at " + std::to_string(now_) + " ms: " + what;
}

// ---- the coordinator

void SimulatedCluster::want_tick() {
  if (std::exchange(tick_wanted_, true)) return;
  after(between(0, 8), [this] { tick(); });
}

void SimulatedCluster::tick() {
  tick_wanted_ = false;
  for (auto const& action : membership_.tick(time())) {
    if (auto const* starting = std::get_if<Membership::Start>(&action)) {
      start(*starting);
    } else if (auto const* hold = std::get_if<Membership::Hold>(&action)) {
      std::uint32_t const worker = hold->life.worker.value();
      if (!membership_.place(hold->life.worker).serving) fail(name_of(hold->life) + " is to load and does not serve");
      if (hold->share.epoch <= last_hold_[worker]) fail(name_of(hold->life) + " is given an old placement");
      last_hold_[worker] = hold->share.epoch;
      to_worker(hold->life, control::Hold{.held = *hold->share.held, .epoch = hold->share.epoch});
      if (mistake_ == Mistake::commits_before_loaded) membership_.moved(hold->life, hold->share.epoch);
    } else if (auto const* let_go = std::get_if<Membership::LetGo>(&action)) {
      auto const& place = membership_.place(let_go->life.worker);
      if (!went_last_.contains(key(let_go->life)) &&
          !std::ranges::all_of(*place.held, [](auto const& layer) { return layer.empty(); }))
        fail(name_of(let_go->life) + " is let go with experts");
      to_worker(let_go->life, control::Shutdown{});
    }
  }
  if (mistake_ == Mistake::lets_go_too_early)
    for (std::uint32_t w = 1; w <= membership_.num_places(); ++w)
      if (membership_.place(WorkerId(w)).draining)
        to_worker(membership_.place(WorkerId(w)).life(), control::Shutdown{});
  if (auto const next = membership_.next_tick())
    after(std::max<Ms>(1, std::chrono::duration_cast<std::chrono::milliseconds>(*next - time()).count()),
          [this] { want_tick(); });
  for (std::uint32_t w = 1; w <= membership_.num_places(); ++w) {
    Incarnation& last = last_incarnation_[w];
    if (membership_.place(WorkerId(w)).incarnation < last) fail("worker " + std::to_string(w) + " grows younger");
    last = membership_.place(WorkerId(w)).incarnation;
  }
}

void SimulatedCluster::start(Membership::Start const& start) {
  std::uint32_t const worker = start.life.worker.value();
  last_hold_[worker] = membership_.place(start.life.worker).share.epoch;
  if (!start.remote) {
    connection_of_.erase(worker);
    after(between(2, 40), [this, start] { spawn(start.life); });
    after(kStartTimeoutMs, [this, start] {  // no hello: it died before its first word
      if (!connection_of_.contains(start.life.worker.value())) bury(start.life);
    });
    return;
  }
  assign(start.life);
}

void SimulatedCluster::assign(Life life) {
  if (chance(0.8)) membership_.set_capacity(life, {.rate = chance(0.5) ? 1.0 : chance(0.5) ? 1.2 : 4.0});
  to_worker(life, assignment(num_experts_, membership_.to_load(life)));
  want_tick();
}

void SimulatedCluster::hear(ConnectionId id, std::string const& json) {
  Connection& connection = connections_[id];
  if (!connection.open) ++counts_.late_words;
  if (!connection.open && mistake_ != Mistake::believes_the_dead) return;
  control::Message const message = control::decode(json);
  if (auto const* hello = std::get_if<control::Hello>(&message)) {
    if (connection.joined) {
      hung_up(id);  // sent twice: no worker does that
      return;
    }
    std::optional<Life> life;
    if (hello->worker.value() == 0) {
      life = membership_.join();
      ++counts_.joins;
      if (life) processes_[connection.process].life = *life;
    } else {
      life = Life{.worker = hello->worker, .incarnation = hello->incarnation};
      auto const& place = membership_.place(life->worker);
      if (place.incarnation != life->incarnation || !place.alive) life.reset();  // fenced
    }
    if (!life) {
      connection.open = false;
      lose(id);
      return;
    }
    connection.joined = true;
    connection.life = *life;
    connection_of_[life->worker.value()] = id;
    monitor_.watch(life->worker.value() - 1, 10 * kDeathTimeout, time());
    if (hello->worker.value() != 0) assign(*life);
    want_tick();
    return;
  }
  if (!connection.joined) return;
  Life life = connection.life;
  if (over_.contains(key(life)))  // only by mistake
    life.incarnation = membership_.place(life.worker).incarnation;
  if (auto const* loaded = std::get_if<control::Loaded>(&message)) {
    if (!served_.insert(key(life)).second) {
      membership_.moved(life, loaded->epoch);
    } else {
      monitor_.watch(life.worker.value() - 1, kDeathTimeout, time());
      membership_.serves(life);
    }
    want_tick();
  } else if (std::holds_alternative<control::Leaving>(message)) {
    membership_.leave(life);
    bool anybody_stays = false;
    for (std::uint32_t w = 1; w <= membership_.num_places(); ++w)
      anybody_stays = anybody_stays || membership_.place(WorkerId(w)).stays();
    for (std::uint32_t w = 1; w <= membership_.num_places() && !anybody_stays; ++w)
      if (auto const& place = membership_.place(WorkerId(w)); place.left && place.alive)
        went_last_.insert(key(place.life()));
    want_tick();
  }
}

void SimulatedCluster::hear_heartbeat(ConnectionId id) {
  Connection const& connection = connections_[id];
  if (connection.open && connection.joined) monitor_.beat(connection.life.worker.value() - 1, time());
}

// The process is ended in case it is only stuck: its connection is closed.
void SimulatedCluster::bury(Life life) {
  if (!over_.insert(key(life)).second) return;
  auto const found = connection_of_.find(life.worker.value());
  if (found != connection_of_.end() && connections_[found->second].life == life) {
    connections_[found->second].open = false;
    lose(found->second);
    connection_of_.erase(found);
    monitor_.unwatch(life.worker.value() - 1);
  }
  membership_.ended(life, time());
  want_tick();
}

void SimulatedCluster::hung_up(ConnectionId id) {
  Connection& connection = connections_[id];
  if (!std::exchange(connection.open, false)) return;
  if (connection.joined) bury(connection.life);
}

// What the engine does: it asks those who serve for rows of the experts they are said to hold. What reaches a living
// worker is understood there.
void SimulatedCluster::step() {
  for (auto const& [life, share] : membership_.members()) {
    if (over_.contains(key(life))) fail(name_of(life) + " is a member and dead");
    if (!served_.contains(key(life))) fail(name_of(life) + " is a member and has not loaded");
    auto const found = connection_of_.find(life.worker.value());
    if (found == connection_of_.end()) continue;
    std::size_t const process = connections_[found->second].process;
    Ms& last = last_request_[life.worker.value()];
    last = std::max(last, now_ + between(0, 10));
    ++counts_.requests;
    after(last - now_, [this, process, life = life, request = Request{share.epoch, *share.held}] {
      if (processes_[process].life == life) at_process(process, [this, process, request] { answer(process, request); });
    });
  }
  after(quiet() ? 100 : 10, [this] { step(); });
}

void SimulatedCluster::check() {
  for (std::size_t const index : monitor_.check(time(), time())) {
    auto const found = connection_of_.find(static_cast<std::uint32_t>(index + 1));
    if (found != connection_of_.end()) bury(connections_[found->second].life);
  }
  // Every expert has a place where it belongs, whatever happens.
  if (membership_.num_places() > 0)
    for (std::size_t i = 0; i < num_experts_.size(); ++i)
      for (std::uint32_t e = 0; e < num_experts_[i]; ++e) {
        bool held = false;
        for (std::uint32_t w = 1; w <= membership_.num_places(); ++w)
          held = held || std::ranges::binary_search((*membership_.place(WorkerId(w)).held)[i], e);
        if (!held) fail("expert " + std::to_string(e) + " of layer " + std::to_string(i) + " belongs to nobody");
      }
  after(kHeartbeatMs, [this] { check(); });
}

// Some seconds after the last fault: all is as if there had been none.
void SimulatedCluster::check_at_the_end() {
  if (membership_.balance().moving) fail("still moving");
  auto const members = membership_.members();
  bool anybody_stays = false;
  for (std::uint32_t w = 1; w <= membership_.num_places(); ++w) {
    auto const& place = membership_.place(WorkerId(w));
    anybody_stays = anybody_stays || place.stays();
    if (place.stays() && !place.serving) fail("worker " + std::to_string(w) + " does not serve");
    if (place.serving && place.share.held != place.held) fail("worker " + std::to_string(w) + " lags behind");
  }
  if (!anybody_stays) return;
  for (std::uint32_t w = 1; w <= membership_.num_places(); ++w) {
    auto const& place = membership_.place(WorkerId(w));
    if (place.draining) fail("worker " + std::to_string(w) + " was asked to leave and is still there");
    if (place.left && place.alive) fail("worker " + std::to_string(w) + " has left and lives");
  }
  for (std::size_t i = 0; i < num_experts_.size(); ++i)
    for (std::uint32_t e = 0; e < num_experts_[i]; ++e)
      if (std::ranges::none_of(
              members, [&](auto const& member) { return std::ranges::binary_search((*member.share.held)[i], e); }))
        fail("nobody serves expert " + std::to_string(e) + " of layer " + std::to_string(i));
}

// ---- the network

void SimulatedCluster::to_worker(Life life, control::Message const& message) {
  auto const found = connection_of_.find(life.worker.value());
  if (found == connection_of_.end() || connections_[found->second].life != life) return;
  ConnectionId const id = found->second;
  deliver(id, [this, id, json = control::encode(message)] {
    std::size_t const process = connections_[id].process;
    at_process(process, [this, process, json] { take(process, json); });
  });
}

void SimulatedCluster::to_coordinator(ConnectionId id, control::Message const& message) {
  deliver(id, [this, id, json = control::encode(message)] { hear(id, json); });
}

void SimulatedCluster::deliver(ConnectionId id, std::function<void()> const& arrive) {
  if (!quiet() && chance(0.01)) {
    ++counts_.lost_messages;
    lose(id);
    return;
  }
  Ms const late = quiet() ? 2 : chance(0.05) ? 300 : 15;
  after(between(0, late), arrive);
  if (!quiet() && chance(0.02)) after(between(0, late), arrive);
}

// Both ends notice, sooner or later.
void SimulatedCluster::lose(ConnectionId id) {
  after(between(0, 30), [this, id] { hung_up(id); });
  after(between(0, 30), [this, id] {
    std::size_t const process = connections_[id].process;
    at_process(process, [this, process] { end(process); });
  });
}

// ---- the workers

void SimulatedCluster::spawn(std::optional<Life> life) {
  if (!quiet() && chance(0.05)) {  // it never comes up
    ++counts_.crashes;
    if (!life) after(between(10, 100), [this] { spawn(std::nullopt); });
    return;
  }
  std::size_t const index = processes_.size();
  Process& process = processes_.emplace_back();
  process.connection = ++last_connection_;
  process.remote = !life;
  if (life) process.life = *life;
  connections_[process.connection] = {.process = index, .life = {}, .joined = false, .open = true};
  control::Hello hello{.protocol = control::kProtocolVersion,
                       .build = control::build_version(),
                       .nonce = std::string(32, 'a'),
                       .proof = std::string(64, 'b'),
                       .worker = process.life.worker,
                       .incarnation = process.life.incarnation,
                       .pid = 1,
                       .host = "h",
                       .device = "cpu",
                       .isas = {"scalar"},
                       .dtypes = {"float32"},
                       .memory_bytes = 1,
                       .checkpoint = {}};
  to_coordinator(process.connection, hello);
  after(kHeartbeatMs, [this, index] { beat(index); });
}

// Now, or when it goes on.
void SimulatedCluster::at_process(std::size_t index, std::function<void()> what) {
  Process& process = processes_[index];
  if (process.over) return;
  if (process.stopped_until > now_) {
    if (process.inbox.empty())
      after(process.stopped_until - now_, [this, index] {
        for (auto& delayed : std::exchange(processes_[index].inbox, {}))
          if (!processes_[index].over) delayed();
      });
    process.inbox.push_back(std::move(what));
    return;
  }
  what();
}

void SimulatedCluster::take(std::size_t index, std::string const& json) {
  Process& process = processes_[index];
  control::Message const message = control::decode(json);
  auto const load = [&](std::uint32_t epoch, HeldExperts const& held) {
    after(between(1, 60), [this, index, epoch, held] {
      at_process(index, [this, index, epoch, held] {
        Process& loading = processes_[index];
        loading.placements[epoch] = held;
        to_coordinator(loading.connection, control::Loaded{.epoch = PlacementEpoch(epoch), .resident_bytes = 1});
      });
    });
  };
  if (auto const* assign = std::get_if<control::Assign>(&message)) {
    if (std::exchange(process.assigned, true)) return end(index);  // a second assignment
    load(assign->epoch.value(), assign->held);
  } else if (auto const* hold = std::get_if<control::Hold>(&message)) {
    if (process.placements.empty()) return end(index);  // before the first is served
    load(hold->epoch.value(), hold->held);
  } else if (std::holds_alternative<control::Shutdown>(message)) {
    auto const& place = membership_.place(process.life.worker);
    if (place.incarnation == process.life.incarnation && !place.left)
      fail(name_of(process.life) + " was sent away while it was needed");
    end(index);
  }
}

// Its connection closes with it. A remote one that nobody sent away comes back.
void SimulatedCluster::end(std::size_t index) {
  Process& process = processes_[index];
  if (std::exchange(process.over, true)) return;
  after(between(0, 5), [this, id = process.connection] { hung_up(id); });
  if (!process.remote) return;
  // What became of a later life in its place says nothing of this one.
  bool const taken_in = process.life.worker.value() != 0;
  bool const sent_away = taken_in && membership_.place(process.life.worker).left &&
                         membership_.place(process.life.worker).incarnation == process.life.incarnation;
  if (!sent_away) after(between(10, 200), [this] { spawn(std::nullopt); });
}

void SimulatedCluster::beat(std::size_t index) {
  Process const& process = processes_[index];
  if (process.over) return;
  if (process.stopped_until <= now_)
    after(between(0, quiet() ? 2 : 20), [this, id = process.connection] { hear_heartbeat(id); });
  after(kHeartbeatMs, [this, index] { beat(index); });
}

void SimulatedCluster::answer(std::size_t index, Request const& request) {
  Process& process = processes_[index];
  auto const found = process.placements.find(request.epoch.value());
  if (found == process.placements.end())
    return fail(name_of(process.life) + " is asked for a placement it does not have");
  if (found->second != request.held) return fail(name_of(process.life) + " holds other experts than it is asked for");
  // As in the worker: with the first request of a placement those before it go.
  process.serving = request.epoch.value();
  process.placements.erase(process.placements.begin(), found);
}

// ---- fate

void SimulatedCluster::meddle() {
  if (quiet()) return;
  std::vector<std::size_t> living;
  for (std::size_t i = 0; i < processes_.size(); ++i)
    if (!processes_[i].over) living.push_back(i);
  auto const anyone = [&] { return living[static_cast<std::size_t>(between(0, static_cast<Ms>(living.size()) - 1))]; };
  Ms const what = between(0, 9);
  if (what <= 2 && !living.empty()) {
    ++counts_.crashes;
    std::size_t const victim = anyone();
    Process& process = processes_[victim];
    if (chance(0.3)) {  // the whole host: nobody closes the connection
      process.over = true;
      if (process.remote) after(between(50, 800), [this] { spawn(std::nullopt); });
    } else {
      end(victim);
    }
  } else if (what <= 4 && !living.empty()) {
    ++counts_.stops;
    Process& victim = processes_[anyone()];
    if (victim.inbox.empty()) victim.stopped_until = now_ + between(20, 600);
  } else if (what == 5) {
    ++counts_.drains;
    membership_.drain(WorkerId(static_cast<std::uint32_t>(between(0, static_cast<Ms>(membership_.num_places()) + 1))));
    want_tick();
  } else if (what == 6 && !living.empty()) {  // asked to end by its own host
    std::size_t const who = anyone();
    if (processes_[who].assigned) to_coordinator(processes_[who].connection, control::Leaving{});
  } else if (what == 7) {
    membership_.add_local();
    want_tick();
  } else if (what == 8) {
    std::vector<std::vector<double>> load;
    for (std::size_t const experts : num_experts_) {
      load.emplace_back(experts);
      for (double& tokens : load.back()) tokens = static_cast<double>(between(0, 100));
    }
    membership_.consider_load(load);
    want_tick();
  } else {
    if (chance(0.5)) {
      spawn(std::nullopt);  // one more from elsewhere
    } else {
      for (auto const& member : membership_.members())
        if (chance(0.3)) membership_.set_speed(member.life, chance(0.5) ? 1 : 0.25);
      want_tick();
    }
  }
  after(between(5, 120), [this] { meddle(); });
}

}  // namespace expertmesh::test
