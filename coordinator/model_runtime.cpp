#include "coordinator/model_runtime.h"

#include <algorithm>
#include <cstdlib>

#include "common/base/available_memory.h"
#include "common/base/cores.h"
#include "common/base/log.h"
#include "common/base/paths.h"
#include "common/checkpoint/fingerprint.h"
#include "common/kernels/machine_ceilings.h"
#include "common/moe/placement_plan.h"
#include "common/protocol/control_messages.h"
#include "common/transport/mpi_runtime.h"
#include "common/transport/nccl_link.h"
#include "coordinator/engine/step_memory.h"
#include "coordinator/experts/resident_experts.h"
#include "coordinator/experts/static_exchange.h"
#include "coordinator/load_progress.h"
#include "coordinator/scheduler/kv_sizing.h"

namespace expertmesh {
namespace {

constexpr std::size_t kMaxLogitRows = 64;  // rows of one LM-head call
constexpr double kDefaultKvShare = 0.4;    // of free memory
constexpr double kOwnExpertsShare = 0.5;   // of what is left then, for experts of dead workers

// A worker's link that takes longer is no link.
constexpr std::chrono::seconds kLinkConnectTime{30};
constexpr std::chrono::seconds kLinkTransferTime{10};

SchedulerLimits scheduler_limits(RuntimeSizes const& sizes, ModelSpec const& spec) {
  return {.max_num_seqs = sizes.max_num_seqs,
          .max_num_batched_tokens = sizes.max_num_batched_tokens,
          .max_model_len = sizes.max_model_len,
          .num_expert_counts = num_expert_counts(spec),
          .prefix_cache = sizes.prefix_cache};
}

StepSizes step_sizes(RuntimeSizes const& sizes) {
  return {.tokens = sizes.max_num_batched_tokens,
          .logit_rows = kMaxLogitRows,
          .sequences = sizes.max_num_seqs,
          .length = sizes.max_model_len};
}

// Of the device, that weights and buffers of this process leave to its KV cache. Throws where not even they have room.
// experts: that the device holds, or null.
std::size_t kv_bytes_on(Device const& device, double share, ModelSpec const& spec, ExpertModelSpec const* experts,
                        ModelPlan const& plan, StepSizes const& sizes, std::size_t link_bytes) {
  std::size_t const weights = plan.coordinator_bytes + (experts ? device_expert_bytes(*experts) : 0);
  std::size_t const buffers = device_buffer_bytes(spec, sizes, experts, device) + link_bytes;
  std::size_t const free = device.free_bytes();
  auto const usable = static_cast<std::size_t>(share * static_cast<double>(free));
  if (weights + buffers > usable)
    throw ModelError("not enough memory on " + device.name() + ": " + human_bytes(weights) + " for weights + " +
                     human_bytes(buffers) + " for buffers (--max-num-batched-tokens), but " + human_bytes(usable) +
                     " of " + human_bytes(free) + " free may be used (--gpu-memory-utilization)");
  return usable - weights - buffers;
}

// Buffers of the device for the rows of all workers, and those that go to all of them.
std::size_t link_bytes(ModelRuntimeOptions const& options, ModelSpec const& spec, ExpertModelSpec const& experts,
                       RuntimeSizes const& sizes) {
  ExchangeShape const shape = exchange_shape(spec, sizes.max_num_batched_tokens);
  return (options.workers + options.remote_workers) *
             RemoteExperts::link_buffer_bytes(experts, shape.rows, shape.experts_per_row) +
         (options.static_exchange_bytes > 0 ? StaticExchange::buffer_bytes(experts, shape.rows, shape.experts_per_row)
                                            : 0);
}

RuntimeSizes size_up(ModelRuntimeOptions const& options, ModelSpec const& spec,
                     std::vector<KvCacheSpec> const& kv_groups, Device const* device, bool links,
                     ExpertModelSpec const& experts, ModelPlan const& plan) {
  RuntimeSizes s;
  s.prefix_cache = options.prefix_cache && !spec.encoder() && num_expert_counts(spec) == 0;
  s.max_model_len = options.max_model_len.value_or(spec.max_position);
  if (s.max_model_len > spec.max_position && !spec.goes_beyond_max_position)
    throw ModelError("--max-model-len " + std::to_string(s.max_model_len) + " is more than the " +
                     std::to_string(spec.max_position) +
                     " positions of the model (config.json: max_position_embeddings)");
  s.max_num_batched_tokens = options.max_num_batched_tokens;
  s.max_num_seqs = std::min(options.max_num_seqs, options.max_num_batched_tokens);  // each decodes one token a step

  SchedulerLimits const limits = scheduler_limits(s, spec);
  auto const bytes_for = [&](std::size_t length) {
    return kv_bytes(kv_groups, kv_blocks_for(kv_groups, limits, length));
  };
  std::size_t const bytes =
      options.kv_cache_bytes
          ? *options.kv_cache_bytes
          : std::min(
                bytes_for(s.max_model_len),
                device
                    ? kv_bytes_on(*device, options.device_memory_share, spec, options.clustered() ? nullptr : &experts,
                                  plan, step_sizes(s), links ? link_bytes(options, spec, experts, s) : 0)
                    : static_cast<std::size_t>(kDefaultKvShare * static_cast<double>(available_memory_bytes())));
  if (std::size_t const least = bytes_for(0); bytes < least)
    throw ModelError("the KV cache of " + human_bytes(bytes) + " (--kv-cache-memory) cannot hold one sequence of " +
                     std::to_string(s.max_model_len) + " tokens (--max-model-len), which needs " + human_bytes(least));
  s.kv_blocks = divide_kv_memory(kv_groups, limits, bytes);
  s.kv_cache_bytes = kv_bytes(kv_groups, s.kv_blocks);
  return s;
}

std::unique_ptr<WeightSource> open_weights(ModelRuntimeOptions const& options, ModelSpec const& spec,
                                           WeightFormat const& format) {
  bool const cached = !options.packed_cache.empty();
  if (options.load_format == LoadFormat::dummy) {
    if (cached) throw ModelError("--packed-cache: dummy weights are made anew at each start (--load-format)");
    return make_dummy_weights(options.dummy_seed);
  }
  auto source = open_checkpoint(options.model_dir);
  source->verify(expected_tensors(spec));
  if (!cached) return source;
  return with_packed_cache(std::move(source), options.packed_cache, fingerprint_of(options.model_dir), format.storage);
}

WeightFormat pick_weight_format(ModelRuntimeOptions const& options, DType dtype) {
  auto const refuse_on = [&](std::string const& device) {
    if (options.quantization != Quantization::none && device != "cpu")
      throw ModelError("--quantization " + std::string(name_of(options.quantization)) +
                       ": its kernels run on processors only, not on '" + device + "' (--device, --worker-device)");
  };
  refuse_on(options.device);
  refuse_on(options.worker_device);
  for (LocalWorker const& worker : options.local_workers) refuse_on(worker.device);
  return weight_format_of(dtype, options.quantization);
}

DType pick_kv_dtype(ModelRuntimeOptions const& options, DType dtype) {
  if (options.kv_dtype == DType::i8 && options.device != "cpu")
    throw ModelError("--kv-cache-dtype int8: its kernels run on processors only, not on '" + options.device +
                     "' (--device)");
  return options.kv_dtype.value_or(dtype);
}

// What workers run. The experts of a dead one are run here meanwhile: to the same bits, or it must be allowed.
std::string worker_kernels(ModelRuntimeOptions const& options, Isa isa) {
  if (options.worker_capacity > 0 && options.workers == 0)
    throw ModelError("--worker-capacity: there are no workers of this host");
  if (options.worker_device == "cpu") return std::string(name_of(isa));
  if (!options.clustered()) throw ModelError("--worker-device " + options.worker_device + ": there are no workers");
  if (options.device == "cpu" && !options.mixed_numerics)
    throw ModelError("--worker-device " + options.worker_device +
                     " with --device cpu: experts of a dead worker would run on this processor, to other bits "
                     "(--allow-mixed-numerics permits it)");
  return std::string(control::kCudaKernels);
}

std::unique_ptr<Device> open_device(ModelRuntimeOptions const& options) {
  auto const index = cuda_index(options.device);
  char const* const for_devices = options.static_exchange_bytes > 0 ? "--static-exchange-bytes"
                                  : !options.device_graphs          ? "--enforce-eager"
                                                                    : nullptr;
  if (!index && for_devices) throw ModelError(std::string(for_devices) + ": the coordinator runs on a processor");
  return index ? options.open_device(*index) : nullptr;
}

// The library by which rows go from GPU to GPU; null: they go by the host.
std::shared_ptr<NcclApi> load_row_library(ModelRuntimeOptions const& options, Device const* device) {
  bool const required = options.row_transport == RowTransport::nccl;
  bool const workers_may = options.clustered() && (options.worker_device != "cpu" || options.mixed_numerics);
  if (options.static_exchange_bytes > 0 && (!workers_may || options.row_transport == RowTransport::host))
    throw ModelError(
        "--static-exchange-bytes: it is for rows that go by NCCL between GPUs (--workers, --worker-device cuda, not "
        "--row-transport host)");
  if (options.row_transport == RowTransport::host) return nullptr;
  if (!device || !workers_may) {
    if (required)
      throw ModelError(
          "--row-transport nccl: rows go by NCCL between GPUs only (--device cuda, --workers, "
          "--worker-device cuda)");
    return nullptr;
  }
  // Through the interface that the rest goes through, unless the environment says otherwise.
  std::string const interface = options.interface.empty() ? "lo" : options.interface;
  setenv("NCCL_SOCKET_IFNAME", ("=" + interface).c_str(), 0);
  try {
    return load_nccl();
  } catch (NcclError const& error) {
    if (required) throw;
    spdlog::warn("rows go by the host, there is no NCCL: {}", error.what());
    return nullptr;
  }
}

Isa pick_isa(ModelRuntimeOptions const& options) {
  Isa const isa = options.isa.value_or(best_isa());
  auto const runnable = runnable_isas();
  if (std::ranges::find(runnable, isa) == runnable.end())
    throw ModelError("--isa " + std::string(name_of(isa)) + ": this processor does not run it");
  return isa;
}

// Refuses before loading what this host's memory cannot hold: weights of all processes here, KV cache and buffers.
// What GPUs hold is not counted.
void check_memory(ModelRuntimeOptions const& options, ModelPlan const& plan, RuntimeSizes& sizes) {
  bool const on_gpu = options.device != "cpu";
  bool const experts_on_gpu = options.clustered() ? options.worker_device != "cpu" : on_gpu;
  std::size_t const here = options.clustered() ? options.workers : 1;  // workers of other hosts have their own memory
  std::size_t experts = 0;
  std::size_t all_experts = 0;
  for (std::size_t w = 0; w < plan.worker_bytes.size() && !experts_on_gpu; ++w) {
    all_experts += plan.worker_bytes[w];
    if (w < here) experts += plan.worker_bytes[w];
  }
  std::size_t const weights = on_gpu ? 0 : plan.coordinator_bytes;
  std::size_t const kv_cache = on_gpu ? 0 : sizes.kv_cache_bytes;
  std::size_t const needed = weights + experts + kv_cache;
  std::size_t const available = available_memory_bytes();
  if (needed > available)
    throw ModelError("not enough memory: " + human_bytes(weights) + " for the coordinator's weights + " +
                     human_bytes(experts) + " for experts + " + human_bytes(kv_cache) + " for the KV cache = " +
                     human_bytes(needed) + ", but " + human_bytes(available) + " are available");
  sizes.own_cache_bytes =
      std::min(all_experts, static_cast<std::size_t>(kOwnExpertsShare * static_cast<double>(available - needed)));
  sizes.worker_bytes = available - weights - kv_cache;
}

// The lane of the engine thread; null: no trace.
TraceLane* start_trace(ModelRuntimeOptions const& options, std::optional<Trace>& trace) {
  if (options.trace_file.empty()) return nullptr;
  return &trace.emplace(TraceOptions{.file = options.trace_file, .most_bytes = options.trace_bytes}).new_lane();
}

WorkerTraced traced(WorkerStatus const& worker) {
  using Change = WorkerTraced::Change;
  bool const serves = worker.state == WorkerState::serving;
  bool const left = worker.state == WorkerState::left;
  WorkerTraced event{.when_ns = trace_ns(std::chrono::steady_clock::now()),
                     .worker = worker.id.value(),
                     .incarnation = worker.incarnation.value(),
                     .change = serves ? Change::serves
                               : left ? Change::left
                                      : Change::died};
  if (event.change == Change::died) event.reason = decltype(event.reason)(worker.death_reason);
  return event;
}

// The monitor thread's.
Cluster::OnChange traced(TraceLane& lane, Cluster::OnChange on_change) {
  return [&lane, on_change = std::move(on_change)](WorkerStatus const& worker) {
    lane.put(traced(worker));
    on_change(worker);
  };
}

// A model without experts asks nothing of anyone.
class NoExperts final : public Experts {
 public:
  [[nodiscard]] bool wants_routing_on_host() const override { return false; }
  Exchange dispatch(std::uint32_t layer, MatrixView<float const>, RoutingView) override {
    EM_CHECK(false, "layer " << layer << " has no experts");
  }
  void progress() override {}
  void wake() override {}
  void idle() override {}

 protected:
  bool complete(Exchange) override { return true; }
  void wait(Exchange, std::coroutine_handle<>) override {}
  void finish(Exchange, MatrixView<float>) override {}
};

std::size_t own_threads(ModelRuntimeOptions const& options) {
  return options.threads != 0 ? options.threads : usable_cores();
}

// What a worker of this host is unless something else is said of it.
LocalWorker usual_worker(ModelRuntimeOptions const& options) {
  std::size_t const share = std::max<std::size_t>(1, usable_cores() / std::max<std::size_t>(1, options.workers));
  return {.device = options.worker_device,
          .threads = options.worker_threads != 0 ? options.worker_threads : share,
          .bind = options.bind,
          .capacity = options.worker_capacity};
}

std::vector<LocalWorker> local_workers(ModelRuntimeOptions const& options) {
  if (options.local_workers.empty()) return std::vector(options.workers, usual_worker(options));
  std::vector<LocalWorker> workers = options.local_workers;
  for (LocalWorker& worker : workers) {
    if (worker.threads == 0) worker.threads = usual_worker(options).threads;
    worker.bind = options.bind;
  }
  return workers;
}

bool shares_cores(ModelRuntimeOptions const& options) {
  std::size_t threads = own_threads(options);
  for (LocalWorker const& worker : local_workers(options)) threads += worker.threads;
  return options.workers > 0 && threads > usable_cores();
}

// Two overlap what is computed at the same time in different places.
MicroBatchRule micro_batch_rule(ModelRuntimeOptions const& options) {
  bool const may_gain = options.clustered() && !shares_cores(options);
  return options.micro_batches == MicroBatchRule::automatic && !may_gain ? MicroBatchRule::one : options.micro_batches;
}

// Of this process, and of each worker of this host; empty: any.
struct CoreShares {
  std::vector<int> own;
  std::vector<std::vector<int>> workers;
};

// Left to itself, the system now and then keeps two workers on one core while another is free, and on several NUMA
// nodes takes threads away from their memory. Where cores are shared the coordinator computes on all of them.
CoreShares core_shares(ModelRuntimeOptions const& options, Topology const& topology) {
  bool const shared = shares_cores(options);
  bool const divided = shared || topology.nodes.size() > 1;
  CoreShares shares{.own = {}, .workers = std::vector<std::vector<int>>(options.workers)};
  if (!options.bind || options.workers == 0 || !divided) return shares;
  std::vector<std::size_t> threads;
  for (LocalWorker const& worker : local_workers(options)) threads.push_back(worker.threads);
  if (!shared) threads.push_back(own_threads(options));
  auto stretches = share_cores(topology, threads);
  if (stretches.empty()) return shares;
  if (!shared) {
    shares.own = std::move(stretches.back());
    stretches.pop_back();
  }
  shares.workers = std::move(stretches);
  return shares;
}

// A core for each thread where workers compete for them. The first has the last core, which is the last worker's: its
// request goes out when all others are under way.
ThreadPlan own_plan(ModelRuntimeOptions const& options, Topology const& topology) {
  using Pinning = ThreadPlan::Pinning;
  return plan_own_threads(topology, own_threads(options),
                          !options.bind           ? Pinning::none
                          : shares_cores(options) ? Pinning::core
                                                  : Pinning::node,
                          core_shares(options, topology).own);
}

std::unique_ptr<Cluster> start_cluster(ModelRuntimeOptions const& options, Topology const& topology,
                                       ExpertModelSpec const& experts, WeightSource const& source,
                                       RemoteExpertsLimits const& exchange, Isa isa,
                                       std::shared_ptr<NcclApi> const& nccl, std::size_t worker_bytes,
                                       Cluster::OnChange on_change) {
  init_mpi();
  auto workers = local_workers(options);
  auto const cores = core_shares(options, topology).workers;
  for (std::size_t w = 0; w < workers.size(); ++w) workers[w].cores = cores[w];
  std::string threads;
  for (LocalWorker const& worker : workers) threads += (threads.empty() ? "" : ", ") + std::to_string(worker.threads);
  ClusterOptions cluster{.num_workers = options.workers,
                         .redundant_experts = options.redundant_experts,
                         .worker_program = executable_dir() / "expertmesh-worker",
                         .model_dir = std::filesystem::absolute(options.model_dir),
                         .packed_cache = options.packed_cache.empty() ? std::filesystem::path()
                                                                      : std::filesystem::absolute(options.packed_cache),
                         .load_format = options.load_format,
                         .dummy_seed = options.dummy_seed,
                         .experts = experts,
                         .experts_per_token = exchange.experts_per_token,
                         .max_tokens_per_step = exchange.max_tokens,
                         .local = usual_worker(options),
                         .first_local = workers,
                         .memory_bytes = worker_bytes,
                         .shared_cores = shares_cores(options),
                         .isa = worker_kernels(options, isa),
                         .mixed_isas = options.mixed_numerics,
                         .nccl = nccl,
                         .nccl_required = options.row_transport == RowTransport::nccl,
                         .transport = options.transport,
                         .verify_weights = options.verify_weights,
                         .remote = {.num_workers = options.remote_workers,
                                    .interface = options.interface,
                                    .port = options.control_port,
                                    .secret_file = options.secret_file,
                                    .weights_per_second = options.weights_per_second}};
  cluster.death_timeout = std::chrono::milliseconds(options.heartbeat_timeout_ms);
  spdlog::info("starting {} workers, with so many threads: {}", options.workers, threads);
  if (options.remote_workers > 0) spdlog::info("awaiting {} workers of other hosts", options.remote_workers);
  LoadProgressPrinter progress("experts in " + std::to_string(options.workers + options.remote_workers) + " workers",
                               0);
  auto started = Cluster::start(
      std::move(cluster), source, [&](LoadProgress const& p) { progress.update(p.loaded_bytes, p.total_bytes); },
      std::move(on_change));
  progress.finish();
  return started;
}

void warn_of_too_many_replicas(ModelRuntimeOptions const& options, ExpertModelSpec const& experts) {
  std::size_t const workers = options.workers + options.remote_workers;
  std::size_t most = 0;
  for (auto const& layer : experts.layers) most = std::max(most, most_redundant(layer.experts.size(), workers));
  if (options.redundant_experts <= most) return;
  spdlog::warn(
      "--redundant-experts {}: {} workers have places for {} replicas in each MoE layer, since none holds an expert "
      "twice; there are more only when further workers come",
      options.redundant_experts, workers, most);
}

}  // namespace

ModelRuntime::ModelRuntime(ModelRuntimeOptions const& options)
    : options_(options),
      topology_(read_topology()),
      threads_(own_plan(options, topology_)),
      engine_lane_(start_trace(options, trace_)),
      spec_(read_model_spec(options.model_dir, {.router_noise_seed = options.router_noise_seed})),
      dtype_(numerics_dtype(spec_, options.dtype)),
      weight_format_(pick_weight_format(options, dtype_)),
      kv_dtype_(pick_kv_dtype(options, dtype_)),
      isa_(pick_isa(options)),
      device_(open_device(options)),
      nccl_(load_row_library(options, device_.get())),
      experts_spec_(expert_model_spec(spec_, weight_format_, dtype_)),
      weights_(open_weights(options, spec_, weight_format_)),
      plan_(plan_model(spec_, weight_format_, kv_dtype_,
                       std::max<std::size_t>(options.workers + options.remote_workers, 1), holders())),
      kv_groups_(kv_cache_specs(spec_, kv_dtype_)),
      sizes_(size_up(options, spec_, kv_groups_, device_.get(), nccl_ != nullptr, experts_spec_, plan_)) {
  (void)worker_kernels(options, isa_);
  if (options.clustered() && experts_spec_.layers.empty())
    throw ModelError("config.json: field 'model_type': family '" + spec_.family +
                     "' has no experts for workers to hold; serve it with --workers 0");
  check_memory(options, plan_, sizes_);
  warn_of_too_many_replicas(options, experts_spec_);
}

void ModelRuntime::load(Cluster::OnChange on_change) {
  std::size_t const tokens = sizes_.max_num_batched_tokens;
  pool_.emplace(threads_);
  spdlog::info("compute threads: {}", threads_.text());
  exec_.emplace(isa_, *pool_, exec_limits(spec_, step_sizes(sizes_), options_.clustered()), device_.get());
  std::optional<LoadTimer> timer(*weights_);
  load_experts(std::move(on_change));

  if (options_.clustered()) timer.emplace(*weights_);  // the workers' load is theirs
  LoadProgressPrinter progress("the coordinator's weights", plan_.coordinator_bytes);
  decoder_.emplace(spec_, *weights_,
                   DecoderOptions{.max_tokens = tokens,
                                  .max_input = sizes_.max_model_len,
                                  .weights = weight_format_,
                                  .on_bytes_loaded = [&](std::size_t bytes) { progress.add(bytes); },
                                  .device = device_.get(),
                                  .pool = &*pool_});
  progress.finish();
  load_figures_ = timer->figures();
  kv_.emplace(spec_, kv_groups_, sizes_.kv_blocks, device_.get());
  runner_.emplace(spec_,
                  StepRunnerLimits{.max_tokens = tokens,
                                   .max_logit_rows = kMaxLogitRows,
                                   .record_routing = options_.return_routed_experts,
                                   .pause = shares_cores(options_) ? PollPause::sleep : PollPause::yield,
                                   .micro_batches = micro_batches(),
                                   .graphs = options_.device_graphs,
                                   .trace = engine_lane_},
                  *exec_, *decoder_, *kv_, experts());
  scheduler_.emplace(scheduler_limits(sizes_, spec_), kv_groups_, sizes_.kv_blocks);
}

MicroBatchRule ModelRuntime::micro_batches() const {
  return micro_batch_rule(options_);
}

void ModelRuntime::load_experts(Cluster::OnChange on_change) {
  if (experts_spec_.layers.empty()) {
    other_experts_ = std::make_unique<NoExperts>();
    return;
  }
  ExchangeShape const shape = exchange_shape(spec_, sizes_.max_num_batched_tokens);
  RemoteExpertsLimits exchange{.experts_per_token = shape.experts_per_row,
                               .max_tokens = shape.rows,
                               .checksums = options_.checksum_messages,
                               .own_cache_bytes = sizes_.own_cache_bytes,
                               .expert_device = options_.worker_device == "cpu" ? nullptr : device_.get(),
                               .mixed_numerics = options_.mixed_numerics,
                               .trace = engine_lane_};
  if (nccl_) {
    exchange.links_required = options_.row_transport == RowTransport::nccl;
    exchange.static_bytes = options_.static_exchange_bytes;
    exchange.make_link = [this](WorkerPeer const& peer) -> std::shared_ptr<RowLink> {
      return make_nccl_link(nccl_, nccl_id_of(peer.link_id).value(), *device_,
                            {.end = LinkEnd::coordinator,
                             .peer = "worker " + std::to_string(peer.worker.value()),
                             .connect_time = kLinkConnectTime,
                             .transfer_time = kLinkTransferTime},
                            std::chrono::steady_clock::now());
    };
  }
  if (options_.clustered()) {
    cluster_ = start_cluster(options_, topology_, experts_spec_, *weights_, exchange, isa_, nccl_, sizes_.worker_bytes,
                             trace_ ? traced(trace_->new_lane(), std::move(on_change)) : std::move(on_change));
    remote_ = make_cluster_experts(*cluster_, experts_spec_, *weights_, exchange, *exec_);
    return;
  }
  LoadProgressPrinter progress("experts", 0);
  if (device_) {
    other_experts_ = std::make_unique<ResidentExperts>(
        experts_spec_, *weights_, shape.rows, shape.experts_per_row, *exec_,
        [&](std::size_t loaded, std::size_t total) { progress.update(loaded, total); });
    return progress.finish();
  }
  remote_ = make_local_experts(experts_spec_, *weights_, exchange, *exec_,
                               [&](std::size_t loaded, std::size_t total) { progress.update(loaded, total); });
  progress.finish();
}

Experts& ModelRuntime::experts() {
  return remote_ ? static_cast<Experts&>(*remote_) : *other_experts_;
}

Holders ModelRuntime::holders() const {
  auto const holder_on = [](std::string const& device) { return device == "cpu" ? Holder::processor : Holder::device; };
  return {.coordinator = holder_on(options_.device),
          .experts = holder_on(options_.clustered() ? options_.worker_device : options_.device)};
}

void ModelRuntime::count_floors() {
  if (device_ || spec_.encoder()) return;
  Ceilings const own{.bytes_per_second = measure_read_bandwidth(*exec_, kQuickReadBytes, kQuickPasses),
                     .operations_per_second = measure_peak_flops(*exec_, weight_format_.storage, kQuickPasses)};
  read_bandwidth_ = own.bytes_per_second;
  spdlog::info("this process reads {:.1f} GB/s and computes {:.0f} G operations/s in {} at most",
               own.bytes_per_second / 1e9, own.operations_per_second / 1e9, name_of(weight_format_.storage));
  floors_.emplace(spec_, weight_format_, dtype_, kv_dtype_, own, holders());
  update_floors();
  runner_->count_floors(&*floors_);
}

void ModelRuntime::touch_kv_cache(std::stop_token const& stop) {
  if (!device_) kv_->touch(threads_, stop);
}

void ModelRuntime::update_floors() {
  if (!floors_ || !cluster_) return;
  Ceilings workers;
  for (WorkerStatus const& worker : cluster_->status())
    if (worker.state == WorkerState::serving) workers.bytes_per_second += worker.bytes_per_second.value_or(0);
  floors_->set_experts(workers);
}

void ModelRuntime::shut_down() {
  remote_.reset();
  if (cluster_) cluster_->shutdown();
}

}  // namespace expertmesh
