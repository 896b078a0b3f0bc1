// Which worker should hold which experts of one layer, from measured load and the workers' capacity. A pure function,
// so that a placement can be simulated, tested and explained.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace expertmesh {

using LayerShares = std::vector<std::vector<std::uint32_t>>;  // [W] expert ids, ascending

struct PlacementProblem {
  std::vector<double> load;         // [E] tokens an expert gets, in any unit; all zero: unknown, taken as equal
  std::vector<double> capacity;     // [W] relative speed; 0: holds nothing
  std::vector<std::size_t> room{};  // [W] experts that it has memory for; empty: for all
  std::size_t redundant = 0;        // replicas beyond one of each expert; as many as fit
  LayerShares current;              // [W] what is held now; a worker keeps what it has unless moving it pays
};

// Every expert gets one holder, the hottest get the redundant replicas (the one with the most load per replica first,
// as long as there is a worker without it). Then the most loaded worker gives to the least loaded, or swaps with it,
// while the largest share of load per capacity falls by more than a hundredth of the mean. No worker holds more than
// its part of all replicas by capacity, and a quarter, and one; nor more than it has room for: then its part is that,
// and the others' parts are of the rest. Experts for which nobody has room get no holder. Needs a worker with capacity.
LayerShares plan_layer(PlacementProblem const& problem);

// The most redundant replicas that have a place, where every worker has room for all experts: none holds one twice.
std::size_t most_redundant(std::size_t num_experts, std::size_t num_workers);

// The largest share of load over share of capacity, among the workers with capacity: 1 is perfect balance. An expert's
// load is split evenly among its holders; one without a holder is left out.
double imbalance(std::span<double const> load, std::span<double const> capacity, LayerShares const& shares);

}  // namespace expertmesh
