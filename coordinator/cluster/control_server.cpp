#include "coordinator/cluster/control_server.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "common/base/error.h"
#include "common/base/log.h"
#include "common/protocol/control_connection.h"
#include "common/protocol/secret_proof.h"
#include "coordinator/cluster/heartbeat_monitor.h"
#include "coordinator/cluster/worker_process.h"

namespace expertmesh {
namespace {

using boost::asio::ip::tcp;
using Clock = std::chrono::steady_clock;

constexpr auto kHelloTimeout = std::chrono::seconds(5);         // from connect
constexpr auto kStrangerPause = std::chrono::milliseconds(10);  // before the next connection is taken
constexpr auto kComplaintInterval = std::chrono::seconds(10);
constexpr auto kJoinTimeout = std::chrono::seconds(30);     // of one that came by itself, from hello to heartbeats
constexpr auto kLoadingTimeout = std::chrono::seconds(10);  // of heartbeats while the worker maps and packs weights

std::int64_t in_ms(Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
}

}  // namespace

class ControlServer::Impl {
 public:
  explicit Impl(Options options)
      : options_(std::move(options)),
        secret_(options_.secret_file),
        workers_(options_.max_workers),
        dead_(options_.max_workers),
        monitor_(options_.max_workers),
        acceptor_(io_),
        accept_timer_(io_),
        check_timer_(io_) {
    for (std::size_t i = 0; i < workers_.size(); ++i)
      workers_[i].record.status.id = WorkerId(static_cast<std::uint32_t>(i + 1));
    listen();
    accept();
    schedule_check();
    thread_ = std::thread([this] { io_.run(); });
  }

  ~Impl() {
    io_.stop();
    thread_.join();
  }

  std::string address() const { return options_.address + ":" + std::to_string(acceptor_port_); }
  SecretFile const& secret() const { return secret_; }

  std::vector<WorkerRecord> records() const {
    std::lock_guard lock(mutex_);
    return records_locked();
  }

  void expect(WorkerId id, Incarnation incarnation) {
    std::lock_guard lock(mutex_);
    expect_locked(id, incarnation);
  }

  bool dead(WorkerId id, Incarnation incarnation) const {
    return dead_[id.value() - 1].load(std::memory_order_acquire) >= incarnation.value();
  }

  bool called(Life life) const {
    std::lock_guard lock(mutex_);
    WorkerRecord const& record = workers_[life.worker.value() - 1].record;
    return record.status.incarnation == life.incarnation && record.called;
  }

  std::string death_reason(WorkerId id) const {
    std::lock_guard lock(mutex_);
    return workers_[id.value() - 1].record.status.death_reason;
  }

  void declare_dead(WorkerId id, Incarnation incarnation, std::string const& reason) {
    boost::asio::post(io_, [this, id, incarnation, reason] { bury({id.value() - 1, incarnation}, reason); });
  }

  bool wait_until(Clock::time_point deadline, std::function<bool(std::vector<WorkerRecord> const&)> const& done) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, deadline, [&] { return done(records_locked()); });
  }

  void assign(Life life, control::Assign const& assignment) {
    std::lock_guard lock(mutex_);
    Worker* const worker = living(life);
    if (worker == nullptr) return;  // it died meanwhile
    worker->record.status.state = WorkerState::loading;
    monitor_.watch(life.worker.value() - 1, kLoadingTimeout, Clock::now());
    worker->connection->send(assignment);
  }

  void connect(Life life, control::Connect const& how) {
    std::lock_guard lock(mutex_);
    if (Worker* const worker = living(life)) worker->connection->send(how);
  }

  void idle() {
    std::lock_guard lock(mutex_);
    idle_ = true;
    send_to_all(control::Idle{});
    watch_serving();
  }

  void wake() {
    std::lock_guard lock(mutex_);
    if (!idle_.exchange(false)) return;
    send_to_all(control::Wake{});
    watch_serving();
    boost::asio::post(io_, [this] { schedule_check(); });
  }

  void hold(Life life, control::Hold const& placement) {
    std::lock_guard lock(mutex_);
    if (Worker* const worker = living(life)) worker->connection->send(placement);
  }

  void let_go(Life life) {
    std::lock_guard lock(mutex_);
    Worker* const worker = living(life);
    if (worker == nullptr) return;
    worker->leaving = true;
    worker->connection->send(control::Shutdown{.for_good = true});
  }

  void shutdown_workers() {
    std::lock_guard lock(mutex_);
    leaving_ = true;
    send_to_all(control::Shutdown{.for_good = false});
  }

  void kill_remaining() {
    std::lock_guard lock(mutex_);
    for (auto const& worker : workers_)
      if (worker.process) worker.process->kill();
  }

 private:
  // A Life by its place in workers_.
  struct LifeOf {
    std::size_t index;
    Incarnation incarnation;
  };
  struct Worker {
    WorkerRecord record;
    std::shared_ptr<ControlConnection> connection;  // while it lives
    std::optional<WorkerProcess> process;           // from hello on
    bool leaving = false;                           // was told to
  };

  void listen() {
    boost::system::error_code error;
    tcp::endpoint const endpoint(boost::asio::ip::make_address(options_.address, error), options_.port);
    // Anew at once after a coordinator that was killed.
    if (!error && !acceptor_.open(endpoint.protocol(), error) &&
        !acceptor_.set_option(tcp::acceptor::reuse_address(true), error) && !acceptor_.bind(endpoint, error))
      acceptor_.listen(boost::asio::socket_base::max_listen_connections, error);
    if (error)
      throw NetworkError("listen", error.value(), error.message(),
                         options_.address + ":" + std::to_string(options_.port));
    acceptor_port_ = acceptor_.local_endpoint().port();
  }

  void accept() {
    acceptor_.async_accept([this](boost::system::error_code const& error, tcp::socket socket) {
      if (error == boost::asio::error::operation_aborted) return;
      if (!error) await_hello(std::make_shared<ControlConnection>(std::move(socket)));
      accept_timer_.expires_at(accept_after_);
      accept_timer_.async_wait([this](boost::system::error_code const& stopped) {
        if (!stopped) accept();
      });
    });
  }

  // A stranger gets a challenge, and has one small message and a few seconds to become a worker.
  void await_hello(std::shared_ptr<ControlConnection> const& connection) {
    auto deadline = std::make_shared<boost::asio::steady_timer>(io_, kHelloTimeout);
    std::weak_ptr<ControlConnection> const weak = connection;  // the connection owns its handlers, not they it
    deadline->async_wait([weak](boost::system::error_code const& error) {
      auto const stranger = weak.lock();
      if (!error && stranger) stranger->close();
    });
    std::string const nonce = random_nonce();
    connection->start({.on_message =
                           [this, weak, deadline, nonce](control::Message const& message) {
                             deadline->cancel();
                             if (auto const stranger = weak.lock()) join(stranger, nonce, message);
                           },
                       .on_closed = [deadline](std::string const&) { deadline->cancel(); }},
                      kMaxHelloBytes);
    connection->send(control::Challenge{.nonce = nonce});
  }

  // Whoever tries again and again costs little, and does not fill the log.
  void turn_away(ControlConnection& connection) {
    connection.close();
    ++num_turned_away_;
    if (Clock::now() >= next_complaint_) {
      spdlog::warn("control plane: {} connections without the secret were closed", std::exchange(num_turned_away_, 0));
      next_complaint_ = Clock::now() + kComplaintInterval;
    }
    accept_after_ = Clock::now() + kStrangerPause;
  }

  void join(std::shared_ptr<ControlConnection> const& connection, std::string const& nonce,
            control::Message const& message) {
    auto const* hello = std::get_if<control::Hello>(&message);
    if (hello == nullptr || !same_proof(hello->proof, control::hello_proof(secret_.secret(), nonce, *hello)))
      return turn_away(*connection);
    Life life{.worker = hello->worker, .incarnation = hello->incarnation};
    bool const by_itself = life.worker.value() == 0;
    std::string reason = misfit(*hello);
    if (reason.empty() && by_itself) {
      auto const given = options_.on_join ? options_.on_join() : std::nullopt;
      if (given)
        life = *given;
      else
        reason = options_.on_join ? "there are " + std::to_string(workers_.size()) + " workers already"
                                  : "this coordinator takes no workers but its own (see serve --interface)";
    }
    if (reason.empty() && !by_itself) reason = objection(life);
    if (!reason.empty()) {
      connection->close_after_sending(control::Refuse{.reason = reason});
      if (by_itself) spdlog::warn("a worker of host {} was refused: {}", hello->host, reason);
      // Whoever has this place stays; it is lost only if this was the one that was to take it.
      std::size_t const index = life.worker.value() - 1;
      if (index < workers_.size() && is_awaited(index, life.incarnation))
        bury({index, life.incarnation}, "refused: " + reason);
      return;
    }
    std::size_t const index = life.worker.value() - 1;
    connection->send(control::Welcome{
        .worker = life.worker,
        .incarnation = life.incarnation,
        .proof = control::welcome_proof(secret_.secret(), nonce, *hello, life.worker, life.incarnation)});
    {
      std::lock_guard lock(mutex_);
      if (by_itself) expect_locked(life.worker, life.incarnation);
      Worker& worker = workers_[index];
      WorkerStatus& status = worker.record.status;
      worker.record.joined = true;
      status.remote = by_itself;
      status.pid = hello->pid;
      status.host = hello->host;
      status.device = hello->device;
      status.isa = runs_the_profile(*hello) ? options_.isa : hello->isas.back();
      status.dtype = options_.dtype;
      worker.record.nccl = hello->nccl;
      worker.connection = connection;
      if (!by_itself) worker.process.emplace(hello->pid);  // another host's pid means nothing here
      if (by_itself) monitor_.watch(index, kJoinTimeout, Clock::now());
    }
    LifeOf const of{index, life.incarnation};
    connection->hand_over({.on_message = [this, of](control::Message const& m) { hear(of, m); },
                           .on_closed = [this, of](std::string const& closed) { hung_up(of, closed); }},
                          kMaxFrameBytes);
    changed_.notify_all();
  }

  bool is_awaited(std::size_t index, Incarnation incarnation) const {
    std::lock_guard lock(mutex_);
    WorkerRecord const& record = workers_[index].record;
    return !record.joined && record.status.incarnation == incarnation && record.status.state == WorkerState::joining;
  }

  // Why no place is for this worker; empty: any is.
  std::string misfit(control::Hello const& hello) const {
    if (hello.protocol != control::kProtocolVersion)
      return "control protocol " + std::to_string(hello.protocol) + ", the coordinator speaks " +
             std::to_string(control::kProtocolVersion);
    if (hello.build != control::build_version())
      return "build " + hello.build + ", the coordinator is " + control::build_version();
    if (options_.mixed_isas ? hello.isas.empty() : !runs_the_profile(hello))
      return "cannot run '" + options_.isa + "', the numerics profile";
    if (std::ranges::find(hello.dtypes, options_.dtype) == hello.dtypes.end())
      return "cannot run weights in " + options_.dtype;
    if (options_.nccl != 0 && hello.nccl != options_.nccl)
      return hello.nccl == 0 ? "has no NCCL for a GPU of its own, or serves several coordinators (--row-transport nccl)"
                             : "NCCL version " + std::to_string(hello.nccl) + ", the coordinator has " +
                                   std::to_string(options_.nccl);
    if (hello.checkpoint.empty() || options_.checkpoint.empty()) return "";
    std::string const what = difference(options_.checkpoint, hello.checkpoint);
    return what.empty() ? "" : "another checkpoint: not the coordinator's " + what;
  }

  // Why this life has no place; empty if it has.
  std::string objection(Life life) const {
    if (life.worker.value() < 1 || life.worker.value() > workers_.size())
      return "there is no worker " + std::to_string(life.worker.value());
    std::lock_guard lock(mutex_);
    WorkerRecord const& record = workers_[life.worker.value() - 1].record;
    if (life.incarnation != record.status.incarnation)
      return "incarnation " + std::to_string(life.incarnation.value()) + ", expected " +
             std::to_string(record.status.incarnation.value());
    if (record.joined) return "this worker has joined already";
    if (record.status.state != WorkerState::joining) return "this worker was given up";
    if (leaving_) return "the cluster is shutting down";
    return "";
  }

  bool runs_the_profile(control::Hello const& hello) const {
    return std::ranges::find(hello.isas, options_.isa) != hello.isas.end();
  }

  void hear(LifeOf life, control::Message const& message) {
    std::size_t const index = life.index;
    if (std::holds_alternative<control::Heartbeat>(message)) {
      std::lock_guard lock(mutex_);
      auto const gap = monitor_.beat(index, Clock::now());
      if (2 * gap > paced(options_.death_timeout) && workers_[index].record.status.state == WorkerState::serving)
        spdlog::warn("worker {}: heartbeat after {} ms", index + 1, in_ms(gap));
    } else if (auto const* progress = std::get_if<control::Progress>(&message)) {
      std::lock_guard lock(mutex_);
      workers_[index].record.loaded_bytes = progress->loaded_bytes;
      workers_[index].record.total_bytes = progress->total_bytes;
    } else if (auto const* loaded = std::get_if<control::Loaded>(&message)) {
      serve(life, *loaded);
    } else if (auto const* capacity = std::get_if<control::Capacity>(&message)) {
      std::lock_guard lock(mutex_);
      workers_[index].record.capacity = *capacity;
      workers_[index].record.status.device = capacity->device;
    } else if (std::holds_alternative<control::Called>(message)) {
      std::lock_guard lock(mutex_);
      workers_[index].record.called = true;
    } else if (std::holds_alternative<control::Leaving>(message)) {
      spdlog::info("worker {} was asked to end", index + 1);
      if (options_.on_leaving) options_.on_leaving(WorkerId(static_cast<std::uint32_t>(index + 1)), life.incarnation);
    } else if (auto const* failed = std::get_if<control::Failed>(&message)) {
      {
        std::lock_guard lock(mutex_);
        workers_[index].record.failure_kind = failed->kind;
      }
      bury(life, failed->reason);
    } else {
      bury(life, "sent a message that is not for coordinators");
    }
    changed_.notify_all();
  }

  void serve(LifeOf life, control::Loaded const& loaded) {
    if (options_.check_loaded)
      if (std::string const wrong = options_.check_loaded(WorkerId(static_cast<std::uint32_t>(life.index + 1)), loaded);
          !wrong.empty())
        return bury(life, wrong);
    WorkerStatus status;
    bool moved = false;
    {
      std::lock_guard lock(mutex_);
      Worker& worker = workers_[life.index];
      moved = worker.record.status.state == WorkerState::serving;
      worker.record.status.state = WorkerState::serving;
      worker.record.status.resident_bytes = loaded.resident_bytes;
      worker.record.status.transport = loaded.transport;
      if (!moved) monitor_.watch(life.index, timeout(WorkerState::serving), Clock::now());
      if (idle_ && !moved) worker.connection->send(control::Idle{});
      status = worker.record.status;
    }
    if (moved) {
      if (options_.on_moved) options_.on_moved(status.id, status.incarnation, loaded.epoch);
      return;
    }
    if (options_.on_change) options_.on_change(status);
  }

  void hung_up(LifeOf life, std::string const& reason) {
    std::optional<WorkerStatus> left;  // let go by itself, not with all others
    {
      std::lock_guard lock(mutex_);
      if (leaving_ || workers_[life.index].leaving) {
        workers_[life.index].record.status.state = WorkerState::left;
        if (!leaving_) left = workers_[life.index].record.status;
        dead_[life.index].store(life.incarnation.value(), std::memory_order_release);  // rows it may owe: not from it
        workers_[life.index].connection.reset();
        monitor_.unwatch(life.index);
      }
    }
    bury(life, reason);  // no effect on one that left
    changed_.notify_all();
    if (left && options_.on_change) options_.on_change(*left);
  }

  // This life is over: it is cut off, and the process ended in case it is only stuck.
  void bury(LifeOf life, std::string const& reason) {
    WorkerStatus status;
    {
      std::lock_guard lock(mutex_);
      Worker& worker = workers_[life.index];
      WorkerState& state = worker.record.status.state;
      if (worker.record.status.incarnation != life.incarnation) return;
      if (state == WorkerState::dead || state == WorkerState::left) return;
      state = WorkerState::dead;
      worker.record.status.death_reason = reason;
      dead_[life.index].store(life.incarnation.value(), std::memory_order_release);
      monitor_.unwatch(life.index);
      if (worker.connection) worker.connection->close();
      worker.connection.reset();
      if (worker.process) worker.process->kill();
      status = worker.record.status;
    }
    changed_.notify_all();
    if (options_.on_change) options_.on_change(status);
  }

  // In place of the check that was scheduled before.
  void schedule_check() {
    check_timer_.expires_after(paced(options_.heartbeat_interval));
    check_timer_.async_wait([this](boost::system::error_code const& error) {
      if (error) return;
      check();
      schedule_check();
    });
  }

  void check() {
    std::vector<LifeOf> silent;
    {
      std::lock_guard lock(mutex_);
      for (std::size_t const index : monitor_.check(Clock::now(), check_timer_.expiry()))
        silent.push_back({index, workers_[index].record.status.incarnation});
    }
    for (LifeOf const life : silent) bury(life, "no heartbeat for " + std::to_string(timeout_ms(life.index)) + " ms");
  }

  std::int64_t timeout_ms(std::size_t index) const {
    std::lock_guard lock(mutex_);
    return in_ms(timeout(workers_[index].record.status.state));
  }

  // ---- with mutex_ held

  // Its worker, as long as this life lasts and its connection is there.
  Worker* living(Life life) {
    Worker& worker = workers_[life.worker.value() - 1];
    return worker.connection && worker.record.status.incarnation == life.incarnation ? &worker : nullptr;
  }

  void expect_locked(WorkerId id, Incarnation incarnation) {
    Worker& worker = workers_[id.value() - 1];
    EM_CHECK(worker.connection == nullptr && incarnation > worker.record.status.incarnation,
             "worker " << id << ", incarnation " << incarnation << " after " << worker.record.status.incarnation);
    std::string const last_reason = worker.record.status.death_reason;
    num_expected_ = std::max<std::size_t>(num_expected_, id.value());
    worker.leaving = false;
    worker.record = {};
    worker.process.reset();
    worker.record.status.id = id;
    worker.record.status.incarnation = incarnation;
    worker.record.status.death_reason = last_reason;
  }

  Clock::duration timeout(WorkerState state) const {
    return state == WorkerState::serving ? paced(options_.death_timeout) : kLoadingTimeout;
  }

  // A duration of heartbeats, stretched while the workers are idle.
  Clock::duration paced(Clock::duration duration) const {
    return idle_ ? control::kIdleHeartbeatFactor * duration : duration;
  }

  void watch_serving() {
    for (std::size_t i = 0; i < workers_.size(); ++i)
      if (workers_[i].record.status.state == WorkerState::serving)
        monitor_.watch(i, timeout(WorkerState::serving), Clock::now());
  }

  void send_to_all(control::Message const& message) {
    for (auto const& worker : workers_)
      if (worker.connection) worker.connection->send(message);
  }

  std::vector<WorkerRecord> records_locked() const {
    std::vector<WorkerRecord> out;
    for (std::size_t i = 0; i < num_expected_; ++i) {
      out.push_back(workers_[i].record);
      if (auto const age = monitor_.age(i, Clock::now()))
        out.back().status.heartbeat_age = std::chrono::milliseconds(in_ms(*age));
    }
    return out;
  }

  Options const options_;
  boost::asio::io_context io_;  // before all that uses it
  SecretFile const secret_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Worker> workers_;                   // guarded by mutex_, like monitor_ and leaving_
  std::vector<std::atomic<std::uint32_t>> dead_;  // [N] the last incarnation that died
  HeartbeatMonitor monitor_;
  std::size_t num_expected_ = 0;
  bool leaving_ = false;
  std::atomic<bool> idle_ = false;

  tcp::acceptor acceptor_;
  std::uint16_t acceptor_port_ = 0;
  boost::asio::steady_timer accept_timer_;
  boost::asio::steady_timer check_timer_;
  Clock::time_point accept_after_{};  // like the next two, of the monitor thread
  Clock::time_point next_complaint_{};
  std::size_t num_turned_away_ = 0;
  std::thread thread_;
};

ControlServer::ControlServer(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
ControlServer::~ControlServer() = default;
std::string ControlServer::address() const {
  return impl_->address();
}
SecretFile const& ControlServer::secret() const {
  return impl_->secret();
}
std::vector<WorkerRecord> ControlServer::records() const {
  return impl_->records();
}
void ControlServer::expect(WorkerId worker, Incarnation incarnation) {
  impl_->expect(worker, incarnation);
}
bool ControlServer::dead(WorkerId worker, Incarnation incarnation) const {
  return impl_->dead(worker, incarnation);
}
std::string ControlServer::death_reason(WorkerId worker) const {
  return impl_->death_reason(worker);
}
bool ControlServer::called(Life life) const {
  return impl_->called(life);
}
void ControlServer::declare_dead(WorkerId worker, Incarnation incarnation, std::string const& reason) {
  impl_->declare_dead(worker, incarnation, reason);
}
bool ControlServer::wait_until(Clock::time_point deadline,
                               std::function<bool(std::vector<WorkerRecord> const&)> const& done) {
  return impl_->wait_until(deadline, done);
}
void ControlServer::assign(Life life, control::Assign const& assignment) {
  impl_->assign(life, assignment);
}
void ControlServer::connect(Life life, control::Connect const& how) {
  impl_->connect(life, how);
}
void ControlServer::idle() {
  impl_->idle();
}
void ControlServer::wake() {
  impl_->wake();
}
void ControlServer::hold(Life life, control::Hold const& placement) {
  impl_->hold(life, placement);
}
void ControlServer::let_go(Life life) {
  impl_->let_go(life);
}
void ControlServer::shutdown_workers() {
  impl_->shutdown_workers();
}
void ControlServer::kill_remaining() {
  impl_->kill_remaining();
}

}  // namespace expertmesh
