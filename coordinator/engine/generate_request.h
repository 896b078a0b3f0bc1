// What the HTTP side asks of the engine and what it hears back. Plain data; the engine knows no JSON and no text.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/error.h"
#include "common/base/strong_id.h"
#include "coordinator/sampling/sampling_params.h"

namespace expertmesh {

struct GenerateRequest {
  std::string request_id;       // "cmpl-…", for logs
  std::vector<TokenId> prompt;  // at least one token
  SamplingParams sampling;
  std::size_t max_tokens = 16;                 // new tokens; 0 only with prompt_logprobs or echo
  bool ignore_eos = false;                     // go on after an end-of-sequence token (not after a stop token)
  std::optional<std::size_t> logprobs;         // per new token: its own and this many of the best
  std::optional<std::size_t> prompt_logprobs;  // the same per prompt token
  bool return_routed_experts = false;          // per token and MoE layer the chosen experts
};

enum class FinishReason : std::uint8_t { stop, length };  // stop: an end-of-sequence or stop token

// The life of a request as its owner sees it: PromptDone?, TokenEvent*, then exactly one FinishEvent or ErrorEvent.
struct PromptDoneEvent {
  std::vector<std::optional<TokenLogprobs>> logprobs;  // [prompt length], the first null; empty if not asked for
  std::size_t cached_tokens = 0;  // of the prompt, whose keys and values were there from an earlier request
};
struct TokenEvent {
  TokenId token = 0;  // an end-of-sequence token is delivered too, unless it ends the request
  std::optional<TokenLogprobs> logprobs;
};
struct FinishEvent {
  FinishReason reason = FinishReason::stop;
  std::optional<TokenId> stop_token{};  // the one of stop_token_ids that ended it
  std::size_t prompt_tokens = 0;
  std::size_t completion_tokens = 0;  // sampled tokens, an ending end-of-sequence token included
  // [tokens run through the model][MoE layers][K], empty if not asked for. Tokens: prompt, then all new but the last.
  // With an encoder those of the decoder: its start, then all new but the last; and less than K experts where they had
  // no room.
  std::vector<std::vector<std::vector<std::uint32_t>>> routed_experts;
};
struct ErrorEvent {
  ApiError error;  // status 5xx
};
using GenerateEvent = std::variant<PromptDoneEvent, TokenEvent, FinishEvent, ErrorEvent>;

// Called on the engine thread: must not block or throw. Typically posts to the connection's executor.
using EventSink = std::function<void(GenerateEvent)>;

// The engine as the HTTP side sees it. Thread-safe.
class Generator {
 public:
  virtual ~Generator() = default;
  struct Submission {
    GenerateRequest request;
    EventSink sink;
  };
  // Takes all requests into the queue, or none and says why: 400 (prompt too long), 429 (queue full), 503 (experts
  // missing, draining). After an accepted submit each sink hears exactly one terminal event, unless abort() was called
  // first.
  virtual Result<std::vector<SequenceId>> submit(std::vector<Submission> submissions) = 0;
  // Ends a request early: the client went away (cancelled), or a stop string was met in its text (finished). No further
  // event comes after the engine has seen it; events already on their way may still arrive. Unknown ids are ignored.
  enum class AbortReason : std::uint8_t { cancelled, stop_string };
  virtual void abort(SequenceId id, AbortReason reason) = 0;
};

}  // namespace expertmesh
