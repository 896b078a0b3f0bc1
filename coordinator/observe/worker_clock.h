// A worker's clock beside the coordinator's. Every answer gives four times: sent and received here, begun and ready
// there, as in NTP (RFC 5905, section 8), whatever host the worker is on:
//
//   offset = ((begun - sent) + (ready - received)) / 2, wrong by at most ((received - sent) - (ready - begun)) / 2
//
// since the work lies between sending and receiving; and by what the clocks drift meanwhile. The estimate with the
// smallest error counts; it ages, since clocks drift, until a newer one is better. Pure: time comes in as arguments.
#pragma once
#include <cstdint>
#include <optional>

#include "coordinator/observe/trace_event.h"

namespace expertmesh {

class WorkerClock {
 public:
  struct Aligned {
    TraceSpan span{};  // of the worker's work, by this process's clock; they come in order and never overlap
    std::int64_t offset_ns = 0;
    std::int64_t uncertainty_ns = 0;
  };
  // exchange: from sending to receiving, by this process's clock; begin_ns, end_ns: as the worker says. None: no times
  // were said, or some that cannot be.
  std::optional<Aligned> align(TraceSpan exchange, std::uint64_t begin_ns, std::uint64_t end_ns);

 private:
  struct Estimate {
    std::int64_t offset_ns = 0;
    std::int64_t error_ns = 0;  // when it was made
    std::int64_t made_ns = 0;
    [[nodiscard]] std::int64_t error_at(std::int64_t now_ns) const;
  };
  std::optional<Estimate> best_;
  Aligned last_;
};

}  // namespace expertmesh
