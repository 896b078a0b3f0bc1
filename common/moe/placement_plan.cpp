#include "common/moe/placement_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "common/base/check.h"

namespace expertmesh {
namespace {

constexpr double kWorthwhile = 0.01;  // of the mean load

class Planner {
 public:
  explicit Planner(PlacementProblem const& p)
      : capacity_(p.capacity),
        room_(p.room.empty() ? std::vector(p.capacity.size(), p.load.size()) : p.room),
        num_experts_(p.load.size()),
        num_workers_(p.capacity.size()),
        replicas_(num_experts_, 1),
        held_(num_workers_, std::vector<bool>(num_experts_)),
        count_(num_workers_),
        assigned_(num_workers_) {
    EM_CHECK(p.current.empty() || p.current.size() == num_workers_, p.current.size() << " of " << num_workers_);
    EM_CHECK(room_.size() == num_workers_, room_.size() << " of " << num_workers_);
    num_able_ = static_cast<std::size_t>(std::ranges::count_if(capacity_, [](double c) { return c > 0; }));
    EM_CHECK(num_able_ > 0, "no worker with capacity");
    total_capacity_ = std::accumulate(capacity_.begin(), capacity_.end(), 0.0);
    load_ = p.load;
    double const total = std::accumulate(load_.begin(), load_.end(), 0.0);
    // An expert nobody asked for yet may be asked for: a little load each keeps them apart.
    double const floor = total > 0 ? 0.01 * total / static_cast<double>(num_experts_) : 1.0;
    for (double& load : load_) load = std::max(load, floor);
    choose_replicas(p.redundant);
    limit_ = limits();
    keep_current(p.current);
    place_missing();
    while (improve()) {
    }
  }

  [[nodiscard]] LayerShares shares() const {
    LayerShares out(num_workers_);
    for (std::size_t w = 0; w < num_workers_; ++w)
      for (std::uint32_t e = 0; e < num_experts_; ++e)
        if (held_[w][e]) out[w].push_back(e);
    return out;
  }

 private:
  [[nodiscard]] double weight(std::size_t e) const { return load_[e] / static_cast<double>(replicas_[e]); }
  [[nodiscard]] double level(std::size_t w) const { return assigned_[w] / capacity_[w]; }
  [[nodiscard]] double level_with(std::size_t w, double change) const { return (assigned_[w] + change) / capacity_[w]; }

  void choose_replicas(std::size_t redundant) {
    std::size_t room = 0;
    for (std::size_t w = 0; w < num_workers_; ++w) room += capacity_[w] > 0 ? std::min(room_[w], num_experts_) : 0;
    for (std::size_t i = 0; i < redundant && num_experts_ + i < room; ++i) {
      std::optional<std::size_t> hottest;
      for (std::size_t e = 0; e < num_experts_; ++e)
        if (replicas_[e] < num_able_ && (!hottest || weight(e) > weight(*hottest))) hottest = e;
      if (!hottest) return;
      ++replicas_[*hottest];
    }
  }

  [[nodiscard]] std::vector<std::size_t> limits() const {
    auto rest = static_cast<double>(std::accumulate(replicas_.begin(), replicas_.end(), std::size_t{0}));
    double capacity = total_capacity_;  // of those that share the rest
    std::vector<bool> full(num_workers_);
    auto const is_full = [&](std::size_t w) {
      return capacity_[w] > 0 && !full[w] && static_cast<double>(room_[w]) * capacity < rest * capacity_[w];
    };
    for (std::size_t w = 0; w < num_workers_;) {
      if (!is_full(w)) {
        ++w;
        continue;
      }
      full[w] = true;
      rest -= static_cast<double>(room_[w]);
      capacity -= capacity_[w];
      w = 0;  // the others' parts have grown
    }
    std::vector<std::size_t> out(num_workers_);
    for (std::size_t w = 0; w < num_workers_; ++w) {
      if (capacity_[w] <= 0) continue;
      out[w] = std::min(num_experts_, room_[w]);
      if (!full[w])
        out[w] = std::min(out[w], static_cast<std::size_t>(std::ceil(1.25 * rest * capacity_[w] / capacity)) + 1);
    }
    return out;
  }

  void hold(std::size_t w, std::size_t e) {
    held_[w][e] = true;
    ++count_[w];
    assigned_[w] += weight(e);
  }
  void drop(std::size_t w, std::size_t e) {
    held_[w][e] = false;
    --count_[w];
    assigned_[w] -= weight(e);
  }
  [[nodiscard]] std::size_t holders(std::size_t e) const {
    std::size_t count = 0;
    for (auto const& held : held_) count += held[e] ? 1 : 0;
    return count;
  }

  void keep_current(LayerShares const& current) {
    for (std::size_t w = 0; w < current.size(); ++w)
      for (std::uint32_t const e : current[w])
        if (count_[w] < limit_[w] && holders(e) < replicas_[e]) hold(w, e);
  }

  // The heaviest first, each where it weighs least.
  void place_missing() {
    std::vector<std::size_t> order(num_experts_);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, std::greater{}, [this](std::size_t e) { return weight(e); });
    for (std::size_t const e : order)
      while (holders(e) < replicas_[e]) {
        std::optional<std::size_t> best;
        for (std::size_t w = 0; w < num_workers_; ++w)
          if (count_[w] < limit_[w] && !held_[w][e] &&
              (!best || level_with(w, weight(e)) < level_with(*best, weight(e))))
            best = w;
        if (!best) {  // those with room hold it already, if anybody has: one replica fewer
          if (holders(e) == 0) break;
          for (std::size_t w = 0; w < num_workers_; ++w)
            if (held_[w][e]) assigned_[w] += load_[e] / static_cast<double>(holders(e)) - weight(e);
          replicas_[e] = holders(e);
          break;
        }
        hold(*best, e);
      }
  }

  // One move or swap that lowers the highest level; false if none is worth it.
  bool improve() {
    std::size_t high = num_workers_;
    for (std::size_t w = 0; w < num_workers_; ++w)
      if (capacity_[w] > 0 && (high == num_workers_ || level(w) > level(high))) high = w;
    double const mean = std::accumulate(assigned_.begin(), assigned_.end(), 0.0) / total_capacity_;
    double best = level(high) - kWorthwhile * mean;  // what the higher of the two must fall below
    struct Change {
      std::size_t to, give;
      std::optional<std::size_t> take;
    };
    std::optional<Change> change;
    for (std::size_t w = 0; w < num_workers_; ++w) {
      if (w == high || capacity_[w] <= 0) continue;
      for (std::size_t e = 0; e < num_experts_; ++e) {
        if (!held_[high][e] || held_[w][e]) continue;
        auto const consider = [&](double difference, std::optional<std::size_t> take) {
          double const after = std::max(level_with(high, -difference), level_with(w, difference));
          if (difference > 0 && after < best) {
            best = after;
            change = Change{w, e, take};
          }
        };
        if (count_[w] < limit_[w]) consider(weight(e), std::nullopt);
        for (std::size_t other = 0; other < num_experts_; ++other)
          if (held_[w][other] && !held_[high][other]) consider(weight(e) - weight(other), other);
      }
    }
    if (!change) return false;
    drop(high, change->give);
    if (change->take) drop(change->to, *change->take);
    hold(change->to, change->give);
    if (change->take) hold(high, *change->take);
    return true;
  }

  std::vector<double> load_;
  std::vector<double> const capacity_;
  std::vector<std::size_t> const room_;
  std::size_t const num_experts_;
  std::size_t const num_workers_;
  std::size_t num_able_ = 0;  // workers with capacity
  double total_capacity_ = 0;
  std::vector<std::size_t> replicas_;    // [E]
  std::vector<std::vector<bool>> held_;  // [W][E]
  std::vector<std::size_t> limit_;       // [W] experts
  std::vector<std::size_t> count_;       // [W]
  std::vector<double> assigned_;         // [W] load
};

}  // namespace

LayerShares plan_layer(PlacementProblem const& problem) {
  return Planner(problem).shares();
}

std::size_t most_redundant(std::size_t num_experts, std::size_t num_workers) {
  return num_workers < 2 ? 0 : num_experts * (num_workers - 1);
}

double imbalance(std::span<double const> load, std::span<double const> capacity, LayerShares const& shares) {
  std::vector<std::size_t> holders(load.size());
  for (auto const& share : shares)
    for (std::uint32_t const e : share) ++holders[e];
  double total = 0;
  double total_capacity = 0;
  for (std::size_t e = 0; e < load.size(); ++e)
    if (holders[e] > 0) total += load[e];
  for (double const c : capacity) total_capacity += c;
  if (total <= 0 || total_capacity <= 0) return 1;
  double worst = 0;
  for (std::size_t w = 0; w < shares.size(); ++w) {
    double assigned = 0;
    for (std::uint32_t const e : shares[w]) assigned += load[e] / static_cast<double>(holders[e]);
    if (capacity[w] > 0) worst = std::max(worst, assigned / total / (capacity[w] / total_capacity));
  }
  return worst;
}

}  // namespace expertmesh
