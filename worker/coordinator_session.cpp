#include "worker/coordinator_session.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>
#include <utility>

#include "common/base/error.h"
#include "common/base/log.h"
#include "common/checkpoint/fingerprint.h"
#include "common/protocol/step_layout.h"
#include "common/transport/nccl_link.h"
#include "worker/remote_weights.h"
#include "worker/served_placement.h"
#include "worker/worker_link.h"

namespace expertmesh {
namespace {

using Clock = std::chrono::steady_clock;

// Between attempts to reach a coordinator that is gone, while there are others.
constexpr std::chrono::milliseconds kFirstPause{200};
constexpr std::chrono::milliseconds kLongestPause{5000};
// Coordinators that have died may leave messages behind that MPI never gives back: then a fresh process is better.
constexpr std::size_t kMostUnrested = 256;

// Rows wait for the coordinator to have some, and it may be busy with others' experts: it is the control plane that
// says when it is gone.
constexpr std::chrono::hours kLinkConnectTime{24};
constexpr std::chrono::minutes kLinkTransferTime{10};

// With the worker's packed cache, if it has one. checkpoint: that the weights are of.
std::unique_ptr<WeightSource> cached(std::unique_ptr<WeightSource> source, SessionContext const& context,
                                     control::Assign const& assign, Fingerprint const& checkpoint) {
  if (context.options.packed_cache.empty() || context.options.device != "cpu") return source;
  return with_packed_cache(std::move(source), context.options.packed_cache, checkpoint, assign.model.weights.storage);
}

// Where this worker's weights come from: its own copy of the checkpoint, a folder at the coordinator's path, or the
// coordinator.
std::unique_ptr<WeightSource> open_weights(SessionContext const& context, control::Assign const& assign) {
  std::string const& model_dir = context.options.model_dir;
  if (assign.load_format == LoadFormat::dummy) return make_dummy_weights(assign.dummy_seed);
  if (!model_dir.empty()) return cached(open_checkpoint(model_dir), context, assign, context.hello.checkpoint);
  std::error_code ignored;
  if (std::filesystem::exists(std::filesystem::path(assign.model_dir) / "config.json", ignored)) {
    Fingerprint const here = fingerprint_of(assign.model_dir);
    std::string const what = difference(assign.checkpoint, here);
    if (!what.empty()) throw ModelError(assign.model_dir + ": another checkpoint: not the coordinator's " + what);
    return cached(open_checkpoint(assign.model_dir), context, assign, here);
  }
  if (assign.weights.empty())
    throw ModelError(assign.model_dir +
                     " is not on this host, no other folder was given with --model, and the "
                     "coordinator sends no weights (serve --weights-rate 0)");
  spdlog::info("{} is not on this host: the weights come from {}", assign.model_dir, assign.weights);
  return cached(fetch_weights(assign.weights, context.secret, context.hello), context, assign, assign.checkpoint);
}

// Tells the coordinator how the load goes, a few times a second. Throws CoordinatorGone when nobody wants it any more.
class ProgressReporter {
 public:
  explicit ProgressReporter(ControlClient& control) : control_(control) {}
  void operator()(std::size_t loaded, std::size_t total) {
    if (control_.ended()) throw CoordinatorGone("while experts were loaded for it");
    auto const now = Clock::now();
    if (loaded < total && now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    control_.send(control::Progress{.loaded_bytes = loaded, .total_bytes = total});
  }

 private:
  ControlClient& control_;
  Clock::time_point last_;
};

// Null: rows come with the messages.
std::unique_ptr<WorkerLink> make_link(control::Assign const& assign, std::shared_ptr<NcclApi> const& nccl,
                                      Device* device) {
  if (assign.link_id.empty()) return nullptr;
  auto const id = nccl_id_of(assign.link_id);
  if (!id || !nccl || !device)
    throw std::runtime_error(id ? "given a link that it has nothing for" : "given a link with an unreadable id");
  std::size_t const hidden = max_hidden(assign.model);
  std::size_t const row_bytes = DispatchLayout(hidden, assign.model.wire).row_bytes();
  std::size_t const in_bytes = most_step_out_bytes(assign.limits, hidden, assign.model.wire);
  return std::make_unique<WorkerLink>(make_nccl_link(nccl, *id, *device,
                                                     {.end = LinkEnd::worker,
                                                      .peer = "the coordinator",
                                                      .connect_time = kLinkConnectTime,
                                                      .transfer_time = kLinkTransferTime},
                                                     Clock::now()),
                                      *device, in_bytes, assign.limits.max_entries * row_bytes);
}

// From connecting to the end of one life.
class SessionLife {
 public:
  SessionLife(SessionContext& context, std::size_t coordinator, std::string const& address)
      : context_(context), coordinator_(coordinator), by_itself_(context.options.worker_id == 0) {
    ControlClient::Handlers handlers{
        .on_end = [&context, coordinator](ExitCode code) { context.roll.ended(coordinator, code); },
        .on_asked_to_end = [&context] { context.roll.asked_to_end(); }};
    control_ =
        std::make_shared<ControlClient>(address, context.secret, context.hello, context.bell, std::move(handlers));
  }

  ~SessionLife() {
    if (holding_.joinable()) holding_.join();
  }
  SessionLife(SessionLife const&) = delete;
  SessionLife& operator=(SessionLife const&) = delete;

  ControlEnd live() {
    try {
      MpiComm const comm = join();
      serve(context_.machine(), comm);
      control_->hang_up();
    } catch (CoordinatorGone const&) {
    } catch (ModelError const& error) {
      fail(control::FailureKind::model, error, ExitCode::refused);
    } catch (DeviceError const& error) {  // trying again does not help
      fail(control::FailureKind::other, error, ExitCode::refused);
    } catch (std::exception const& error) {
      fail(control::FailureKind::other, error, ExitCode::lost);
    }
    return control_->wait_for_end();
  }

 private:
  void fail(control::FailureKind kind, std::exception const& error, ExitCode code) {
    if (by_itself_) spdlog::error("{}", error.what());  // the coordinator's log is on another host
    control_->fail(kind, error.what(), code);
  }

  MpiComm join() {
    if (context_.hooks.connected) context_.hooks.connected();
    auto const welcome = control_->wait_for_welcome();
    incarnation_ = welcome.incarnation;
    context_.roll.has(coordinator_);
    if (!by_itself_) return context_.mpi.to_parent();
    spdlog::info("taken in by {} as worker {}, incarnation {}", context_.options.coordinators[coordinator_],
                 welcome.worker.value(), welcome.incarnation.value());
    try {
      return context_.mpi.connect(
          control_->wait_for_connect(), [control = control_] { control->send(control::Called{}); },
          [this] { return control_->ended(); });
    } catch (MpiError const& error) {
      if (error.code == ETIMEDOUT) begin_anew(error.what());  // nobody could join any more
      throw;
    }
  }

  // The launcher starts another process, which the other coordinators get in place of this one.
  void begin_anew(std::string const& why) {
    spdlog::error("this worker begins anew: {}", why);
    context_.roll.give_up();
  }

  // Until the loop has ended its lane.
  void serve(WorkerMachine& machine, MpiComm comm) {
    if (machine.loop().num_unrested() > kMostUnrested) begin_anew("MPI holds messages of too many that are gone");
    control_->send(machine.capacity());
    control::Assign assign = control_->wait_for_assign();
    if (context_.hooks.assigned) context_.hooks.assigned(assign);
    machine.agree_on(assign);
    source_ = open_weights(context_, assign);
    auto loaded = machine.load(assign.held, *source_, machine.pace(), ProgressReporter(*control_));
    spdlog::info("experts: {}", loaded.figures.text(static_cast<double>(machine.capacity().bytes_per_second)));
    link_ = make_link(assign, context_.nccl, machine.device());
    service_ = {.incarnation = incarnation_,
                .epoch = assign.epoch,
                .wire = assign.model.wire,
                .limits = assign.limits,
                .port = link_.get()};
    control::Loaded answer{.epoch = assign.epoch,
                           .resident_bytes = loaded.store.resident_bytes(),
                           .held = loaded.store.held(),
                           .checksums = std::move(loaded.checksums)};
    std::size_t const num_experts = loaded.store.num_experts();
    auto const first = std::make_shared<ServedPlacement>(std::move(loaded.store), machine.exec(), service_);
    auto const path = std::make_shared<DataPath>(open_data_path(assign.shm, comm, first->service.max_answer_bytes()));
    answer.transport = how_ = path->how;
    PeerId const peer = machine.new_peer();
    lane_ = std::make_shared<CoordinatorLane>(
        CoordinatorLaneOptions{.peer = peer,
                               .max_requests = assign.max_requests,
                               .link = link_.get(),
                               .on_begin = [&machine, peer, path] { machine.add_peer(peer, std::move(*path)); },
                               .on_failure =
                                   [control = control_](std::string const& reason) {
                                     control->fail(control::FailureKind::other, reason, ExitCode::lost);
                                   }},
        control_->gate(), first);
    // One at a time: the coordinator waits for the one before.
    control_->on_hold([this, &machine](control::Hold hold) {
      if (holding_.joinable()) holding_.join();
      holding_ = std::thread([this, &machine, hold = std::move(hold)] { load_beside(machine, hold); });
    });
    control_->gate().set(ServingGate::Mode::serving);
    machine.loop().add(lane_);
    std::size_t const resident_bytes = answer.resident_bytes;
    control_->send(answer);
    spdlog::info("serving {} experts, {} bytes, {} threads, {}", num_experts, resident_bytes, context_.options.threads,
                 assign.isa);
    lane_->wait_until_ended();
    auto const counts = machine.loop().counts();  // of all coordinators so far
    spdlog::info("served {} requests in {} batches, {} rows in {} groups of one expert", counts.requests,
                 counts.batches, counts.rows, counts.groups);
    if (link_)
      spdlog::info("by the link: {} requests, {} steps in the static form", counts.link_requests, counts.steps);
    if (context_.options.longest_wait.count() > 0)
      spdlog::info("{} waits for other coordinators, of which {} met one; {} us in all", counts.waits, counts.meetings,
                   counts.waited.count());
  }

  // Another placement, while the one before is served.
  void load_beside(WorkerMachine& machine, control::Hold const& hold) {
    try {
      auto loaded =
          machine.load(hold.held, *source_, WorkerMachine::Pace::beside_rows, [this](std::size_t, std::size_t) {
            if (control_->ended()) throw CoordinatorGone("while experts were loaded for it");
          });
      spdlog::info("experts of another placement: {}", loaded.figures.text({}));
      control::Loaded answer{.epoch = hold.epoch,
                             .resident_bytes = loaded.store.resident_bytes(),
                             .held = loaded.store.held(),
                             .checksums = std::move(loaded.checksums),
                             .transport = how_};
      service_.epoch = hold.epoch;
      lane_->offer(std::make_shared<ServedPlacement>(std::move(loaded.store), machine.exec(), service_));
      control_->send(answer);
    } catch (CoordinatorGone const&) {
    } catch (std::exception const& error) {
      control_->fail(control::FailureKind::other, error.what(), ExitCode::lost);
    }
  }

  SessionContext& context_;
  std::size_t const coordinator_;
  bool const by_itself_;
  std::shared_ptr<ControlClient> control_;
  Incarnation incarnation_;
  std::unique_ptr<WeightSource> source_;
  std::unique_ptr<WorkerLink> link_;
  ExpertServiceOptions service_;
  std::string how_;  // messages go
  std::shared_ptr<CoordinatorLane> lane_;
  std::thread holding_;
};

}  // namespace

void run_session(SessionContext& context, std::size_t coordinator) {
  std::string const& address = context.options.coordinators[coordinator];
  bool const alone = context.options.coordinators.size() == 1;
  for (auto pause = kFirstPause;; pause = std::min(2 * pause, kLongestPause)) {
    auto const begin = Clock::now();
    try {
      SessionLife life(context, coordinator, alone ? address : context.mpi.resolve(address));
      if (life.live().for_good || context.roll.is_asked_to_end()) return;
      if (Clock::now() - begin > kLongestPause) pause = kFirstPause;
      spdlog::info("{} is looked for, while there are other coordinators", address);
    } catch (NetworkError const& error) {
      if (alone) throw;
      if (pause == kFirstPause) spdlog::warn("{}: {}", address, error.what());
      context.roll.ended(coordinator, ExitCode::lost);
    }
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace expertmesh
