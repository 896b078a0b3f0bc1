#include "coordinator/bench/engine_bench.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <numeric>

#include "common/base/cores.h"
#include "common/base/counter_rng.h"
#include "common/base/log.h"
#include "common/base/topology.h"
#include "common/kernels/machine_ceilings.h"
#include "coordinator/bench/config_directory.h"
#include "coordinator/bench/statistics.h"
#include "coordinator/bench/step_cost.h"
#include "coordinator/cluster/link_offer.h"

namespace expertmesh {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kCeilingPasses = 8;
constexpr std::size_t kFirstReadBytes = std::size_t{1} << 20;  // of a device
constexpr double kReadSeconds = 500e-6;                        // of a pass over its memory, at least
constexpr std::size_t kWarmUpSteps = 3;
constexpr std::size_t kMostTracedSteps = 8;  // of a device
constexpr std::size_t kUntimedSteps = 2;     // of each batch size; a device has then recorded what a step is

// Decode steps whose stages are timed apart, on a device.
std::size_t traced_steps(EngineBenchOptions const& options) {
  return options.runtime.device == "cpu" ? 0 : std::min(options.output_len, kMostTracedSteps);
}
std::size_t tokens_of_a_sequence(EngineBenchOptions const& options) {
  return options.input_len + kUntimedSteps + options.output_len + traced_steps(options) + 1;
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Sequences of random tokens, one batch size at a time. What the model samples is not fed back: one of random weights
// soon repeats itself, and with it its choice of experts.
class Batch {
 public:
  Batch(ModelRuntime& runtime, StepCost const& cost, EngineBenchOptions const& options, std::size_t batch_size)
      : runtime_(runtime),
        cost_(cost),
        seed_(options.runtime.dummy_seed),
        input_len_(options.input_len),
        experts_hit_(cost.num_moe_layers()),
        is_hit_(layer_maxima(runtime.spec()).num_experts) {
    for (std::uint32_t s = 0; s < batch_size; ++s) {
      Sequence& sequence = sequences_.emplace_back();
      sequence.id = SequenceId(s + 1);
      sequence.prompt_length = options.input_len;
      sequence.max_length = tokens_of_a_sequence(options);
      sequence.tokens.reserve(sequence.max_length);
      for (std::size_t t = 0; t < options.input_len; ++t) add_token(sequence);
      runtime_.scheduler().submit(sequence);
    }
  }
  ~Batch() {
    for (Sequence& sequence : sequences_) runtime_.scheduler().remove(sequence);
  }
  Batch(Batch const&) = delete;
  Batch& operator=(Batch const&) = delete;

  // All prompts. Nobody decodes before the last is through, since no sequence gets its next token here.
  void prefill(BatchFigures& figures) {
    figures.prompt_tokens = sequences_.size() * input_len_;
    figures.prefill_flops = static_cast<double>(sequences_.size()) * cost_.prompt_flops(input_len_);
    auto const begin = Clock::now();
    StageMeans stages;
    while (std::ranges::any_of(sequences_, [](Sequence const& s) { return s.num_pending() > 0; })) {
      step();
      add_stages(stages);
    }
    figures.prefill_seconds = seconds_since(begin);
    figures.prefill_stages = mean_of(stages);
  }

  void decode(std::size_t num_steps, BatchFigures& figures) {
    std::vector<double> seconds;
    StageMeans stages;
    double hits = 0;
    for (std::size_t i = 0; i < kUntimedSteps; ++i) {
      for (Sequence& sequence : sequences_) add_token(sequence);
      step();
    }
    std::size_t const launches_before = runtime_.runner().num_graph_launches();
    std::size_t const static_before = static_steps();
    for (std::size_t i = 0; i < num_steps; ++i) {
      for (Sequence& sequence : sequences_) {
        add_token(sequence);
        figures.kv_bytes += static_cast<double>(cost_.kv_bytes(sequence.tokens.size()));
        figures.step_flops += cost_.decode_flops(sequence.tokens.size());
      }
      auto const begin = Clock::now();
      std::size_t const tokens = step();
      seconds.push_back(seconds_since(begin));
      EM_CHECK(tokens == sequences_.size(), tokens << " of " << sequences_.size() << " sequences decode");
      count_experts(tokens);
      figures.weight_bytes += static_cast<double>(cost_.weight_bytes(tokens, experts_hit_));
      hits += std::accumulate(experts_hit_.begin(), experts_hit_.end(), 0.0);
      add_stages(stages);
    }
    auto const steps = static_cast<double>(num_steps);
    figures.kv_bytes /= steps;
    figures.step_flops /= steps;
    figures.weight_bytes /= steps;
    figures.experts_hit = experts_hit_.empty() ? 0 : hits / steps / static_cast<double>(experts_hit_.size());
    figures.decode_stages = mean_of(stages);
    Summary const summary = summarise(std::move(seconds));
    figures.share_of_graphs = static_cast<double>(runtime_.runner().num_graph_launches() - launches_before) / steps;
    figures.share_of_static = static_cast<double>(static_steps() - static_before) / steps;
    figures.step_seconds = summary.median;
    figures.mean_step_seconds = summary.mean;
  }

  // On a device, after decode().
  void trace(std::size_t num_steps, BatchFigures& figures) {
    runtime_.runner().time_stages_on_device(true);
    StageMeans stages;
    for (std::size_t i = 0; i < num_steps; ++i) {
      for (Sequence& sequence : sequences_) add_token(sequence);
      step(runtime_.cluster() ? 0
                              : kHeldSteps * figures.step_seconds);  // nothing lies ready for what waits for workers
      add_stages(stages);
    }
    runtime_.runner().time_stages_on_device(false);
    figures.decode_stages = mean_of(stages);
    figures.device_seconds = 0;
    for (std::size_t s = 0; s < kNumStages; ++s)
      if (Stage(s) != Stage::fetch) figures.device_seconds += figures.decode_stages.seconds[s];
  }

 private:
  static constexpr double kHeldSteps = 1.5;  // of a step's time: more than the host takes to call for all of it

  [[nodiscard]] std::size_t static_steps() const {
    return runtime_.remote_experts() ? runtime_.remote_experts()->static_steps().good : 0;
  }

  // Of the last step.
  void add_stages(StageMeans& sum) const {
    ++sum.num_steps;
    auto const work = runtime_.runner().work();
    auto const floors = runtime_.runner().floors();
    for (std::size_t s = 0; s < kNumStages; ++s) {
      sum.seconds[s] += runtime_.runner().stages().seconds()[s];
      if (!work) continue;
      sum.floors[s] += (*floors)[s];
      sum.bytes[s] += static_cast<double>((*work)[s].bytes);
      sum.operations[s] += 2.0 * static_cast<double>((*work)[s].multiply_adds);
    }
  }
  static StageMeans mean_of(StageMeans sum) {
    auto const steps = static_cast<double>(std::max<std::size_t>(sum.num_steps, 1));
    for (auto* of_stages : {&sum.seconds, &sum.floors, &sum.bytes, &sum.operations})
      for (double& of_stage : *of_stages) of_stage /= steps;
    return sum;
  }

  void add_token(Sequence& sequence) const {
    auto const position = static_cast<std::uint32_t>(sequence.tokens.size());
    double const u = random_uniform({.seed = seed_,
                                     .choice = static_cast<std::uint32_t>(sequence.id.value()),
                                     .position = position,
                                     .purpose = RngPurpose::benchmark});
    sequence.tokens.push_back(static_cast<TokenId>(u * static_cast<double>(runtime_.spec().vocab)));
  }

  // held: seconds that a device waits before it begins.
  std::size_t step(double held = 0) {
    StepBatch const& batch = runtime_.scheduler().schedule();
    if (batch.num_tokens() == 0)
      throw ModelError("the KV cache, bounded by free memory, has no room for " + std::to_string(sequences_.size()) +
                       " sequences of this length: choose smaller --batch-sizes");
    wishes_.assign(batch.logit_rows().size(), {.sampling = &greedy_, .token_logprobs = {}, .prompt_logprobs = {}});
    Device* const device = runtime_.device();
    if (device && held > 0) device->hold(held);
    runtime_.runner().run(batch, wishes_);
    if (device) device->synchronize();  // a step without logits waits for nothing
    runtime_.scheduler().complete_step();
    return batch.num_tokens();
  }

  // Of the last step.
  void count_experts(std::size_t tokens) {
    for (std::size_t m = 0; m < experts_hit_.size(); ++m) {
      is_hit_.assign(is_hit_.size(), false);
      for (std::size_t t = 0; t < tokens; ++t)
        for (std::uint32_t expert : runtime_.runner().routed(m, t)) is_hit_[expert] = true;
      experts_hit_[m] = static_cast<std::size_t>(std::ranges::count(is_hit_, true));
    }
  }

  ModelRuntime& runtime_;
  StepCost const& cost_;
  std::uint64_t seed_;
  std::size_t input_len_;
  SamplingParams const greedy_ = [] {
    SamplingParams params;
    params.temperature = 0;
    return params;
  }();
  std::deque<Sequence> sequences_;  // [B]; the scheduler holds pointers
  std::vector<RowWish> wishes_;
  std::vector<std::size_t> experts_hit_;  // [MoE layers] in the last step
  std::vector<bool> is_hit_;              // [E]
};

// Sizes for the largest batch, with one KV block more for each sequence than it needs: none must ever wait.
ModelRuntimeOptions sized(EngineBenchOptions const& options, std::filesystem::path const& model_dir) {
  ModelRuntimeOptions runtime = options.runtime;
  runtime.model_dir = model_dir;
  runtime.load_format = LoadFormat::dummy;
  runtime.return_routed_experts = true;
  runtime.max_num_seqs = std::ranges::max(options.batch_sizes);
  runtime.max_num_batched_tokens = std::max(options.prefill_tokens, runtime.max_num_seqs);
  std::size_t const tokens = tokens_of_a_sequence(options);
  ModelSpec const spec = read_model_spec(model_dir, {});
  if (spec.encoder())
    throw ModelError("config.json: field 'model_type': family '" + spec.family +
                     "' has an encoder; bench engine measures models without one (bench serve takes both)");
  std::size_t const max_position = spec.max_position;
  if (tokens > max_position)
    throw ModelError("--input-len " + std::to_string(options.input_len) + " and --output-len " +
                     std::to_string(options.output_len) + " are more than the " + std::to_string(max_position) +
                     " positions of the model (config.json: max_position_embeddings)");
  runtime.max_model_len = std::min(tokens + kKvBlockTokens, max_position);
  return runtime;
}

// Of more and more bytes, up to so many, until a pass takes long enough to be far more than the caches keep.
double read_bandwidth(Device& device, std::size_t most) {
  for (std::size_t bytes = kFirstReadBytes;; bytes *= 2) {
    double const rate = measure_read_bandwidth(device, std::min(bytes, most), kCeilingPasses);
    if (bytes >= most || static_cast<double>(bytes) >= kReadSeconds * rate) return rate;
  }
}

void measure_ceilings(Device& device, EngineBenchOptions const& options, EngineFigures& figures) {
  spdlog::info("measuring what {} can do", device.name());
  figures.device = device.name();
  figures.memory_bytes_per_second = read_bandwidth(device, std::min(options.read_bytes, device.free_bytes() / 4));
  figures.flops_per_second = measure_peak_flops(device, PeakKind::fp32, kCeilingPasses).value();
  figures.tensor_flops_per_second = measure_peak_flops(device, PeakKind::bf16_tensor, kCeilingPasses);
}

// Before the model takes its memory, on a pool of its own.
void measure_ceilings(EngineBenchOptions const& options, EngineFigures& figures) {
  ModelRuntimeOptions const& r = options.runtime;
  std::size_t const cores = usable_cores();
  std::size_t const own = r.threads != 0 ? r.threads : cores;
  std::size_t const each = r.worker_threads != 0 ? r.worker_threads : cores;
  figures.ceiling_threads = r.workers == 0 ? own : std::min(cores, own + r.workers * each);
  spdlog::info("measuring what the machine can do with {} threads", figures.ceiling_threads);
  using Pinning = ThreadPlan::Pinning;
  ThreadPool pool(plan_own_threads(read_topology(), figures.ceiling_threads, r.bind ? Pinning::node : Pinning::none));
  Exec const exec(figures.isa, pool, {.max_rows = 1, .max_columns = 1});
  figures.memory_bytes_per_second = measure_read_bandwidth(exec, options.read_bytes, kCeilingPasses);
  figures.flops_per_second = measure_peak_flops(exec, figures.weights, kCeilingPasses);
  if (!options.stages) return;
  constexpr std::size_t kCacheBytesAThread = std::size_t{4} << 20;  // more than the second level has
  constexpr std::size_t kCachePasses = 50;
  for (std::size_t const threads : {std::size_t{1}, figures.ceiling_threads}) {
    if (!figures.ceilings.empty() && figures.ceilings.front().threads == threads) continue;
    bool const all = threads == figures.ceiling_threads;
    ThreadPool some(threads);
    Exec const on(figures.isa, some, {.max_rows = 1, .max_columns = 1});
    figures.ceilings.push_back(
        {.threads = threads,
         .memory_bytes_per_second =
             all ? figures.memory_bytes_per_second : measure_read_bandwidth(on, options.read_bytes, kCeilingPasses),
         .cache_bytes_per_second = measure_read_bandwidth(on, threads * kCacheBytesAThread, kCachePasses),
         .f32 = measure_peak_flops(on, DType::f32, kCeilingPasses),
         .bf16 = measure_peak_flops(on, DType::bf16, kCeilingPasses),
         .int8 = measure_peak_flops(on, DType::i8, kCeilingPasses),
         .barrier_seconds = measure_barrier(on, kCeilingPasses)});
  }
}

Ceilings ceilings_of(EngineFigures const& figures) {
  return {.bytes_per_second = figures.memory_bytes_per_second, .operations_per_second = figures.flops_per_second};
}

void refuse_deaths(Cluster const& cluster) {
  for (WorkerStatus const& worker : cluster.status())
    if (!worker.death_reason.empty())
      throw ClusterError("worker " + std::to_string(worker.id.value()) + " died: " + worker.death_reason);
}

// Rows go by the host until NCCL has connected, or has given up.
void await_links(ModelRuntime& runtime) {
  auto const is_awaited = [](WorkerStatus const& worker) { return is_connecting(worker.row_transport); };
  while (std::ranges::any_of(runtime.cluster()->status(), is_awaited)) {
    runtime.experts().progress();
    runtime.experts().pause(PollPause::sleep);
    refuse_deaths(*runtime.cluster());
  }
}

}  // namespace

double BatchFigures::exchange_seconds() const {
  auto const of = [&](Stage stage) { return decode_stages.seconds[static_cast<std::size_t>(stage)]; };
  return of(Stage::dispatch) + of(Stage::experts) + of(Stage::combine);
}

EngineFigures run_engine_bench(EngineBenchOptions const& options) {
  ConfigDirectory const model(options.runtime.model_dir);
  ModelRuntime runtime(sized(options, model.path()));
  StepCost const cost(runtime.spec(), runtime.weight_format(), runtime.kv_dtype(), runtime.holders());
  EngineFigures figures{.plan = cost.plan(),
                        .dtype = runtime.dtype(),
                        .weights = runtime.weight_format().storage,
                        .kv_dtype = runtime.kv_dtype(),
                        .isa = runtime.isa(),
                        .num_experts = layer_maxima(runtime.spec()).num_experts,
                        .batches = {}};
  if (runtime.device())
    measure_ceilings(*runtime.device(), options, figures);
  else
    measure_ceilings(options, figures);
  runtime.load([](WorkerStatus const& worker) {
    if (worker.state == WorkerState::dead)
      spdlog::error("worker {} is dead: {}", worker.id.value(), worker.death_reason);
  });
  std::optional<StageFloors> floors;
  if (!runtime.device()) {
    floors.emplace(runtime.spec(), runtime.weight_format(), runtime.dtype(), runtime.kv_dtype(), ceilings_of(figures),
                   runtime.holders());
    runtime.runner().count_floors(&*floors);
  }
  runtime.touch_kv_cache({});
  runtime.runner().place_caller();
  runtime.experts().wake();
  {
    BatchFigures unused;
    Batch warm_up(runtime, cost, options, 1);
    warm_up.prefill(unused);
    warm_up.decode(std::min(kWarmUpSteps, options.output_len), unused);
    if (runtime.device()) warm_up.trace(traced_steps(options), unused);
    if (runtime.cluster()) await_links(runtime);
  }
  for (std::size_t batch_size : options.batch_sizes) {
    spdlog::info("batch size {}", batch_size);
    BatchFigures& of_batch = figures.batches.emplace_back();
    of_batch.batch_size = batch_size;
    Batch batch(runtime, cost, options, batch_size);
    batch.prefill(of_batch);
    batch.decode(options.output_len, of_batch);
    if (runtime.device()) batch.trace(traced_steps(options), of_batch);
  }
  if (runtime.cluster()) {
    refuse_deaths(*runtime.cluster());
    for (WorkerStatus const& worker : runtime.cluster()->status())
      figures.row_transports.push_back(worker.row_transport);
  }
  runtime.shut_down();
  return figures;
}

}  // namespace expertmesh
