#include "common/experts/service_batch.h"

#include <chrono>

#include "common/base/check.h"

namespace expertmesh {
namespace {

std::uint64_t steady_ns() {
  auto const since_its_start = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since_its_start).count());
}

}  // namespace

ServiceBatch::ServiceBatch(Exec const& exec, DType wire, std::size_t num_experts, ServiceBatchLimits const& limits)
    : exec_(exec), wire_(wire), limits_(limits), groups_(limits.max_entries, num_experts), weights_(num_experts) {
  parts_.reserve(limits.max_requests);
}

void ServiceBatch::clear() {
  parts_.clear();
  groups_.clear();
  num_rows_ = 0;
  begin_ns_ = steady_ns();
}

void ServiceBatch::add(Request const& request, AnswerWriter const& answer, ExpertStore const& store) {
  EM_CHECK(parts_.size() < limits_.max_requests, "more than " << limits_.max_requests << " requests");
  parts_.push_back({.request = request, .answer = answer, .store = &store});
  num_rows_ += request.entries.size();
  for (DispatchEntry const& entry : request.entries) {
    std::size_t const expert = store.index_in_model(request.layer_index, entry.local_expert);
    groups_.count(expert);
    weights_[expert] = &store.expert(request.layer_index, entry.local_expert);
  }
}

void ServiceBatch::run() {
  groups_.finish_counts();
  for (Part const& part : parts_)
    for (std::size_t i = 0; i < part.request.entries.size(); ++i) {
      DispatchEntry const& entry = part.request.entries[i];
      groups_.place(part.store->index_in_model(part.request.layer_index, entry.local_expert),
                    part.request.row(entry.row), part.answer.row(i));
    }
  for (std::size_t g = 0; g < groups_.hit().size(); ++g) groups_.set_weights(g, weights_[groups_.hit()[g]]);
  groups_.run(exec_, wire_, 0, groups_.hit().size());
  end_ns_ = steady_ns();
}

}  // namespace expertmesh
