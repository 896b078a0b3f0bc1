#include "coordinator/experts/core_wait.h"

#include <algorithm>
#include <ranges>

namespace expertmesh {

bool CoreWait::wait(std::span<std::shared_ptr<Member> const> members, std::span<ExchangeSlot const> exchanges) {
  awaited_.clear();
  if (!suits(members.size())) return false;
  for (auto const& member : std::views::reverse(members))
    awaited_.push_back({.worker = &member->peer, .peer = member->peer.peer, .owes = false});
  bool any = false;
  for (ExchangeSlot const& exchange : exchanges)
    for (Leg const& leg : exchange.legs) {
      if (leg.state != Leg::State::waiting || leg.recv_done) continue;
      auto const of = std::ranges::find(awaited_, leg.member->peer.peer, &Awaited::peer);
      if (of == awaited_.end() || !leg.send_done || !leg.member->peer.by_shm) return false;
      of->owes = any = true;
    }
  if (!any) return false;
  if (pool_.num_threads() == 1) transport_.deliver();  // it waits for one after the other: all are to begin
  pool_.parallel_for(pool_.num_threads(), [&](std::size_t thread, std::size_t, std::size_t) { wait_on(thread); });
  return true;
}

// Threads of a worker that has several cores wait for it together.
void CoreWait::wait_on(std::size_t thread) {
  std::size_t const begin = thread * awaited_.size() / pool_.num_threads();
  std::size_t const end = std::max(begin + 1, (thread + 1) * awaited_.size() / pool_.num_threads());
  bool const is_first = thread == 0 || (thread - 1) * awaited_.size() / pool_.num_threads() != begin;
  for (Awaited& awaited : std::span(awaited_).subspan(begin, end - begin)) {
    while (awaited.owes && !transport_.wait_for(awaited.peer) && !group_.dead(*awaited.worker)) {
    }
    if (is_first) awaited.seen = std::chrono::steady_clock::now();
  }
}

CoreWait::Time CoreWait::answered(Leg const& leg) const {
  auto const found = std::ranges::find(awaited_, leg.member->peer.peer, &Awaited::peer);
  bool const seen = found != awaited_.end() && found->owes && found->seen > leg.sent;
  return seen ? found->seen : std::chrono::steady_clock::now();
}

}  // namespace expertmesh
