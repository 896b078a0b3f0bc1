#include "coordinator/server.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <thread>

#include "common/base/cores.h"
#include "common/base/log.h"
#include "common/protocol/control_messages.h"
#include "coordinator/cluster_view.h"
#include "coordinator/engine/engine.h"
#include "coordinator/http/api_keys.h"
#include "coordinator/http/api_server.h"
#include "coordinator/load_progress.h"
#include "coordinator/machine.h"
#include "coordinator/model/prefix_kind.h"
#include "coordinator/model_runtime.h"
#include "coordinator/observe/experts_view.h"
#include "coordinator/shutdown_signal.h"

namespace expertmesh {
namespace {

// What Open MPI's spawn keeps for a process that died: measured over 1,000 deaths.
constexpr std::size_t kMpiBytesPerDeath = std::size_t{96} << 10;
constexpr auto kDegradedFor = std::chrono::seconds(2);        // then a request may try again
constexpr auto kJudgementInterval = std::chrono::seconds(1);  // between looks for slow workers

constexpr std::chrono::seconds kDrainDeadline{30};
constexpr char const* kLoading = "the model is loading";
constexpr std::chrono::seconds kConnectionsDeadline{2};  // for answers to reach their clients after the drain

bool is_loopback(std::string const& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

// The engine as the API sees it, from before it is there.
class EngineGate final : public Generator {
 public:
  void open(Generator& engine) { engine_ = &engine; }
  // Until then new requests are refused: those under way are slow enough.
  void refuse_until(std::chrono::steady_clock::time_point when) { refuse_until_ = when; }
  Result<std::vector<SequenceId>> submit(std::vector<Submission> submissions) override {
    if (std::chrono::steady_clock::now() < refuse_until_.load())
      return ApiError{.status = 503,
                      .message = "experts without a worker are streamed from disk, too slowly for more requests",
                      .type = "service_unavailable",
                      .param = {},
                      .code = "degraded",
                      .retry_after_s = 5};
    if (Generator* const engine = engine_) return engine->submit(std::move(submissions));
    return ApiError{.status = 503,
                    .message = kLoading,
                    .type = "service_unavailable",
                    .param = {},
                    .code = "loading",
                    .retry_after_s = 5};
  }
  void abort(SequenceId id, AbortReason reason) override {
    if (Generator* const engine = engine_) engine->abort(id, reason);
  }

 private:
  std::atomic<Generator*> engine_ = nullptr;
  std::atomic<std::chrono::steady_clock::time_point> refuse_until_{};
};

std::vector<KvGroupLimits> kv_group_limits(ModelRuntime const& runtime) {
  std::vector<KvGroupLimits> limits;
  for (std::size_t g = 0; g < runtime.kv_groups().size(); ++g) {
    KvCacheSpec const& group = runtime.kv_groups()[g];
    std::size_t const blocks = runtime.sizes().kv_blocks[g];
    limits.push_back({.kind = std::string(name_of(group.kind)),
                      .span_tokens = group.has_span() ? std::optional(group.span_tokens) : std::nullopt,
                      .layers = group.layers.size(),
                      .blocks = blocks,
                      .bytes = blocks * group.bytes_per_block});
  }
  return limits;
}

std::string rule_text(MicroBatchRule rule) {
  return rule == MicroBatchRule::one ? "1" : rule == MicroBatchRule::two ? "2" : "auto";
}

ServeLimits serve_limits(ServeOptions const& options, ModelRuntime const& runtime) {
  RuntimeSizes const& sizes = runtime.sizes();
  return {.max_model_len = sizes.max_model_len,
          .max_num_seqs = sizes.max_num_seqs,
          .max_num_batched_tokens = sizes.max_num_batched_tokens,
          .max_queued_requests = options.max_queued_requests,
          .max_logprobs = std::min(options.max_logprobs, runtime.spec().vocab),
          .max_connections = options.max_connections,
          .max_body_bytes = options.max_body_bytes,
          .kv_groups = kv_group_limits(runtime),
          .kv_block_tokens = kKvBlockTokens,
          .kv_cache_bytes = sizes.kv_cache_bytes,
          .prefix_cache = sizes.prefix_cache,
          .activation_bytes = 0,
          .compute_threads = runtime.threads().text(),
          .micro_batches = rule_text(runtime.micro_batches())};
}

// How the model writes calls and reasoning: as the options say, or as its template and vocabulary show.
AnswerFormats answer_formats(ServeOptions const& options, ChatTemplates const& templates, Tokenizer const* tokenizer) {
  std::string written;
  for (auto const& [name, source] : templates.files().templates) written += source + '\n';
  AnswerFormats formats = detect_answer_formats(
      written, [&](std::string_view token) { return tokenizer && tokenizer->encode(token, false).size() == 1; });
  if (options.tool_call_parser != "auto") formats.tool_calls = options.tool_call_parser;
  if (options.reasoning_parser != "auto") formats.reasoning = options.reasoning_parser;
  if (options.enable_auto_tool_choice && formats.tool_calls == "none")
    throw ModelError(
        "--enable-auto-tool-choice: the chat template shows no known way to write calls of tools "
        "(--tool-call-parser names one)");
  return formats;
}

// Those of the parser's marks that the tokenizer has as tokens of their own; a mark of several tokens is text anyway.
std::vector<TokenId> mark_ids(AnswerFormats const& formats, bool with_calls, Tokenizer const* tokenizer) {
  std::vector<TokenId> ids;
  if (!tokenizer) return ids;
  for (auto const& mark : answer_mark_tokens(formats, with_calls))
    if (auto const encoded = tokenizer->encode(mark, false); encoded.size() == 1) ids.push_back(encoded.front());
  return ids;
}

// Everything of a running server, in the order of making; the end goes the other way.
class Server {
 public:
  // Listens; every request is told that the model is loading.
  explicit Server(ServeOptions const& options)
      : options_(options),
        runtime_(options),
        tokenizer_(Tokenizer::load(options.model_dir)),
        templates_(read_chat_templates(options.model_dir), {.messages_of_api = true}),  // starts children: before MPI
        answer_formats_(answer_formats(options, templates_, tokenizer_.get())),
        api_keys_(options.api_key_file ? read_api_keys(*options.api_key_file) : std::vector<std::string>{}),
        limits_(serve_limits(options, runtime_)),
        metrics_(moe_layers(), layer_maxima(runtime_.spec()).num_experts) {
    std::string const dtype(name_of(runtime_.dtype()));
    std::string const isa(name_of(runtime_.isa()));
    std::string const here = runtime_.device() ? std::string(control::kCudaKernels) : isa;
    profile_ = {.dtype = dtype,
                .quantization = std::string(name_of(options.quantization)),
                .wire_dtype = dtype,
                .kv_dtype = std::string(name_of(runtime_.kv_dtype())),
                .isa = here,
                .expert_isa = !options.clustered()             ? here
                              : options.worker_device == "cpu" ? isa
                                                               : std::string(control::kCudaKernels),
                .bitwise = !(options.clustered() && options.mixed_numerics)};
    if (runtime_.device()) spdlog::info("device: {}", runtime_.device()->name());
    api_.emplace(api_options(), gate_, tokenizer_.get(), &templates_, metrics_,
                 ApiCallbacks{.not_ready = [this] { return started_ ? engine_->not_ready() : kLoading; },
                              .cluster_json = [this] { return to_json(view()); },
                              .experts_json = [this] { return to_json(experts()); },
                              .cluster_changes = options.clustered() ? cluster_changes() : ClusterChanges{}});
    spdlog::info("listening at {}, loading", address());
    if (!templates_.compile_error().empty())
      spdlog::error("the chat template does not compile, so chats get 400: {}", templates_.compile_error());
    if (api_keys_.empty() && !is_loopback(options.host))
      spdlog::warn("anyone who reaches {} may use it: there is no --api-key-file, and no TLS", address());
  }
  ~Server() {
    api_.reset();
    engine_.reset();
    runtime_.shut_down();  // its threads report deaths to members that go before it
  }

  void start() {
    runtime_.load([this](WorkerStatus const& w) { on_worker(w); });
    activation_bytes_ = runtime_.runner().activation_bytes();
    runtime_.count_floors();
    engine_.emplace(EngineOptions{.max_model_len = limits_.max_model_len,
                                  .max_queued_requests = limits_.max_queued_requests,
                                  .request_timeout = std::chrono::seconds(options_.request_timeout_s),
                                  .queue_timeout = std::chrono::seconds(options_.queue_timeout_s),
                                  .step_budget = std::chrono::milliseconds(options_.step_budget_ms),
                                  .eos_ids = runtime_.spec().eos_ids,
                                  .prefix_kind = [this](std::size_t n) { return prefix_kind(runtime_.spec(), n); },
                                  .decoder_start = runtime_.spec().decoder_start,
                                  .trace = runtime_.trace()},
                    runtime_.scheduler(), runtime_.runner(), runtime_.experts(), metrics_, [this] { after_step(); });
    for (auto const& line : describe(profile_, limits())) spdlog::info("{}", line);
    spdlog::info("answers of chats: tool calls as {}, reasoning as {}", answer_formats_.tool_calls,
                 answer_formats_.reasoning);
    spdlog::info("experts: {}",
                 !runtime_.remote_experts()
                     ? runtime_.experts_spec().layers.empty() ? "none" : "all on " + runtime_.device()->name()
                 : runtime_.cluster()
                     ? std::to_string(options_.workers + options_.remote_workers) + " workers, transport " +
                           transports() +
                           (runtime_.nccl() ? ", rows by NCCL " + nccl_version_text(runtime_.nccl()->version()) +
                                                  " where a worker has it, else with the messages" + static_form()
                                            : "")
                     : "in this process, transport in-process");
    spdlog::info("weights: {}", runtime_.load_text());
    engine_->start();
    gate_.open(*engine_);
    started_ = true;
    toucher_ = std::jthread([this](std::stop_token const& stop) {
      give_way_to_others();
      runtime_.touch_kv_cache(stop);
    });
  }

  // Raises the signal when it wants to be started anew.
  void restart_through(ShutdownSignal const& signal) { shutdown_ = &signal; }
  [[nodiscard]] bool wants_restart() const { return restart_; }

  [[nodiscard]] std::string address() const {
    std::string const host = options_.host.find(':') == std::string::npos ? options_.host : "[" + options_.host + "]";
    return "http://" + host + ":" + std::to_string(port());
  }
  [[nodiscard]] std::uint16_t port() const { return api_->port(); }

  void drain() {
    spdlog::info("draining: no new requests, up to {} s for those under way", kDrainDeadline.count());
    auto const now = std::chrono::steady_clock::now();
    engine_->drain(now + kDrainDeadline);
    api_->stop(std::chrono::steady_clock::now() + kConnectionsDeadline);
    started_ = false;
    runtime_.shut_down();
    auto const ledger = metrics_.ledger();
    spdlog::info("done: {} requests, {} finished, {} failed, {} cancelled", ledger.accepted, ledger.finished,
                 ledger.failed, ledger.cancelled);
  }

 private:
  [[nodiscard]] std::vector<std::uint32_t> moe_layers() const {
    std::vector<std::uint32_t> layers;
    for (auto const& layer : runtime_.experts_spec().layers) layers.push_back(layer.layer);
    return layers;
  }

  [[nodiscard]] ApiServerOptions api_options() const {
    return {.http = {.host = options_.host,
                     .port = options_.port,
                     .threads = options_.http_threads,
                     .max_connections = options_.max_connections,
                     .max_body_bytes = options_.max_body_bytes,
                     .headers = {}},
            .model = {.name = options_.served_model_name,
                      .max_model_len = limits_.max_model_len,
                      .has_encoder = runtime_.spec().encoder() != nullptr,
                      .prefix_cache = limits_.prefix_cache,
                      .vocab_size = runtime_.spec().vocab,
                      .max_logprobs = limits_.max_logprobs,
                      .max_choices = limits_.max_queued_requests,
                      .return_routed_experts = options_.return_routed_experts,
                      .has_tokenizer = tokenizer_ != nullptr,
                      .has_chat_template = templates_.has_template(),
                      .answer_formats = answer_formats_,
                      .answer_marks = mark_ids(answer_formats_, false, tokenizer_.get()),
                      .marks_with_calls = mark_ids(answer_formats_, true, tokenizer_.get()),
                      .default_temperature = std::clamp(runtime_.spec().default_temperature.value_or(1.0F), 0.0F, 2.0F),
                      .default_top_p = std::clamp(runtime_.spec().default_top_p.value_or(1.0F), 0.01F, 1.0F),
                      .default_min_p = runtime_.spec().default_min_p.value_or(0.0F),
                      .default_repetition_penalty = runtime_.spec().default_repetition_penalty.value_or(1.0F),
                      .default_top_k = runtime_.spec().default_top_k.value_or(0),
                      .created = std::chrono::duration_cast<std::chrono::seconds>(
                                     std::chrono::system_clock::now().time_since_epoch())
                                     .count()},
            .version = EM_VERSION,
            .live_page = options_.live_page,
            .api_keys = api_keys_,
            .allowed_origin = options_.allowed_origin.empty() ? std::nullopt : std::optional(options_.allowed_origin)};
  }

  ClusterChanges cluster_changes() {
    auto const if_up = [this](auto change) {
      return started_ ? change(*runtime_.cluster()) : std::optional<std::string>(kLoading);
    };
    return {.drain =
                [if_up](std::uint32_t worker) {
                  return if_up([worker](Cluster& cluster) { return cluster.drain(WorkerId(worker)); });
                },
            .add_worker = [if_up] { return if_up([](Cluster& cluster) { return cluster.add_worker(); }); }};
  }

  // Monitor thread of the cluster.
  void on_worker(WorkerStatus const& worker) {
    bool const serving = worker.state == WorkerState::serving;
    std::size_t const place = worker.id.value() - 1;
    if (place >= serving_.size()) serving_.resize(place + 1);
    if (serving)
      spdlog::info("worker {} (pid {}, incarnation {}) serves {} experts, transport {}", worker.id.value(), worker.pid,
                   worker.incarnation.value(), worker.num_experts, worker.transport);
    else if (worker.state == WorkerState::left)
      spdlog::info("worker {} (pid {}, incarnation {}) has left", worker.id.value(), worker.pid,
                   worker.incarnation.value());
    else
      spdlog::error("worker {} (pid {}, incarnation {}, {} experts) is dead: {}", worker.id.value(), worker.pid,
                    worker.incarnation.value(), worker.num_experts, worker.death_reason);
    if (worker.state == WorkerState::dead) {
      metrics_.count_worker_death();
      deaths_.add(worker);
      ++num_deaths_;
    }
    serving_[place] = serving;
    metrics_.set_workers_serving(static_cast<std::size_t>(std::ranges::count(serving_, true)));
  }

  // Engine thread.
  void after_step() {
    metrics_.set_split_steps(runtime_.runner().num_split_steps());
    metrics_.set_graph_steps(runtime_.runner().num_graph_launches());
    if (!runtime_.cluster()) return;
    count_traffic();
    ++num_steps_;
    for (double const seconds : runtime_.runner().stages().seconds()) step_seconds_ += seconds;
    auto const now = std::chrono::steady_clock::now();
    if (now >= next_judgement_) {
      judge_recoveries();
      runtime_.update_floors();
      if (streams_too_slowly()) gate_.refuse_until(now + kDegradedFor);
      if (options_.rebalance_interval_s != 0) judge_paces();
      next_judgement_ = now + kJudgementInterval;
    }
    if (options_.rebalance_interval_s == 0) return;
    if (now < next_rebalance_) return;
    next_rebalance_ = now + std::chrono::seconds(options_.rebalance_interval_s);
    // What came since the last time.
    BalanceStatistics const& sums = runtime_.runner().balance();
    std::vector<std::vector<double>> load;
    for (std::size_t m = 0; m < runtime_.runner().num_moe_layers(); ++m) {
      load.push_back(sums.layer(m).load);
      if (!load_before_.empty())
        for (std::size_t e = 0; e < load[m].size(); ++e) load[m][e] -= load_before_[m][e];
    }
    bool const first = load_before_.empty();
    load_before_.resize(load.size());
    for (std::size_t m = 0; m < load.size(); ++m) load_before_[m] = sums.layer(m).load;
    if (!first) runtime_.cluster()->consider_load(std::move(load));
  }

  // Whether deaths have cost more memory than may be.
  void judge_recoveries() {
    auto const r = runtime_.remote_experts()->recoveries();
    std::size_t const held = r.quarantined_bytes + num_deaths_ * kMpiBytesPerDeath;
    ShutdownSignal const* const shutdown = shutdown_;
    if (held > options_.max_quarantine_bytes && shutdown != nullptr && !restart_.exchange(true)) {
      spdlog::error(
          "MPI holds about {} for {} dead workers, more than --max-quarantine: no new requests; this server "
          "starts anew when those under way are done",
          human_bytes(held), num_deaths_.load());
      shutdown->raise();
    }
  }

  // Of the steps since the last look.
  bool streams_too_slowly() {
    std::size_t const own_rows = runtime_.remote_experts()->recoveries().own.rows;
    bool const streams = own_rows > std::exchange(judged_own_rows_, own_rows);
    auto const steps = static_cast<double>(std::exchange(num_steps_, 0));
    double const seconds = std::exchange(step_seconds_, 0.0);
    return streams && steps < options_.min_step_rate * seconds;
  }

  void judge_paces() {
    for (auto const& [life, speed] : runtime_.remote_experts()->judge_paces()) {
      if (speed < 1)
        spdlog::warn("worker {} is slow: about {:.2f} of the others' speed; it gets as much less", life.worker.value(),
                     speed);
      else
        spdlog::info("worker {} is not slow any more", life.worker.value());
      runtime_.cluster()->set_speed(life, speed);
    }
  }

  // Of the exchange, for people.
  [[nodiscard]] std::string static_form() const {
    std::size_t const bytes = options_.static_exchange_bytes;
    return bytes == 0 ? "" : "; decode steps of up to " + human_bytes(bytes) + " a layer in the static form";
  }

  // Bytes of a transport that the metrics have.
  struct Counted {
    std::size_t sent = 0;
    std::size_t received = 0;
  };
  void count(char const* transport, std::size_t sent, std::size_t received, Counted& counted) {
    metrics_.count_transport_bytes(transport, sent - counted.sent, received - counted.received);
    counted = {.sent = sent, .received = received};
  }

  void count_traffic() {
    auto const& traffic = runtime_.remote_experts()->traffic();
    count("mpi", traffic.bytes_sent - traffic.shm_bytes_sent, traffic.bytes_received - traffic.shm_bytes_received,
          counted_by_mpi_);
    count("shm", traffic.shm_bytes_sent, traffic.shm_bytes_received, counted_by_shm_);
    if (runtime_.nccl()) count("nccl", traffic.link_bytes_sent, traffic.link_bytes_received, counted_by_nccl_);
    auto const steps = runtime_.remote_experts()->static_steps();
    metrics_.set_static_steps(steps.good, steps.lost);
    auto const r = runtime_.remote_experts()->recoveries();
    metrics_.set_recoveries({.exchanges = r.exchanges,
                             .rows = r.rows,
                             .seconds = r.seconds,
                             .predicted_seconds = r.predicted_seconds,
                             .own_rows = r.own.rows,
                             .own_loads = r.own.experts,
                             .quarantined_bytes = r.quarantined_bytes});
  }

  // What the messages of this cluster may go by.
  [[nodiscard]] std::string transports() const {
    switch (options_.transport) {
      case MessageTransport::automatic:
        return options_.interface.empty() ? "shm, or mpi where that cannot be" : "shm on this host, else mpi";
      case MessageTransport::shm:
        return "shm";
      case MessageTransport::mpi:
        break;
    }
    return "mpi";
  }

  [[nodiscard]] ServeLimits limits() const {
    ServeLimits limits = limits_;
    limits.activation_bytes = activation_bytes_;
    if (runtime_.cluster()) limits.shared_bytes = runtime_.cluster()->shared_bytes();
    return limits;
  }

  [[nodiscard]] ClusterView view() const {
    ClusterView view{.model = options_.served_model_name,
                     .family = runtime_.spec().family,
                     .profile = profile_,
                     .limits = limits_,
                     .answers = answer_formats_,
                     .coordinator = {},
                     .workers = {},
                     .deaths = deaths_.latest(),
                     .balance = {},
                     .not_ready = started_ ? engine_->not_ready() : kLoading};
    WorkerStatus& c = view.coordinator;
    c.incarnation = Incarnation(1);
    c.state = started_ ? WorkerState::serving : WorkerState::loading;
    c.pid = getpid();
    c.host = host_name();
    c.device = runtime_.device() ? runtime_.device()->name() : "cpu";
    c.isa = profile_.isa;
    c.dtype = name_of(runtime_.weight_format().storage);
    c.transport = c.row_transport = options_.clustered() ? transports() : "in-process";
    if (runtime_.nccl()) c.row_transport = "nccl";
    if (!started_) return view;  // the rest is being made
    view.limits = limits();
    ModelPlan const& plan = runtime_.plan();
    c.resident_bytes = plan.coordinator_bytes + limits_.kv_cache_bytes + activation_bytes_;
    if (!runtime_.cluster() && runtime_.remote_experts()) {
      for (auto const& layer : runtime_.experts_spec().layers) c.num_experts += layer.experts.size();
      c.resident_bytes += plan.worker_bytes.front();
    }
    if (Cluster const* const cluster = runtime_.cluster()) {
      view.workers = cluster->status();
      view.balance = cluster->balance();
    }
    return view;
  }

  [[nodiscard]] ExpertsView experts() const {
    std::vector<WorkerStatus> processes;
    if (Cluster const* const cluster = started_ ? runtime_.cluster() : nullptr) {
      processes = cluster->status();
    } else if (started_) {
      processes.emplace_back();  // the coordinator holds them all
      processes.back().state = WorkerState::serving;
      processes.back().held = std::make_shared<HeldExperts const>(all_experts(runtime_.experts_spec()));
    }
    return experts_view(runtime_.experts_spec(), metrics_.balance(), processes);
  }

  ServeOptions const options_;
  ModelRuntime runtime_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ChatTemplates templates_;
  AnswerFormats const answer_formats_;
  std::vector<std::string> const api_keys_;
  ServeLimits const limits_;
  Metrics metrics_;
  DeathLog deaths_;
  std::vector<bool> serving_ = std::vector<bool>(options_.workers);  // monitor thread of the cluster
  std::atomic<bool> started_ = false;                                // the engine is there
  EngineGate gate_;
  NumericsProfile profile_;
  std::optional<Engine> engine_;
  std::optional<ApiServer> api_;
  std::size_t activation_bytes_ = 0;
  std::jthread toucher_;  // of the KV cache's memory
  std::atomic<ShutdownSignal const*> shutdown_ = nullptr;
  std::atomic<bool> restart_ = false;
  std::atomic<std::size_t> num_deaths_ = 0;
  std::chrono::steady_clock::time_point next_rebalance_{};  // like the next four, of the engine thread
  std::chrono::steady_clock::time_point next_judgement_{};
  std::size_t num_steps_ = 0;  // since the last judgement, like judged_own_rows_
  std::size_t judged_own_rows_ = 0;
  double step_seconds_ = 0;
  std::vector<std::vector<double>> load_before_;  // [MoE layers][E]
  Counted counted_by_mpi_;
  Counted counted_by_shm_;
  Counted counted_by_nccl_;
};

}  // namespace

int serve(ServeOptions const& options, Restart& restart) {
  auto const begin = std::chrono::steady_clock::now();
  Server server(options);
  server.start();
  ShutdownSignal const shutdown;
  server.restart_through(shutdown);
  spdlog::info("ready after {:.2f} s", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  std::cout << "ExpertMesh is ready at " << server.address() << std::endl;
  shutdown.wait();
  server.drain();
  restart.listen_at(server.port());
  return server.wants_restart() ? kExitRestart : 0;
}

}  // namespace expertmesh
