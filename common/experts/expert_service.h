// Serves dispatch messages of one placement: checks them, and has their rows go through the experts and out into the
// answers. The same code in a worker process and inside the coordinator.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/experts/expert_store.h"
#include "common/experts/row_port.h"
#include "common/experts/service_batch.h"
#include "common/kernels/exec.h"
#include "common/protocol/dispatch_layout.h"

namespace expertmesh {

struct ExpertServiceOptions {
  Incarnation incarnation;  // of this worker
  PlacementEpoch epoch;
  DType wire = DType::f32;
  DispatchLimits limits;    // of one message
  RowPort* port = nullptr;  // of rows that come apart, with a device; null: such requests are refused
};

// One message and the buffer for its answer; both 64-byte aligned.
struct ServiceCall {
  std::span<std::byte const> request;  // exactly the bytes received
  std::span<std::byte> answer;         // room for max_answer_bytes()
  // Filled by admit():
  std::size_t answer_bytes = 0;  // 0: the message is not one of ours, nobody to answer
  std::uint32_t attempt = 0;     // tag of the answer
  WireError error;               // fault none: served; else the answer (if any) carries the fault
};
// Answers with the fault, if there is somebody to answer. layout: any of the model's.
void refuse(ServiceCall& call, WireError const& error, DispatchLayout const& layout);

class ExpertService {
 public:
  // exec: see exec_limits(). Both must outlive it.
  ExpertService(ExpertStore const& store, Exec const& exec, ExpertServiceOptions const& options);

  [[nodiscard]] PlacementEpoch epoch() const { return options_.epoch; }
  [[nodiscard]] std::size_t max_entries() const { return options_.limits.max_entries; }  // of one message
  // For so many messages like this placement's, together.
  [[nodiscard]] ServiceBatch make_batch(ServiceBatchLimits const& limits) const;

  // Of any one message, whatever its layer; of a step (step_layout.h), too.
  [[nodiscard]] std::size_t max_request_bytes() const;
  [[nodiscard]] std::size_t max_answer_bytes() const;

  // Checks the call, and begins its answer. Its rows are the batch's to run; those that come apart, in the order in
  // which the calls were made, are run here. Never throws on a bad message: see ServiceCall::error.
  void admit(ServiceCall& call, ServiceBatch& batch);
  // When the batch has run: the call's answer may leave.
  static void finish(ServiceCall const& call, ServiceBatch const& batch);
  // All of it, for calls of this placement alone.
  void serve(std::span<ServiceCall> calls, ServiceBatch& batch);

  // What exec needs room for: the largest call of grouped_ffn.
  static ExecLimits exec_limits(ExpertModelSpec const& model, DispatchLimits const& limits, std::size_t max_messages);

 private:
  void serve_apart(Request const& request);

  ExpertStore const& store_;
  Exec const& exec_;
  ExpertServiceOptions options_;

  // With a port.
  std::vector<AlignedBuffer<DeviceExpert>> tables_;  // [layers] the experts held
  std::vector<std::uint32_t> entry_rows_;            // of one message
  std::vector<std::uint32_t> entry_experts_;
};

}  // namespace expertmesh
