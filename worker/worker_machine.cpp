#include "worker/worker_machine.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>

#include "common/base/check.h"
#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/log.h"
#include "common/base/topology.h"
#include "common/experts/expert_service.h"
#include "worker/capacity.h"

namespace expertmesh {
namespace {

// At once, and in quarantine after their coordinators' ends.
constexpr std::size_t kMaxOps = 4096;

// Of this thread and those it starts: heartbeats' threads are there already, and free.
void take_place(WorkerOptions const& options) {
  if (!options.cores.empty()) restrict_to_cores(options.cores);
}

ThreadPlan plan_here(WorkerOptions const& options) {
  take_place(options);
  return plan_own_threads(read_topology(), options.threads,
                          options.bind ? ThreadPlan::Pinning::node : ThreadPlan::Pinning::none);
}

// The calling thread will run the loop.
control::Capacity capacity_in_place(ThreadPool& pool, Device* device, WorkerOptions const& options) {
  pool.place_caller();
  if (!device) spdlog::info("compute threads: {}", pool.plan().text());
  return capacity_of(pool, device, options.capacity);
}

std::unique_ptr<Device> open_device(std::string const& name) {
  auto const gpu = cuda_index(name);
  auto device = gpu ? open_cuda_device(*gpu) : nullptr;
  if (device) spdlog::info("device: {}", device->name());
  return device;
}

// What is not the same; empty: all that matters is.
std::string difference(control::Assign const& first, control::Assign const& other) {
  if (other.isa != first.isa) return "kernels '" + other.isa + "', not '" + first.isa + "'";
  if (other.model.weights != first.model.weights || other.model.wire != first.model.wire)
    return "weights in " + std::string(name_of(other.model.weights.storage)) + " and rows in " +
           std::string(name_of(other.model.wire)) + ", not " + std::string(name_of(first.model.weights.storage)) +
           " and " + std::string(name_of(first.model.wire));
  if (other.load_format != first.load_format || other.dummy_seed != first.dummy_seed) return "other dummy weights";
  if (std::string const what = difference(first.checkpoint, other.checkpoint); !what.empty())
    return "another checkpoint, by its " + what;
  return other.model == first.model ? "" : "other experts";
}

}  // namespace

WorkerMachine::WorkerMachine(WorkerOptions const& options, WorkerHooks const& hooks, Doorbell& bell)
    : options_(options),
      pool_(plan_here(options)),
      device_(open_device(options.device)),
      capacity_(capacity_in_place(pool_, device_.get(), options)),
      transports_(kMaxOps) {
  spdlog::info("capacity: {:.3g} GB of weights a second, {}", static_cast<double>(capacity_.bytes_per_second) / 1e9,
               capacity_.measured ? "measured" : "as it was told");
  if (hooks.wrap) wrapped_ = hooks.wrap(transports_.transport());
  if (options.longest_wait.count() > 0)
    spdlog::info("a request waits for those of other coordinators for at most {} us", options.longest_wait.count());
  loop_.emplace(wrapped_ ? *wrapped_ : transports_.transport(), bell,
                WorkerLoopOptions{.pause = options.shared_cores ? PollPause::sleep : PollPause::yield,
                                  .longest_wait = options.longest_wait});
}

void WorkerMachine::agree_on(control::Assign const& assign) {
  std::lock_guard const lock(mutex_);
  if (first_) {
    if (std::string const what = difference(*first_, assign); !what.empty())
      throw ModelError("not what the worker's other coordinators serve: " + what);
    return;
  }
  bool const gpu = device_ != nullptr;
  auto const isa = gpu ? best_isa() : isa_from_name(assign.isa);
  EM_CHECK(isa.has_value() && gpu == (assign.isa == control::kCudaKernels), "assigned to run '" << assign.isa << "'");
  exec_.emplace(
      *isa, pool_,
      ExpertService::exec_limits(assign.model, assign.limits, assign.max_requests * options_.coordinators.size()),
      device_.get());
  first_ = assign;
}

// Who looks for messages by MPI wakes up in vain again and again. Who is woken by one has something to do at once, also
// where others compute.
void WorkerMachine::add_peer(PeerId peer, DataPath&& path) {
  if (options_.shared_cores && !path.area) give_way_to_others();
  transports_.add_peer(peer, std::move(path));
}

WorkerMachine::Pace WorkerMachine::pace() const {
  return loop_->num_served() == 0 ? Pace::full : Pace::beside_rows;
}

WorkerMachine::Loaded WorkerMachine::load(HeldExperts const& held, WeightSource const& source, Pace pace,
                                          ExpertStore::OnBytes const& on_bytes) {
  std::optional<Loaded> loaded;
  std::exception_ptr failure;
  std::thread([&] {
    try {
      bool const beside_rows = pace == Pace::beside_rows;
      take_place(options_);
      if (beside_rows || options_.shared_cores) give_way_to_others();
      ThreadPool pool(beside_rows ? 1 : options_.threads);
      LoadTimer const timer(source);
      ExpertStore store(first_->model, held, source, pool, on_bytes, &experts_,
                        {.device = device_.get(), .threads = &pool_.plan()});
      auto checksums = store.checksums(pool);
      loaded.emplace(Loaded{.store = std::move(store), .checksums = std::move(checksums), .figures = timer.figures()});
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
  return std::move(*loaded);
}

}  // namespace expertmesh
