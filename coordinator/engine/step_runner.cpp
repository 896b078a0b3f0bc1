#include "coordinator/engine/step_runner.h"

#include <algorithm>
#include <bit>
#include <chrono>

#include "common/base/check.h"
#include "common/kernels/device.h"

namespace expertmesh {
namespace {

std::vector<std::uint32_t> moe_layers_of(ModelSpec const& spec) {
  std::vector<std::uint32_t> layers;
  for (auto const& layer : moe_layers(spec)) layers.push_back(layer.number);
  return layers;
}

std::uint32_t num_encoder_moe_layers(ModelSpec const& spec) {
  return static_cast<std::uint32_t>(std::ranges::count(moe_layers(spec), StackKind::encoder, &NumberedLayer::stack));
}

bool any_mixture(ModelSpec const& spec, auto is_so) {
  return std::ranges::any_of(moe_layers(spec),
                             [&](NumberedLayer const& layer) { return is_so(std::get<MoeFfnSpec>(layer.layer->ffn)); });
}

// Whether the host reads the routing of each layer before its rows go to the experts, whoever they are.
bool reads_routing(ModelSpec const& spec) {
  return spec.encoder() || any_mixture(spec, [](MoeFfnSpec const& moe) { return moe.capacity.has_value(); });
}

// Whether layers do something on the host on their way.
bool needs_host(ModelSpec const& spec) {
  return reads_routing(spec) || any_mixture(spec, [](MoeFfnSpec const& moe) { return moe.router.noise.has_value(); });
}

}  // namespace

StepRunner::StepRunner(ModelSpec const& spec, StepRunnerLimits const& limits, Exec const& exec, Decoder& decoder,
                       KvCache& kv, Experts& experts)
    : limits_(limits),
      exec_(exec),
      decoder_(decoder),
      kv_(kv),
      experts_(experts),
      moe_layers_(moe_layers_of(spec)),
      first_routed_(num_encoder_moe_layers(spec)),
      experts_per_token_(layer_maxima(spec).experts_per_token),
      layers_need_host_(needs_host(spec)),
      can_be_graphs_(exec.device() != nullptr && limits.graphs && !layers_need_host_),
      reads_routing_(reads_routing(spec)),
      activations_(spec, {.tokens = limits.max_tokens, .logit_rows = limits.max_logit_rows}, exec.device()),
      balance_(moe_layers_.size(), layer_maxima(spec).num_experts),
      micro_batches_(decoder, kv, experts, limits.pause),
      sampler_(spec.vocab, limits.max_logit_rows, exec),
      eos_ids_(spec.eos_ids),
      routed_(limits.record_routing ? num_routed_layers() * limits.max_tokens * experts_per_token_ : 0),
      row_exchange_(exchange_shape(spec, 1)) {
  head_rows_.reserve(limits.max_logit_rows);
  tasks_.reserve(limits.max_logit_rows);
  results_.reserve(limits.max_tokens);
  if (exec.device()) inputs_.emplace(*exec.device());
  if (can_be_graphs_ && !experts.wants_routing_on_host()) graphs_.emplace(*exec.device());
  for (auto const& layer : expertmesh::moe_layers(spec))
    experts_of_layer_.push_back(std::get<MoeFfnSpec>(layer.layer->ffn).router.experts_per_token);
  if (Encoder* const encoder = decoder_.encoder()) encoder_run_.emplace(*encoder, exec.device());
  if (limits.trace) stages_.tell(&trace_.emplace(*limits.trace));
}

std::size_t StepRunner::activation_bytes() const {
  Encoder const* const encoder = decoder_.encoder();
  return activations_.size_bytes() + (encoder ? encoder->activation_bytes() : 0);
}

StepContext StepRunner::context(Experts& experts) {
  return {.exec = exec_,
          .act = activations_,
          .experts = experts,
          .balance = balance_,
          .stages = stages_,
          .tokens = 0,
          .stack = StackKind::decoder,
          .ids = {},
          .ids_on_device = {},
          .positions = {},
          .prompt_lengths = {},
          .sequence_of = {},
          .sequences = {},
          .places = {},
          .routing_on_host = reads_routing_ || experts.wants_routing_on_host(),
          .tap = tap_};
}

StepRunner::Encoded StepRunner::encode(EncoderBatch const& batch) {
  StepTrace::Step const traced(trace(), {.encoder = true,
                                         .tokens = static_cast<std::uint32_t>(batch.num_tokens()),
                                         .sequences = static_cast<std::uint32_t>(batch.sequences().size())});
  stages_.begin();
  encoder_run_->begin(batch, {.context = context(experts_),
                              .cache = kv_.encoder_layer(),
                              .consumer = [this](MatrixView<float const> encoded, TokenPlaces const& places) {
                                decoder_.write_cross(exec_, encoded, places, kv_, activations_);
                              }});
  while (encoder_run_->busy()) {
    experts_.progress();
    if (encoder_run_->busy()) experts_.pause(limits_.pause);
  }
  bool const all = encoder_run_->end();
  return {.all = all, .tokens = encoder_run_->tokens_done()};
}

// Room in attention for the sequences of a step that a graph may do; none: it is done op by op.
std::optional<std::size_t> StepRunner::positions_of_graph(StepBatch const& batch) const {
  constexpr std::size_t kFewest = 256;           // positions; fewer would be more graphs
  constexpr std::size_t kEmptyAnyhow = 1 << 16;  // positions; more launches take longer
  std::size_t const tokens = batch.num_tokens();
  if (!can_be_graphs_ || tap_ || stages_on_device_ || tokens == 0 || tokens != batch.num_decodes()) return std::nullopt;
  std::size_t sum = 0;
  std::size_t most = kFewest;
  for (std::uint32_t const position : batch.positions()) {
    sum += position + std::size_t{1};
    most = std::max(most, std::bit_ceil(position + std::size_t{1}));
  }
  // All make room for the longest. Where that leaves most of it empty, tokens are better parted by length.
  if (tokens * most > 4 * sum + kEmptyAnyhow) return std::nullopt;
  return std::min(most, exec_.limits().max_positions);
}

void StepRunner::run_layers(StepContext const& step, SplitChoice::Kind const& kind) {
  bool const whole = limits_.micro_batches == MicroBatchRule::one || layers_need_host_ || tap_ || step.tokens < 2;
  if (whole) return micro_batches_.run(step, StepForm::whole);
  StepForm const form = limits_.micro_batches == MicroBatchRule::two ? StepForm::split : split_choice_.choose(kind);
  if (form == StepForm::split) ++num_split_;
  auto const begin = std::chrono::steady_clock::now();
  micro_batches_.run(step, form);
  split_choice_.add(kind, form, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

StepContext StepRunner::context_of(StepBatch const& batch, Experts& experts) {
  StepContext step = context(experts);
  step.tokens = batch.num_tokens();
  step.ids = batch.ids();
  step.positions = batch.positions();
  step.prompt_lengths = batch.prompt_lengths();
  step.sequence_of = batch.sequence_of();
  step.sequences = batch.sequences();
  step.places = batch.places();
  step.routed = routed_.empty() ? nullptr : routed_.data();
  step.first_routed = first_routed_;
  if (inputs_) {
    step.ids_on_device = inputs_->ids();
    step.places = inputs_->places();
  }
  return step;
}

// For steps in which nothing waits for the device: those of which a device could make a graph.
StepExperts* StepRunner::begin_step(StepBatch const& batch, bool comes_again) {
  std::size_t const tokens = batch.num_tokens();
  if (!exec_.device() || layers_need_host_ || tap_ || moe_layers_.empty() || tokens == 0 ||
      tokens != batch.num_decodes())
    return nullptr;
  return experts_.begin_step({.tokens = tokens * row_exchange_.rows,
                              .experts_per_token = row_exchange_.experts_per_row,
                              .layers = moe_layers_,
                              .comes_again = comes_again});
}

// Everything that a step's ops depend on.
GraphCache::Key StepRunner::graph_key(StepContext const& step, std::size_t most_positions) {
  graph_key_ = {step.tokens, step.sequences.size(), most_positions, reinterpret_cast<std::uintptr_t>(inputs_->where())};
  return graph_key_;
}

bool StepRunner::run_ahead(StepContext const& step, StepExperts& experts, std::size_t most_positions) {
  decoder_.prepare(step);
  if (most_positions > 0) kv_.check(step.places);
  if (experts.run(graph_key(step, most_positions), [&] { micro_batches_.run(step, StepForm::whole); })) ++num_launched_;
  auto outcome = experts.outcome();
  while (outcome == StepExperts::Outcome::under_way) {
    experts_.progress();
    pause_polling(limits_.pause);
    outcome = experts.outcome();
  }
  return outcome == StepExperts::Outcome::good;
}

void StepRunner::run_as_graph(StepContext const& step, std::size_t most_positions) {
  kv_.check(step.places);
  auto const ops = [&] { micro_batches_.run(step, StepForm::whole); };
  DeviceGraph* const graph = graphs_->find_or_record(graph_key(step, most_positions), ops);
  if (!graph) return ops();
  graph->launch();
  ++num_launched_;
}

void StepRunner::forward(StepBatch const& batch) {
  stages_.begin();
  balance_.begin_step();
  auto const most_positions = positions_of_graph(batch);
  StepExperts* const ahead = begin_step(batch, most_positions.has_value());
  std::size_t const room = ahead || graphs_ ? most_positions.value_or(0) : 0;
  if (inputs_) inputs_->put(batch.ids(), batch.places(), room);
  bool const done = ahead && run_ahead(context_of(batch, *ahead), *ahead, room);
  StepContext const step = context_of(batch, experts_);
  if (!done) decoder_.prepare(step);
  if (done) {
    stages_.end(Stage::experts);
  } else if (graphs_ && most_positions) {
    run_as_graph(step, *most_positions);
  } else {
    run_layers(step, {.tokens = step.tokens, .decodes_only = step.tokens == batch.num_decodes()});
  }
  if (exec_.device() && (done || !step.routing_on_host)) {
    fetch_routing(batch.num_tokens());
    stages_.end(Stage::fetch);
  }
  for (Sequence* sequence : batch.sequences())
    if (sequence) std::swap(sequence->expert_counts.so_far, sequence->expert_counts.next);
  last_tokens_ = batch.num_tokens();
}

void StepRunner::fetch_routing(std::size_t tokens) {
  std::size_t const most = tokens * activations_.max_experts_per_token;  // slots of a layer
  std::size_t const total = moe_layers_.size() * most;
  if (total == 0) return;
  fetched_experts_.resize(total);
  fetched_weights_.resize(total);
  exec_.device()->download(fetched_experts_.data(), activations_.device_experts.data(), total * sizeof(std::uint32_t));
  exec_.device()->download(fetched_weights_.data(), activations_.device_gate_weights.data(), total * sizeof(float));
  for (std::size_t m = 0; m < moe_layers_.size(); ++m) {
    std::size_t const slots = tokens * experts_of_layer_[m];
    auto const experts = std::span(fetched_experts_).subspan(m * most, slots);
    balance_.add(m, {experts, std::span(fetched_weights_).subspan(m * most, slots), experts_of_layer_[m]});
    if (!routed_.empty())
      std::ranges::copy(experts, routed_.begin() + static_cast<std::ptrdiff_t>((m - first_routed_) * slots));
  }
}

RowTask StepRunner::task_of(StepBatch const& batch, LogitRow const& row, RowWish const& wish) const {
  Sequence const& sequence = *batch.sequences()[row.sequence];
  std::size_t const next = row.position + 1;
  RowTask task;
  if (row.sample) {
    task.sampling = wish.sampling;
    task.after = {.tokens = sequence.tokens, .prompt_length = sequence.prompt_length, .eos_ids = eos_ids_};
    task.token_logprobs = wish.token_logprobs;
  }
  if (wish.prompt_logprobs && next < sequence.prompt_length) {
    task.next_of_prompt = sequence.tokens[next];
    task.prompt_logprobs = wish.prompt_logprobs;
  }
  return task;
}

std::span<RowResult const> StepRunner::run(StepBatch const& batch, std::span<RowWish const> wishes) {
  StepTrace::Step const traced(trace(), {.tokens = static_cast<std::uint32_t>(batch.num_tokens()),
                                         .decodes = static_cast<std::uint32_t>(batch.num_decodes()),
                                         .sequences = static_cast<std::uint32_t>(batch.sequences().size())});
  forward(batch);
  auto const rows = batch.logit_rows();
  results_.assign(rows.size(), {});
  for (std::size_t begin = 0; begin < rows.size(); begin += limits_.max_logit_rows) {
    std::size_t const count = std::min(limits_.max_logit_rows, rows.size() - begin);
    head_rows_.clear();
    tasks_.clear();
    for (std::size_t i = begin; i < begin + count; ++i) {
      head_rows_.push_back(rows[i].row);
      tasks_.push_back(task_of(batch, rows[i], wishes[i]));
    }
    MatrixView<float> const logits = decoder_.logits(exec_, activations_, head_rows_);  // [R,V]
    stages_.end(Stage::lm_head);
    sampler_.start(logits, tasks_);
    if (exec_.device()) stages_.end(Stage::sampling);
    sampler_.finish(std::span(results_).subspan(begin, count));
    stages_.end(exec_.device() ? Stage::fetch : Stage::sampling);
  }
  stages_.finish();
  if (floors_)
    last_work_ = floors_->work_of(
        {.positions = batch.positions(), .offsets = batch.offsets(), .logit_rows = rows.size(), .routed = balance_});
  return results_;
}

std::optional<StageSeconds> StepRunner::floors() const {
  return floors_ ? std::optional(floors_->of(last_work_)) : std::nullopt;
}

void StepRunner::time_stages_on_device(bool on) {
  EM_CHECK(exec_.device() != nullptr, "no device");
  stages_.use(on ? exec_.device()->make_marks() : nullptr);
  stages_on_device_ = on;
}

std::span<std::uint32_t const> StepRunner::routed(std::size_t moe_layer, std::size_t row) const {
  return std::span(routed_).subspan((moe_layer * last_tokens_ + row) * experts_per_token_, experts_per_token_);
}

}  // namespace expertmesh
