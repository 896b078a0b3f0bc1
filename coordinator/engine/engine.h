// The engine: one thread owns every sequence and runs step after step. HTTP threads talk to it through submit() and
// abort(); it answers through each request's EventSink.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "coordinator/engine/generate_request.h"
#include "coordinator/engine/request_state.h"
#include "coordinator/engine/step_runner.h"
#include "coordinator/observe/metrics.h"
#include "coordinator/scheduler/prefill_budget.h"
#include "coordinator/scheduler/scheduler.h"

namespace expertmesh {

struct EngineOptions {
  std::size_t max_model_len = 0;                 // tokens of prompt and answer; with an encoder of each
  std::size_t max_queued_requests = 0;           // waiting for admission; more are refused with 429
  std::chrono::milliseconds request_timeout{0};  // from submission to the last token; 0: none
  std::chrono::milliseconds queue_timeout{0};    // from submission to the first step; 0: none
  std::chrono::milliseconds step_budget{0};      // prompt chunks are cut to keep a step with decodes within; 0: not cut
  std::vector<TokenId> eos_ids;
  std::function<std::uint32_t(std::size_t prompt_length)> prefix_kind{};  // as the model's; null: all are alike
  std::optional<DecoderStart> decoder_start{};  // with an encoder: prompts go to it, and answers begin with this
  std::chrono::milliseconds idle_after{20};     // workers are sent to sleep after this long without work
  TraceLane* trace = nullptr;                   // of the engine thread: hears of requests
};

class Engine final : public Generator {
 public:
  // All of them must outlive the engine. after_step runs on the engine thread, for numbers others keep.
  Engine(EngineOptions options, Scheduler& scheduler, StepRunner& runner, Experts& experts, Metrics& metrics,
         std::function<void()> after_step);
  ~Engine() override;  // cancels what is left

  void start();
  Result<std::vector<SequenceId>> submit(std::vector<Submission> submissions) override;
  void abort(SequenceId id, AbortReason reason) override;

  // Why no request can be served now ("the server is shutting down"); empty if one can.
  [[nodiscard]] std::string not_ready() const;
  // Takes no new request and waits until the accepted ones have ended, at most until the deadline; what is left then is
  // cancelled. Afterwards the engine thread has ended.
  void drain(std::chrono::steady_clock::time_point deadline);

 private:
  using Clock = std::chrono::steady_clock;
  using Counter = std::uint64_t Metrics::Ledger::*;
  struct Inbox {
    std::vector<std::unique_ptr<RequestState>> submitted;
    std::vector<std::pair<SequenceId, AbortReason>> aborted;
    bool stop = false;
    [[nodiscard]] bool empty() const { return submitted.empty() && aborted.empty() && !stop; }
  };

  [[nodiscard]] std::optional<ApiError> check(GenerateRequest const& request) const;
  [[nodiscard]] std::optional<ApiError> check_encoded(GenerateRequest const& request) const;
  [[nodiscard]] std::unique_ptr<RequestState> make_state(Submission submission) const;

  void run();
  Inbox wait_for_work();
  void take(Inbox inbox);
  void step();
  std::optional<std::size_t> encode(EncoderBatch const& batch);
  bool decode(StepBatch const& batch);
  void deliver(StepBatch const& batch, std::span<RowResult const> results);
  void count_start(RequestState& request, Clock::time_point now);
  void trace(RequestState& request, RequestTraced::Part now, Clock::time_point when, bool good = true) const;
  void record_routing(StepBatch const& batch, std::size_t sequence, RequestState& request) const;
  void deliver_row(RequestState& request, LogitRow const& row, RowResult const& result);
  [[nodiscard]] bool is_eos(TokenId token) const;
  void end_late_requests();
  // Counts the request as `counter`, frees what it holds and, where there is one, sends its last event.
  void end(RequestState& request, Counter counter, std::optional<GenerateEvent> event);
  void fail_step(std::span<Sequence* const> sequences, std::string const& reason);
  void lose_device(std::string const& reason);
  void update_ledger();
  void publish_balance();

  EngineOptions const options_;
  Scheduler& scheduler_;
  StepRunner& runner_;
  Experts& experts_;
  Metrics& metrics_;
  std::function<void()> const after_step_;

  // Engine thread only.
  std::unordered_map<SequenceId, std::unique_ptr<RequestState>> requests_;
  std::vector<RowWish> wishes_;
  PrefillBudget prefill_budget_;
  bool workers_asleep_ = true;
  Clock::time_point balance_published_{};

  mutable std::mutex mutex_;
  std::condition_variable inbox_filled_;
  std::condition_variable all_ended_;
  Inbox inbox_;
  Metrics::Ledger ledger_;
  std::uint64_t last_id_ = 0;
  bool draining_ = false;
  std::string device_failure_;  // no step runs any more; empty: none
  std::thread thread_;
};

}  // namespace expertmesh
