#include "coordinator/experts/own_experts.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <mutex>

#include "common/experts/expert_service.h"

namespace expertmesh {
namespace {

std::size_t most_experts(ExpertModelSpec const& model) {
  std::size_t most = 0;
  for (auto const& layer : model.layers) most = std::max(most, layer.experts.size());
  return most;
}

}  // namespace

OwnExperts::OwnExperts(ExpertModelSpec const& model, WeightSource const& source, Exec const& exec,
                       OwnExpertsLimits limits)
    : model_(model),
      source_(source),
      exec_(exec.isa(), exec.pool(),
            ExpertService::exec_limits(model, {.max_rows = limits.max_rows, .max_entries = limits.max_rows}, 1),
            limits.device),
      limits_(limits),
      groups_(limits.max_rows, most_experts(model)) {
  for (auto const& layer : model.layers) kept_.emplace_back(layer.experts.size());
  to_load_.reserve(most_experts(model));
}

std::size_t OwnExperts::expert_bytes(std::size_t layer_index) const {
  return packed_expert_bytes(model_.layers[layer_index], model_.weights,
                             exec_.device() ? Holder::device : Holder::processor);
}

void OwnExperts::run(std::size_t layer_index, std::span<Row const> rows) {
  groups_.clear();
  for (Row const& row : rows) groups_.count(row.expert);
  groups_.finish_counts();
  for (Row const& row : rows) groups_.place(row.expert, row.in, row.out);

  // As many experts at a time as may be kept, and at least one.
  std::size_t const each = expert_bytes(layer_index);
  std::size_t const at_once = std::max<std::size_t>(1, limits_.cache_bytes / each);
  std::size_t const num_groups = groups_.hit().size();
  for (std::size_t begin = 0; begin < num_groups; begin += at_once) {
    std::size_t const end = std::min(num_groups, begin + at_once);
    load_groups(layer_index, begin, end);
    groups_.run(exec_, model_.wire, begin, end);
  }
  loads_.rows += rows.size();
}

void OwnExperts::load_groups(std::size_t layer_index, std::size_t begin, std::size_t end) {
  auto& kept = kept_[layer_index];
  std::size_t const each = expert_bytes(layer_index);
  to_load_.clear();
  ++num_rounds_;
  for (std::size_t g = begin; g < end; ++g) {
    Kept& expert = kept[groups_.hit()[g]];
    expert.last_round = num_rounds_;
    if (expert.bytes == 0) to_load_.push_back(static_cast<std::uint32_t>(groups_.hit()[g]));
  }
  if (!to_load_.empty()) {
    auto const start = std::chrono::steady_clock::now();
    make_room(to_load_.size() * each);
    std::mutex mutex;
    std::exception_ptr failure;
    exec_.pool().parallel_for(to_load_.size(), [&](std::size_t first, std::size_t last, std::size_t) {
      for (std::size_t i = first; i < last; ++i) {
        try {
          Kept& expert = kept[to_load_[i]];
          expert.weights = load_expert(model_.layers[layer_index], to_load_[i], model_.weights, source_,
                                       {.device = exec_.device(), .threads = &exec_.pool().plan()})
                               .weights;
          expert.bytes = each;
        } catch (...) {
          std::lock_guard const lock(mutex);
          if (!failure) failure = std::current_exception();
          return;
        }
      }
    });
    for (std::uint32_t const expert : to_load_) resident_bytes_ += kept[expert].bytes;
    if (failure) std::rethrow_exception(failure);
    loads_.experts += to_load_.size();
    loads_.bytes += to_load_.size() * each;
    loads_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  for (std::size_t g = begin; g < end; ++g) groups_.set_weights(g, &kept[groups_.hit()[g]].weights);
}

// Lets go of the experts that were not needed for the longest time; never of those under way.
void OwnExperts::make_room(std::size_t bytes) {
  while (resident_bytes_ > 0 && resident_bytes_ + bytes > limits_.cache_bytes) {
    Kept* oldest = nullptr;
    for (auto& layer : kept_)
      for (Kept& expert : layer)
        if (expert.bytes != 0 && (oldest == nullptr || expert.last_round < oldest->last_round)) oldest = &expert;
    resident_bytes_ -= oldest->bytes;
    *oldest = Kept{.weights = {}, .bytes = 0, .last_round = oldest->last_round};
  }
}

}  // namespace expertmesh
