#include "coordinator/cluster/cluster.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <mutex>
#include <thread>
#include <utility>

#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/log.h"
#include "common/base/network_interface.h"
#include "common/checkpoint/fingerprint.h"
#include "common/protocol/control_messages.h"
#include "common/transport/mpi_runtime.h"
#include "coordinator/cluster/capacity_book.h"
#include "coordinator/cluster/checksum_book.h"
#include "coordinator/cluster/cluster_transport.h"
#include "coordinator/cluster/control_server.h"
#include "coordinator/cluster/leaving_workers.h"
#include "coordinator/cluster/link_offer.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/static_split.h"
#include "coordinator/cluster/weight_server.h"

namespace expertmesh {
namespace {

using Clock = std::chrono::steady_clock;
using Records = std::vector<WorkerRecord>;

constexpr auto kProgressInterval = std::chrono::milliseconds(250);
// Requests a worker may get before it has answered the first: one for each micro-batch in flight.
constexpr std::uint32_t kMaxRequests = 2;
// Posted at once for a worker: a send and a receive for each micro-batch, and as many still in quarantine.
constexpr std::size_t kOpsPerWorker = 4 * kMaxRequests;
constexpr std::size_t kMaxQuarantinedOps = 4096;  // of dead workers, all together
constexpr std::size_t kMaxWorkers = 256;          // at once, those that died for good included

std::size_t total_held(HeldExperts const& held) {
  std::size_t total = 0;
  for (auto const& layer : held) total += layer.size();
  return total;
}

// Room for the largest messages, and for as many as may be on their way.
ShmShape message_shape(ClusterOptions const& options) {
  auto const limits = dispatch_limits(options.experts, options.max_tokens_per_step, options.experts_per_token);
  ShmShape shape{.to_worker = {.num_slots = 2 * kMaxRequests}, .to_coordinator = {.num_slots = 2 * kMaxRequests}};
  for (auto const& layer : options.experts.layers) {
    DispatchLayout const layout(layer.hidden, options.experts.wire);
    for (auto [ring, bytes] : {std::pair(&shape.to_worker, layout.request_bytes(limits.max_rows, limits.max_entries)),
                               std::pair(&shape.to_coordinator, layout.answer_bytes(limits.max_entries))})
      ring->slot_bytes = std::max(ring->slot_bytes, bytes);
  }
  return shape;
}

}  // namespace

class Cluster::Impl {
 public:
  Impl(ClusterOptions options, WeightSource const& source, OnChange on_change)
      : options_(std::move(options)),
        on_change_(std::move(on_change)),
        checkpoint_(options_.load_format == LoadFormat::dummy ? Fingerprint{} : fingerprint_of(options_.model_dir)),
        name_server_(takes_remote() ? read_name_server() : ""),
        checksums_(options_.experts, source, options_.verify_weights),
        membership_({.num_experts = num_experts_of(options_.experts),
                     .num_local = options_.num_workers,
                     .num_remote = options_.remote.num_workers,
                     .redundant_experts = options_.redundant_experts,
                     .max_workers = kMaxWorkers,
                     .return_time = options_.remote.return_time}),
        capacities_(bytes_of_each(options_.experts)),
        links_(kMaxWorkers),
        transport_({.choice = options_.transport,
                    .shape = message_shape(options_),
                    .max_mpi_ops = kOpsPerWorker * kMaxWorkers + kMaxQuarantinedOps}),
        control_({.max_workers = kMaxWorkers,
                  .address = listen_address(),
                  // Local workers are told the port; several servers may run on one host.
                  .port = takes_remote() ? options_.remote.port : std::uint16_t{0},
                  .secret_file = options_.remote.secret_file,
                  .isa = options_.isa,
                  .mixed_isas = options_.mixed_isas,
                  .checkpoint = checkpoint_,
                  .dtype = std::string(name_of(options_.experts.weights.storage)),
                  .nccl = options_.nccl_required ? static_cast<std::uint32_t>(options_.nccl->version()) : 0,
                  .heartbeat_interval = options_.heartbeat_interval,
                  .death_timeout = options_.death_timeout,
                  .on_change = [this](WorkerStatus const& status) { take_change(status); },
                  .check_loaded = [this](WorkerId worker,
                                         control::Loaded const& loaded) { return check_loaded(worker, loaded); },
                  .on_moved =
                      [this](WorkerId worker, Incarnation incarnation, PlacementEpoch epoch) {
                        tell([&] { membership_.moved({worker, incarnation}, epoch); });
                      },
                  .on_leaving =
                      [this](WorkerId worker, Incarnation incarnation) {
                        tell([&] { membership_.leave({worker, incarnation}); });
                      },
                  .on_join = takes_remote() ? [this] { return take_in(); } : std::function<std::optional<Life>()>()}) {
    check_message_size();
    if (takes_remote() && options_.remote.weights_per_second > 0)
      weight_server_.emplace(source, WeightServer::Options{.address = listen_address(),
                                                           .secret = control_.secret().secret(),
                                                           .bytes_per_second = options_.remote.weights_per_second});
  }

  ~Impl() { stop_supervising(); }

  void start(OnProgress const& on_progress) {
    auto const deadline = Clock::now() + options_.join_timeout;
    std::vector<Membership::Start> starts;
    {
      std::lock_guard lock(mutex_);
      membership_.start_all();
      for (auto& action : membership_.tick(Clock::now())) {
        auto const& start = std::get<Membership::Start>(action);
        if (start.remote)
          to_start_.push_back(start);  // it was fast
        else
          starts.push_back(start);
      }
    }
    for (auto const& start : starts) {
      throw_for_dead(control_.records());
      spawn(start, deadline);
    }
    bool const all_joined = control_.wait_until(deadline, [](Records const& records) {
      return any_dead(records) || std::ranges::all_of(records, [](auto const& record) {
               return record.status.remote || record.capacity.has_value();
             });
    });
    Records const joined = control_.records();
    for (WorkerRecord const& record : joined)
      if (!all_joined && !record.status.remote && !record.capacity)
        throw ClusterError(
            "worker " + std::to_string(record.status.id.value()) +
            (record.joined ? ": did not say what it is able to do in time" : ": did not say hello in time"));
    throw_for_dead(joined);
    for (auto const& start : starts) learn_capacity(start.life);  // of all of them, before the first is assigned any
    for (auto const& start : starts) assign(start.life);
    wait_for_loading(on_progress, DeadLocal::ends_it, [](Records const& records) {
      return std::ranges::all_of(records, [](auto const& record) {
        return record.status.remote || record.status.state == WorkerState::serving;
      });
    });
    {
      std::lock_guard lock(mutex_);
      membership_.supervise(Clock::now());
    }
    supervisor_ = std::thread([this] { supervise(); });
    starter_ = std::thread([this] { start_workers(); });
    if (!takes_remote()) return;
    spdlog::info("workers of other hosts may join: expertmesh worker --join {} --secret-file {}", control_.address(),
                 control_.secret().path().string());
    wait_for_loading(on_progress, DeadLocal::is_replaced, [this](Records const& records) {
      return std::ranges::count_if(records, [](auto const& record) {
               return record.status.remote && record.status.state == WorkerState::serving;
             }) >= static_cast<std::ptrdiff_t>(options_.remote.num_workers);
    });
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
    for (auto const& [life, share] : membership_.members()) {
      Link& link = links_[life.worker.value() - 1];
      if (link.comm) link.by_shm = transport_.add_peer(link.peer, life.worker, *std::exchange(link.comm, std::nullopt));
      members.push_back({.worker = life.worker,
                         .incarnation = life.incarnation,
                         .peer = link.peer,
                         .epoch = share.epoch,
                         .held = share.held,
                         .link_id = link.rows.id,
                         .by_shm = link.by_shm});
    }
    return members;
  }

  std::optional<std::string> add_worker() {
    return ask([&] { return membership_.add_local(); });
  }
  std::optional<std::string> drain(WorkerId worker) {
    return ask([&] { return membership_.drain(worker); });
  }
  void set_speed(Life life, double speed) {
    tell([&] { membership_.set_speed(life, speed); });
  }
  void consider_load(std::vector<std::vector<double>> load) {
    tell([&] { membership_.consider_load(std::move(load)); });
  }

  Balance balance() const {
    std::lock_guard lock(mutex_);
    return membership_.balance();
  }

  void set_row_transport(WorkerPeer const& member, std::string const& how) {
    std::lock_guard lock(mutex_);
    Link& link = links_[member.worker.value() - 1];
    if (link.peer == member.peer) link.rows.how = how;
  }

  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }

  void adopted(std::uint64_t version) {
    if (leaving_.is_news(version)) tell([&] { leaving_.adopted(version); });
  }
  void set_idle(bool idle) {
    tell([&] { leaving_.set_idle(idle); });
  }

 private:
  // How the step path reaches the present life of a worker.
  struct Link {
    PeerId peer;
    std::optional<MpiComm> comm;  // until the transport has it
    bool by_shm = false;          // its messages, from then on
    LinkOffer rows{};
  };

  // ---- to the membership, and what it wants done

  template <class Event>
  void tell(Event const& event) {
    std::lock_guard lock(mutex_);
    event();
    version_.store(membership_.version(), std::memory_order_release);
    changed_.notify_all();
  }
  // As tell(), for a wish that may be refused.
  template <class Wish>
  std::optional<std::string> ask(Wish const& wish) {
    std::lock_guard lock(mutex_);
    if (stopping_) return "the cluster is shutting down";
    std::optional<std::string> refusal = wish();
    changed_.notify_all();
    return refusal;
  }

  // Monitor thread.
  void take_change(WorkerStatus status) {
    Life const life{.worker = status.id, .incarnation = status.incarnation};
    tell([&] {
      if (status.state == WorkerState::serving)
        membership_.serves(life);
      else
        membership_.ended(life, Clock::now());
      complete(status);
    });
    if (on_change_) on_change_(status);
  }

  // The supervisor's thread: placements are planned on it, nobody waits for it.
  void supervise() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      auto const actions = membership_.tick(Clock::now());
      version_.store(membership_.version(), std::memory_order_release);
      for (auto const& action : actions) {
        if (auto const* start = std::get_if<Membership::Start>(&action))
          to_start_.push_back(*start);
        else if (auto const* hold = std::get_if<Membership::Hold>(&action))
          control_.hold(hold->life, {.held = *hold->share.held, .epoch = hold->share.epoch});
        else if (auto const* let_go = std::get_if<Membership::LetGo>(&action))
          leaving_.add(let_go->life, version_);
      }
      for (Life const life : leaving_.take()) control_.let_go(life);
      if (!actions.empty()) {
        changed_.notify_all();  // the starter
        continue;
      }
      if (auto const next = membership_.next_tick())
        changed_.wait_until(lock, *next);
      else
        changed_.wait(lock);
    }
  }

  // A thread of its own: a start may take seconds, or never end.
  void start_workers() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stopping_ || !to_start_.empty(); });
      if (stopping_) return;
      Membership::Start const start = to_start_.front();
      to_start_.pop_front();
      lock.unlock();
      replace(start);
      lock.lock();
    }
  }

  [[nodiscard]] bool takes_remote() const { return !options_.remote.interface.empty(); }

  std::string listen_address() const {
    if (!takes_remote()) return "127.0.0.1";
    auto const address = address_of_interface(options_.remote.interface);
    if (!address)
      throw ClusterError("--interface " + options_.remote.interface + ": there is none with an IPv4 address");
    return *address;
  }

  // Where the launcher has put the URI of Open MPI's name server, through which processes of other hosts connect.
  static std::string read_name_server() {
    char const* const where = std::getenv("OMPI_MCA_pmix_server_uri");
    std::string const prefix = "file:";
    std::string uri;
    if (where != nullptr && std::string_view(where).starts_with(prefix))
      std::getline(std::ifstream(where + prefix.size()) >> std::ws, uri);
    if (uri.empty()) throw ClusterError("there is no Open MPI name server: start this program with 'expertmesh serve'");
    return uri;
  }

  // Monitor thread.
  std::string check_loaded(WorkerId worker, control::Loaded const& loaded) {
    std::string const objection = transport_.objection(worker, loaded.transport);
    return objection.empty() ? checksums_.enter(loaded) : objection;
  }

  // Monitor thread.
  std::optional<Life> take_in() {
    std::optional<Life> life;
    tell([&] { life = membership_.join(); });
    return life;
  }

  // One that came by itself, up to its place in MPI. Throws ClusterError.
  void accept(Membership::Start const& start, Clock::time_point deadline) {
    WorkerId const worker = start.life.worker;
    {
      std::lock_guard lock(mutex_);
      links_[worker.value() - 1] = {.peer = PeerId(next_peer_++), .comm = std::nullopt};
    }
    // Its welcome is under way on the monitor thread.
    control_.wait_until(deadline, [&](Records const& records) {
      return records.size() >= worker.value() &&
             records[worker.value() - 1].status.incarnation >= start.life.incarnation;
    });
    auto const left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    try {
      MpiComm const comm = accept_worker(
          [&](std::string const& port) { control_.connect(start.life, {.port = port, .name_server = name_server_}); },
          [&] { return control_.called(start.life); }, left,
          [&] { return stopping_ || control_.dead(worker, start.life.incarnation); });
      std::lock_guard lock(mutex_);
      links_[worker.value() - 1].comm = comm;
    } catch (MpiError const& error) {
      throw_not_come_up(start.life, error);
    }
  }

  // Up to its place in MPI; its hello may still be on its way. Throws ClusterError.
  void spawn(Membership::Start const& start, Clock::time_point deadline) {
    WorkerId const worker = start.life.worker;
    Incarnation const incarnation = start.life.incarnation;
    LocalWorker const& local = local_worker(worker);
    double capacity = local.capacity;
    {
      std::lock_guard lock(mutex_);
      links_[worker.value() - 1] = {.peer = PeerId(next_peer_++), .comm = std::nullopt};
      auto const& known = membership_.place(worker).capacity;  // of its lives before: it need not measure again
      if (known && capacity <= 0) capacity = known->rate / 1e9;
    }
    control_.expect(worker, incarnation);
    std::vector<std::string> arguments{"--control",     control_.address(),
                                       "--worker-id",   std::to_string(worker.value()),
                                       "--incarnation", std::to_string(incarnation.value()),
                                       "--secret-file", control_.secret().path().string(),
                                       "--threads",     std::to_string(local.threads)};
    if (local.device != "cpu") arguments.insert(arguments.end(), {"--device", local.device});
    if (capacity > 0) arguments.insert(arguments.end(), {"--capacity", std::to_string(capacity)});
    if (!options_.packed_cache.empty())
      arguments.insert(arguments.end(), {"--packed-cache", options_.packed_cache.string()});
    if (options_.shared_cores) arguments.emplace_back("--shared-cores");
    if (!local.cores.empty()) arguments.insert(arguments.end(), {"--cores", list_of(local.cores)});
    if (!local.bind) arguments.insert(arguments.end(), {"--bind", "none"});
    auto const left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    try {
      MpiComm const comm = spawn_worker(options_.worker_program, arguments, left,
                                        [&] { return stopping_ || control_.dead(worker, incarnation); });
      std::lock_guard lock(mutex_);
      links_[worker.value() - 1].comm = comm;
    } catch (MpiError const& error) {
      throw_not_come_up(start.life, error);
    }
  }

  [[nodiscard]] LocalWorker const& local_worker(WorkerId worker) const {
    std::size_t const index = worker.value() - 1;
    return index < options_.first_local.size() ? options_.first_local[index] : options_.local;
  }

  // What it has said of itself. The memory of this host is for all of its workers that use it.
  void learn_capacity(Life life) {
    WorkerRecord const record = control_.records()[life.worker.value() - 1];
    if (record.status.incarnation != life.incarnation || !record.capacity) return;  // dead
    control::Capacity capacity = *record.capacity;
    std::lock_guard lock(mutex_);
    if (!record.status.remote) {
      std::string const& device = local_worker(life.worker).device;
      std::size_t sharing = 0;
      for (std::uint32_t w = 1; w <= options_.num_workers; ++w)
        sharing += local_worker(WorkerId(w)).device == device ? 1 : 0;
      if (device == "cpu") capacity.memory_bytes = options_.memory_bytes;
      capacity.memory_bytes /= std::max<std::size_t>(sharing, 1);
    }
    membership_.set_capacity(life, capacities_.enter(record.status.host, capacity));
    changed_.notify_all();
  }

  // For the reason that the control plane has seen, if it has: MPI only knows that it waited in vain.
  [[noreturn]] void throw_not_come_up(Life life, MpiError const& error) const {
    std::string const seen = control_.dead(life.worker, life.incarnation) ? control_.death_reason(life.worker) : "";
    throw ClusterError("worker " + std::to_string(life.worker.value()) + ": " + (seen.empty() ? error.what() : seen));
  }

  void replace(Membership::Start const& start) {
    auto const deadline = Clock::now() + options_.rejoin_timeout;
    WorkerId const worker = start.life.worker;
    try {
      if (start.remote)
        accept(start, deadline);
      else
        spawn(start, deadline);
      control_.wait_until(deadline, [&](Records const& records) {
        auto const& record = records[worker.value() - 1];
        return record.capacity || record.status.state == WorkerState::dead;
      });
      learn_capacity(start.life);
      assign(start.life);
    } catch (ClusterError const& error) {
      if (!stopping_) control_.declare_dead(worker, start.life.incarnation, error.what());
    }
  }

  void stop_supervising() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    if (supervisor_.joinable()) supervisor_.join();
    if (starter_.joinable()) starter_.join();
  }

  enum class DeadLocal : std::uint8_t { ends_it, is_replaced };
  template <class Done>
  void wait_for_loading(OnProgress const& on_progress, DeadLocal dead, Done const& all_serve) {
    auto const begin = Clock::now();
    bool const fatal = dead == DeadLocal::ends_it;
    auto const done = [&](Records const& records) { return (fatal && any_dead(records)) || all_serve(records); };
    for (bool finished = false; !finished;) {
      finished = control_.wait_until(Clock::now() + kProgressInterval, done);
      Records const records = control_.records();
      report(records, begin, on_progress);
      if (fatal) throw_for_dead(records);
      finished = all_serve(records);
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
      std::lock_guard lock(mutex_);
      progress.total_bytes += packed_expert_bytes(options_.experts, *membership_.place(records[i].status.id).share.held,
                                                  holder_on(records[i].status.device));
    }
    double const seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (seconds > 0) progress.bytes_per_second = static_cast<double>(progress.loaded_bytes) / seconds;
    if (progress.bytes_per_second > 0)
      progress.seconds_left =
          static_cast<double>(progress.total_bytes - progress.loaded_bytes) / progress.bytes_per_second;
    if (on_progress) on_progress(progress);
  }

  // To one that has joined.
  void assign(Life life) {
    control::Assign message = assignment(life, begin_link(life.worker));
    message.shm = transport_.offer(life.worker, control_.records()[life.worker.value() - 1].status.host);
    control_.assign(life, message);
  }

  // The id of a link to it, where both ends can have one. Throws ClusterError.
  std::string begin_link(WorkerId worker) {
    if (!options_.nccl) return {};
    LinkOffer const offer = offer_link(*options_.nccl, control_.records()[worker.value() - 1].nccl);
    if (offer.id.empty() && options_.nccl_required)
      throw ClusterError("worker " + std::to_string(worker.value()) + ": its rows cannot go by NCCL: " + offer.how);
    std::lock_guard lock(mutex_);
    links_[worker.value() - 1].rows = offer;
    return offer.id;
  }

  control::Assign assignment(Life life, std::string link_id) {
    Share share;
    {
      std::lock_guard lock(mutex_);
      share = membership_.to_load(life);
      changed_.notify_all();  // others may have to move now
    }
    return {.isa = control_.records()[life.worker.value() - 1].status.isa,
            .model_dir = options_.model_dir.string(),
            .checkpoint = checkpoint_,
            .weights = weight_server_ ? weight_server_->address() : "",
            .load_format = options_.load_format,
            .dummy_seed = options_.dummy_seed,
            .model = options_.experts,
            .held = *share.held,
            .epoch = share.epoch,
            .limits = dispatch_limits(options_.experts, options_.max_tokens_per_step, options_.experts_per_token),
            .max_requests = kMaxRequests,
            .heartbeat_ms = static_cast<std::uint32_t>(options_.heartbeat_interval.count()),
            .link_id = std::move(link_id)};
  }

  // Fills in what the control plane does not know of a worker. With mutex_ held.
  void complete(WorkerStatus& status) const {
    Membership::Place const& place = membership_.place(status.id);
    std::string const& rows = links_[status.id.value() - 1].rows.how;
    status.row_transport = rows.empty() ? status.transport : rows;
    status.speed = place.speed;
    if (place.capacity) {
      status.bytes_per_second = place.capacity->rate;
      status.room = place.capacity->room;
    }
    status.held = place.share.held ? place.share.held : place.held;
    status.num_experts = total_held(*status.held);
    if (status.state != WorkerState::serving) return;
    if (place.draining) status.state = WorkerState::draining;
    // Said and not yet heard by who places: rows do not go to it yet.
    if (place.incarnation == status.incarnation && place.alive && !place.serving) status.state = WorkerState::loading;
  }

  // MPI counts bytes in an int; it is the way that every worker can go.
  void check_message_size() const {
    ShmShape const shape = message_shape(options_);
    std::size_t const bytes = std::max(shape.to_worker.slot_bytes, shape.to_coordinator.slot_bytes);
    if (bytes > INT_MAX)
      throw ClusterError("a step of " + std::to_string(options_.max_tokens_per_step) + " tokens needs messages of " +
                         std::to_string(bytes) + " bytes, MPI sends at most " + std::to_string(INT_MAX) +
                         ": lower --max-num-batched-tokens");
  }

  ClusterOptions const options_;
  OnChange const on_change_;
  Fingerprint const checkpoint_;
  std::string const name_server_;
  ChecksumBook checksums_;  // monitor thread
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Membership membership_;  // guarded by mutex_, like the next five
  CapacityBook capacities_;
  std::vector<Link> links_;  // worker w at w - 1
  std::deque<Membership::Start> to_start_;
  LeavingWorkers leaving_;
  std::uint32_t next_peer_ = 0;
  std::atomic<std::uint64_t> version_ = 1;  // of membership_
  std::atomic<bool> stopping_ = false;
  std::thread supervisor_;
  std::thread starter_;
  bool shut_down_ = false;

 public:
  std::vector<std::shared_ptr<void const>> kept_;  // before the transport, which goes first
  ClusterTransport transport_;
  ControlServer control_;  // calls take_change() as long as it is there
  std::optional<WeightServer> weight_server_;
};

Cluster::Cluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

std::unique_ptr<Cluster> Cluster::start(ClusterOptions options, WeightSource const& source,
                                        OnProgress const& on_progress, OnChange on_change) {
  if (std::size_t const all = options.num_workers + options.remote.num_workers; all > kMaxWorkers)
    throw ClusterError(std::to_string(all) + " workers: at most " + std::to_string(kMaxWorkers));
  auto cluster =
      std::unique_ptr<Cluster>(new Cluster(std::make_unique<Impl>(std::move(options), source, std::move(on_change))));
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
void Cluster::set_speed(Life life, double speed) {
  impl_->set_speed(life, speed);
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
  return impl_->transport_.transport();
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
void Cluster::set_row_transport(WorkerPeer const& member, std::string const& how) {
  impl_->set_row_transport(member, how);
}
std::size_t Cluster::shared_bytes() const {
  return impl_->transport_.shared_bytes();
}
std::size_t Cluster::resident_bytes() const {
  return impl_->resident_bytes();
}
void Cluster::adopted(std::uint64_t version) {
  impl_->adopted(version);
}
void Cluster::idle() {
  impl_->set_idle(true);
  impl_->control_.idle();
}
void Cluster::wake() {
  impl_->set_idle(false);
  impl_->control_.wake();
}

}  // namespace expertmesh
