#include "worker/rendezvous.h"

#include <algorithm>
#include <utility>

namespace expertmesh {
namespace {

// Nothing that a message says makes this grow.
constexpr std::uint32_t kMostMicroBatches = 4;
// At the pace of one that is slower by more than that, a coordinator would lose more than it gains.
constexpr int kMostTimesSlower = 2;

}  // namespace

void Rendezvous::Usual::add(Duration sample) {
  if (!std::exchange(known_, true))
    value_ = sample;
  else
    value_ += std::clamp(sample - value_, -value_, value_) / 4;
}

Rendezvous::Traveller& Rendezvous::find_or_add(PeerId coordinator, std::uint32_t micro_batch) {
  auto const found = std::ranges::find_if(
      travellers_, [&](Traveller const& t) { return t.coordinator == coordinator && t.micro_batch == micro_batch; });
  if (found != travellers_.end()) return *found;
  return travellers_.emplace_back(Traveller{.coordinator = coordinator, .micro_batch = micro_batch});
}

void Rendezvous::arrived(PeerId coordinator, Stop const& stop, Time now) {
  Traveller& it = find_or_add(coordinator, std::min(stop.micro_batch, kMostMicroBatches - 1));
  if (it.here) return;
  bool const is_new = it.first_layer == kUnknown;
  if (is_new || stop.layer <= it.layer) {
    if (!is_new) it.period.add(now - it.began);
    it.began = now;
    it.first_layer = stop.layer;
    it.given_up = false;
  } else if (stop.layer == it.layer + 1) {
    it.way.add(now - it.since);
  }
  it.here = true;
  it.has_waited = false;
  it.layer = stop.layer;
  it.since = now;
}

void Rendezvous::decide(Time now) {
  for (Traveller& it : travellers_) it.wants_to_wait = false;
  for (Traveller& it : travellers_) {
    if (!it.here) continue;
    // Who has more than one request here lets them overlap already.
    bool const alone = std::ranges::count_if(travellers_, [&](Traveller const& other) {
                         return other.here && other.coordinator == it.coordinator;
                       }) == 1;
    it.wants_to_wait = alone && is_worth_waiting(it, now);
  }
  for (Traveller& it : travellers_) {
    if (!it.here) continue;
    bool const was_held = it.held;
    // When one goes, those for the same layer go with it.
    it.held = it.wants_to_wait && std::ranges::none_of(travellers_, [&](Traveller const& other) {
                return other.here && other.layer == it.layer && !other.wants_to_wait;
              });
    it.has_waited |= it.held;
    if (!was_held || it.held) continue;
    ++counts_.waits;
    counts_.waited += now - it.since;
    counts_.meetings += static_cast<std::size_t>(std::ranges::any_of(travellers_, [&](Traveller const& other) {
      return other.here && other.layer == it.layer && other.coordinator != it.coordinator;
    }));
  }
}

bool Rendezvous::is_worth_waiting(Traveller const& waiting, Time now) {
  bool worth = false;
  for (Traveller& other : travellers_) {
    auto const until = expected_until(other, waiting, now);
    if (!until) continue;
    if (now < *until)
      worth = true;
    else if (waiting.held)
      other.given_up = true;
  }
  return worth;
}

// For how long it is worth while to wait for the other one at the layer of the one that waits; none: it is not.
std::optional<Rendezvous::Time> Rendezvous::expected_until(Traveller const& other, Traveller const& waiting,
                                                           Time now) const {
  if (other.coordinator == waiting.coordinator || other.wants_to_wait || other.given_up) return std::nullopt;
  if (waiting.layer == kUnknown || other.layer == kUnknown) return std::nullopt;
  if (!other.way.known() || other.lap() > kMostTimesSlower * waiting.lap()) return std::nullopt;
  Time due;
  Duration grace;
  if (waiting.layer == other.layer + 1) {
    due = other.since + other.way.value() + (other.here ? other.stay.value() : Duration(0));
    grace = other.lap();
  } else if (waiting.layer == other.first_layer) {
    if (!other.period.known()) return std::nullopt;
    due = other.began + other.period.value();
    grace = other.period.value() / 4;
    // Of two that could wait for each other's next step, the one that waits less.
    if (due - now > other.period.value() / 2) return std::nullopt;
  } else {
    return std::nullopt;
  }
  Time const latest = waiting.since + longest_wait_;
  if (due > latest) return std::nullopt;
  return std::min(latest, due + grace);
}

bool Rendezvous::holds(PeerId coordinator) const {
  return std::ranges::any_of(travellers_,
                             [&](Traveller const& it) { return it.held && it.coordinator == coordinator; });
}

bool Rendezvous::holds_any() const {
  return std::ranges::any_of(travellers_, &Traveller::held);
}

void Rendezvous::served(Time now) {
  for (Traveller& it : travellers_) {
    if (!it.here || it.held) continue;
    it.here = false;
    if (!it.has_waited) it.stay.add(now - it.since);
    it.since = now;
  }
}

void Rendezvous::leave(PeerId coordinator) {
  std::erase_if(travellers_, [&](Traveller const& it) { return it.coordinator == coordinator; });
}

}  // namespace expertmesh
