// A Generator without a model: repeats the prompt, token by token, on a thread of its own.
#pragma once
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "coordinator/engine/generate_request.h"

namespace expertmesh::test {

// The c-th choice begins at the prompt's token c. A prompt that begins with one of these is answered otherwise.
constexpr TokenId kHold = 90;    // one token, then nothing until it is aborted or released
constexpr TokenId kFail = 91;    // one token, then an error
constexpr TokenId kRefuse = 92;  // not taken: 429
constexpr TokenId kForget = 93;  // let go without a word
constexpr TokenId kThrow = 94;   // submit() throws

class EchoGenerator final : public Generator {
 public:
  EchoGenerator() : thread_([this] { run(); }) {}
  ~EchoGenerator() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  Result<std::vector<SequenceId>> submit(std::vector<Submission> submissions) override {
    for (auto const& [request, sink] : submissions) {
      if (request.prompt[0] == kThrow) throw std::runtime_error("no such thing");
      if (request.prompt[0] == kRefuse)
        return ApiError{.status = 429,
                        .message = "full",
                        .type = "rate_limit_error",
                        .param = {},
                        .code = "queue_full",
                        .retry_after_s = 3};
    }
    std::lock_guard lock(mutex_);
    std::vector<SequenceId> ids;
    for (auto& [request, sink] : submissions)
      running_.emplace(ids.emplace_back(++last_id_), Running{std::move(request), std::move(sink)});
    changed_.notify_all();
    return ids;
  }
  void abort(SequenceId id, AbortReason reason) override {
    Running dropped;  // outside the lock: the last of a request may go with its sink
    std::lock_guard lock(mutex_);
    auto const place = running_.find(id);
    if (place == running_.end()) return;
    dropped = std::move(place->second);
    running_.erase(place);
    aborted_.push_back(reason);
    changed_.notify_all();
  }

  // Lets what is held go on, now and later.
  void release() {
    std::lock_guard lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }
  // Waits for the next abort that took effect.
  AbortReason next_abort() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !aborted_.empty(); });
    auto const reason = aborted_.front();
    aborted_.pop_front();
    return reason;
  }

 private:
  struct Running {
    GenerateRequest request;
    EventSink sink;
    std::size_t sent = 0;
  };

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      auto const next = [&] {
        return std::find_if(running_.begin(), running_.end(), [&](auto const& r) { return !held(r.second); });
      };
      changed_.wait(lock, [&] { return stop_ || next() != running_.end(); });
      if (stop_) break;
      for (auto r = running_.begin(); r != running_.end();) r = step(r->second) ? std::next(r) : running_.erase(r);
      lock.unlock();  // lets abort() in
      std::this_thread::yield();
      lock.lock();
    }
  }

  [[nodiscard]] bool held(Running const& r) const { return !released_ && r.request.prompt[0] == kHold && r.sent > 0; }

  // False once it has ended.
  bool step(Running& r) const {
    auto const& prompt = r.request.prompt;
    if (held(r)) return true;
    if (prompt[0] == kForget) return false;
    if (r.sent == 0) r.sink(PromptDoneEvent{});
    if (prompt[0] == kFail && r.sent == 1) {
      r.sink(ErrorEvent{{.status = 503,
                         .message = "worker 2 is dead",
                         .type = "service_unavailable",
                         .param = {},
                         .code = {},
                         .retry_after_s = {}}});
      return false;
    }
    if (r.sent < r.request.max_tokens) {
      TokenId const token = prompt[(r.request.sampling.choice + r.sent++) % prompt.size()];
      std::optional<TokenLogprobs> logprobs;
      if (r.request.logprobs) logprobs = TokenLogprobs{.chosen = {token, -static_cast<float>(token)}, .top = {}};
      r.sink(TokenEvent{token, logprobs});
    }
    if (r.sent < r.request.max_tokens) return true;
    r.sink(FinishEvent{.reason = FinishReason::length,
                       .prompt_tokens = prompt.size(),
                       .completion_tokens = r.sent,
                       .routed_experts = {}});
    return false;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<SequenceId, Running> running_;
  std::deque<AbortReason> aborted_;
  std::uint64_t last_id_ = 0;
  bool stop_ = false;
  bool released_ = false;
  std::thread thread_;
};

}  // namespace expertmesh::test
