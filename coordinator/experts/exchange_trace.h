// What a trace hears of the exchange of rows. Private to coordinator/experts.
#pragma once
#include "coordinator/experts/exchange_slot.h"
#include "coordinator/observe/trace_lane.h"

namespace expertmesh {

// Its worker's rows are here, at this time: the exchange, and the worker's part of it where the rows came with the
// answer. (What a device computes, its host's clock does not tell.)
void trace_answer(TraceLane& lane, Leg const& leg, std::chrono::steady_clock::time_point now);
// Its worker was found dead, at this time.
void trace_loss(TraceLane& lane, Leg const& leg, std::chrono::steady_clock::time_point now);
// In the log: what a death has cost an exchange of this layer.

}  // namespace expertmesh
