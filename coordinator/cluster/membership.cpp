#include "coordinator/cluster/membership.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/moe/placement_plan.h"
#include "coordinator/cluster/static_split.h"

namespace expertmesh {
namespace {

constexpr double kWorthAMove = 0.1;  // of the balance, for load alone to move experts
constexpr double kAlike = 1.25;      // workers that are at most so much faster than others are taken as equal

bool holds_nothing(HeldExperts const& held) {
  return std::ranges::all_of(held, [](auto const& layer) { return layer.empty(); });
}

LayerShares layer_of(std::vector<HeldExperts> const& held, std::size_t layer) {
  LayerShares out;
  for (auto const& of_worker : held) out.push_back(of_worker[layer]);
  return out;
}

}  // namespace

Membership::Membership(MembershipOptions options) : options_(std::move(options)) {
  std::size_t const count = options_.num_local + options_.num_remote;
  EM_CHECK(count <= options_.max_workers, count << " workers");
  for (std::size_t w = 0; w < count; ++w) add_place(w >= options_.num_local);
  if (count > 0) divide();
}

// The first placement, among those that are awaited.
void Membership::divide() {
  std::size_t const count = options_.num_local + options_.num_remote;
  std::vector<HeldExperts> first = static_split(options_.num_experts, count);
  first.resize(places_.size(), HeldExperts(options_.num_experts.size()));
  bool const equal = std::ranges::none_of(places_, [](FullPlace const& p) { return p.capacity.has_value(); });
  if (!equal || options_.redundant_experts > 0) first = plan(first);
  for (std::size_t w = 0; w < places_.size(); ++w)
    places_[w].held = std::make_shared<HeldExperts const>(std::move(first[w]));
}

Membership::FullPlace& Membership::add_place(bool remote) {
  FullPlace& place = places_.emplace_back();
  place.worker = WorkerId(static_cast<std::uint32_t>(places_.size()));
  place.remote = remote;
  place.held = std::make_shared<HeldExperts const>(options_.num_experts.size());
  return place;
}

Membership::FullPlace* Membership::present(Life life) {
  if (life.worker.value() < 1 || life.worker.value() > places_.size()) return nullptr;
  FullPlace& place = places_[life.worker.value() - 1];
  return place.alive && place.incarnation == life.incarnation ? &place : nullptr;
}

// ---- lives

Life Membership::begin_life(FullPlace& place) {
  place.incarnation = Incarnation(place.incarnation.value() + 1);
  place.alive = true;
  place.speed = 1;
  place.due.reset();
  place.share = {.epoch = PlacementEpoch(++last_epoch_), .held = place.target ? place.target : place.held};
  Life const life = place.life();
  actions_.emplace_back(Start{.life = life, .remote = place.remote});
  return life;
}

void Membership::start_all() {
  for (FullPlace& place : places_)
    if (!place.remote) begin_life(place);
}

void Membership::supervise(Time now) {
  supervising_ = true;
  for (FullPlace& place : places_)
    if (!place.remote && !place.alive) place.due = now;
}

std::optional<Life> Membership::join() {
  // Where experts wait for a holder, else where there was one, else a new place.
  auto const vacant = [](FullPlace const& p) { return p.remote && !p.alive; };
  auto found = std::ranges::find_if(places_, [&](FullPlace const& p) { return vacant(p) && p.stays(); });
  if (found == places_.end()) found = std::ranges::find_if(places_, vacant);
  if (found == places_.end() && places_.size() == options_.max_workers) return std::nullopt;
  FullPlace& place = found != places_.end() ? *found : add_place(true);
  place.left = place.given_up = false;
  place.capacity.reset();  // it may be another machine
  return begin_life(place);
}

std::optional<std::string> Membership::add_local() {
  // In the place of one that has left, if there is one: as its next life.
  auto const gone = std::ranges::find_if(places_, [](FullPlace const& p) { return !p.remote && p.left && !p.alive; });
  if (gone == places_.end() && places_.size() == options_.max_workers)
    return "there are " + std::to_string(options_.max_workers) + " workers already";
  FullPlace& place = gone != places_.end() ? *gone : add_place(false);
  place.left = false;
  place.failed_starts = 0;
  begin_life(place);
  return std::nullopt;
}

std::optional<std::string> Membership::drain(WorkerId worker) {
  std::string const name = "worker " + std::to_string(worker.value());
  if (worker.value() < 1 || worker.value() > places_.size()) return "there is no " + name;
  FullPlace& place = places_[worker.value() - 1];
  if (!place.stays()) return name + (place.draining ? " is leaving already" : " is gone already");
  if (std::ranges::count_if(places_, &FullPlace::stays) == 1) return name + " is the last one";
  place.draining = true;
  replan_ = true;
  return std::nullopt;
}

void Membership::leave(Life life) {
  FullPlace* const place = present(life);
  if (place == nullptr || !drain(life.worker) || !place->stays()) return;
  spdlog::warn("worker {} leaves, the last one: the coordinator runs the experts until somebody comes",
               life.worker.value());
  place->draining = true;
  for (FullPlace& p : places_)  // those that were to hand their experts to it go as well
    if (p.draining) let_go(p);
}

void Membership::let_go(FullPlace& place) {
  if (place.alive) actions_.emplace_back(LetGo{place.life()});
  place.serving = place.draining = place.asked = place.loaded = false;
  place.due.reset();
  place.left = true;
  ++version_;
}

void Membership::set_capacity(Life life, WorkerCapacity capacity) {
  FullPlace* const place = present(life);
  if (place == nullptr || place->capacity == capacity) return;
  place->capacity = capacity;
  capacities_changed_ = true;
}

Share Membership::to_load(Life life) {
  FullPlace* const place = present(life);
  if (place == nullptr) return {.epoch = PlacementEpoch(0), .held = std::make_shared<HeldExperts const>()};
  if (!anything_given_ && std::exchange(capacities_changed_, false)) divide();
  anything_given_ = true;
  // Before it loads a part that others had better have. Where it brings nothing but itself it serves first.
  if (!move_ && !holds_nothing(*place->held) && std::exchange(capacities_changed_, false)) begin_move(Reason::load);
  place->share.held = place->target ? place->target : place->held;
  return place->share;
}

void Membership::serves(Life life) {
  FullPlace* const place = present(life);
  if (place == nullptr || place->serving) return;
  if (place->left) {  // it was asked to leave before it could be told to
    actions_.emplace_back(LetGo{life});
    return;
  }
  place->serving = true;
  place->failed_starts = 0;
  place->asked = place->loaded = false;
  ++version_;
  // A newcomer gets its share; one that was given its experts before the present placement follows it; and what could
  // not be moved for want of somebody who stays can be moved now.
  bool const waiting =
      std::ranges::any_of(places_, [](FullPlace const& p) { return !p.stays() && !holds_nothing(*p.held); });
  if (waiting || place->share.held != place->held || holds_nothing(*place->held)) replan_ = true;
}

void Membership::moved(Life life, PlacementEpoch epoch) {
  FullPlace* const place = present(life);
  if (place != nullptr && place->asked && move_ && epoch == move_->epoch) place->loaded = true;
}

void Membership::ended(Life life, Time now) {
  FullPlace* const place = present(life);
  if (place == nullptr) return;
  place->alive = false;
  bool const served = std::exchange(place->serving, false);
  place->asked = place->loaded = false;
  ++version_;
  if (!supervising_) return;
  if (place->draining) {  // it saved us the rest
    place->draining = false;
    place->left = true;
    replan_ = true;
  } else if (place->left || place->given_up) {
    return;
  } else if (place->remote) {
    place->due = now + options_.return_time;
  } else if (!served && ++place->failed_starts >= options_.max_failed_starts) {
    spdlog::error("worker {} died {} times in a row before it served; it is left dead", life.worker.value(),
                  place->failed_starts);
    place->given_up = true;
    replan_ = true;
  } else {
    place->due = now + options_.restart_pause * place->failed_starts;
  }
}

void Membership::consider_load(std::vector<std::vector<double>> load) {
  load_ = std::move(load);
  if (!move_) look_at_load_ = true;
}

void Membership::set_speed(Life life, double speed) {
  FullPlace* const place = present(life);
  if (place == nullptr || place->speed == speed) return;
  place->speed = speed;
  look_at_load_ = true;
}

// ---- what follows

std::vector<Membership::Action> Membership::tick(Time now) {
  for (;;) {
    take_due(now);
    if (move_) ask_and_commit();
    if (move_) break;
    if (std::exchange(replan_, false))
      begin_move(Reason::members);
    else if (std::exchange(look_at_load_, false) || (anything_given_ && std::exchange(capacities_changed_, false)))
      begin_move(Reason::load);
    else
      break;
  }
  return std::exchange(actions_, {});
}

std::optional<Membership::Time> Membership::next_tick() const {
  std::optional<Time> next;
  for (FullPlace const& place : places_)
    if (place.due && (!next || *place.due < *next)) next = place.due;
  return next;
}

void Membership::take_due(Time now) {
  for (FullPlace& place : places_) {
    if (!place.due || *place.due > now) continue;
    place.due.reset();
    if (!place.remote) {
      begin_life(place);
      continue;
    }
    spdlog::warn("worker {} has not come back within {} s: others take its experts over", place.life().worker.value(),
                 std::chrono::duration_cast<std::chrono::seconds>(options_.return_time).count());
    place.given_up = true;
    replan_ = true;
  }
}

std::vector<double> Membership::load_of(std::size_t layer) const {
  return load_.empty() ? std::vector<double>(options_.num_experts[layer], 1.0) : load_[layer];
}

// [W] the part of the load that each is to get, in relation to the others. A slow pace counts as far as it is not known
// from the capacity.
std::vector<double> Membership::capacities(Whose whose) const {
  auto const counts = [&](FullPlace const& p) { return p.stays() || (whose == Whose::leaving_too && p.draining); };
  std::vector<double> rates;
  for (FullPlace const& place : places_)
    if (counts(place) && place.capacity) rates.push_back(place.capacity->rate);
  std::ranges::sort(rates);
  bool const alike = rates.empty() || rates.back() <= kAlike * rates.front();
  std::vector<double> out;
  for (FullPlace const& place : places_) {
    double const rate = alike || !place.capacity ? 1 : place.capacity->rate / rates[rates.size() / 2];
    out.push_back(!counts(place) ? 0 : place.speed < 1 ? std::min(rate, place.speed) : rate);
  }
  return out;
}

std::vector<HeldExperts> Membership::plan(std::vector<HeldExperts> const& current) const {
  std::vector<double> const capacity = capacities(Whose::who_stay);
  std::vector<std::size_t> room;
  for (FullPlace const& place : places_) room.push_back(place.capacity ? place.capacity->room : SIZE_MAX);
  std::vector<HeldExperts> out(places_.size(), HeldExperts(options_.num_experts.size()));
  for (std::size_t i = 0; i < options_.num_experts.size(); ++i) {
    LayerShares const shares = plan_layer({.load = load_of(i),
                                           .capacity = capacity,
                                           .room = room,
                                           .redundant = options_.redundant_experts,
                                           .current = layer_of(current, i)});
    for (std::size_t w = 0; w < places_.size(); ++w) out[w][i] = shares[w];
  }
  return out;
}

double Membership::mean_imbalance(std::vector<HeldExperts> const& held, std::vector<double> const& capacity) const {
  double sum = 0;
  for (std::size_t i = 0; i < options_.num_experts.size(); ++i)
    sum += imbalance(load_of(i), capacity, layer_of(held, i));
  return sum / static_cast<double>(options_.num_experts.size());
}

void Membership::begin_move(Reason reason) {
  if (std::ranges::none_of(places_, &FullPlace::stays)) return;
  std::vector<HeldExperts> current;
  for (FullPlace const& place : places_) current.push_back(*place.held);
  std::vector<HeldExperts> const wanted = plan(current);
  Move move{.epoch = PlacementEpoch(last_epoch_ + 1),
            .experts = 0,
            .before = mean_imbalance(current, capacities(Whose::leaving_too)),
            .after = mean_imbalance(wanted, capacities(Whose::who_stay))};
  if (reason == Reason::load && move.before - move.after < kWorthAMove) return;
  bool const as_it_is = std::ranges::all_of(
      places_, [](FullPlace const& p) { return !p.draining && (!p.serving || p.share.held == p.held); });
  if (as_it_is && wanted == current) return;
  ++last_epoch_;
  for (std::size_t w = 0; w < places_.size(); ++w) {
    FullPlace& place = places_[w];
    place.target = wanted[w] == current[w] ? place.held : std::make_shared<HeldExperts const>(wanted[w]);
    place.asked = place.loaded = false;
    for (std::size_t i = 0; i < wanted[w].size(); ++i)
      for (std::uint32_t const e : wanted[w][i])
        if (!std::ranges::binary_search(current[w][i], e)) ++move.experts;
  }
  spdlog::info(
      "placement {}: {} experts get another holder; the most loaded worker's share goes from {:.2f} to {:.2f} "
      "of a fair one",
      move.epoch.value(), move.experts, move.before, move.after);
  move_ = move;
}

// Tells those that serve what to load; when all that live have it, all change over at once.
void Membership::ask_and_commit() {
  bool all = true;
  for (FullPlace& place : places_) {
    if (!place.target) place.target = place.held;  // it came after the plan was made
    // It loads that to begin with, and others serve what it is to take over.
    if (place.alive && !place.serving && place.share.held == place.target && place.held != place.target) all = false;
    if (!place.serving || place.share.held == place.target) continue;
    if (!std::exchange(place.asked, true)) {
      place.loaded = *place.share.held == *place.target;
      if (!place.loaded)
        actions_.emplace_back(Hold{.life = place.life(), .share = {.epoch = move_->epoch, .held = place.target}});
    }
    all = all && place.loaded;
  }
  if (!all) return;
  for (FullPlace& place : places_) {
    if (place.serving && *place.share.held != *place.target) place.share.epoch = move_->epoch;
    if (place.serving) place.share.held = place.target;
    place.held = std::exchange(place.target, nullptr);
    if (!place.draining || !holds_nothing(*place.held)) continue;  // it may have been asked to leave only just now
    spdlog::info("worker {} leaves: its experts are elsewhere", place.life().worker.value());
    let_go(place);
  }
  balance_.num_moves += 1;
  balance_.experts_moved += move_->experts;
  balance_.before = move_->before;
  balance_.after = move_->after;
  move_.reset();
  ++version_;
}

// ---- what stands

std::vector<Membership::Member> Membership::members() const {
  std::vector<Member> members;
  for (FullPlace const& place : places_)
    if (place.serving) members.push_back({.life = place.life(), .share = place.share});
  return members;
}

Membership::Balance Membership::balance() const {
  Balance out = balance_;
  out.moving = move_.has_value() || replan_;
  return out;
}

}  // namespace expertmesh
