// A request inside the engine. Engine thread only, from the moment it leaves the inbox.
#pragma once
#include <chrono>
#include <vector>

#include "coordinator/engine/generate_request.h"
#include "coordinator/observe/trace_event.h"
#include "coordinator/scheduler/sequence.h"

namespace expertmesh {

struct RequestState {
  // Filled at submission.
  Sequence sequence;
  GenerateRequest request;  // its prompt has moved into the sequence
  EventSink sink;
  std::chrono::steady_clock::time_point submitted;
  std::chrono::steady_clock::time_point deadline;        // of the whole answer
  std::chrono::steady_clock::time_point start_deadline;  // of the first step

  RequestTraced::Part traced = RequestTraced::Part::over;  // where the trace has it, if there is one

  // Filled step by step.
  bool started = false;
  std::size_t prompt_tokens_counted = 0;  // on the metrics; a preempted prompt runs again, but counts once
  std::size_t num_generated = 0;
  std::chrono::steady_clock::time_point last_token;
  std::vector<std::optional<TokenLogprobs>> prompt_logprobs;            // [prompt length], the first null
  std::vector<std::vector<std::vector<std::uint32_t>>> routed_experts;  // [tokens run][MoE layers][K]
};

}  // namespace expertmesh
