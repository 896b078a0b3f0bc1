#include "coordinator/cluster/cluster.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/log.h"
#include "common/moe/placement_plan.h"
#include "common/protocol/control_messages.h"
#include "common/transport/mpi_runtime.h"
#include "common/transport/mpi_transport.h"
#include "coordinator/cluster/control_server.h"
#include "coordinator/cluster/static_split.h"

namespace expertmesh {
namespace {

using Clock = std::chrono::steady_clock;
using Records = std::vector<WorkerRecord>;

constexpr auto kProgressInterval = std::chrono::milliseconds(250);
// Requests a worker may get before it has answered the first: one for each micro-batch in flight.
constexpr std::uint32_t kMaxRequests = 2;
// Posted at once for a worker: a send and a receive for each micro-batch, and as many still in quarantine.
constexpr std::size_t kOpsPerWorker = 4 * kMaxRequests;
constexpr std::size_t kMaxQuarantinedOps = 4096;                // of dead workers, all together
constexpr std::size_t kMaxFailedStarts = 3;                     // in a row, then a worker is left dead
constexpr std::size_t kMaxWorkers = 256;                        // at once, those that died for good included
constexpr double kWorthAMove = 0.1;                             // of the balance, for load alone to move experts
constexpr auto kRestartPause = std::chrono::milliseconds(200);  // after one; twice that after two

bool any_dead(Records const& records) {
  return std::ranges::any_of(records, [](auto const& r) { return r.status.state == WorkerState::dead; });
}

bool all_in(Records const& records, WorkerState state) {
  return std::ranges::all_of(records, [&](auto const& r) { return r.status.state == state; });
}

std::size_t total_held(HeldExperts const& held) {
  std::size_t total = 0;
  for (auto const& layer : held) total += layer.size();
  return total;
}

// The start cannot go on without them.
void throw_for_dead(Records const& records) {
  for (auto const& record : records) {
    if (record.status.state != WorkerState::dead) continue;
    std::string const text = "worker " + std::to_string(record.status.id.value()) + ": " + record.status.death_reason;
    if (record.failure_kind == control::FailureKind::model) throw ModelError(text);
    throw ClusterError(text);
  }
}

}  // namespace

char const* name_of(WorkerState state) {
  switch (state) {
    case WorkerState::joining:
      return "joining";
    case WorkerState::loading:
      return "loading";
    case WorkerState::serving:
      return "serving";
    case WorkerState::draining:
      return "draining";
    case WorkerState::dead:
      return "dead";
    case WorkerState::left:
      return "left";
  }
  return "unknown";
}

class Cluster::Impl {
 public:
  Impl(ClusterOptions options, OnChange on_change)
      : options_(std::move(options)),
        on_change_(std::move(on_change)),
        transport_({.max_ops = kOpsPerWorker * kMaxWorkers + kMaxQuarantinedOps}),
        control_({.max_workers = kMaxWorkers,
                  .isa = options_.isa,
                  .dtype = std::string(name_of(options_.experts.weights.storage)),
                  .heartbeat_interval = options_.heartbeat_interval,
                  .death_timeout = options_.death_timeout,
                  .on_change = [this](WorkerStatus const& status) { take_change(status); },
                  .on_moved = [this](WorkerId worker, Incarnation life,
                                     PlacementEpoch epoch) { take_moved(worker, life, epoch); },
                  .on_leaving = [this](WorkerId worker, Incarnation) { drain(worker); }}) {
    if (options_.num_workers > kMaxWorkers)
      throw ClusterError(std::to_string(options_.num_workers) + " workers: at most " + std::to_string(kMaxWorkers));
    check_message_size();
    places_.resize(options_.num_workers);
    std::vector<HeldExperts> first = static_split(options_.experts, options_.num_workers);
    if (options_.redundant_experts > 0) first = plan(first);
    for (std::size_t w = 0; w < first.size(); ++w)
      places_[w].held = std::make_shared<HeldExperts const>(std::move(first[w]));
  }

  ~Impl() { stop_supervising(); }

  void start(OnProgress const& on_progress) {
    auto const deadline = Clock::now() + options_.join_timeout;
    for (std::uint32_t i = 0; i < places_.size(); ++i) {
      throw_for_dead(control_.records());
      spawn(WorkerId(i + 1), deadline);
    }
    bool const all_joined = control_.wait_until(deadline, [](Records const& records) {
      return any_dead(records) || std::ranges::all_of(records, &WorkerRecord::joined);
    });
    Records const joined = control_.records();
    for (WorkerRecord const& record : joined)
      if (!all_joined && !record.joined)
        throw ClusterError("worker " + std::to_string(record.status.id.value()) + ": did not say hello in time");
    throw_for_dead(joined);
    for (std::uint32_t i = 0; i < places_.size(); ++i) assign(WorkerId(i + 1));
    wait_for_loading(on_progress);
    {
      std::lock_guard lock(mutex_);
      supervising_ = true;
    }
    for (auto const& record : control_.records())  // one may have died just now
      if (record.status.state == WorkerState::dead) take_change(record.status);
    supervisor_ = std::thread([this] { supervise(); });
  }

  void shutdown() {
    if (std::exchange(shut_down_, true)) return;
    stop_supervising();
    control_.shutdown_workers();
    bool const all_gone = control_.wait_until(Clock::now() + options_.leave_timeout, [](Records const& records) {
      return std::ranges::all_of(records, [](auto const& r) {
        return !r.joined || r.status.state == WorkerState::left || r.status.state == WorkerState::dead;
      });
    });
    if (!all_gone) spdlog::warn("workers did not leave within {} s: they are killed", options_.leave_timeout.count());
    control_.kill_remaining();
  }

  std::vector<WorkerStatus> status() const {
    std::vector<WorkerStatus> out;
    std::lock_guard lock(mutex_);
    for (auto& record : control_.records()) {
      complete(record.status);
      out.push_back(std::move(record.status));
    }
    return out;
  }

  std::size_t resident_bytes() const {
    std::size_t bytes = 0;
    for (auto const& record : control_.records())
      if (record.status.state == WorkerState::serving) bytes += record.status.resident_bytes;
    return bytes;
  }

  std::vector<WorkerPeer> members() {
    std::lock_guard lock(mutex_);
    std::vector<WorkerPeer> members;
    for (Place& place : places_) {
      if (!place.serving) continue;
      if (place.comm) transport_.add_peer(place.peer.peer, *std::exchange(place.comm, std::nullopt));
      members.push_back(place.peer);
    }
    return members;
  }

  std::optional<std::string> add_worker() {
    std::lock_guard lock(mutex_);
    if (!supervising_ || stopping_) return "the cluster is not up";
    // In the place of one that has left, if there is one: as its next life.
    Records const records = control_.records();
    auto const gone = std::ranges::find_if(records, [&](WorkerRecord const& record) {
      WorkerState const state = record.status.state;
      return place(record.status.id).left && (state == WorkerState::left || state == WorkerState::dead);
    });
    if (gone == records.end() && places_.size() == kMaxWorkers)
      return "there are " + std::to_string(kMaxWorkers) + " workers already";
    Place& p = gone != records.end() ? place(gone->status.id) : places_.emplace_back();
    p.left = false;
    p.failed_starts = 0;
    p.held = std::make_shared<HeldExperts const>(options_.experts.layers.size());
    p.replace_at = Clock::now();
    changed_.notify_all();
    return std::nullopt;
  }

  std::optional<std::string> drain(WorkerId worker) {
    std::lock_guard lock(mutex_);
    std::string const name = "worker " + std::to_string(worker.value());
    if (worker.value() < 1 || worker.value() > places_.size()) return "there is no " + name;
    Place& p = place(worker);
    if (!p.stays()) return name + (p.draining ? " is leaving already" : " is gone already");
    if (std::ranges::count_if(places_, &Place::stays) == 1) return name + " is the last one";
    p.draining = true;
    replan_ = true;
    changed_.notify_all();
    return std::nullopt;
  }

  void consider_load(std::vector<std::vector<double>> load) {
    std::lock_guard lock(mutex_);
    load_ = std::move(load);
    if (!move_) look_at_load_ = true;
    changed_.notify_all();
  }

  Balance balance() const {
    std::lock_guard lock(mutex_);
    Balance out = balance_;
    out.moving = move_.has_value() || replan_;
    return out;
  }

  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }

 private:
  // One worker and its lives.
  struct Place {
    std::shared_ptr<HeldExperts const> held;
    WorkerPeer peer;              // the present life
    std::optional<MpiComm> comm;  // to it, until the transport has it
    bool serving = false;
    std::size_t failed_starts = 0;  // in a row
    std::optional<Clock::time_point> replace_at;
    bool given_up = false;  // left dead
    bool draining = false;  // leaves when its experts are elsewhere
    bool left = false;
    // Of the move under way: what it will hold.
    std::shared_ptr<HeldExperts const> target;
    bool asked = false;   // this life has been told
    bool loaded = false;  // and has done it

    [[nodiscard]] bool stays() const { return !given_up && !draining && !left; }
  };
  struct Move {
    PlacementEpoch epoch;
    std::size_t experts = 0;  // that get another holder
    double before = 1;
    double after = 1;
  };

  Place& place(WorkerId worker) { return places_[worker.value() - 1]; }

  // The next life of a worker, up to its place in MPI; its hello may still be on its way. Throws ClusterError.
  void spawn(WorkerId worker, Clock::time_point deadline) {
    WorkerPeer peer;
    {
      std::lock_guard lock(mutex_);
      Place& p = place(worker);
      p.peer = {.worker = worker,
                .incarnation = Incarnation(p.peer.incarnation.value() + 1),
                .peer = PeerId(next_peer_++),
                .epoch = PlacementEpoch(++last_epoch_),
                .held = p.target ? p.target : p.held};
      p.comm.reset();
      peer = p.peer;
    }
    control_.expect(worker, peer.incarnation);
    std::vector<std::string> arguments{"--control",     control_.address(),
                                       "--worker-id",   std::to_string(worker.value()),
                                       "--incarnation", std::to_string(peer.incarnation.value()),
                                       "--secret-file", control_.secret().path().string(),
                                       "--threads",     std::to_string(options_.threads_per_worker),
                                       "--isa",         options_.isa};
    if (options_.shared_cores) arguments.emplace_back("--shared-cores");
    if (std::string const cores = cores_of(worker); !cores.empty())
      arguments.insert(arguments.end(), {"--cores", cores});
    auto const left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    try {
      MpiComm const comm = spawn_worker(options_.worker_program, arguments, left,
                                        [&] { return stopping_ || control_.dead(worker, peer.incarnation); });
      std::lock_guard lock(mutex_);
      place(worker).comm = comm;
    } catch (MpiError const& error) {
      throw ClusterError("worker " + std::to_string(worker.value()) + ": " + error.what());
    }
  }

  void assign(WorkerId worker) {
    WorkerPeer peer;
    {
      std::lock_guard lock(mutex_);
      peer = place(worker).peer;
    }
    control_.assign(worker, assignment(peer));
  }

  // ---- deaths

  // Monitor thread.
  void take_change(WorkerStatus status) {
    {
      std::lock_guard lock(mutex_);
      Place& p = place(status.id);
      if (status.incarnation != p.peer.incarnation) return;
      bool const served = std::exchange(p.serving, status.state == WorkerState::serving);
      p.asked = p.loaded = false;
      version_.fetch_add(1, std::memory_order_release);
      if (p.serving) {
        p.failed_starts = 0;
        // A newcomer gets its share; and one that was given its experts before the present plan follows it.
        if (!move_ && (p.peer.held != p.held || holds_nothing(*p.held))) replan_ = true;
      } else if (supervising_) {
        after_death(status, p, served);
      }
      changed_.notify_all();
      complete(status);
    }
    if (on_change_) on_change_(status);
  }

  void after_death(WorkerStatus const& status, Place& p, bool served) {
    if (p.draining) {  // it saved us the rest
      p.draining = false;
      p.left = true;
      replan_ = true;
    } else if (!p.replace_at && !p.left && !p.given_up) {
      if (!served && ++p.failed_starts >= kMaxFailedStarts) {
        spdlog::error("worker {} died {} times in a row before it served, now of: {}; it is left dead",
                      status.id.value(), p.failed_starts, status.death_reason);
        p.given_up = true;
        replan_ = true;
      } else {
        p.replace_at = Clock::now() + (p.failed_starts == 0 ? Clock::duration{0} : kRestartPause * p.failed_starts);
      }
    }
  }

  // Monitor thread.
  void take_moved(WorkerId worker, Incarnation life, PlacementEpoch epoch) {
    std::lock_guard lock(mutex_);
    Place& p = place(worker);
    if (!move_ || epoch != move_->epoch || life != p.peer.incarnation) return;
    p.loaded = true;
    changed_.notify_all();
  }

  // ---- the supervisor thread: what takes its time, and nobody waits for

  void supervise() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (move_) {
        ask_and_commit();
      } else if (std::exchange(replan_, false)) {
        begin_move(Reason::members);
        continue;
      } else if (std::exchange(look_at_load_, false)) {
        begin_move(Reason::load);
        continue;
      }
      if (!move_ && (replan_ || look_at_load_)) continue;
      auto const next = std::ranges::min_element(
          places_, {}, [](Place const& p) { return p.replace_at.value_or(Clock::time_point::max()); });
      if (!next->replace_at) {
        changed_.wait(lock);
        continue;
      }
      if (auto const when = *next->replace_at; Clock::now() < when) {
        changed_.wait_until(lock, when);
        continue;
      }
      next->replace_at.reset();
      WorkerId const worker(static_cast<std::uint32_t>(next - places_.begin()) + 1);
      lock.unlock();
      replace(worker);
      lock.lock();
    }
  }

  // ---- moves; with mutex_ held

  enum class Reason : bool { members, load };

  static bool holds_nothing(HeldExperts const& held) {
    return std::ranges::all_of(held, [](auto const& layer) { return layer.empty(); });
  }

  [[nodiscard]] std::vector<double> capacities() const {
    std::vector<double> out;
    for (Place const& p : places_) out.push_back(p.stays() ? 1 : 0);
    return out;
  }
  [[nodiscard]] std::vector<double> load_of(std::size_t layer) const {
    return load_.empty() ? std::vector<double>(options_.experts.layers[layer].experts.size(), 1.0) : load_[layer];
  }
  [[nodiscard]] static LayerShares layer_of(std::vector<HeldExperts> const& held, std::size_t layer) {
    LayerShares out;
    for (auto const& of_worker : held) out.push_back(of_worker[layer]);
    return out;
  }
  [[nodiscard]] std::vector<HeldExperts> plan(std::vector<HeldExperts> const& current) const {
    std::vector<HeldExperts> out(places_.size(), HeldExperts(options_.experts.layers.size()));
    for (std::size_t i = 0; i < options_.experts.layers.size(); ++i) {
      LayerShares const shares = plan_layer({.load = load_of(i),
                                             .capacity = capacities(),
                                             .redundant = options_.redundant_experts,
                                             .current = layer_of(current, i)});
      for (std::size_t w = 0; w < places_.size(); ++w) out[w][i] = shares[w];
    }
    return out;
  }
  [[nodiscard]] double mean_imbalance(std::vector<HeldExperts> const& held) const {
    double sum = 0;
    for (std::size_t i = 0; i < options_.experts.layers.size(); ++i)
      sum += imbalance(load_of(i), capacities(), layer_of(held, i));
    return sum / static_cast<double>(options_.experts.layers.size());
  }

  void begin_move(Reason reason) {
    if (std::ranges::none_of(places_, &Place::stays)) return;
    std::vector<HeldExperts> current;
    for (Place const& p : places_) current.push_back(*p.held);
    std::vector<HeldExperts> const wanted = plan(current);
    Move move{.epoch = PlacementEpoch(last_epoch_ + 1),
              .experts = 0,
              .before = mean_imbalance(current),
              .after = mean_imbalance(wanted)};
    if (reason == Reason::load && move.before - move.after < kWorthAMove) return;
    bool const as_it_is = std::ranges::all_of(
        places_, [](Place const& p) { return !p.draining && (!p.serving || p.peer.held == p.held); });
    if (as_it_is && wanted == current) return;
    ++last_epoch_;
    for (std::size_t w = 0; w < places_.size(); ++w) {
      Place& p = places_[w];
      p.target = wanted[w] == current[w] ? p.held : std::make_shared<HeldExperts const>(wanted[w]);
      p.asked = p.loaded = false;
      for (std::size_t i = 0; i < wanted[w].size(); ++i)
        for (std::uint32_t const e : wanted[w][i])
          if (!std::ranges::binary_search(current[w][i], e)) ++move.experts;
    }
    spdlog::info(
        "placement {}: {} experts get another holder; the most loaded worker's share goes from {:.2f} to {:.2f} "
        "of a fair one",
        move.epoch.value(), move.experts, move.before, move.after);
    move_ = move;
  }

  // Tells those that serve what to load; when all that live have it, all change over at once.
  void ask_and_commit() {
    bool all = true;
    for (std::uint32_t w = 0; w < places_.size(); ++w) {
      Place& p = places_[w];
      if (!p.serving || p.peer.held == p.target) continue;
      if (!std::exchange(p.asked, true)) {
        p.loaded = *p.peer.held == *p.target;
        if (!p.loaded) control_.hold(WorkerId(w + 1), {.held = *p.target, .epoch = move_->epoch});
      }
      all = all && p.loaded;
    }
    if (!all) return;
    for (std::uint32_t w = 0; w < places_.size(); ++w) {
      Place& p = places_[w];
      if (p.serving && *p.peer.held != *p.target) p.peer.epoch = move_->epoch;
      if (p.serving) p.peer.held = p.target;
      p.held = std::exchange(p.target, nullptr);
      if (!p.draining) continue;
      if (p.serving) control_.shutdown_worker(WorkerId(w + 1));
      spdlog::info("worker {} leaves: its experts are elsewhere", w + 1);
      p.serving = p.draining = false;
      p.replace_at.reset();
      p.left = true;
    }
    balance_.num_moves += 1;
    balance_.experts_moved += move_->experts;
    balance_.before = move_->before;
    balance_.after = move_->after;
    move_.reset();
    version_.fetch_add(1, std::memory_order_release);
  }

  // ---- back to deaths

  void replace(WorkerId worker) {
    auto const deadline = Clock::now() + options_.rejoin_timeout;
    Incarnation incarnation;
    try {
      spawn(worker, deadline);
      {
        std::lock_guard lock(mutex_);
        incarnation = place(worker).peer.incarnation;
      }
      control_.wait_until(deadline, [&](Records const& records) {
        auto const& record = records[worker.value() - 1];
        return record.joined || record.status.state == WorkerState::dead;
      });
      assign(worker);
    } catch (ClusterError const& error) {
      if (stopping_) return;
      {
        std::lock_guard lock(mutex_);
        incarnation = place(worker).peer.incarnation;
      }
      control_.declare_dead(worker, incarnation, error.what());
    }
  }

  void stop_supervising() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    if (supervisor_.joinable()) supervisor_.join();
  }

  // "0,1", or empty: any. Left to itself, the system now and then keeps two workers on one core while another is free.
  std::string cores_of(WorkerId worker) const {
    std::vector<int> const cores = allowed_cores();
    std::size_t const each = options_.threads_per_worker;
    if (!options_.shared_cores || options_.num_workers * each > cores.size()) return {};
    std::string text;
    for (std::size_t c = (worker.value() - 1) * each; c < worker.value() * each; ++c)
      text += (text.empty() ? "" : ",") + std::to_string(cores[c]);
    return text;
  }

  void wait_for_loading(OnProgress const& on_progress) {
    auto const begin = Clock::now();
    auto const done = [](Records const& records) { return any_dead(records) || all_in(records, WorkerState::serving); };
    for (bool finished = false; !finished;) {
      finished = control_.wait_until(Clock::now() + kProgressInterval, done);
      Records const records = control_.records();
      report(records, begin, on_progress);
      throw_for_dead(records);
      if (!finished && Clock::now() - begin > options_.load_timeout)
        throw ClusterError("the workers did not load their experts within " +
                           std::to_string(options_.load_timeout.count()) + " s");
    }
  }

  void report(Records const& records, Clock::time_point begin, OnProgress const& on_progress) const {
    LoadProgress progress;
    for (std::size_t i = 0; i < records.size(); ++i) {
      bool const serving = records[i].status.state == WorkerState::serving;
      progress.loaded_bytes += serving ? records[i].status.resident_bytes : records[i].loaded_bytes;
      progress.total_bytes += packed_expert_bytes(options_.experts, *places_[i].held);
    }
    double const seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (seconds > 0) progress.bytes_per_second = static_cast<double>(progress.loaded_bytes) / seconds;
    if (progress.bytes_per_second > 0)
      progress.seconds_left =
          static_cast<double>(progress.total_bytes - progress.loaded_bytes) / progress.bytes_per_second;
    if (on_progress) on_progress(progress);
  }

  control::Assign assignment(WorkerPeer const& peer) const {
    return {.model_dir = options_.model_dir.string(),
            .load_format = options_.load_format,
            .dummy_seed = options_.dummy_seed,
            .model = options_.experts,
            .held = *peer.held,
            .epoch = peer.epoch,
            .limits = dispatch_limits(options_.experts, options_.max_tokens_per_step, options_.experts_per_token),
            .max_requests = kMaxRequests,
            .heartbeat_ms = static_cast<std::uint32_t>(options_.heartbeat_interval.count())};
  }

  // Fills in what the control plane does not know of a worker. With mutex_ held.
  void complete(WorkerStatus& status) const {
    Place const& p = places_[status.id.value() - 1];
    status.transport = "mpi";
    status.num_experts = total_held(p.peer.held ? *p.peer.held : *p.held);
    if (p.draining && status.state == WorkerState::serving) status.state = WorkerState::draining;
  }

  // MPI counts bytes in an int.
  void check_message_size() const {
    auto const limits = dispatch_limits(options_.experts, options_.max_tokens_per_step, options_.experts_per_token);
    for (auto const& layer : options_.experts.layers) {
      DispatchLayout const layout(layer.hidden, options_.experts.wire);
      std::size_t const bytes =
          std::max(layout.request_bytes(limits.max_rows, limits.max_entries), layout.answer_bytes(limits.max_entries));
      if (bytes > INT_MAX)
        throw ClusterError("a step of " + std::to_string(options_.max_tokens_per_step) + " tokens needs messages of " +
                           std::to_string(bytes) + " bytes, MPI sends at most " + std::to_string(INT_MAX) +
                           ": lower --max-num-batched-tokens");
    }
  }

  ClusterOptions const options_;
  OnChange const on_change_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Place> places_;  // worker w at w - 1; guarded by mutex_, like the rest down to balance_
  bool supervising_ = false;  // after the start
  bool replan_ = false;       // the members changed
  bool look_at_load_ = false;
  std::vector<std::vector<double>> load_;  // [layers][E] lately; empty: unknown
  std::optional<Move> move_;               // under way
  Balance balance_;
  std::atomic<bool> stopping_ = false;
  std::atomic<std::uint64_t> version_ = 1;
  std::uint32_t next_peer_ = 0;
  std::uint32_t last_epoch_ = 0;
  std::thread supervisor_;
  bool shut_down_ = false;

 public:
  std::vector<std::shared_ptr<void const>> kept_;  // before the transport, which goes first
  MpiTransport transport_;
  ControlServer control_;  // calls take_change() as long as it is there
};

Cluster::Cluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

std::unique_ptr<Cluster> Cluster::start(ClusterOptions options, OnProgress const& on_progress, OnChange on_change) {
  auto cluster =
      std::unique_ptr<Cluster>(new Cluster(std::make_unique<Impl>(std::move(options), std::move(on_change))));
  cluster->impl_->start(on_progress);  // if it throws, the destructor ends what was started
  return cluster;
}

Cluster::~Cluster() {
  shutdown();
}
void Cluster::shutdown() {
  impl_->shutdown();
}
std::optional<std::string> Cluster::add_worker() {
  return impl_->add_worker();
}
std::optional<std::string> Cluster::drain(WorkerId worker) {
  return impl_->drain(worker);
}
void Cluster::consider_load(std::vector<std::vector<double>> load) {
  impl_->consider_load(std::move(load));
}
Cluster::Balance Cluster::balance() const {
  return impl_->balance();
}
std::vector<WorkerStatus> Cluster::status() const {
  return impl_->status();
}
Transport& Cluster::transport() {
  return impl_->transport_;
}
std::vector<WorkerPeer> Cluster::members() {
  return impl_->members();
}
void Cluster::keep(std::shared_ptr<void const> memory) {
  impl_->kept_.push_back(std::move(memory));
}
std::uint64_t Cluster::version() const {
  return impl_->version();
}
bool Cluster::dead(WorkerPeer const& member) const {
  return impl_->control_.dead(member.worker, member.incarnation);
}
std::string Cluster::death_reason(WorkerPeer const& member) const {
  return impl_->control_.death_reason(member.worker);
}
void Cluster::declare_dead(WorkerPeer const& member, std::string const& reason) {
  impl_->control_.declare_dead(member.worker, member.incarnation, reason);
}
std::size_t Cluster::resident_bytes() const {
  return impl_->resident_bytes();
}
void Cluster::idle() {
  impl_->control_.idle();
}
void Cluster::wake() {
  impl_->control_.wake();
}

}  // namespace expertmesh
