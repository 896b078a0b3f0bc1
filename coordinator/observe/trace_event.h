// What a trace is made of: plain data that the writing threads hand over, and that costs them a copy. Times are
// nanoseconds of this process's steady clock. How it looks in the file: trace_json.h.
#pragma once
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <variant>

#include "coordinator/model/stage_times.h"

namespace expertmesh {

inline std::int64_t trace_ns(std::chrono::steady_clock::time_point when) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(when.time_since_epoch()).count();
}

// As much of a text as has room.
template <std::size_t N>
class TraceText {
 public:
  TraceText() = default;
  explicit TraceText(std::string_view text) : size_(std::min(text.size(), N)) {
    std::ranges::copy(text.substr(0, size_), text_.begin());
  }
  [[nodiscard]] std::string_view view() const { return {text_.data(), size_}; }

 private:
  std::array<char, N> text_{};
  std::size_t size_ = 0;
};

struct TraceSpan {
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
};

// One step of the engine, or a part of a batch's way through the encoder.
struct StepTraced {
  TraceSpan span{};
  std::uint64_t step = 0;  // counted from 1
  bool encoder = false;
  bool failed = false;  // it had no effect
  std::uint32_t tokens = 0;
  std::uint32_t decodes = 0;  // of them
  std::uint32_t sequences = 0;
};

// A stage of a step, by the host's clock.
struct StageTraced {
  TraceSpan span{};
  std::uint64_t step = 0;
  Stage stage{};
  std::optional<std::uint32_t> layer{};  // through all stacks
};

// Rows of one layer on their way: from their dispatch to one worker to its answer, or to its death.
struct ExchangeTraced {
  TraceSpan span{};
  std::uint32_t worker = 0;
  std::uint32_t incarnation = 0;
  std::uint32_t attempt = 0;  // with the worker, it tells exchanges apart that are under way
  std::uint32_t layer = 0;
  std::uint32_t entries = 0;  // (token, slot) pairs
  bool answered = true;
};

// What the worker did in the meantime, brought to this process's clock; see worker_clock.h.
struct ComputeTraced {
  TraceSpan span{};
  std::int64_t offset_ns = 0;       // the worker's clock minus this one
  std::int64_t uncertainty_ns = 0;  // of the span: it is at most so far from where it is drawn
  std::uint32_t worker = 0;
  std::uint32_t incarnation = 0;
  std::uint32_t attempt = 0;  // of the exchange
  std::uint32_t layer = 0;
  std::uint32_t entries = 0;
};

// A request comes to a new part of its life.
struct RequestTraced {
  enum class Part : std::uint8_t { queued, prefill, decode, over };
  static constexpr std::size_t kMaxName = 144;  // of a request's id, with the prefix that the server gives it
  std::int64_t when_ns = 0;
  std::uint64_t sequence = 0;
  Part before{};  // which ends here; of a new request: over
  Part now{};
  bool good = true;                  // if it is over: with a finish reason, not by an error or a client that left
  std::uint32_t prompt_tokens = 0;   // of a new request
  std::uint32_t answer_tokens = 0;   // if it is over
  TraceText<kMaxName> request_id{};  // of a new request, or if it is over
};

// A worker's life begins or ends.
struct WorkerTraced {
  enum class Change : std::uint8_t { serves, left, died };
  std::int64_t when_ns = 0;
  std::uint32_t worker = 0;
  std::uint32_t incarnation = 0;
  Change change{};
  TraceText<96> reason{};  // of a death
};

using TraceEvent = std::variant<StepTraced, StageTraced, ExchangeTraced, ComputeTraced, RequestTraced, WorkerTraced>;
static_assert(std::is_trivially_copyable_v<TraceEvent>);

}  // namespace expertmesh
