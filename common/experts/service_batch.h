// Requests that are there together, whoever sent them and for whatever placement: their rows are grouped by expert and
// go through the kernels in one pass. A row's bits do not depend on the company it has there.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/experts/expert_store.h"
#include "common/experts/row_groups.h"
#include "common/kernels/exec.h"
#include "common/protocol/dispatch_layout.h"

namespace expertmesh {

struct ServiceBatchLimits {
  std::size_t max_requests = 1;
  std::size_t max_entries = 0;  // of all of them
};

// One thread. In this order: clear, add for each request, run.
class ServiceBatch {
 public:
  // num_experts: of the whole model, see ExpertStore::num_in_model(). Nothing is allocated after this.
  ServiceBatch(Exec const& exec, DType wire, std::size_t num_experts, ServiceBatchLimits const& limits);

  void clear();
  // A good request and its answer, whose rows run() writes. store: of the experts that its entries count; with what it
  // holds it must be there until run() has returned. The same expert in several stores is one group.
  void add(Request const& request, AnswerWriter const& answer, ExpertStore const& store);
  void run();

  [[nodiscard]] ServiceBatchLimits const& limits() const { return limits_; }
  // Of what was run last.
  [[nodiscard]] std::size_t num_requests() const { return parts_.size(); }
  [[nodiscard]] std::size_t num_rows() const { return num_rows_; }  // of all groups
  [[nodiscard]] std::size_t num_groups() const { return groups_.hit().size(); }
  [[nodiscard]] std::uint64_t begin_ns() const { return begin_ns_; }  // steady clock: since clear()
  [[nodiscard]] std::uint64_t end_ns() const { return end_ns_; }

 private:
  struct Part {
    Request request;
    AnswerWriter answer;
    ExpertStore const* store;
  };

  Exec const& exec_;
  DType const wire_;
  ServiceBatchLimits const limits_;
  std::vector<Part> parts_;
  RowGroups groups_;
  std::size_t num_rows_ = 0;
  std::vector<FfnWeights const*> weights_;  // [num_experts] of those that are hit
  std::uint64_t begin_ns_ = 0;
  std::uint64_t end_ns_ = 0;
};

}  // namespace expertmesh
