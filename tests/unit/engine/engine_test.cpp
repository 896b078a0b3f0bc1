// The engine's promises to its callers: one terminal event each, a closed ledger, limits, aborts, deaths.
#include "coordinator/engine/engine.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <filesystem>

#include "coordinator/experts/remote_experts.h"
#include "coordinator/model/model_plan.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;

// Real experts that can be told to be gone.
class MortalExperts final : public Experts {
 public:
  explicit MortalExperts(std::unique_ptr<RemoteExperts> real) : real_(std::move(real)) {}
  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) override {
    if (dead) throw ExpertsLost("worker 1 is dead");
    return real_->dispatch(layer, x, routing);
  }
  void progress() override { real_->progress(); }
  void wake() override { real_->wake(); }
  void idle() override { real_->idle(); }
  [[nodiscard]] std::string missing() const override { return dead ? "worker 1 is dead" : real_->missing(); }
  std::atomic<bool> dead = false;

 protected:
  bool complete(Exchange exchange) override { return real_->combine(exchange, {}).await_ready(); }
  void wait(Exchange exchange, std::coroutine_handle<> waiter) override {
    real_->combine(exchange, {}).await_suspend(waiter);
  }
  void finish(Exchange exchange, MatrixView<float> out) override { real_->combine(exchange, out).await_resume(); }

 private:
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
  EngineTest() { engine.start(); }
  static constexpr std::size_t kTokens = 64;

  GenerateRequest request(std::vector<TokenId> prompt, std::size_t max_tokens) {
    GenerateRequest r;
    r.prompt = std::move(prompt);
    r.max_tokens = max_tokens;
    r.sampling.temperature = 0;
    r.ignore_eos = true;
    return r;
  }

  fs::path const dir = fs::path(EM_GOLDENS_DIR) / "models/mixtral";
  ModelSpec const spec = read_model_spec(dir, {});
  std::unique_ptr<WeightSource> weights = open_checkpoint(dir);
  ThreadPool pool{2};
  Exec exec{best_isa(), pool, {.max_rows = kTokens * 2, .max_columns = 512}};
  MortalExperts experts{make_local_experts(expert_model_spec(spec, kFloat32Weights, DType::f32), *weights,
                                           {.experts_per_token = 2, .max_tokens = kTokens}, exec, [](auto, auto) {})};
  Decoder decoder{spec, *weights, {.max_tokens = kTokens, .weights = kFloat32Weights, .on_bytes_loaded = [](auto) {}}};
  std::vector<KvCacheSpec> groups = kv_cache_specs(spec, DType::f32);
  KvCache kv{spec, groups, {64}};
  StepRunner runner{spec, {.max_tokens = kTokens, .max_logit_rows = 8}, exec, decoder, kv, experts};
  Scheduler scheduler{{.max_num_seqs = 4, .max_num_batched_tokens = kTokens, .max_model_len = 512}, groups, {64}};
  Metrics metrics{{0, 1, 2}, 8};
  Engine engine{
      {.max_model_len = 512, .max_queued_requests = 6, .eos_ids = {2}}, scheduler, runner, experts, metrics, [] {}};
};

TEST_F(EngineTest, ManyRequestsGetTheTokensOfALoneOne) {
  Listener alone;
  ASSERT_TRUE(engine.submit(request({5, 6, 7}, 12), alone.sink()).ok());
  alone.wait();
  std::vector<Listener> crowd(6);
  for (auto& listener : crowd) ASSERT_TRUE(engine.submit(request({5, 6, 7}, 12), listener.sink()).ok());
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
  auto const result = engine.submit(request(std::vector<TokenId>(500, 1), 13), listener.sink());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().status, 400);
  EXPECT_EQ(result.error().code, "context_length_exceeded");
  EXPECT_EQ(metrics.ledger().accepted, 0U);
}

TEST_F(EngineTest, AbortCountsAsWhatItWas) {
  Listener cancelled;
  Listener stopped;
  auto const a = engine.submit(request({1}, 500), cancelled.sink());
  auto const b = engine.submit(request({1}, 500), stopped.sink());
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

TEST_F(EngineTest, LostExpertsEndEveryRequestWithAnErrorAndRefuseNewOnes) {
  std::vector<Listener> listeners(3);
  for (auto& listener : listeners) ASSERT_TRUE(engine.submit(request({1, 2}, 500), listener.sink()).ok());
  listeners[0].wait_for_tokens(1);
  experts.dead = true;
  for (auto& listener : listeners) {
    auto const event = listener.wait();
    ASSERT_TRUE(std::holds_alternative<ErrorEvent>(event));
    EXPECT_EQ(std::get<ErrorEvent>(event).error.status, 503);
  }
  EXPECT_EQ(engine.not_ready(), "worker 1 is dead");
  Listener late;
  auto const refused = engine.submit(request({1}, 1), late.sink());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().status, 503);
  EXPECT_EQ(metrics.ledger().failed, 3U);
}

TEST_F(EngineTest, ADeathWhileIdleIsNoticed) {
  experts.dead = true;
  engine.experts_changed();
  // submit() refuses as soon as the engine has looked; before that the request itself meets the death.
  Listener listener;
  auto const result = engine.submit(request({1}, 4), listener.sink());
  if (result.ok()) {
    EXPECT_TRUE(std::holds_alternative<ErrorEvent>(listener.wait()));
  } else {
    EXPECT_EQ(result.error().status, 503);
  }
}

TEST_F(EngineTest, DrainWithoutTimeCancelsAndRefuses) {
  Listener listener;
  ASSERT_TRUE(engine.submit(request({1}, 500), listener.sink()).ok());
  engine.drain(std::chrono::steady_clock::now());
  auto const ledger = metrics.ledger();
  EXPECT_EQ(ledger.accepted, ledger.finished + ledger.cancelled);
  EXPECT_EQ(engine.submit(request({1}, 1), listener.sink()).error().status, 503);
}

TEST_F(EngineTest, PromptLogprobsComeBeforeTheFirstToken) {
  GenerateRequest r = request({9, 8, 7, 6}, 0);
  r.prompt_logprobs = 3;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<GenerateEvent> events;
  ASSERT_TRUE(engine
                  .submit(std::move(r),
                          [&](GenerateEvent event) {
                            std::lock_guard lock(mutex);
                            events.push_back(std::move(event));
                            changed.notify_all();
                          })
                  .ok());
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return events.size() == 2; });
  auto const& prompt = std::get<PromptDoneEvent>(events[0]);
  ASSERT_EQ(prompt.logprobs.size(), 4U);
  EXPECT_FALSE(prompt.logprobs[0].has_value());
  EXPECT_EQ(prompt.logprobs[1]->chosen.token, 8);
  EXPECT_EQ(prompt.logprobs[3]->top.size(), 3U);
  EXPECT_EQ(std::get<FinishEvent>(events[1]).completion_tokens, 0U);
}

}  // namespace
}  // namespace expertmesh
