#include "coordinator/cluster/cluster.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/log.h"
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
    case WorkerState::dead:
      return "dead";
    case WorkerState::left:
      return "left";
  }
  return "unknown";
}

class Cluster::Impl {
 public:
  Impl(ClusterOptions options, OnDeath on_death)
      : options_(std::move(options)),
        held_(static_split(options_.experts, options_.num_workers)),
        transport_({.max_ops = kOpsPerWorker * options_.num_workers}),
        control_({.num_workers = options_.num_workers,
                  .isa = options_.isa,
                  .dtype = std::string(name_of(options_.experts.weights.storage)),
                  .heartbeat_interval = options_.heartbeat_interval,
                  .death_timeout = options_.death_timeout,
                  .on_death = [this, on_death = std::move(on_death)](WorkerStatus status) {
                    complete(status);
                    if (on_death) on_death(status);
                  }}) {
    check_message_size();
    for (std::uint32_t i = 0; i < options_.num_workers; ++i)
      peers_.push_back({.worker = WorkerId(i + 1), .incarnation = Incarnation(1), .peer = PeerId(i)});
  }

  void start(OnProgress const& on_progress) {
    spawn();
    bool const all_joined = control_.wait_until(Clock::now() + options_.join_timeout, [](Records const& records) {
      return any_dead(records) || std::ranges::all_of(records, &WorkerRecord::joined);
    });
    Records const joined = control_.records();
    for (WorkerRecord const& record : joined)
      if (!all_joined && !record.joined)
        throw ClusterError("worker " + std::to_string(record.status.id.value()) + ": did not say hello in time");
    throw_for_dead(joined);
    control_.stop_accepting();
    // Not before everyone is there: a worker that finds fault with the model ends, and Open MPI may lose a spawn that
    // meets the end of another process.
    for (WorkerPeer const& peer : peers_) control_.assign(peer.worker, assignment(peer.worker));
    wait_for_loading(on_progress);
  }

  void shutdown() {
    if (std::exchange(shut_down_, true)) return;
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
    for (auto& record : control_.records()) {
      complete(record.status);
      out.push_back(std::move(record.status));
    }
    return out;
  }

  std::size_t resident_bytes() const {
    std::size_t bytes = 0;
    for (auto const& record : control_.records()) bytes += record.status.resident_bytes;
    return bytes;
  }

  ClusterOptions const options_;
  std::vector<HeldExperts> const held_;  // [N]
  std::vector<WorkerPeer> peers_;
  std::vector<std::shared_ptr<void const>> kept_;  // before the transport, which goes first
  MpiTransport transport_;
  ControlServer control_;

 private:
  void spawn() {
    auto const deadline = Clock::now() + options_.join_timeout;
    for (WorkerPeer const& peer : peers_) {
      throw_for_dead(control_.records());
      std::vector<std::string> arguments{"--control",     control_.address(),
                                         "--worker-id",   std::to_string(peer.worker.value()),
                                         "--incarnation", std::to_string(peer.incarnation.value()),
                                         "--secret-file", control_.secret().path().string(),
                                         "--threads",     std::to_string(options_.threads_per_worker),
                                         "--isa",         options_.isa};
      if (options_.shared_cores) arguments.emplace_back("--shared-cores");
      if (std::string const cores = cores_of(peer.worker); !cores.empty())
        arguments.insert(arguments.end(), {"--cores", cores});
      auto const left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
      try {
        transport_.add_peer(peer.peer, spawn_worker(options_.worker_program, arguments, left));
      } catch (MpiError const& error) {
        throw ClusterError("worker " + std::to_string(peer.worker.value()) + ": " + error.what());
      }
    }
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
      progress.total_bytes += packed_expert_bytes(options_.experts, held_[i]);
    }
    double const seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (seconds > 0) progress.bytes_per_second = static_cast<double>(progress.loaded_bytes) / seconds;
    if (progress.bytes_per_second > 0)
      progress.seconds_left =
          static_cast<double>(progress.total_bytes - progress.loaded_bytes) / progress.bytes_per_second;
    if (on_progress) on_progress(progress);
  }

  control::Assign assignment(WorkerId worker) const {
    HeldExperts const& held = held_[worker.value() - 1];
    return {.model_dir = options_.model_dir.string(),
            .load_format = options_.load_format,
            .dummy_seed = options_.dummy_seed,
            .model = options_.experts,
            .held = held,
            .epoch = kFirstEpoch,
            .limits = dispatch_limits(held, options_.max_tokens_per_step, options_.experts_per_token),
            .max_requests = kMaxRequests,
            .heartbeat_ms = static_cast<std::uint32_t>(options_.heartbeat_interval.count())};
  }

  // Fills in what the control plane does not know of a worker.
  void complete(WorkerStatus& status) const {
    status.transport = "mpi";
    status.num_experts = total_held(held_[status.id.value() - 1]);
  }

  // MPI counts bytes in an int.
  void check_message_size() const {
    for (auto const& held : held_)
      for (auto const& layer : options_.experts.layers) {
        DispatchLayout const layout(layer.hidden, options_.experts.wire);
        auto const limits = dispatch_limits(held, options_.max_tokens_per_step, options_.experts_per_token);
        std::size_t const bytes = std::max(layout.request_bytes(limits.max_rows, limits.max_entries),
                                           layout.answer_bytes(limits.max_entries));
        if (bytes > INT_MAX)
          throw ClusterError("a step of " + std::to_string(options_.max_tokens_per_step) +
                             " tokens needs messages of " + std::to_string(bytes) + " bytes, MPI sends at most " +
                             std::to_string(INT_MAX) + ": lower --max-num-batched-tokens");
      }
  }

 public:
  static constexpr PlacementEpoch kFirstEpoch{1};

 private:
  bool shut_down_ = false;
};

Cluster::Cluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

std::unique_ptr<Cluster> Cluster::start(ClusterOptions options, OnProgress const& on_progress, OnDeath on_death) {
  auto cluster = std::unique_ptr<Cluster>(new Cluster(std::make_unique<Impl>(std::move(options), std::move(on_death))));
  cluster->impl_->start(on_progress);  // if it throws, the destructor ends what was started
  return cluster;
}

Cluster::~Cluster() {
  shutdown();
}
void Cluster::shutdown() {
  impl_->shutdown();
}
std::vector<WorkerStatus> Cluster::status() const {
  return impl_->status();
}
Transport& Cluster::transport() {
  return impl_->transport_;
}
std::vector<WorkerPeer> const& Cluster::peers() const {
  return impl_->peers_;
}
PlacementEpoch Cluster::epoch() const {
  return Impl::kFirstEpoch;
}
HeldExperts const& Cluster::held(WorkerId worker) const {
  return impl_->held_[worker.value() - 1];
}
std::size_t Cluster::resident_bytes() const {
  return impl_->resident_bytes();
}
void Cluster::keep(std::shared_ptr<void const> memory) {
  impl_->kept_.push_back(std::move(memory));
}
bool Cluster::dead(WorkerId worker) const {
  return impl_->control_.dead(worker);
}
std::string Cluster::death_reason(WorkerId worker) const {
  return impl_->control_.death_reason(worker);
}
void Cluster::declare_dead(WorkerId worker, std::string const& reason) {
  impl_->control_.declare_dead(worker, reason);
}
void Cluster::idle() {
  impl_->control_.idle();
}
void Cluster::wake() {
  impl_->control_.wake();
}

}  // namespace expertmesh
