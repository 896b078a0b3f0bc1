#include "coordinator/server.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>

#include "common/base/log.h"
#include "common/base/paths.h"
#include "common/transport/mpi_runtime.h"
#include "coordinator/cluster_view.h"
#include "coordinator/engine/engine.h"
#include "coordinator/experts/remote_experts.h"
#include "coordinator/http/api_server.h"
#include "coordinator/load_progress.h"
#include "coordinator/machine.h"
#include "coordinator/model/model_plan.h"
#include "coordinator/shutdown_signal.h"

namespace expertmesh {
namespace {

constexpr std::size_t kMaxLogitRows = 64;  // rows of one LM-head call
constexpr double kDefaultKvShare = 0.4;    // of free memory
constexpr std::chrono::seconds kDrainDeadline{30};
constexpr std::chrono::seconds kConnectionsDeadline{2};  // for answers to reach their clients after the drain

// The limits that hold from start to end, before anything large is allocated.
struct Sizes {
  ServeLimits limits;
  std::vector<KvCacheSpec> kv_groups;
  std::vector<std::size_t> kv_blocks;  // [groups]
};

Sizes size_up(ServeOptions const& options, ModelSpec const& spec, DType dtype) {
  Sizes sizes;
  ServeLimits& l = sizes.limits;
  l.max_model_len = options.max_model_len.value_or(spec.max_position);
  if (l.max_model_len > spec.max_position)
    throw ModelError("--max-model-len " + std::to_string(l.max_model_len) + " is more than the " +
                     std::to_string(spec.max_position) +
                     " positions of the model (config.json: max_position_embeddings)");
  l.max_num_batched_tokens = options.max_num_batched_tokens;
  l.max_num_seqs = std::min(options.max_num_seqs, options.max_num_batched_tokens);  // each decodes one token a step
  l.max_queued_requests = options.max_queued_requests;
  l.max_logprobs = std::min(options.max_logprobs, spec.vocab);
  l.max_connections = options.max_connections;
  l.max_body_bytes = options.max_body_bytes;
  l.kv_block_tokens = kKvBlockTokens;

  sizes.kv_groups = kv_cache_specs(spec, dtype);
  std::size_t block_bytes = 0;  // of one block in every group
  for (auto const& group : sizes.kv_groups) block_bytes += group.bytes_per_block;
  std::size_t const blocks_per_sequence = (l.max_model_len + kKvBlockTokens - 1) / kKvBlockTokens;
  std::size_t const wanted = blocks_per_sequence * l.max_num_seqs;
  std::size_t const affordable =
      options.kv_cache_bytes
          ? *options.kv_cache_bytes / block_bytes
          : static_cast<std::size_t>(kDefaultKvShare * static_cast<double>(available_memory_bytes())) / block_bytes;
  l.kv_blocks = options.kv_cache_bytes ? affordable : std::min(wanted, affordable);
  if (l.kv_blocks < blocks_per_sequence)
    throw ModelError("the KV cache of " + human_bytes(l.kv_blocks * block_bytes) +
                     " (--kv-cache-memory) cannot hold one sequence of " + std::to_string(l.max_model_len) +
                     " tokens (--max-model-len), which needs " + human_bytes(blocks_per_sequence * block_bytes));
  sizes.kv_blocks.assign(sizes.kv_groups.size(), l.kv_blocks);
  l.kv_cache_bytes = l.kv_blocks * block_bytes;
  return sizes;
}

std::unique_ptr<WeightSource> open_weights(ServeOptions const& options, ModelSpec const& spec) {
  if (options.load_format == LoadFormat::dummy) return make_dummy_weights(options.dummy_seed);
  auto source = open_checkpoint(options.model_dir);
  source->verify(required_tensors(spec), optional_tensors(spec));
  return source;
}

ExecLimits exec_limits(ModelSpec const& spec, std::size_t tokens) {
  LayerMaxima const m = layer_maxima(spec);
  return {
      .max_rows = std::max(tokens * std::max<std::size_t>(m.experts_per_token, 1), kMaxLogitRows),
      .max_columns = std::max({spec.hidden, m.attention_columns, 2 * m.dense_intermediate, 2 * m.expert_intermediate})};
}

// Refuses before loading what this host's memory cannot hold: weights of all processes here, KV cache and buffers.
void check_memory(ModelPlan const& plan, ServeLimits const& limits) {
  std::size_t experts = 0;
  for (std::size_t bytes : plan.worker_bytes) experts += bytes;
  std::size_t const needed = plan.coordinator_bytes + experts + limits.kv_cache_bytes;
  std::size_t const available = available_memory_bytes();
  if (needed > available)
    throw ModelError("not enough memory: " + human_bytes(plan.coordinator_bytes) + " for the coordinator's weights + " +
                     human_bytes(experts) + " for experts + " + human_bytes(limits.kv_cache_bytes) +
                     " for the KV cache = " + human_bytes(needed) + ", but " + human_bytes(available) +
                     " are available");
}

// A model without experts asks nothing of anyone.
class NoExperts final : public Experts {
 public:
  Exchange dispatch(std::uint32_t layer, MatrixView<float const>, RoutingView) override {
    EM_CHECK(false, "layer " << layer << " has no experts");
  }
  void progress() override {}
  void wake() override {}
  void idle() override {}
  [[nodiscard]] std::string missing() const override { return {}; }

 protected:
  bool complete(Exchange) override { return true; }
  void wait(Exchange, std::coroutine_handle<>) override {}
  void finish(Exchange, MatrixView<float>) override {}
};

std::unique_ptr<Cluster> start_cluster(ServeOptions const& options, ExpertModelSpec const& experts,
                                       std::size_t experts_per_token, std::size_t tokens, Isa isa,
                                       Cluster::OnDeath on_death) {
  init_mpi();
  std::size_t const threads =
      options.worker_threads != 0 ? options.worker_threads : std::max<std::size_t>(1, usable_cores() / options.workers);
  ClusterOptions cluster{.num_workers = options.workers,
                         .worker_program = executable_dir() / "expertmesh-worker",
                         .model_dir = std::filesystem::absolute(options.model_dir),
                         .load_format = options.load_format,
                         .dummy_seed = options.dummy_seed,
                         .experts = experts,
                         .experts_per_token = experts_per_token,
                         .max_tokens_per_step = tokens,
                         .threads_per_worker = threads,
                         .isa = std::string(name_of(isa))};
  cluster.death_timeout = std::chrono::milliseconds(options.heartbeat_timeout_ms);
  spdlog::info("starting {} workers over MPI, {} threads each", options.workers, threads);
  LoadProgressPrinter progress("experts in " + std::to_string(options.workers) + " workers", 0);
  auto started = Cluster::start(
      std::move(cluster), [&](LoadProgress const& p) { progress.update(p.loaded_bytes, p.total_bytes); },
      std::move(on_death));
  progress.finish();
  return started;
}

// Everything of a running server, in the order of making; the end goes the other way.
class Server {
 public:
  explicit Server(ServeOptions const& options)
      : options_(options),
        spec_(read_model_spec(options.model_dir, {.router_noise_seed = options.router_noise_seed})),
        dtype_(numerics_dtype(spec_, options.dtype)),
        isa_(pick_isa(options)),
        experts_spec_(expert_model_spec(spec_, weight_format_of(dtype_), dtype_)),
        weights_(open_weights(options, spec_)),
        tokenizer_(Tokenizer::load(options.model_dir)),
        templates_(options.model_dir, {}),  // its children must start before MPI does
        sizes_(size_up(options, spec_, dtype_)),
        pool_(options.threads != 0 ? options.threads : usable_cores()),
        exec_(isa_, pool_, exec_limits(spec_, sizes_.limits.max_num_batched_tokens)),
        metrics_(moe_layers(), layer_maxima(spec_).num_experts) {
    if (options.workers > 0 && experts_spec_.layers.empty())
      throw ModelError("config.json: field 'model_type': family '" + spec_.family +
                       "' has no experts for workers to hold; serve it with --workers 0");
    profile_ = {.dtype = std::string(name_of(dtype_)),
                .wire_dtype = std::string(name_of(dtype_)),
                .kv_dtype = std::string(name_of(dtype_)),
                .isa = std::string(name_of(isa_))};
    plan_ = plan_model(spec_, weight_format_of(dtype_), dtype_, std::max<std::size_t>(options.workers, 1));
    check_memory(plan_, sizes_.limits);
    std::size_t const tokens = sizes_.limits.max_num_batched_tokens;
    RemoteExpertsLimits const exchange{.experts_per_token = layer_maxima(spec_).experts_per_token,
                                       .max_tokens = tokens};
    if (options.workers > 0) {
      cluster_ = start_cluster(options, experts_spec_, exchange.experts_per_token, tokens, isa_,
                               [this](WorkerStatus const& w) { on_death(w); });
      remote_ = make_cluster_experts(*cluster_, experts_spec_, exchange, exec_);
    } else if (!experts_spec_.layers.empty()) {
      LoadProgressPrinter progress("experts", 0);
      remote_ = make_local_experts(experts_spec_, *weights_, exchange, exec_,
                                   [&](std::size_t loaded, std::size_t total) { progress.update(loaded, total); });
      progress.finish();
    }
    metrics_.set_workers_serving(options.workers);
    Experts& experts = remote_ ? static_cast<Experts&>(*remote_) : no_experts_;

    LoadProgressPrinter progress("the coordinator's weights", plan_.coordinator_bytes);
    decoder_.emplace(spec_, *weights_,
                     DecoderOptions{.max_tokens = tokens,
                                    .weights = weight_format_of(dtype_),
                                    .on_bytes_loaded = [&](std::size_t bytes) { progress.add(bytes); }});
    progress.finish();
    kv_.emplace(spec_, sizes_.kv_groups, sizes_.kv_blocks);
    runner_.emplace(
        spec_,
        StepRunnerLimits{
            .max_tokens = tokens, .max_logit_rows = kMaxLogitRows, .record_routing = options.return_routed_experts},
        exec_, *decoder_, *kv_, experts);
    sizes_.limits.activation_bytes = runner_->activation_bytes();
    scheduler_.emplace(SchedulerLimits{.max_num_seqs = sizes_.limits.max_num_seqs,
                                       .max_num_batched_tokens = tokens,
                                       .max_model_len = sizes_.limits.max_model_len},
                       sizes_.kv_groups, sizes_.kv_blocks);
    engine_.emplace(EngineOptions{.max_model_len = sizes_.limits.max_model_len,
                                  .max_queued_requests = sizes_.limits.max_queued_requests,
                                  .eos_ids = spec_.eos_ids},
                    *scheduler_, *runner_, experts, metrics_, [this] { count_traffic(); });
    api_.emplace(api_options(), *engine_, tokenizer_.get(), &templates_, metrics_,
                 ApiCallbacks{.not_ready = [this] { return engine_->not_ready(); },
                              .cluster_json = [this] { return to_json(view()); }});
    for (auto const& line : describe(profile_, sizes_.limits)) spdlog::info("{}", line);
    spdlog::info("experts: {}", !remote_   ? "none"
                                : cluster_ ? std::to_string(options.workers) + " workers, transport mpi"
                                           : "in this process, transport in-process");
    engine_->start();
    started_ = true;
    if (cluster_)
      for (auto const& worker : cluster_->status())
        if (worker.state != WorkerState::serving) engine_->experts_changed();  // died while the rest came up
  }

  [[nodiscard]] std::string address() const {
    std::string const host = options_.host.find(':') == std::string::npos ? options_.host : "[" + options_.host + "]";
    return "http://" + host + ":" + std::to_string(api_->port());
  }

  void drain() {
    spdlog::info("draining: no new requests, up to {} s for those under way", kDrainDeadline.count());
    auto const now = std::chrono::steady_clock::now();
    engine_->drain(now + kDrainDeadline);
    started_ = false;
    api_->stop(std::chrono::steady_clock::now() + kConnectionsDeadline);
    remote_.reset();
    if (cluster_) cluster_->shutdown();
    auto const ledger = metrics_.ledger();
    spdlog::info("done: {} requests, {} finished, {} failed, {} cancelled", ledger.accepted, ledger.finished,
                 ledger.failed, ledger.cancelled);
  }

 private:
  static Isa pick_isa(ServeOptions const& options) {
    Isa const isa = options.isa.value_or(best_isa());
    auto const runnable = runnable_isas();
    if (std::ranges::find(runnable, isa) == runnable.end())
      throw ModelError("--isa " + std::string(name_of(isa)) + ": this processor does not run it");
    return isa;
  }

  [[nodiscard]] std::vector<std::uint32_t> moe_layers() const {
    std::vector<std::uint32_t> layers;
    for (auto const& layer : experts_spec_.layers) layers.push_back(layer.layer);
    return layers;
  }

  [[nodiscard]] ApiServerOptions api_options() const {
    return {.http = {.host = options_.host,
                     .port = options_.port,
                     .threads = options_.http_threads,
                     .max_connections = options_.max_connections,
                     .max_body_bytes = options_.max_body_bytes},
            .model = {.name = options_.served_model_name,
                      .max_model_len = sizes_.limits.max_model_len,
                      .vocab_size = spec_.vocab,
                      .max_logprobs = sizes_.limits.max_logprobs,
                      .return_routed_experts = options_.return_routed_experts,
                      .has_tokenizer = tokenizer_ != nullptr,
                      .has_chat_template = templates_.has_template(),
                      .default_temperature = std::clamp(spec_.default_temperature.value_or(1.0F), 0.0F, 2.0F),
                      .default_top_p = std::clamp(spec_.default_top_p.value_or(1.0F), 0.01F, 1.0F),
                      .created = std::chrono::duration_cast<std::chrono::seconds>(
                                     std::chrono::system_clock::now().time_since_epoch())
                                     .count()}};
  }

  // Monitor thread of the cluster.
  void on_death(WorkerStatus const& worker) {
    spdlog::error("worker {} (pid {}, {} experts) is dead: {}", worker.id.value(), worker.pid, worker.num_experts,
                  worker.death_reason);
    metrics_.count_worker_death();
    metrics_.set_workers_serving(static_cast<std::size_t>(--serving_));
    if (started_) engine_->experts_changed();
  }

  // Engine thread.
  void count_traffic() {
    if (!cluster_) return;
    auto const& traffic = remote_->traffic();
    metrics_.count_transport_bytes("mpi", traffic.bytes_sent - counted_sent_,
                                   traffic.bytes_received - counted_received_);
    counted_sent_ = traffic.bytes_sent;
    counted_received_ = traffic.bytes_received;
  }

  [[nodiscard]] ClusterView view() const {
    ClusterView view{.model = options_.served_model_name,
                     .family = spec_.family,
                     .profile = profile_,
                     .limits = sizes_.limits,
                     .coordinator = {},
                     .workers = {},
                     .not_ready = engine_->not_ready()};
    WorkerStatus& c = view.coordinator;
    c.incarnation = Incarnation(1);
    c.state = WorkerState::serving;
    c.pid = getpid();
    c.host = host_name();
    c.device = "cpu";
    c.isa = profile_.isa;
    c.dtype = profile_.dtype;
    c.transport = cluster_ ? "mpi" : "in-process";
    c.resident_bytes = plan_.coordinator_bytes + sizes_.limits.kv_cache_bytes + sizes_.limits.activation_bytes;
    if (!cluster_ && remote_) {
      for (auto const& layer : experts_spec_.layers) c.num_experts += layer.experts.size();
      c.resident_bytes += plan_.worker_bytes.front();
    }
    if (cluster_) view.workers = cluster_->status();
    return view;
  }

  ServeOptions const options_;
  ModelSpec const spec_;
  DType const dtype_;
  Isa const isa_;
  ExpertModelSpec const experts_spec_;
  std::unique_ptr<WeightSource> weights_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ChatTemplates templates_;
  Sizes sizes_;
  ThreadPool pool_;
  Exec exec_;
  Metrics metrics_;
  std::atomic<std::size_t> serving_ = options_.workers;
  std::atomic<bool> started_ = false;  // the engine is there to be told of deaths
  NumericsProfile profile_;
  ModelPlan plan_;
  NoExperts no_experts_;
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<RemoteExperts> remote_;
  std::optional<Decoder> decoder_;
  std::optional<KvCache> kv_;
  std::optional<StepRunner> runner_;
  std::optional<Scheduler> scheduler_;
  std::optional<Engine> engine_;
  std::optional<ApiServer> api_;
  std::size_t counted_sent_ = 0;
  std::size_t counted_received_ = 0;
};

}  // namespace

int serve(ServeOptions const& options) {
  auto const begin = std::chrono::steady_clock::now();
  Server server(options);
  ShutdownSignal const shutdown;
  spdlog::info("ready after {:.2f} s", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  std::cout << "ExpertMesh is ready at " << server.address() << std::endl;
  shutdown.wait();
  server.drain();
  return 0;
}

}  // namespace expertmesh
