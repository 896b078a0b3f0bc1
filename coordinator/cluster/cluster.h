// The coordinator's worker processes: spawned, given their experts, watched, replaced when they die, and ended.
#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "common/config/expert_spec.h"
#include "common/transport/nccl_api.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/row_transport.h"
#include "coordinator/cluster/worker_group.h"
#include "coordinator/cluster/worker_status.h"

namespace expertmesh {

// A worker process of this host.
struct LocalWorker {
  std::string device = "cpu";  // see WorkerOptions, like the next
  std::size_t threads = 1;
  std::vector<int> cores{};
  bool bind = true;
  double capacity = 0;
};

struct ClusterOptions {
  std::size_t num_workers = 1;  // N at the start: worker w holds the experts [E*(w-1)/N, E*w/N) of every MoE layer,
                                // unless some can hold more than others
  std::size_t redundant_experts = 0;     // replicas in every MoE layer, beyond one holder of each expert
  std::filesystem::path worker_program;  // expertmesh-worker
  std::filesystem::path model_dir;
  std::filesystem::path packed_cache{};  // of the workers of this host; empty: none
  LoadFormat load_format = LoadFormat::automatic;
  std::uint64_t dummy_seed = 0;
  ExpertModelSpec experts;
  std::size_t experts_per_token = 1;       // K
  std::size_t max_tokens_per_step = 1;     // T
  LocalWorker local;                       // what those of this host are
  std::vector<LocalWorker> first_local{};  // worker w's at w - 1, where they are not all the same
  std::size_t memory_bytes = SIZE_MAX;     // of this host, that the experts of its workers may take together
  // This host has more compute threads than cores: workers sleep between looks for a message.
  bool shared_cores = false;
  // As in kernels/exec.h, or control::kCudaKernels: what every worker runs; one that cannot is refused, or, if they may
  // be mixed, runs the best that it can.
  std::string isa;
  bool mixed_isas = false;
  std::shared_ptr<NcclApi> nccl{};  // by which rows go to workers that have it, too; null: to none
  bool nccl_required = false;       // who has not is refused
  MessageTransport transport = MessageTransport::automatic;  // who cannot is refused

  bool verify_weights = false;  // what workers load is compared with what this process reads; else among themselves

  // Workers that come by themselves, from other hosts; none without an interface.
  struct Remote {
    std::size_t num_workers = 0;           // that are awaited at the start, and have their share from then on
    std::string interface;                 // "eth0": what the control plane and the weight port listen on
    std::uint16_t port = 0;                // of the control plane
    std::filesystem::path secret_file;     // empty: a new one, whose path is logged
    std::size_t weights_per_second = 0;    // bytes, to hosts without the checkpoint; 0: those get none
    std::chrono::seconds return_time{10};  // a dead one may take, before others take its experts over
  } remote{};

  std::chrono::milliseconds heartbeat_interval{25};
  std::chrono::milliseconds death_timeout{200};  // without a heartbeat
  std::chrono::seconds join_timeout{60};         // of the first start, from spawn to hello, all workers together
  std::chrono::seconds rejoin_timeout{10};       // of a later start
  std::chrono::seconds load_timeout{24 * 3600};  // from assign to loaded
  std::chrono::seconds leave_timeout{3};         // from shutdown to the end of the process
};

struct LoadProgress {
  std::size_t loaded_bytes = 0;  // of packed experts, all workers together
  std::size_t total_bytes = 0;
  double bytes_per_second = 0;
  double seconds_left = 0;
};

// A worker could not be started. Names the worker and its reason. (A worker that finds fault with the model directory
// ends the start with a ModelError instead.)
class ClusterError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Cluster final : public WorkerGroup {
 public:
  using OnProgress =
      std::function<void(LoadProgress const&)>;  // on the calling thread of start(), a few times a second
  // A worker began to serve, or died. On the monitor thread; must not block or throw.
  using OnChange = std::function<void(WorkerStatus const&)>;

  // Spawns the workers, gives them their experts and returns when all serve, those awaited from elsewhere too. source:
  // what workers without a checkpoint are given; must outlive the cluster. From then on a dead one is replaced: at
  // once, or after a pause if it died before it served; one that did so three times in a row is left dead,
  // and the others take its experts over. MPI must be initialised. Throws ClusterError, ModelError or NetworkError;
  // nothing is left behind then.
  static std::unique_ptr<Cluster> start(ClusterOptions options, WeightSource const& source,
                                        OnProgress const& on_progress, OnChange on_change);
  ~Cluster() override;  // shutdown()

  // Asks the workers to leave, waits at most leave_timeout, kills what is still there.
  void shutdown();

  // ---- thread-safe; these return at once, what they ask for happens beside the steps
  [[nodiscard]] std::vector<WorkerStatus> status() const;
  // One more worker on this host; experts move to it when it serves. None, or why not.
  std::optional<std::string> add_worker();
  // The others take the worker's experts over, then it ends, for good. None, or why not.
  std::optional<std::string> drain(WorkerId worker);
  // This life works at such a speed, relative to the others: it gets a share to match.
  void set_speed(Life life, double speed);
  // [layers][E] tokens that each expert got lately: experts move if that balances them clearly better.
  void consider_load(std::vector<std::vector<double>> load);
  [[nodiscard]] std::size_t shared_bytes() const;  // that a worker's messages may take if they go by shared memory
  using Balance = Membership::Balance;
  [[nodiscard]] Balance balance() const;

  [[nodiscard]] Transport& transport() override;
  [[nodiscard]] std::vector<WorkerPeer> members() override;
  void keep(std::shared_ptr<void const> memory) override;
  [[nodiscard]] std::uint64_t version() const override;
  [[nodiscard]] bool dead(WorkerPeer const& member) const override;
  [[nodiscard]] std::string death_reason(WorkerPeer const& member) const override;
  void declare_dead(WorkerPeer const& member, std::string const& reason) override;
  void adopted(std::uint64_t version) override;
  void set_row_transport(WorkerPeer const& member, std::string const& how) override;
  [[nodiscard]] std::size_t resident_bytes() const override;
  void idle() override;
  void wake() override;

 private:
  class Impl;
  explicit Cluster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
