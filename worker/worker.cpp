#include "worker/worker.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>

#include "common/base/check.h"
#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/log.h"
#include "common/base/network_interface.h"
#include "common/checkpoint/fingerprint.h"
#include "common/checkpoint/weight_source.h"
#include "common/experts/expert_service.h"
#include "common/experts/expert_store.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/protocol/cluster_file.h"
#include "common/protocol/secret_proof.h"
#include "common/protocol/step_layout.h"
#include "common/transport/mpi_runtime.h"
#include "common/transport/nccl_link.h"
#include "worker/capacity.h"
#include "worker/control_client.h"
#include "worker/remote_weights.h"
#include "worker/served_placement.h"
#include "worker/worker_link.h"
#include "worker/worker_loop.h"
#include "worker/worker_transport.h"

namespace expertmesh {
namespace {

constexpr int kExitModel = 2;  // the model directory is at fault
constexpr int kExitOther = 1;
constexpr PeerId kCoordinator{0};

// Rows wait for the coordinator to have some, and it may be busy with others' experts: it is the control plane that
// says when it is gone.
constexpr std::chrono::hours kLinkConnectTime{24};
constexpr std::chrono::minutes kLinkTransferTime{10};

// For a worker with a GPU; null: it has none, or no library.
std::shared_ptr<NcclApi> load_row_library(WorkerOptions const& options) {
  if (options.device == "cpu") return nullptr;
  // NCCL takes two processes on one GPU for a mistake. Where it is none, they say that they are on different hosts.
  if (std::getenv("EXPERTMESH_NCCL_ONE_GPU") != nullptr)
    setenv("NCCL_HOSTID", ("worker-" + std::to_string(getpid())).c_str(), 1);
  try {
    return load_nccl();
  } catch (NcclError const& error) {
    spdlog::info("rows come by the host, there is no NCCL: {}", error.what());
    return nullptr;
  }
}

control::Hello make_hello(WorkerOptions const& options, NcclApi const* nccl) {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  std::vector<std::string> isas;
  std::vector<std::string> dtypes = {std::string(name_of(DType::f32)), std::string(name_of(DType::bf16))};
  if (options.device == "cpu") {
    for (Isa const isa : runnable_isas()) isas.emplace_back(name_of(isa));
    for (DType const type : {DType::i8, DType::i4}) dtypes.emplace_back(name_of(type));
  } else {
    isas.emplace_back(control::kCudaKernels);
  }
  return {.protocol = control::kProtocolVersion,
          .build = control::build_version(),
          .nonce = {},
          .proof = {},
          .worker = WorkerId(options.worker_id),
          .incarnation = Incarnation(options.incarnation),
          .pid = getpid(),
          .host = host.data(),
          .device = options.device,
          .isas = std::move(isas),
          .dtypes = std::move(dtypes),
          .memory_bytes =
              static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)),
          .checkpoint = options.model_dir.empty() ? Fingerprint{} : fingerprint_of(options.model_dir),
          .nccl = nccl ? static_cast<std::uint32_t>(nccl->version()) : 0};
}

// Where this worker's weights come from: its own copy of the checkpoint, a folder at the coordinator's path, or the
// coordinator.
std::unique_ptr<WeightSource> open_weights(WorkerOptions const& options, std::string const& secret,
                                           control::Assign const& assign, control::Hello hello) {
  if (assign.load_format == LoadFormat::dummy) return make_dummy_weights(assign.dummy_seed);
  if (!options.model_dir.empty()) return open_checkpoint(options.model_dir);
  std::error_code ignored;
  if (std::filesystem::exists(std::filesystem::path(assign.model_dir) / "config.json", ignored)) {
    std::string const what = difference(assign.checkpoint, fingerprint_of(assign.model_dir));
    if (!what.empty()) throw ModelError(assign.model_dir + ": another checkpoint: not the coordinator's " + what);
    return open_checkpoint(assign.model_dir);
  }
  if (assign.weights.empty())
    throw ModelError(assign.model_dir +
                     " is not on this host, no other folder was given with --model, and the "
                     "coordinator sends no weights (serve --weights-rate 0)");
  spdlog::info("{} is not on this host: the weights come from {}", assign.model_dir, assign.weights);
  return fetch_weights(assign.weights, secret, hello);
}

// Before any other thread is there: everything of this process goes through the interface by which the coordinator is
// reached, unless the environment says otherwise.
void choose_interface(std::string const& control, bool by_itself) {
  auto const address = local_address_towards(control);
  auto const interface = address ? interface_of_address(*address) : std::nullopt;
  if (!interface) return;  // the connection will say why
  setenv("NCCL_SOCKET_IFNAME", ("=" + *interface).c_str(), 0);
  if (!by_itself) return;  // its MPI is set up by the coordinator
  setenv("UCX_NET_DEVICES", interface->c_str(), 1);
  setenv("OMPI_MCA_oob_tcp_if_include", interface == "lo" ? "lo" : ("lo," + *interface).c_str(), 1);
  spdlog::info("interface {}, {}", *interface, *address);
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

// Null: rows come with the messages.
std::unique_ptr<WorkerLink> make_link(control::Assign const& assign, std::shared_ptr<NcclApi> const& nccl,
                                      Device* device) {
  if (assign.link_id.empty()) return nullptr;
  auto const id = nccl_id_of(assign.link_id);
  if (!id || !nccl || !device)
    throw std::runtime_error(id ? "given a link that it has nothing for" : "given a link with an unreadable id");
  std::size_t hidden = 0;
  for (auto const& layer : assign.model.layers) hidden = std::max(hidden, layer.hidden);
  std::size_t const row_bytes = DispatchLayout(hidden, assign.model.wire).row_bytes();
  std::size_t const in_bytes = most_step_out_bytes(assign.limits, hidden, assign.model.wire);
  return std::make_unique<WorkerLink>(make_nccl_link(nccl, *id, *device,
                                                     {.end = LinkEnd::worker,
                                                      .peer = "the coordinator",
                                                      .connect_time = kLinkConnectTime,
                                                      .transfer_time = kLinkTransferTime},
                                                     std::chrono::steady_clock::now()),
                                      *device, in_bytes, assign.limits.max_entries * row_bytes);
}

// From its place in MPI to the end of the process; throws only before the first request.
[[noreturn]] void serve(WorkerOptions const& options, WorkerHooks const& hooks, ControlClient& control,
                        std::string const& secret, Incarnation incarnation, MpiComm coordinator,
                        std::shared_ptr<NcclApi> const& nccl) {
  if (!options.cores.empty()) restrict_to_cores(options.cores);  // the heartbeats' thread is there already, and free
  if (options.shared_cores) give_way_to_others();
  ThreadPool pool(options.threads);
  auto const gpu = cuda_index(options.device);
  std::unique_ptr<Device> const device = gpu ? open_cuda_device(*gpu) : nullptr;
  if (device) spdlog::info("device: {}", device->name());
  control::Capacity const capacity = capacity_of(pool, device.get(), options.capacity);
  spdlog::info("capacity: {:.3g} GB of weights a second, {}", static_cast<double>(capacity.bytes_per_second) / 1e9,
               capacity.measured ? "measured" : "as it was told");
  control.send(capacity);
  control::Assign assign = control.wait_for_assign();
  if (hooks.assigned) hooks.assigned(assign);
  auto const isa = gpu ? best_isa() : isa_from_name(assign.isa);
  EM_CHECK(isa.has_value() && gpu.has_value() == (assign.isa == control::kCudaKernels),
           "assigned to run '" << assign.isa << "'");
  auto const source = open_weights(options, secret, assign, control.hello());
  ExpertStore store(assign.model, assign.held, *source, pool, ProgressReporter(control), nullptr, device.get());
  Exec const exec(*isa, pool, ExpertService::exec_limits(assign.model, assign.limits, assign.max_requests),
                  device.get());
  ExpertServiceOptions service{.incarnation = incarnation,
                               .epoch = assign.epoch,
                               .wire = assign.model.wire,
                               .limits = assign.limits,
                               .max_messages = assign.max_requests};
  std::unique_ptr<WorkerLink> const link = make_link(assign, nccl, device.get());
  service.port = link.get();
  std::size_t const num_experts = store.num_experts();
  std::size_t const resident_bytes = store.resident_bytes();
  auto checksums = store.checksums(pool);
  auto latest = std::make_shared<ServedPlacement>(std::move(store), exec, service);
  WorkerTransport const messages =
      make_worker_transport(assign.shm, kCoordinator, coordinator, 2 * std::size_t{assign.max_requests});
  std::unique_ptr<Transport> const wrapped = hooks.wrap ? hooks.wrap(*messages.transport) : nullptr;
  WorkerLoop loop(wrapped ? *wrapped : *messages.transport, kCoordinator, latest, assign.max_requests,
                  options.shared_cores ? PollPause::sleep : PollPause::yield, link.get());
  // One at a time: the coordinator waits for the one before.
  control.on_hold([&](control::Hold hold) {
    std::thread([&, hold = std::move(hold)] {
      try {
        give_way_to_others();
        ThreadPool loading(1);
        ExpertStore loaded(
            assign.model, hold.held, *source, loading, [](std::size_t, std::size_t) {}, &latest->store, device.get());
        std::size_t const bytes = loaded.resident_bytes();
        auto sums = loaded.checksums(loading);
        service.epoch = hold.epoch;
        latest = std::make_shared<ServedPlacement>(std::move(loaded), exec, service);
        loop.offer(latest);
        control.send(control::Loaded{.epoch = hold.epoch,
                                     .resident_bytes = bytes,
                                     .held = latest->store.held(),
                                     .checksums = std::move(sums),
                                     .transport = messages.how});
      } catch (std::exception const& error) {
        control.fail(control::FailureKind::other, error.what(), kExitOther);
      }
    }).detach();
  });
  control.gate().set(ServingGate::Mode::serving);
  control.send(control::Loaded{.epoch = assign.epoch,
                               .resident_bytes = resident_bytes,
                               .held = latest->store.held(),
                               .checksums = std::move(checksums),
                               .transport = messages.how});
  spdlog::info("serving {} experts, {} bytes, {} threads, {}", num_experts, resident_bytes, options.threads,
               assign.isa);
  try {
    loop.run(control.gate());
  } catch (WorkerLoopError const& error) {  // here, where the buffers that MPI may still write to are alive
    control.fail(control::FailureKind::other, error.what(), kExitOther);
  }
  exit_without_finalize(0);
}

}  // namespace

[[noreturn]] void run_worker(WorkerOptions const& options, WorkerHooks const& hooks) {
  bool const by_itself = options.worker_id == 0;
  init_log(by_itself ? "worker" : "worker " + std::to_string(options.worker_id));
  if (hooks.started) hooks.started();
  std::string const secret = read_secret(options.secret_file);
  choose_interface(options.control, by_itself);
  auto const nccl = load_row_library(options);
  // Before MPI: should this process die inside MPI_Init, the coordinator sees it at once.
  ControlClient control(options.control, secret, make_hello(options, nccl.get()));
  try {
    if (hooks.connected) hooks.connected();
    auto const welcome = control.wait_for_welcome();
    MpiComm coordinator = nullptr;
    if (by_itself) {
      spdlog::info("taken in as worker {}, incarnation {}", welcome.worker.value(), welcome.incarnation.value());
      auto const how = control.wait_for_connect();
      setenv("OMPI_MCA_pmix_server_uri", how.name_server.c_str(), 1);  // the control thread reads no environment
      init_mpi();
      coordinator = connect_to_port(how.port, [&] { control.send(control::Called{}); });
    } else {
      init_mpi();
      coordinator = parent_comm();
    }
    serve(options, hooks, control, secret, welcome.incarnation, coordinator, nccl);
  } catch (ModelError const& error) {
    if (by_itself) spdlog::error("{}", error.what());  // the coordinator's log is on another host
    control.fail(control::FailureKind::model, error.what(), kExitModel);
  } catch (DeviceError const& error) {  // trying again does not help
    if (by_itself) spdlog::error("{}", error.what());
    control.fail(control::FailureKind::other, error.what(), kExitModel);
  } catch (std::exception const& error) {
    if (by_itself) spdlog::error("{}", error.what());
    control.fail(control::FailureKind::other, error.what(), kExitOther);
  }
}

namespace {
int print_workers(std::string const& cluster_file, std::string const& host) {
  try {
    for (auto const& arguments : worker_arguments(read_cluster_file(cluster_file), host, usable_cores())) {
      for (std::string const& argument : arguments) std::cout << argument << '\n';
      std::cout << std::endl;
    }
    return 0;
  } catch (ModelError const& error) {
    std::cerr << "expertmesh worker: " << error.what() << std::endl;
  } catch (FileError const& error) {
    std::cerr << "expertmesh worker: " << error.what() << std::endl;
  }
  return kExitModel;
}
}  // namespace

int worker_main(int argc, char** argv, HooksFor const& hooks_for) {
  std::signal(SIGINT, SIG_IGN);  // Ctrl-C reaches the whole terminal; the coordinator decides when workers leave
  CLI::App app{"Holds experts of a Mixture-of-Experts model for an ExpertMesh coordinator, which starts it"};
  WorkerOptions options;
  std::string cluster_file;
  std::string cluster_host;
  auto* control = app.add_option("--control", options.control, "HOST:PORT of the coordinator that starts this worker");
  auto* join = app.add_option("--join", options.control, "HOST:PORT of the coordinator to join (serve --interface)");
  auto* secret = app.add_option("--secret-file", options.secret_file, "file with the cluster's secret");
  app.add_option(
      "--model", options.model_dir,
      "this host's copy of the checkpoint [the coordinator's path; if nothing is there, it sends the weights]");
  app.add_option("--threads", options.threads, "compute threads [all usable cores; 1 if started by a coordinator]")
      ->check(CLI::Range(1, 4096));
  app.add_option("--device", options.device, "what runs the experts: cpu, cuda or cuda:N")
      ->check(valid_device_name)
      ->capture_default_str();
  app.add_option("--capacity", options.capacity,
                 "gigabytes of weights that it reads a second: its share of the experts goes by that [measured]")
      ->check(CLI::Range(0.001, 1e6));
  auto* id =
      app.add_option("--worker-id", options.worker_id, "place in the cluster, from 1")->check(CLI::Range(1, 65536));
  auto* life = app.add_option("--incarnation", options.incarnation, "which life of this worker, from 1");
  app.add_option("--cores", options.cores, "cores of the compute threads")->delimiter(',');
  app.add_flag("--shared-cores", options.shared_cores, "this host has more compute threads than cores");
  auto* cluster =
      app.add_option("--cluster", cluster_file,
                     "start the workers that this cluster file has for --host (by the launcher; this program "
                     "alone prints their arguments, one a line, and a blank line behind each worker's)");
  auto* host = app.add_option("--host", cluster_host, "that host, as the file names it")->needs(cluster);
  cluster->needs(host)->excludes(control)->excludes(join);
  join->excludes(control)->excludes(id)->excludes(life);
  control->needs(id)->needs(life);
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& error) {
    return app.exit(error) == 0 ? 0 : kExitModel;
  }
  if (cluster->count() != 0) return print_workers(cluster_file, cluster_host);
  if (control->count() + join->count() == 0) {
    std::cerr << "expertmesh-worker: --join HOST:PORT is required" << std::endl;
    return kExitModel;
  }
  if (secret->count() == 0) {
    std::cerr << "expertmesh-worker: --secret-file is required" << std::endl;
    return kExitModel;
  }
  if (join->count() != 0 && options.threads == 0) options.threads = usable_cores();
  if (options.threads == 0) options.threads = 1;
  try {
    run_worker(options, hooks_for ? hooks_for(options) : WorkerHooks{});
  } catch (FileError const& error) {  // of what the user named: trying again does not help
    spdlog::error("{}", error.what());
    exit_without_finalize(kExitModel);
  } catch (std::exception const& error) {
    spdlog::error("{}", error.what());
    exit_without_finalize(kExitOther);
  }
}

}  // namespace expertmesh
