#include "coordinator/observe/worker_clock.h"

#include <algorithm>

namespace expertmesh {
namespace {

constexpr std::int64_t kNsPerNsOfDrift = 2'000;            // 500 ppm: what adjtime() may slew a clock by
constexpr std::uint64_t kLatest = std::uint64_t{1} << 62;  // no steady clock is later

}  // namespace

std::int64_t WorkerClock::Estimate::error_at(std::int64_t now_ns) const {
  return error_ns + (now_ns - made_ns) / kNsPerNsOfDrift;
}

std::optional<WorkerClock::Aligned> WorkerClock::align(TraceSpan exchange, std::uint64_t begin_ns,
                                                       std::uint64_t end_ns) {
  if (begin_ns == 0 || end_ns < begin_ns || end_ns > kLatest) return std::nullopt;
  auto const begin = static_cast<std::int64_t>(begin_ns);
  auto const end = static_cast<std::int64_t>(end_ns);
  std::int64_t const drifted = (exchange.end_ns - exchange.begin_ns) / kNsPerNsOfDrift + 1;  // at most, meanwhile
  std::int64_t const on_the_way = (exchange.end_ns - exchange.begin_ns) - (end - begin);
  if (on_the_way < -drifted) return std::nullopt;
  Estimate const now{.offset_ns = ((begin - exchange.begin_ns) + (end - exchange.end_ns)) / 2,
                     .error_ns = std::max<std::int64_t>(on_the_way, 0) / 2 + drifted,
                     .made_ns = exchange.end_ns};
  if (!best_ || now.error_ns < best_->error_at(now.made_ns)) best_ = now;

  Aligned out{.span = {.begin_ns = begin - best_->offset_ns, .end_ns = end - best_->offset_ns},
              .offset_ns = best_->offset_ns,
              .uncertainty_ns = best_->error_at(now.made_ns)};
  // By another estimate than the last, it may begin before that has ended.
  if (out.span.begin_ns < last_.span.end_ns) {
    out.span.begin_ns = last_.span.end_ns;
    out.span.end_ns = std::max(out.span.begin_ns, out.span.end_ns);
    out.uncertainty_ns = std::max(out.uncertainty_ns, last_.uncertainty_ns);
  }
  last_ = out;
  return out;
}

}  // namespace expertmesh
