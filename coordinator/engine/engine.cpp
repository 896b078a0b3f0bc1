#include "coordinator/engine/engine.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"

namespace expertmesh {
namespace {

constexpr std::chrono::milliseconds kBalanceInterval{250};  // between updates of the per-expert series

ApiError unavailable(std::string const& reason) {
  return {.status = 503, .message = reason, .type = "service_unavailable", .param = {}, .code = {}, .retry_after_s = 5};
}

ApiError bad_request(std::string message, std::string param, std::string code) {
  return {.status = 400,
          .message = std::move(message),
          .type = "invalid_request_error",
          .param = std::move(param),
          .code = std::move(code),
          .retry_after_s = {}};
}

}  // namespace

Engine::Engine(EngineOptions options, Scheduler& scheduler, StepRunner& runner, Experts& experts, Metrics& metrics,
               std::function<void()> after_step)
    : options_(std::move(options)),
      scheduler_(scheduler),
      runner_(runner),
      experts_(experts),
      metrics_(metrics),
      after_step_(std::move(after_step)),
      prefill_budget_(std::chrono::duration<double>(options_.step_budget).count()) {}

Engine::~Engine() {
  drain(Clock::now());
}

void Engine::start() {
  thread_ = std::thread([this] { run(); });
}

std::optional<ApiError> Engine::check(GenerateRequest const& request) const {
  std::size_t const prompt_length = request.prompt.size();
  std::size_t const max_length = prompt_length + request.max_tokens;
  EM_CHECK(prompt_length > 0, "an empty prompt must be refused before");
  if (options_.decoder_start) return check_encoded(request);
  if (max_length > options_.max_model_len)
    return bad_request("this model's context is " + std::to_string(options_.max_model_len) +
                           " tokens, but the prompt has " + std::to_string(prompt_length) + " and max_tokens is " +
                           std::to_string(request.max_tokens),
                       "max_tokens", "context_length_exceeded");
  if (!scheduler_.fits_ever(max_length))
    return bad_request("the KV cache has no room for " + std::to_string(max_length) + " tokens (prompt and max_tokens)",
                       "max_tokens", "context_length_exceeded");
  return std::nullopt;
}

// Prompt and answer have a length each.
std::optional<ApiError> Engine::check_encoded(GenerateRequest const& request) const {
  if (request.prompt_logprobs)
    return bad_request("the prompt goes to this model's encoder, which has no log-probabilities of it", "echo",
                       "unsupported");
  auto const too_long = [&](std::string const& what, std::size_t length, char const* param) {
    return bad_request("this model takes " + std::to_string(options_.max_model_len) +
                           " tokens of prompt and of answer, but " + what + " is " + std::to_string(length),
                       param, "context_length_exceeded");
  };
  if (request.prompt.size() > options_.max_model_len)
    return too_long("the prompt's length", request.prompt.size(), "prompt");
  std::size_t const length = 1 + request.max_tokens;
  if (length > options_.max_model_len || !scheduler_.fits_ever(length))
    return too_long("max_tokens and the token that starts the answer", length, "max_tokens");
  return std::nullopt;
}

std::unique_ptr<RequestState> Engine::make_state(Submission submission) const {
  auto state = std::make_unique<RequestState>();
  GenerateRequest& request = submission.request;
  Sequence& sequence = state->sequence;
  if (options_.decoder_start) {
    sequence.input = std::exchange(request.prompt, {options_.decoder_start->token});
    if (!request.sampling.forced_first) request.sampling.forced_first = options_.decoder_start->forced_bos;
  }
  sequence.prompt_length = request.prompt.size();
  sequence.max_length = sequence.prompt_length + request.max_tokens;
  sequence.tokens = std::move(request.prompt);
  sequence.tokens.reserve(sequence.max_length);
  sequence.prompt_logits = request.prompt_logprobs.has_value();
  // Where something is wanted of every token, every token has to run.
  sequence.reuse_prefix = !request.prompt_logprobs && !request.return_routed_experts;
  if (options_.prefix_kind) sequence.prefix_kind = options_.prefix_kind(sequence.prompt_length);
  if (request.prompt_logprobs) state->prompt_logprobs.resize(sequence.prompt_length);
  state->request = std::move(request);
  state->sink = std::move(submission.sink);
  state->submitted = Clock::now();
  auto const after = [&](std::chrono::milliseconds timeout) {
    return timeout.count() == 0 ? Clock::time_point::max() : state->submitted + timeout;
  };
  state->deadline = after(options_.request_timeout);
  state->start_deadline = after(options_.queue_timeout);
  return state;
}

Result<std::vector<SequenceId>> Engine::submit(std::vector<Submission> submissions) {
  if (submissions.size() > options_.max_queued_requests)
    return bad_request("asks for " + std::to_string(submissions.size()) + " answers at once, but the queue holds " +
                           std::to_string(options_.max_queued_requests),
                       "n", "too_many_answers");
  std::vector<std::unique_ptr<RequestState>> states;
  for (auto& submission : submissions) {
    if (auto error = check(submission.request)) return std::move(*error);
    states.push_back(make_state(std::move(submission)));
  }

  std::lock_guard lock(mutex_);
  if (draining_) return unavailable("the server is shutting down");
  if (!device_failure_.empty()) return unavailable(device_failure_);
  if (ledger_.queued + states.size() > options_.max_queued_requests)
    return ApiError{.status = 429,
                    .message = "the queue is full (" + std::to_string(ledger_.queued) + " of " +
                               std::to_string(options_.max_queued_requests) + " places are taken)",
                    .type = "rate_limit_error",
                    .param = {},
                    .code = "queue_full",
                    .retry_after_s = 1};
  std::vector<SequenceId> ids;
  for (auto& state : states) {
    state->sequence.id = ids.emplace_back(++last_id_);
    inbox_.submitted.push_back(std::move(state));
  }
  ledger_.accepted += ids.size();
  ledger_.queued += ids.size();
  metrics_.set_ledger(ledger_);
  inbox_filled_.notify_one();
  return ids;
}

void Engine::abort(SequenceId id, AbortReason reason) {
  std::lock_guard lock(mutex_);
  inbox_.aborted.emplace_back(id, reason);
  inbox_filled_.notify_one();
}

std::string Engine::not_ready() const {
  std::lock_guard lock(mutex_);
  return draining_ ? "the server is shutting down" : device_failure_;
}

void Engine::drain(Clock::time_point deadline) {
  {
    std::unique_lock lock(mutex_);
    draining_ = true;
    all_ended_.wait_until(lock, deadline,
                          [&] { return ledger_.accepted == ledger_.finished + ledger_.failed + ledger_.cancelled; });
    inbox_.stop = true;
    inbox_filled_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

// ---- engine thread

void Engine::run() {
  runner_.place_caller();
  for (;;) {
    Inbox inbox = wait_for_work();
    bool const stop = inbox.stop;
    take(std::move(inbox));
    if (stop) break;
    step();
  }
  while (!requests_.empty()) end(*requests_.begin()->second, &Metrics::Ledger::cancelled, std::nullopt);
}

Engine::Inbox Engine::wait_for_work() {
  std::unique_lock lock(mutex_);
  auto const filled = [&] { return !inbox_.empty(); };
  if (scheduler_.empty()) {
    if (!workers_asleep_ && !inbox_filled_.wait_for(lock, options_.idle_after, filled)) {
      lock.unlock();
      publish_balance();
      experts_.idle();
      workers_asleep_ = true;
      lock.lock();
    }
    inbox_filled_.wait(lock, filled);
  }
  return std::exchange(inbox_, {});
}

void Engine::take(Inbox inbox) {
  for (auto& request : inbox.submitted) {
    trace(*request, RequestTraced::Part::queued, request->submitted);
    scheduler_.submit(request->sequence);
    requests_.emplace(request->sequence.id, std::move(request));
  }
  for (auto const& [id, reason] : inbox.aborted) {
    auto const place = requests_.find(id);  // unknown ids have ended already
    if (place == requests_.end()) continue;
    end(*place->second, reason == AbortReason::cancelled ? &Metrics::Ledger::cancelled : &Metrics::Ledger::finished,
        std::nullopt);
  }
}

// The step has no effect; who was not in it goes on.
void Engine::fail_step(std::span<Sequence* const> sequences, std::string const& reason) {
  std::vector<SequenceId> ids;
  for (Sequence const* sequence : sequences) ids.push_back(sequence->id);
  spdlog::error("{} requests end with an error: {}", ids.size(), reason);
  for (SequenceId const id : ids) end(*requests_.at(id), &Metrics::Ledger::failed, ErrorEvent{unavailable(reason)});
}

// What has failed once on a device leaves the rest in doubt: CUDA says the same of every later call. Whoever runs this
// server sees that it is not ready.
void Engine::lose_device(std::string const& reason) {
  {
    std::lock_guard lock(mutex_);
    device_failure_ = reason;
  }
  std::vector<Sequence*> all;
  for (auto const& [id, request] : requests_) all.push_back(&request->sequence);
  fail_step(all, reason);
}

// A request that ran out of time: one that never started may be tried again, a cut answer is an error of this server.
void Engine::end_late_requests() {
  auto const now = Clock::now();
  std::vector<RequestState*> late;
  for (auto const& [id, request] : requests_)
    if (now > request->deadline || (!request->started && now > request->start_deadline)) late.push_back(request.get());
  for (RequestState* request : late) {
    spdlog::warn("request {}: out of time {}", request->request.request_id,
                 request->started ? "while it ran" : "in the queue");
    if (!request->started) {
      end(*request, &Metrics::Ledger::failed,
          ErrorEvent{unavailable("the request waited longer than this server lets one wait")});
      continue;
    }
    end(*request, &Metrics::Ledger::failed,
        ErrorEvent{{.status = 504,
                    .message = "the request took longer than this server's limit of " +
                               std::to_string(options_.request_timeout.count() / 1000) + " s",
                    .type = "timeout_error",
                    .param = {},
                    .code = "request_timeout",
                    .retry_after_s = {}}});
  }
}

void Engine::step() {
  end_late_requests();
  std::size_t const preemptions = scheduler_.num_preemptions();
  Scheduler::PrefixCounts const before = scheduler_.prefix_counts();
  StepBatch const& batch = scheduler_.schedule(prefill_budget_.tokens());
  metrics_.count_preemptions(scheduler_.num_preemptions() - preemptions);
  Scheduler::PrefixCounts const now = scheduler_.prefix_counts();
  metrics_.count_prefixes(now.asked - before.asked, now.found - before.found);
  update_ledger();
  EncoderBatch const& inputs = scheduler_.encoder_batch();
  if (batch.num_tokens() == 0 && inputs.empty()) return;
  if (workers_asleep_) {
    experts_.wake();
    workers_asleep_ = false;
  }
  auto const begin = Clock::now();
  std::size_t num_encoded = 0;
  if (!inputs.empty()) {
    auto const encoded = encode(inputs);
    if (!encoded) return;
    num_encoded = *encoded;
  }
  std::size_t const num_decodes = batch.num_decodes();
  if (batch.num_tokens() > 0 && !decode(batch)) return;
  double const seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  if (num_decodes > 0) prefill_budget_.observe(num_encoded + batch.num_tokens() - num_decodes, seconds);
  metrics_.observe_step(seconds, num_encoded + batch.num_tokens());
  metrics_.set_kv_usage(scheduler_.kv_usage());
  if (Clock::now() - balance_published_ > kBalanceInterval) publish_balance();
  after_step_();
}

// Returns how many of the inputs' tokens, or as much work on all of them; nothing if the device is lost, and all
// requests with it.
std::optional<std::size_t> Engine::encode(EncoderBatch const& batch) {
  auto const begin = Clock::now();
  for (Sequence* sequence : batch.sequences()) count_start(*requests_.at(sequence->id), begin);
  try {
    auto const [all, tokens] = runner_.encode(batch);
    metrics_.count_stages(runner_.stages());
    if (!all) return tokens;
    for (Sequence* sequence : batch.sequences()) {
      RequestState& request = *requests_.at(sequence->id);
      if (request.prompt_tokens_counted > 0) continue;  // before a preemption
      request.prompt_tokens_counted = sequence->input.size();
      metrics_.count_prompt_tokens(sequence->input.size());
    }
    scheduler_.complete_encoding();
    return tokens;
  } catch (ExpertsLost const& lost) {
    fail_step(batch.sequences(), lost.what());
    return 0;
  } catch (DeviceError const& error) {
    lose_device(error.what());
    return std::nullopt;
  }
}

// False if it failed.
bool Engine::decode(StepBatch const& batch) {
  wishes_.clear();
  for (LogitRow const& row : batch.logit_rows()) {
    GenerateRequest const& request = requests_.at(batch.sequences()[row.sequence]->id)->request;
    wishes_.push_back({.sampling = &request.sampling,
                       .token_logprobs = request.logprobs,
                       .prompt_logprobs = request.prompt_logprobs});
  }
  auto const begin = Clock::now();
  for (Sequence* sequence : batch.sequences()) count_start(*requests_.at(sequence->id), begin);
  try {
    deliver(batch, runner_.run(batch, wishes_));
  } catch (ExpertsLost const& lost) {
    fail_step(batch.sequences(), lost.what());
    return false;
  } catch (DeviceError const& error) {
    lose_device(error.what());
    return false;
  }
  metrics_.count_stages(runner_.stages());
  if (auto const floors = runner_.floors()) metrics_.count_floors(*floors);
  return true;
}

void Engine::count_start(RequestState& request, Clock::time_point now) {
  if (std::exchange(request.started, true)) return;
  metrics_.observe_queue_time(std::chrono::duration<double>(now - request.submitted).count());
  trace(request, RequestTraced::Part::prefill, now);
}

void Engine::trace(RequestState& request, RequestTraced::Part now, Clock::time_point when, bool good) const {
  if (!options_.trace) return;
  bool const named = request.traced == RequestTraced::Part::over || now == RequestTraced::Part::over;
  options_.trace->put(RequestTraced{.when_ns = trace_ns(when),
                                    .sequence = request.sequence.id.value(),
                                    .before = std::exchange(request.traced, now),
                                    .now = now,
                                    .good = good,
                                    .prompt_tokens = static_cast<std::uint32_t>(
                                        std::max(request.sequence.prompt_length, request.sequence.input.size())),
                                    .answer_tokens = static_cast<std::uint32_t>(request.num_generated),
                                    .request_id = named ? TraceText<RequestTraced::kMaxName>(request.request.request_id)
                                                        : TraceText<RequestTraced::kMaxName>()});
}

void Engine::deliver(StepBatch const& batch, std::span<RowResult const> results) {
  for (std::size_t s = 0; s < batch.sequences().size(); ++s) {
    RequestState& request = *requests_.at(batch.sequences()[s]->id);
    std::size_t const begin = request.sequence.num_computed;
    std::size_t const count = batch.offsets()[s + 1] - batch.offsets()[s];
    std::size_t const reached = std::min(begin + count, request.sequence.prompt_length);
    if (reached > request.prompt_tokens_counted)
      metrics_.count_prompt_tokens(reached - std::exchange(request.prompt_tokens_counted, reached));
    if (request.request.return_routed_experts) record_routing(batch, s, request);
  }
  scheduler_.complete_step();
  for (std::size_t i = 0; i < results.size(); ++i) {
    LogitRow const& row = batch.logit_rows()[i];
    deliver_row(*requests_.at(batch.sequences()[row.sequence]->id), row, results[i]);
  }
}

void Engine::record_routing(StepBatch const& batch, std::size_t sequence, RequestState& request) const {
  for (std::uint32_t row = batch.offsets()[sequence]; row < batch.offsets()[sequence + 1]; ++row) {
    if (batch.positions()[row] < request.routed_experts.size()) continue;  // known from before a preemption
    auto& token = request.routed_experts.emplace_back();
    for (std::size_t m = 0; m < runner_.num_routed_layers(); ++m) {
      auto const experts = runner_.routed(m, row);
      std::ranges::copy_if(experts, std::back_inserter(token.emplace_back()),
                           [](std::uint32_t expert) { return expert != kNoExpert; });
    }
  }
}

bool Engine::is_eos(TokenId token) const {
  return std::ranges::find(options_.eos_ids, token) != options_.eos_ids.end();
}

void Engine::deliver_row(RequestState& request, LogitRow const& row, RowResult const& result) {
  if (result.prompt_logprobs) request.prompt_logprobs[row.position + 1] = result.prompt_logprobs;
  if (!row.sample) return;
  auto const now = Clock::now();
  auto const finish = [&](FinishReason reason, std::optional<TokenId> stop_token = std::nullopt) {
    metrics_.observe_request(std::chrono::duration<double>(now - request.submitted).count());
    end(request, &Metrics::Ledger::finished,
        FinishEvent{
            .reason = reason,
            .stop_token = stop_token,
            .prompt_tokens = options_.decoder_start ? request.sequence.input.size() : request.sequence.prompt_length,
            .completion_tokens = request.num_generated,
            .routed_experts = std::move(request.routed_experts)});
  };
  bool const first = request.num_generated == 0;
  if (first) {
    request.sink(PromptDoneEvent{.logprobs = std::move(request.prompt_logprobs),
                                 .cached_tokens = request.sequence.num_cached.value_or(0)});
    request.sequence.prompt_logits = false;  // given out: not needed when it runs again after a preemption
  }
  if (request.request.max_tokens == 0) return finish(FinishReason::length);

  if (!result.token) {
    spdlog::error("request {}: the model's logits are no numbers", request.request.request_id);
    return end(
        request, &Metrics::Ledger::failed,
        ErrorEvent{{.status = 500,
                    .message = "the model's logits are no numbers (NaN): its weights or configuration are damaged",
                    .type = "internal_error",
                    .param = {},
                    .code = "not_a_number",
                    .retry_after_s = {}}});
  }
  TokenId const token = *result.token;
  ++request.num_generated;
  metrics_.count_generation_tokens(1);
  if (first) {
    metrics_.observe_time_to_first_token(std::chrono::duration<double>(now - request.submitted).count());
    trace(request, RequestTraced::Part::decode, now);
  } else {
    metrics_.observe_inter_token(std::chrono::duration<double>(now - request.last_token).count());
  }
  request.last_token = now;
  if (is_eos(token) && !request.request.ignore_eos) return finish(FinishReason::stop);
  if (std::ranges::find(request.request.sampling.stop_token_ids, token) !=
      request.request.sampling.stop_token_ids.end())
    return finish(FinishReason::stop, token);
  request.sink(TokenEvent{token, result.token_logprobs});
  if (request.num_generated == request.request.max_tokens) return finish(FinishReason::length);
  request.sequence.tokens.push_back(token);
}

void Engine::end(RequestState& request, Counter counter, std::optional<GenerateEvent> event) {
  trace(request, RequestTraced::Part::over, Clock::now(), counter == &Metrics::Ledger::finished);
  scheduler_.remove(request.sequence);
  auto const node = requests_.extract(request.sequence.id);
  {
    std::lock_guard lock(mutex_);
    ledger_.*counter += 1;
    ledger_.queued = inbox_.submitted.size() + scheduler_.num_waiting();
    ledger_.running = scheduler_.num_running();
    metrics_.set_ledger(ledger_);
    all_ended_.notify_all();
  }
  metrics_.set_kv_usage(scheduler_.kv_usage());
  if (event) request.sink(std::move(*event));
}

void Engine::update_ledger() {
  std::lock_guard lock(mutex_);
  ledger_.queued = inbox_.submitted.size() + scheduler_.num_waiting();
  ledger_.running = scheduler_.num_running();
  metrics_.set_ledger(ledger_);
}

void Engine::publish_balance() {
  balance_published_ = Clock::now();
  for (std::size_t m = 0; m < runner_.num_moe_layers(); ++m) {
    LayerBalance const& sums = runner_.balance().layer(m);
    metrics_.set_balance(m, sums.importance, sums.load, squared_cv(sums.importance), squared_cv(sums.load));
  }
}

}  // namespace expertmesh
