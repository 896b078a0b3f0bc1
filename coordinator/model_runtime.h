// A model that runs: sizes, weights, experts (here or in workers), KV cache, scheduler and step runner. What the server
// and the benchmark have in common; knows no requests and no HTTP.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "common/base/topology.h"
#include "common/checkpoint/weight_source.h"
#include "common/experts/load_figures.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/transport/nccl_api.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/row_transport.h"
#include "coordinator/engine/stage_floors.h"
#include "coordinator/engine/step_runner.h"
#include "coordinator/experts/remote_experts.h"
#include "coordinator/model/model_plan.h"
#include "coordinator/observe/trace.h"
#include "coordinator/scheduler/scheduler.h"

namespace expertmesh {

struct ModelRuntimeOptions {
  std::filesystem::path model_dir;
  std::size_t workers = 0;         // 0: experts in this process
  std::size_t threads = 0;         // 0: all usable cores
  std::size_t worker_threads = 0;  // 0: usable cores / workers, at least 1
  bool bind = true;                // compute threads are pinned where that is of use; also those of this host's workers
  double worker_capacity = 0;      // of the workers of this host, gigabytes of weights a second; 0: measured
  std::optional<DType> dtype;      // none: auto
  Quantization quantization = Quantization::none;
  std::optional<DType> kv_dtype;  // none: that of the rows
  LoadFormat load_format = LoadFormat::automatic;
  std::uint64_t dummy_seed = 0;
  std::filesystem::path packed_cache;        // folder for experts as they were packed; empty: none
  std::optional<std::size_t> max_model_len;  // none: the checkpoint's
  std::size_t max_num_seqs = 64;
  std::size_t max_num_batched_tokens = 512;
  std::optional<std::size_t> kv_cache_bytes;
  std::optional<std::uint64_t> router_noise_seed;
  std::optional<Isa> isa;      // none: the best this processor runs
  std::string device = "cpu";  // or cuda, cuda:N: of the coordinator, and of the experts without workers
  std::function<std::unique_ptr<Device>(std::size_t)> open_device = open_cuda_device;  // by its index
  std::string worker_device = "cpu";  // of the workers of this host; what those of other hosts must run, too
  // The workers of this host one by one, where they are not all the same; 0 threads: their share of the cores.
  std::vector<LocalWorker> local_workers;
  MessageTransport transport = MessageTransport::automatic;  // of messages to workers
  RowTransport row_transport = RowTransport::automatic;
  std::size_t static_exchange_bytes = 0;  // RemoteExpertsLimits::static_bytes
  MicroBatchRule micro_batches = MicroBatchRule::automatic;
  bool return_routed_experts = false;
  bool prefix_cache = true;          // where keys and values depend on the tokens before alone
  bool mixed_numerics = false;       // whoever has other kernels may take part: bits depend on who runs what
  bool device_graphs = true;         // decode steps of a device are CUDA graphs
  double device_memory_share = 0.9;  // of the device's free memory, that weights, KV cache and buffers may take
  std::size_t heartbeat_timeout_ms = 200;
  std::size_t redundant_experts = 0;
  bool checksum_messages = false;
  bool verify_weights = false;
  std::uint16_t control_port = 7070;  // for workers of other hosts, like the next; see ClusterOptions::Remote
  std::string interface;
  std::size_t remote_workers = 0;
  std::filesystem::path secret_file;
  std::filesystem::path name_server;  // several coordinators', which the launcher puts where MPI looks; empty: its own
  std::size_t weights_per_second = std::size_t{1} << 30;
  std::filesystem::path trace_file;  // empty: no trace
  std::size_t trace_bytes = TraceOptions{}.most_bytes;

  // Whether experts are in worker processes.
  [[nodiscard]] bool clustered() const { return workers > 0 || !interface.empty(); }
};

// Fixed before anything large is allocated.
struct RuntimeSizes {
  std::size_t max_model_len = 0;
  std::size_t max_num_seqs = 0;
  std::size_t max_num_batched_tokens = 0;
  std::vector<std::size_t> kv_blocks;  // [KV groups]
  std::size_t kv_cache_bytes = 0;
  bool prefix_cache = false;
  std::size_t own_cache_bytes = 0;  // experts of dead workers that the coordinator keeps
  std::size_t worker_bytes = 0;     // of this host's memory, that workers may take together
};

class ModelRuntime {
 public:
  // Reads the model's configuration, checks its files and sizes everything. Starts no thread, but for a trace's, and no
  // process. Throws ModelError or FileError.
  explicit ModelRuntime(ModelRuntimeOptions const& options);

  // Brings it all up. on_change: monitor thread of the cluster. Throws ModelError, OutsideError or ClusterError. With
  // workers the process must be left by exit_without_finalize().
  void load(Cluster::OnChange on_change);
  // Ends the workers, if there are any. No step may run afterwards.
  void shut_down();

  [[nodiscard]] ModelSpec const& spec() const { return spec_; }
  [[nodiscard]] ExpertModelSpec const& experts_spec() const { return experts_spec_; }
  [[nodiscard]] DType dtype() const { return dtype_; }  // of rows, and weights that are not quantised
  [[nodiscard]] DType kv_dtype() const { return kv_dtype_; }
  [[nodiscard]] WeightFormat const& weight_format() const { return weight_format_; }
  [[nodiscard]] Holders holders() const;
  [[nodiscard]] ThreadPlan const& threads() const { return threads_; }  // of this process, which compute
  [[nodiscard]] Isa isa() const { return isa_; }
  [[nodiscard]] NcclApi const* nccl() const { return nccl_.get(); }  // null: rows go by the host
  [[nodiscard]] Device* device() const { return device_.get(); }     // null: this processor
  [[nodiscard]] ModelPlan const& plan() const { return plan_; }      // for this number of workers
  [[nodiscard]] std::vector<KvCacheSpec> const& kv_groups() const { return kv_groups_; }
  [[nodiscard]] RuntimeSizes const& sizes() const { return sizes_; }

  // After load().
  [[nodiscard]] Exec const& exec() const { return *exec_; }
  [[nodiscard]] Experts& experts();
  [[nodiscard]] RemoteExperts* remote_experts() const {
    return remote_.get();
  }  // none: a model without experts, or all on the device
  [[nodiscard]] Cluster* cluster() const { return cluster_.get(); }  // none: no workers
  [[nodiscard]] MicroBatchRule micro_batches() const;                // as steps are run
  [[nodiscard]] StepRunner& runner() { return *runner_; }
  [[nodiscard]] StepRunner const& runner() const { return *runner_; }
  // From now on the runner counts what each step's stages take at least; for that this machine is measured, for some
  // tens of milliseconds. Not with a device, whose stages the host's clock does not see, nor for encoders.
  void count_floors();
  // What load() read of weights in this process, in how much time; and how fast it reads memory, once that was
  // measured.
  [[nodiscard]] std::string load_text() const { return load_figures_.text(read_bandwidth_); }
  // Has the system give all memory of the KV cache, which otherwise comes when it is first written, some of it in the
  // middle of a step. Any thread, after load().
  void touch_kv_cache(std::stop_token const& stop);
  // Between steps, now and then: workers come and go.
  void update_floors();
  [[nodiscard]] Scheduler& scheduler() { return *scheduler_; }
  // Of the thread that runs the steps, from the beginning; null: no trace.
  [[nodiscard]] TraceLane* trace() const { return engine_lane_; }

 private:
  void load_experts(Cluster::OnChange on_change);

  ModelRuntimeOptions const options_;
  Topology const topology_;
  ThreadPlan const threads_;
  std::optional<Trace> trace_;
  TraceLane* const engine_lane_;
  ModelSpec const spec_;
  DType const dtype_;
  WeightFormat const weight_format_;
  DType const kv_dtype_;
  Isa const isa_;
  std::unique_ptr<Device> const device_;
  std::shared_ptr<NcclApi> const nccl_;  // by which rows go to workers that have it, too; null: to none
  ExpertModelSpec const experts_spec_;
  std::unique_ptr<WeightSource> weights_;
  ModelPlan const plan_;
  std::vector<KvCacheSpec> const kv_groups_;
  RuntimeSizes sizes_;  // fixed by the constructor

  // In the order of making; the end goes the other way.
  std::optional<ThreadPool> pool_;
  std::optional<Exec> exec_;
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<RemoteExperts> remote_;
  std::unique_ptr<Experts>
      other_experts_;  // in place of remote_: a model without any, or all on the coordinator's device
  std::optional<Decoder> decoder_;
  std::optional<KvCache> kv_;
  LoadFigures load_figures_;
  std::optional<double> read_bandwidth_;  // bytes a second
  std::optional<StageFloors> floors_;
  std::optional<StepRunner> runner_;
  std::optional<Scheduler> scheduler_;
};

}  // namespace expertmesh
