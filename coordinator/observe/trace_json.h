// Events in the JSON array form of Chrome's trace event format, as Perfetto (ui.perfetto.dev) and chrome://tracing read
// it ("Trace Event Format", Google, 2016): one object a line, "ts" and "dur" in microseconds. A file without its last
// "]" is read as well.
//
// Process 1 is the coordinator: its thread 1 the engine (steps, and in them stages), and a track for each request.
// Process 1 + w is worker w: a thread for each of its lives with what it computed, and a track of exchanges, from the
// dispatch of rows to their answer. What computes here is "worker 1", too.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <utility>

#include "coordinator/observe/trace_event.h"

namespace expertmesh {

class TraceJson {
 public:
  // zero_ns: what is 0 in the file.
  explicit TraceJson(std::int64_t zero_ns) : zero_ns_(zero_ns) {}

  // The beginning of the file: unix_ns is zero_ns by the calendar's clock.
  [[nodiscard]] static std::string begin(std::int64_t unix_ns);
  // Appends the event's lines to `out`, and those that name a worker when it is first met.
  void add(TraceEvent const& event, std::string& out);
  // The end: an event that says why, and the bracket.
  [[nodiscard]] std::string end(char const* why, std::int64_t now_ns) const;

 private:
  void put(StepTraced const& e, std::string& out);
  void put(StageTraced const& e, std::string& out);
  void put(ExchangeTraced const& e, std::string& out);
  void put(ComputeTraced const& e, std::string& out);
  void put(RequestTraced const& e, std::string& out);
  void put(WorkerTraced const& e, std::string& out);
  void name_worker(std::uint32_t worker, std::uint32_t incarnation, std::string& out);
  [[nodiscard]] std::string time(std::int64_t ns) const;  // a moment
  [[nodiscard]] std::string span(TraceSpan of) const;     // "ts" and "dur"

  std::int64_t const zero_ns_;
  std::set<std::pair<std::uint32_t, std::uint32_t>> named_;  // lives of workers; 0: the worker itself
};

}  // namespace expertmesh
