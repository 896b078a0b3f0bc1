#include "coordinator/experts/exchange_trace.h"

#include <cstring>

namespace expertmesh {
namespace {

ExchangeTraced exchange_of(Leg const& leg, std::chrono::steady_clock::time_point now) {
  return {.span = {.begin_ns = trace_ns(leg.sent), .end_ns = trace_ns(now)},
          .worker = leg.member->peer.worker.value(),
          .incarnation = leg.member->peer.incarnation.value(),
          .attempt = leg.id.attempt,
          .layer = leg.id.layer,
          .entries = static_cast<std::uint32_t>(leg.num_entries)};
}

}  // namespace

void trace_answer(TraceLane& lane, Leg const& leg, std::chrono::steady_clock::time_point now) {
  ExchangeTraced const exchange = exchange_of(leg, now);
  lane.put(exchange);
  if (leg.by_link) return;
  AnswerHeader header;
  std::memcpy(&header, leg.messages->answer.data(), sizeof header);
  auto const work = leg.member->clock.align(exchange.span, header.begin_ns, header.end_ns);
  if (!work) return;
  lane.put(ComputeTraced{.span = work->span,
                         .offset_ns = work->offset_ns,
                         .uncertainty_ns = work->uncertainty_ns,
                         .worker = exchange.worker,
                         .incarnation = exchange.incarnation,
                         .attempt = exchange.attempt,
                         .layer = exchange.layer,
                         .entries = exchange.entries});
}

void trace_loss(TraceLane& lane, Leg const& leg, std::chrono::steady_clock::time_point now) {
  ExchangeTraced exchange = exchange_of(leg, now);
  exchange.answered = false;
  lane.put(exchange);
}

}  // namespace expertmesh
