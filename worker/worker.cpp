#include "worker/worker.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <future>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>

#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/host_port.h"
#include "common/base/log.h"
#include "common/base/network_interface.h"
#include "common/base/option_checks.h"
#include "common/base/topology.h"
#include "common/checkpoint/fingerprint.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/protocol/cluster_file.h"
#include "common/protocol/secret_proof.h"
#include "common/transport/mpi_runtime.h"
#include "worker/coordinator_session.h"

namespace expertmesh {
namespace {

constexpr int kExitModel = 2;  // the model directory is at fault
constexpr int kExitOther = 1;

// For a worker with a GPU; null: it has none, or no library.
std::shared_ptr<NcclApi> load_row_library(WorkerOptions const& options) {
  if (options.device == "cpu") return nullptr;
  if (options.coordinators.size() > 1) {
    spdlog::info("rows come by the host: NCCL is for workers of one coordinator");
    return nullptr;
  }
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

// Before any other thread is there: everything of this process goes through the interfaces by which the coordinators
// are reached, unless the environment says otherwise.
void choose_interfaces(std::vector<std::string> const& coordinators, bool by_itself) {
  std::string all;
  for (std::string const& coordinator : coordinators) {
    auto const address = local_address_towards(coordinator);
    auto const interface = address ? interface_of_address(*address) : std::nullopt;
    if (!interface || ("," + all + ",").find("," + *interface + ",") != std::string::npos) continue;
    if (by_itself) spdlog::info("interface {}, {}", *interface, *address);
    all += (all.empty() ? "" : ",") + *interface;
  }
  if (all.empty()) return;  // the connection will say why
  setenv("NCCL_SOCKET_IFNAME", ("=" + all).c_str(), 0);
  if (!by_itself) return;  // its MPI is set up by the coordinator
  setenv("UCX_NET_DEVICES", all.c_str(), 1);
  bool const has_lo = ("," + all + ",").find(",lo,") != std::string::npos;
  setenv("OMPI_MCA_oob_tcp_if_include", has_lo ? all.c_str() : ("lo," + all).c_str(), 1);
}

[[noreturn]] void end_process(ExitCode code) {
  spdlog::default_logger()->flush();
  exit_without_finalize(static_cast<int>(code));
}

// Made by the first thread when a session asks for it for the first time.
class SharedMachine {
 public:
  // A session's thread.
  WorkerMachine& get() {
    std::call_once(asked_once_, [this] { asked_.set_value(); });
    auto const made = made_;  // of this thread
    return *made.get();
  }
  // The first thread.
  [[noreturn]] void run(WorkerOptions const& options, WorkerHooks const& hooks, Doorbell& bell) {
    asked_.get_future().wait();
    std::unique_ptr<WorkerMachine> machine;
    try {
      machine = std::make_unique<WorkerMachine>(options, hooks, bell);
      promise_.set_value(machine.get());
    } catch (...) {
      promise_.set_exception(std::current_exception());
    }
    if (machine) machine->loop().run(WorkerLoop::WhenEmpty::wait);
    for (;;) pause();  // the sessions end the process
  }

 private:
  std::once_flag asked_once_;
  std::promise<void> asked_;
  std::promise<WorkerMachine*> promise_;
  std::shared_future<WorkerMachine*> const made_ = promise_.get_future().share();
};

}  // namespace

[[noreturn]] void run_worker(WorkerOptions const& options, WorkerHooks const& hooks) {
  bool const by_itself = options.worker_id == 0;
  init_log(by_itself ? "worker" : "worker " + std::to_string(options.worker_id));
  if (hooks.started) hooks.started();
  std::string const secret = read_secret(options.secret_file);
  choose_interfaces(options.coordinators, by_itself);
  auto const nccl = load_row_library(options);
  CoordinatorRoll roll(options.coordinators.size(), end_process);
  Doorbell bell;
  SharedMachine machine;
  SessionContext context{.options = options,
                         .hooks = hooks,
                         .secret = secret,
                         .hello = make_hello(options, nccl.get()),
                         .nccl = nccl,
                         .machine = [&machine]() -> WorkerMachine& { return machine.get(); },
                         .roll = roll,
                         .bell = bell};
  std::vector<std::thread> sessions;  // which end the process
  for (std::size_t i = 0; i < options.coordinators.size(); ++i)
    sessions.emplace_back([&context, i] {
      try {
        run_session(context, i);
      } catch (std::exception const& error) {
        spdlog::error("{}", error.what());
        end_process(ExitCode::lost);
      }
    });
  machine.run(options, hooks, bell);
}

namespace {
// HOST:PORT[,HOST:PORT ...], each once.
std::vector<std::string> addresses_in(std::string const& text) {
  std::vector<std::string> addresses;
  for (std::size_t begin = 0; begin <= text.size();) {
    std::size_t const end = std::min(text.find(',', begin), text.size());
    std::string const address = text.substr(begin, end - begin);
    if (!split_host_port(address)) throw ModelError("expected HOST:PORT, got '" + address + "'");
    if (std::ranges::find(addresses, address) != addresses.end()) throw ModelError(address + " is there twice");
    addresses.push_back(address);
    begin = end + 1;
  }
  return addresses;
}

int print_workers(std::string const& cluster_file, std::string const& host) {
  try {
    for (auto const& arguments :
         worker_arguments(read_cluster_file(cluster_file), host, {read_topology(), usable_cores()})) {
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
  std::string joined;
  std::string cluster_file;
  std::string cluster_host;
  auto* control =
      app.add_option("--control", options.coordinators, "HOST:PORT of the coordinator that starts this worker")
          ->expected(1);
  auto* join =
      app.add_option("--join", joined,
                     "HOST:PORT of the coordinator to join (serve --interface); of several, with commas between "
                     "them: all of them are served at once, and their experts held once")
          ->expected(1);
  auto* secret = app.add_option("--secret-file", options.secret_file, "file with the cluster's secret");
  app.add_option(
      "--model", options.model_dir,
      "this host's copy of the checkpoint [the coordinator's path; if nothing is there, it sends the weights]");
  app.add_option("--packed-cache", options.packed_cache,
                 "folder in which experts are kept as they were packed, for the next start [none]");
  app.add_option("--threads", options.threads, "compute threads [all usable cores; 1 if started by a coordinator]")
      ->check(CLI::Range(1, 4096));
  app.add_option("--device", options.device, "what runs the experts: cpu, cuda or cuda:N")
      ->check(valid_device_name)
      ->capture_default_str();
  app.add_option("--capacity", options.capacity,
                 "gigabytes of weights that it reads a second: its share of the experts goes by that [measured]")
      ->check(range_of_numbers(0.001, 1e6));
  auto* id =
      app.add_option("--worker-id", options.worker_id, "place in the cluster, from 1")->check(CLI::Range(1, 65536));
  auto* life = app.add_option("--incarnation", options.incarnation, "which life of this worker, from 1");
  app.add_option("--cores", options.cores, "cores of the compute threads")->delimiter(',');
  add_choice<bool>(app, "--bind", options.bind, {{"auto", true}, {"none", false}},
                   "compute threads: auto: on several NUMA nodes each keeps to its node, whose memory has its share of "
                   "the experts; none: wherever the system puts them [auto]");
  std::int64_t gather_us = 0;
  app.add_option("--gather-us", gather_us,
                 "of several coordinators: the most microseconds that a request is kept for those of the others, so "
                 "that one pass over an expert's weights serves the rows of all; 0: it never is")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
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
  try {
    if (join->count() != 0) options.coordinators = addresses_in(joined);
  } catch (ModelError const& error) {
    std::cerr << "expertmesh-worker: --join: " << error.what() << std::endl;
    return kExitModel;
  }
  options.longest_wait = std::chrono::microseconds(gather_us);
  if (gather_us > 0 && options.coordinators.size() == 1) {
    std::cerr << "expertmesh-worker: --gather-us: there are no other coordinators to wait for" << std::endl;
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
