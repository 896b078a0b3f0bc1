#include "worker/worker.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <string>
#include <thread>

#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/log.h"
#include "common/checkpoint/weight_source.h"
#include "common/experts/expert_service.h"
#include "common/experts/expert_store.h"
#include "common/kernels/exec.h"
#include "common/transport/mpi_runtime.h"
#include "common/transport/mpi_transport.h"
#include "worker/control_client.h"
#include "worker/served_placement.h"
#include "worker/worker_loop.h"

namespace expertmesh {
namespace {

constexpr int kExitModel = 2;  // the model directory is at fault
constexpr int kExitOther = 1;
constexpr PeerId kCoordinator{0};

std::string read_secret(std::string const& path) {
  std::ifstream file(path);
  std::string token;
  if (!(file >> token)) throw FileError("read", 0, "no secret there", path);
  return token;
}

control::Hello make_hello(WorkerOptions const& options) {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  return {.protocol = control::kProtocolVersion,
          .build = control::build_version(),
          .nonce = {},
          .proof = {},
          .worker = WorkerId(options.worker_id),
          .incarnation = Incarnation(options.incarnation),
          .pid = getpid(),
          .host = host.data(),
          .device = "cpu",
          .isa = options.isa,
          .dtypes = {std::string(name_of(DType::f32)), std::string(name_of(DType::bf16))},
          .memory_bytes =
              static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))};
}

// Tells the coordinator how the load goes, a few times a second.
class ProgressReporter {
 public:
  explicit ProgressReporter(ControlClient& control) : control_(control) {}
  void operator()(std::size_t loaded, std::size_t total) {
    auto const now = std::chrono::steady_clock::now();
    if (loaded < total && now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    control_.send(control::Progress{.loaded_bytes = loaded, .total_bytes = total});
  }

 private:
  ControlClient& control_;
  std::chrono::steady_clock::time_point last_;
};

// From assignment to the end of the process; throws only before the first request.
[[noreturn]] void serve(WorkerOptions const& options, WorkerHooks const& hooks, ControlClient& control) {
  control::Assign const assign = control.wait_for_assign();
  if (hooks.assigned) hooks.assigned();
  auto const isa = isa_from_name(options.isa);
  if (!isa || !std::ranges::count(runnable_isas(), *isa))
    control.fail(control::FailureKind::other, "this processor cannot run '" + options.isa + "'", kExitOther);
  if (!options.cores.empty()) restrict_to_cores(options.cores);  // the heartbeats' thread is there already, and free
  if (options.shared_cores) give_way_to_others();
  ThreadPool pool(options.threads);
  auto const source = assign.load_format == LoadFormat::dummy ? make_dummy_weights(assign.dummy_seed)
                                                              : open_checkpoint(assign.model_dir);
  ExpertStore store(assign.model, assign.held, *source, pool, ProgressReporter(control));
  Exec const exec(*isa, pool, ExpertService::exec_limits(assign.model, assign.limits, assign.max_requests));
  ExpertServiceOptions service{.incarnation = Incarnation(options.incarnation),
                               .epoch = assign.epoch,
                               .wire = assign.model.wire,
                               .limits = assign.limits,
                               .max_messages = assign.max_requests};
  std::size_t const num_experts = store.num_experts();
  std::size_t const resident_bytes = store.resident_bytes();
  auto latest = std::make_shared<ServedPlacement>(std::move(store), exec, service);
  MpiTransport transport({.max_ops = 2 * std::size_t{assign.max_requests}});
  transport.add_peer(kCoordinator, parent_comm());
  std::unique_ptr<Transport> const wrapped = hooks.wrap ? hooks.wrap(transport) : nullptr;
  WorkerLoop loop(wrapped ? *wrapped : transport, kCoordinator, latest, assign.max_requests,
                  options.shared_cores ? PollPause::sleep : PollPause::yield);
  // One at a time: the coordinator waits for the one before.
  control.on_hold([&](control::Hold hold) {
    std::thread([&, hold = std::move(hold)] {
      try {
        give_way_to_others();
        ThreadPool loading(1);
        ExpertStore loaded(
            assign.model, hold.held, *source, loading, [](std::size_t, std::size_t) {}, &latest->store);
        std::size_t const bytes = loaded.resident_bytes();
        service.epoch = hold.epoch;
        latest = std::make_shared<ServedPlacement>(std::move(loaded), exec, service);
        loop.offer(latest);
        control.send(control::Loaded{.epoch = hold.epoch, .resident_bytes = bytes});
      } catch (std::exception const& error) {
        control.fail(control::FailureKind::other, error.what(), kExitOther);
      }
    }).detach();
  });
  control.gate().set(ServingGate::Mode::serving);
  control.send(control::Loaded{.epoch = assign.epoch, .resident_bytes = resident_bytes});
  spdlog::info("serving {} experts, {} bytes, {} threads, {}", num_experts, resident_bytes, options.threads,
               options.isa);
  try {
    loop.run(control.gate());
  } catch (WorkerLoopError const& error) {  // here, where the buffers that MPI may still write to are alive
    control.fail(control::FailureKind::other, error.what(), kExitOther);
  }
  exit_without_finalize(0);
}

}  // namespace

[[noreturn]] void run_worker(WorkerOptions const& options, WorkerHooks const& hooks) {
  init_log("worker " + std::to_string(options.worker_id));
  if (hooks.started) hooks.started();
  // Before MPI: should this process die inside MPI_Init, the coordinator sees it at once.
  ControlClient control(options.control, read_secret(options.secret_file), make_hello(options));
  try {
    if (hooks.connected) hooks.connected();
    init_mpi();
    serve(options, hooks, control);
  } catch (ModelError const& error) {
    control.fail(control::FailureKind::model, error.what(), kExitModel);
  } catch (std::exception const& error) {
    control.fail(control::FailureKind::other, error.what(), kExitOther);
  }
}

int worker_main(int argc, char** argv, HooksFor const& hooks_for) {
  std::signal(SIGINT, SIG_IGN);  // Ctrl-C reaches the whole terminal; the coordinator decides when workers leave
  CLI::App app{"Holds experts of a Mixture-of-Experts model for an ExpertMesh coordinator, which starts it"};
  WorkerOptions options;
  app.add_option("--control", options.control, "HOST:PORT of the coordinator's control plane")->required();
  app.add_option("--worker-id", options.worker_id, "place in the cluster, from 1")->required();
  app.add_option("--incarnation", options.incarnation, "which life of this worker, from 1")->required();
  app.add_option("--secret-file", options.secret_file, "file with the cluster's secret")->required();
  app.add_option("--threads", options.threads, "compute threads")->check(CLI::Range(1, 4096));
  app.add_option("--isa", options.isa, "instruction set of the numerics profile")->required();
  app.add_option("--cores", options.cores, "cores of the compute threads")->delimiter(',');
  app.add_flag("--shared-cores", options.shared_cores, "this host has more compute threads than cores");
  CLI11_PARSE(app, argc, argv);
  try {
    run_worker(options, hooks_for ? hooks_for(options) : WorkerHooks{});
  } catch (std::exception const& error) {
    spdlog::error("{}", error.what());
    exit_without_finalize(kExitOther);
  }
}

}  // namespace expertmesh
