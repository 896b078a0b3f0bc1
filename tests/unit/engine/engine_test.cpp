// The engine's promises to its callers: one terminal event each, a closed ledger, limits, aborts, deaths.
#include "coordinator/engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>

#include "coordinator/experts/remote_experts.h"
#include "coordinator/model/model_plan.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;

// Real experts that can be told to be gone.
class MortalExperts final : public Experts {
 public:
  explicit MortalExperts(std::unique_ptr<RemoteExperts> real) : real_(std::move(real)) {}
  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) override {
    if (device_broken) throw_device_error();
    if (dead) throw ExpertsLost("cannot load expert 3");
    return real_->dispatch(layer, x, routing);
  }
  void progress() override { real_->progress(); }
  void wake() override { real_->wake(); }
  void idle() override { real_->idle(); }
  std::atomic<bool> dead = false;
  std::atomic<bool> device_broken = false;
  std::atomic<bool> breaks_in_combine = false;

 protected:
  bool complete(Exchange exchange) override { return real_->combine(exchange, {}).await_ready(); }
  void wait(Exchange exchange, std::coroutine_handle<> waiter) override {
    real_->combine(exchange, {}).await_suspend(waiter);
  }
  void finish(Exchange exchange, MatrixView<float> out) override {
    if (breaks_in_combine) throw_device_error();  // its rows are still under way to the real ones
    real_->combine(exchange, out).await_resume();
  }

 private:
  [[noreturn]] static void throw_device_error() {
    throw DeviceError("cudaLaunchKernel", 700, "an illegal memory access", "cuda:0");
  }
  std::unique_ptr<RemoteExperts> real_;
};

// Collects a request's events; wait() returns the terminal one.
struct Listener {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<TokenId> tokens;
  std::vector<GenerateEvent> terminal;

  EventSink sink() {
    return [this](GenerateEvent event) {
      std::lock_guard lock(mutex);
      if (auto const* token = std::get_if<TokenEvent>(&event)) tokens.push_back(token->token);
      if (std::holds_alternative<FinishEvent>(event) || std::holds_alternative<ErrorEvent>(event))
        terminal.push_back(std::move(event));
      changed.notify_all();
    };
  }
  GenerateEvent wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !terminal.empty(); });
    return terminal.front();
  }
  void wait_for_tokens(std::size_t count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return tokens.size() >= count; });
  }
};

class EngineTest : public testing::Test {
 protected:
  explicit EngineTest(std::size_t kv_blocks = 64,
                      EngineOptions engine_options = {.max_model_len = 512, .max_queued_requests = 6, .eos_ids = {2}},
                      std::string const& model = "mixtral", MicroBatchRule rule = MicroBatchRule::one)
      : blocks(kv_blocks),
        options(std::move(engine_options)),
        dir(test::goldens_dir() / "models" / model),
        micro_batches(rule) {
    engine.start();
  }
  static constexpr std::size_t kTokens = 64;

  GenerateRequest request(std::vector<TokenId> prompt, std::size_t max_tokens) {
    GenerateRequest r;
    r.prompt = std::move(prompt);
    r.max_tokens = max_tokens;
    r.sampling.temperature = 0;
    r.ignore_eos = true;
    return r;
  }

  Result<SequenceId> submit(GenerateRequest r, EventSink sink) {
    std::vector<Generator::Submission> one;
    one.push_back({std::move(r), std::move(sink)});
    auto ids = engine.submit(std::move(one));
    if (!ids) return ids.error();
    return ids.value().front();
  }

  std::size_t const blocks;
  EngineOptions const options;
  fs::path const dir;
  MicroBatchRule const micro_batches;
  ModelSpec const spec = read_model_spec(dir, {});
  std::unique_ptr<WeightSource> weights = open_checkpoint(dir);
  ThreadPool pool{2};
  Exec exec{best_isa(), pool, {.max_rows = kTokens * 2, .max_columns = 512, .max_head_dim = 512}};
  MortalExperts experts{
      make_local_experts(expert_model_spec(spec, kFloat32Weights, DType::f32), *weights,
                         {.experts_per_token = exchange_shape(spec, kTokens).experts_per_row, .max_tokens = kTokens},
                         exec, [](auto, auto) {})};
  Decoder decoder{
      spec,
      *weights,
      {.max_tokens = kTokens, .max_input = 512, .weights = kFloat32Weights, .on_bytes_loaded = [](auto) {}}};
  std::vector<KvCacheSpec> groups = kv_cache_specs(spec, DType::f32);
  std::vector<std::size_t> blocks_of_groups = std::vector<std::size_t>(groups.size(), blocks);
  KvCache kv{spec, groups, blocks_of_groups};
  StepRunner runner{
      spec, {.max_tokens = kTokens, .max_logit_rows = 8, .micro_batches = micro_batches}, exec, decoder, kv, experts};
  Scheduler scheduler{{.max_num_seqs = 4,
                       .max_num_batched_tokens = kTokens,
                       .max_model_len = 512,
                       .num_expert_counts = num_expert_counts(spec)},
                      groups,
                      blocks_of_groups};
  Metrics metrics{runner.moe_layers(), layer_maxima(spec).num_experts};
  Engine engine{options, scheduler, runner, experts, metrics, [] {}};
};

TEST_F(EngineTest, ManyRequestsGetTheTokensOfALoneOne) {
  Listener alone;
  ASSERT_TRUE(submit(request({5, 6, 7}, 12), alone.sink()).ok());
  alone.wait();
  std::vector<Listener> crowd(6);
  for (auto& listener : crowd) ASSERT_TRUE(submit(request({5, 6, 7}, 12), listener.sink()).ok());
  for (auto& listener : crowd) {
    auto const event = listener.wait();
    ASSERT_TRUE(std::holds_alternative<FinishEvent>(event));
    EXPECT_EQ(std::get<FinishEvent>(event).completion_tokens, 12U);
    EXPECT_EQ(std::get<FinishEvent>(event).reason, FinishReason::length);
    EXPECT_EQ(listener.tokens, alone.tokens);
  }
  auto const ledger = metrics.ledger();
  EXPECT_EQ(ledger.accepted, 7U);
  EXPECT_EQ(ledger.finished, 7U);
}

TEST_F(EngineTest, TooLongIsRefusedByName) {
  Listener listener;
  auto const result = submit(request(std::vector<TokenId>(500, 1), 13), listener.sink());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().status, 400);
  EXPECT_EQ(result.error().code, "context_length_exceeded");
  EXPECT_EQ(metrics.ledger().accepted, 0U);
}

TEST_F(EngineTest, AbortCountsAsWhatItWas) {
  Listener cancelled;
  Listener stopped;
  auto const a = submit(request({1}, 500), cancelled.sink());
  auto const b = submit(request({1}, 500), stopped.sink());
  cancelled.wait_for_tokens(2);
  engine.abort(a.value(), Generator::AbortReason::cancelled);
  engine.abort(b.value(), Generator::AbortReason::stop_string);
  engine.abort(SequenceId(999), Generator::AbortReason::cancelled);  // unknown: ignored
  engine.drain(std::chrono::steady_clock::now() + std::chrono::seconds(30));
  EXPECT_EQ(metrics.ledger().cancelled, 1U);
  EXPECT_EQ(metrics.ledger().finished, 1U);
  scheduler.check_integrity();
  EXPECT_TRUE(scheduler.empty());
}

TEST_F(EngineTest, LostExpertsEndTheRequestsOfTheStepAndNoOthers) {
  std::vector<Listener> listeners(3);
  for (auto& listener : listeners) ASSERT_TRUE(submit(request({1, 2}, 500), listener.sink()).ok());
  listeners[0].wait_for_tokens(1);
  experts.dead = true;
  for (auto& listener : listeners) {
    auto const event = listener.wait();
    ASSERT_TRUE(std::holds_alternative<ErrorEvent>(event));
    EXPECT_EQ(std::get<ErrorEvent>(event).error.status, 503);
    EXPECT_EQ(std::get<ErrorEvent>(event).error.message, "cannot load expert 3");
  }
  EXPECT_EQ(metrics.ledger().failed, 3U);
  experts.dead = false;
  Listener late;
  ASSERT_TRUE(submit(request({1}, 1), late.sink()).ok());
  EXPECT_TRUE(std::holds_alternative<FinishEvent>(late.wait()));
  EXPECT_EQ(engine.not_ready(), "");
}

TEST_F(EngineTest, ABrokenDeviceEndsAllRequestsAndTakesNoMore) {
  std::vector<Listener> listeners(6);  // two of them wait for a place
  for (auto& listener : listeners) ASSERT_TRUE(submit(request({1, 2}, 500), listener.sink()).ok());
  listeners[0].wait_for_tokens(1);
  experts.device_broken = true;
  for (auto& listener : listeners) {
    auto const event = listener.wait();
    ASSERT_TRUE(std::holds_alternative<ErrorEvent>(event));
    EXPECT_EQ(std::get<ErrorEvent>(event).error.status, 503);
  }
  EXPECT_EQ(metrics.ledger().failed, 6U);
  EXPECT_NE(engine.not_ready().find("illegal memory access"), std::string::npos) << engine.not_ready();
  Listener late;
  EXPECT_EQ(submit(request({1}, 1), late.sink()).error().status, 503);
}

// ---- steps in two micro-batches, where one fails while the other's rows are under way

class SplitEngineTest : public EngineTest {
 protected:
  SplitEngineTest()
      : EngineTest(64, {.max_model_len = 512, .max_queued_requests = 6, .eos_ids = {2}}, "mixtral",
                   MicroBatchRule::two) {}
  // Of requests that decode together when it happens.
  std::vector<GenerateEvent> events_of(std::atomic<bool>& failure) {
    std::vector<Listener> listeners(3);
    for (auto& listener : listeners) EXPECT_TRUE(submit(request({1, 2}, 500), listener.sink()).ok());
    for (auto& listener : listeners) listener.wait_for_tokens(2);
    EXPECT_GT(runner.num_split_steps(), 0U);
    failure = true;
    std::vector<GenerateEvent> events;
    for (auto& listener : listeners) events.push_back(listener.wait());
    return events;
  }
};

TEST_F(SplitEngineTest, LostExpertsEndTheRequestsOfTheStepAndNoOthers) {
  for (auto const& event : events_of(experts.dead)) {
    ASSERT_TRUE(std::holds_alternative<ErrorEvent>(event));
    EXPECT_EQ(std::get<ErrorEvent>(event).error.message, "cannot load expert 3");
  }
  experts.dead = false;
  Listener late;
  ASSERT_TRUE(submit(request({1, 2, 3}, 3), late.sink()).ok());
  EXPECT_TRUE(std::holds_alternative<FinishEvent>(late.wait()));
}

TEST_F(SplitEngineTest, ADeviceThatBreaksAtDispatchEndsAllRequests) {
  for (auto const& event : events_of(experts.device_broken)) ASSERT_TRUE(std::holds_alternative<ErrorEvent>(event));
  EXPECT_NE(engine.not_ready().find("illegal memory access"), std::string::npos) << engine.not_ready();
}

TEST_F(SplitEngineTest, ADeviceThatBreaksInCombineEndsAllRequests) {
  for (auto const& event : events_of(experts.breaks_in_combine)) ASSERT_TRUE(std::holds_alternative<ErrorEvent>(event));
  EXPECT_NE(engine.not_ready().find("illegal memory access"), std::string::npos) << engine.not_ready();
}

TEST_F(EngineTest, DrainWithoutTimeCancelsAndRefuses) {
  Listener listener;
  ASSERT_TRUE(submit(request({1}, 500), listener.sink()).ok());
  engine.drain(std::chrono::steady_clock::now());
  auto const ledger = metrics.ledger();
  EXPECT_EQ(ledger.accepted, ledger.finished + ledger.cancelled);
  EXPECT_EQ(submit(request({1}, 1), listener.sink()).error().status, 503);
}

TEST_F(EngineTest, PromptLogprobsComeBeforeTheFirstToken) {
  GenerateRequest r = request({9, 8, 7, 6}, 0);
  r.prompt_logprobs = 3;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<GenerateEvent> events;
  ASSERT_TRUE(submit(std::move(r), [&](GenerateEvent event) {
                std::lock_guard lock(mutex);
                events.push_back(std::move(event));
                changed.notify_all();
              }).ok());
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return events.size() == 2; });
  auto const& prompt = std::get<PromptDoneEvent>(events[0]);
  ASSERT_EQ(prompt.logprobs.size(), 4U);
  EXPECT_FALSE(prompt.logprobs[0].has_value());
  EXPECT_EQ(prompt.logprobs[1]->chosen.token, 8);
  EXPECT_EQ(prompt.logprobs[3]->top.size(), 3U);
  EXPECT_EQ(std::get<FinishEvent>(events[1]).completion_tokens, 0U);
}

// ---- a KV cache too small for all

class SmallCacheTest : public EngineTest {
 protected:
  SmallCacheTest() : EngineTest(9) {}
};

TEST_F(SmallCacheTest, PreemptedRequestsGetTheTokensOfALoneOne) {
  std::vector<std::vector<TokenId>> const prompts{{5, 6, 7}, {8, 9}, {10, 11, 12, 13}, {14}};
  auto const sampled = [&](std::size_t i) {
    GenerateRequest r = request(prompts[i], 60);
    r.sampling = {.repetition_penalty = 1.2F, .temperature = 0.8F, .seed = 40 + i};
    r.logprobs = 2;
    r.return_routed_experts = false;
    return r;
  };
  std::vector<std::vector<TokenId>> alone;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Listener listener;
    ASSERT_TRUE(submit(sampled(i), listener.sink()).ok());
    listener.wait();
    alone.push_back(listener.tokens);
  }
  ASSERT_EQ(scheduler.num_preemptions(), 0U);
  std::vector<Listener> crowd(prompts.size());
  std::vector<Generator::Submission> together;
  for (std::size_t i = 0; i < prompts.size(); ++i) together.push_back({sampled(i), crowd[i].sink()});
  ASSERT_TRUE(engine.submit(std::move(together)).ok());
  for (std::size_t i = 0; i < crowd.size(); ++i) {
    EXPECT_TRUE(std::holds_alternative<FinishEvent>(crowd[i].wait()));
    EXPECT_EQ(crowd[i].tokens, alone[i]) << "request " << i;
    EXPECT_EQ(crowd[i].tokens.size(), 60U);
  }
  engine.drain(std::chrono::steady_clock::now() + std::chrono::seconds(30));
  EXPECT_GT(scheduler.num_preemptions(), 0U) << "the cache was not small enough";
  scheduler.check_integrity();
  EXPECT_EQ(scheduler.kv_usage(), 0);
  EXPECT_NE(metrics.serialise().find("expertmesh:prompt_tokens_total 20"), std::string::npos)
      << "a prompt that runs twice counts once";
}

TEST_F(EngineTest, SubmitsAllOrNone) {
  std::vector<Listener> listeners(7);
  auto const group = [&](std::size_t count, std::size_t bad) {
    std::vector<Generator::Submission> submissions;
    for (std::size_t i = 0; i < count; ++i)
      submissions.push_back({request({1, 2}, i == bad ? 600 : 400), listeners[i].sink()});
    return submissions;
  };
  EXPECT_EQ(engine.submit(group(7, 9)).error().code, "too_many_answers");
  EXPECT_EQ(engine.submit(group(3, 2)).error().code, "context_length_exceeded");
  EXPECT_EQ(metrics.ledger().accepted, 0U);
  auto const ids = engine.submit(group(6, 9));
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids.value().size(), 6U);
  EXPECT_EQ(metrics.ledger().accepted, 6U);
  for (SequenceId id : ids.value()) engine.abort(id, Generator::AbortReason::cancelled);
  engine.drain(std::chrono::steady_clock::now() + std::chrono::seconds(30));  // before the listeners go
  EXPECT_EQ(metrics.ledger().finished + metrics.ledger().cancelled, 6U);
}

TEST_F(EngineTest, StopTokensEndTheAnswerButNotBeforeMinTokens) {
  Listener plain;
  ASSERT_TRUE(submit(request({5, 6, 7}, 12), plain.sink()).ok());
  plain.wait();
  GenerateRequest stopping = request({5, 6, 7}, 12);
  stopping.sampling.stop_token_ids = {plain.tokens[3]};
  Listener stopped;
  ASSERT_TRUE(submit(stopping, stopped.sink()).ok());
  auto const finish = std::get<FinishEvent>(stopped.wait());
  auto const first = std::ranges::find(plain.tokens, plain.tokens[3]) - plain.tokens.begin();
  EXPECT_EQ(finish.reason, FinishReason::stop);
  EXPECT_EQ(finish.stop_token, plain.tokens[3]);
  EXPECT_EQ(finish.completion_tokens, static_cast<std::size_t>(first) + 1);
  EXPECT_EQ(stopped.tokens.size(), static_cast<std::size_t>(first)) << "the stop token is not part of the text";
  stopping.sampling.min_tokens = 12;
  Listener longer;
  ASSERT_TRUE(submit(stopping, longer.sink()).ok());
  EXPECT_EQ(std::get<FinishEvent>(longer.wait()).reason, FinishReason::length);
  EXPECT_EQ(std::ranges::find(longer.tokens, plain.tokens[3]), longer.tokens.end());
}

// ---- deadlines

class HurriedTest : public EngineTest {
 protected:
  HurriedTest()
      : EngineTest(64, {.max_model_len = 512,
                        .max_queued_requests = 6,
                        .request_timeout = std::chrono::milliseconds(1),
                        .eos_ids = {2}}) {}
};

TEST_F(HurriedTest, ARequestOutOfTimeEndsWithOneError) {
  Listener listener;
  ASSERT_TRUE(submit(request({1, 2}, 500), listener.sink()).ok());
  auto const event = listener.wait();
  ASSERT_TRUE(std::holds_alternative<ErrorEvent>(event));
  EXPECT_GE(std::get<ErrorEvent>(event).error.status, 503);
  engine.drain(std::chrono::steady_clock::now() + std::chrono::seconds(30));
  EXPECT_EQ(listener.terminal.size(), 1U);
  EXPECT_EQ(metrics.ledger().failed, 1U);
  scheduler.check_integrity();
}

class CrowdedTest : public EngineTest {
 protected:
  CrowdedTest()
      : EngineTest(64, {.max_model_len = 512,
                        .max_queued_requests = 6,
                        .queue_timeout = std::chrono::milliseconds(1),
                        .eos_ids = {2}}) {}
};

TEST_F(CrowdedTest, OnlyWhoNeverStartedIsSentAway) {
  std::vector<Listener> listeners(6);  // 4 run, 2 wait far longer than a millisecond
  for (auto& listener : listeners) ASSERT_TRUE(submit(request({1, 2}, 400), listener.sink()).ok());
  std::size_t sent_away = 0;
  for (auto& listener : listeners) {
    auto const event = listener.wait();
    if (auto const* error = std::get_if<ErrorEvent>(&event)) {
      EXPECT_EQ(error->error.status, 503);
      EXPECT_TRUE(error->error.retry_after_s.has_value());
      EXPECT_TRUE(listener.tokens.empty());
      ++sent_away;
    } else {
      EXPECT_EQ(listener.tokens.size(), 400U);
    }
  }
  EXPECT_GE(sent_away, 2U);
}

// ---- prompts that go to an encoder

class EncoderEngineTest : public EngineTest {
 protected:
  EncoderEngineTest()
      : EngineTest(64,
                   {.max_model_len = 512,
                    .max_queued_requests = 6,
                    .eos_ids = {1},
                    .decoder_start = DecoderStart{.token = 0, .forced_bos = 9}},
                   "switch_transformers") {}
};

TEST_F(EncoderEngineTest, PromptAndAnswerHaveALengthEach) {
  Listener listener;
  ASSERT_TRUE(submit(request(std::vector<TokenId>(512, 5), 511), listener.sink()).ok());
  auto const event = listener.wait();
  ASSERT_TRUE(std::holds_alternative<FinishEvent>(event));
  EXPECT_EQ(std::get<FinishEvent>(event).prompt_tokens, 512U);
  EXPECT_EQ(std::get<FinishEvent>(event).completion_tokens, 511U);
  EXPECT_EQ(listener.tokens.front(), 9) << "the checkpoint's first token";
  auto const long_prompt = submit(request(std::vector<TokenId>(513, 5), 1), listener.sink());
  EXPECT_EQ(long_prompt.error().param, "prompt");
  auto const long_answer = submit(request({5}, 512), listener.sink());
  EXPECT_EQ(long_answer.error().param, "max_tokens");
  GenerateRequest scored = request({5}, 4);
  scored.prompt_logprobs = 0;
  EXPECT_EQ(submit(scored, listener.sink()).error().param, "echo");
}

TEST_F(EncoderEngineTest, ARequestsFirstTokenGoesBeforeTheCheckpoints) {
  Listener listener;
  GenerateRequest forced = request({5, 6}, 3);
  forced.sampling.forced_first = 7;
  ASSERT_TRUE(submit(forced, listener.sink()).ok());
  listener.wait();
  EXPECT_EQ(listener.tokens.front(), 7);
}

TEST_F(EncoderEngineTest, ManyGetTheTokensOfALoneOne) {
  Listener alone;
  ASSERT_TRUE(submit(request(std::vector<TokenId>(70, 5), 12), alone.sink()).ok());
  alone.wait();
  std::vector<Listener> crowd(6);
  for (auto& listener : crowd) ASSERT_TRUE(submit(request(std::vector<TokenId>(70, 5), 12), listener.sink()).ok());
  for (auto& listener : crowd) {
    ASSERT_TRUE(std::holds_alternative<FinishEvent>(listener.wait()));
    EXPECT_EQ(listener.tokens, alone.tokens);
  }
}

TEST_F(EncoderEngineTest, ABrokenDeviceEndsAllRequests) {
  experts.device_broken = true;  // before anything is decoded
  std::vector<Listener> listeners(2);
  for (auto& listener : listeners) ASSERT_TRUE(submit(request({5, 6, 7}, 12), listener.sink()).ok());
  for (auto& listener : listeners) ASSERT_TRUE(std::holds_alternative<ErrorEvent>(listener.wait()));
  EXPECT_NE(engine.not_ready().find("illegal memory access"), std::string::npos) << engine.not_ready();
}

TEST_F(EncoderEngineTest, LostExpertsEndWhoIsBeingEncodedAndNobodyLater) {
  experts.dead = true;
  Listener lost;
  ASSERT_TRUE(submit(request({5, 6, 7}, 12), lost.sink()).ok());
  auto const event = lost.wait();
  ASSERT_TRUE(std::holds_alternative<ErrorEvent>(event));
  EXPECT_EQ(std::get<ErrorEvent>(event).error.status, 503);
  experts.dead = false;
  Listener next;
  ASSERT_TRUE(submit(request({5, 6, 7}, 12), next.sink()).ok());
  EXPECT_TRUE(std::holds_alternative<FinishEvent>(next.wait()));
  engine.drain(std::chrono::steady_clock::now() + std::chrono::seconds(30));
  EXPECT_EQ(metrics.ledger().failed, 1U);
  EXPECT_EQ(metrics.ledger().finished, 1U);
  scheduler.check_integrity();
}

}  // namespace
}  // namespace expertmesh
