// Serves dispatch messages: rows of all messages present together, grouped by expert, through the experts, and out into
// the answers. The same code in a worker process and inside the coordinator.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/experts/expert_store.h"
#include "common/experts/row_groups.h"
#include "common/experts/row_port.h"
#include "common/kernels/exec.h"
#include "common/protocol/dispatch_layout.h"

namespace expertmesh {

struct ExpertServiceOptions {
  Incarnation incarnation;  // of this worker
  PlacementEpoch epoch;
  DType wire = DType::f32;
  DispatchLimits limits;         // of one message
  std::size_t max_messages = 1;  // served together
  RowPort* port = nullptr;       // of rows that come apart, with a device; null: such requests are refused
};

// One message and the buffer for its answer; both 64-byte aligned.
struct ServiceCall {
  std::span<std::byte const> request;  // exactly the bytes received
  std::span<std::byte> answer;         // room for max_answer_bytes()
  // Filled by serve():
  std::size_t answer_bytes = 0;  // 0: the message is not one of ours, nobody to answer
  std::uint32_t attempt = 0;     // tag of the answer
  WireError error;               // fault none: served; else the answer (if any) carries the fault
};
// Answers with the fault, if there is somebody to answer. layout: any of the model's.
void refuse(ServiceCall& call, WireError const& error, DispatchLayout const& layout);

class ExpertService {
 public:
  // Scratch for the largest calls is allocated here; exec: see exec_limits().
  ExpertService(ExpertStore const& store, Exec const& exec, ExpertServiceOptions const& options);

  [[nodiscard]] PlacementEpoch epoch() const { return options_.epoch; }

  // Of any one message, whatever its layer; of a step (step_layout.h), too.
  [[nodiscard]] std::size_t max_request_bytes() const;
  [[nodiscard]] std::size_t max_answer_bytes() const;

  // At most max_messages calls; those with rows apart in the order in which they were made. Never throws on a bad
  // message: see ServiceCall::error.
  void serve(std::span<ServiceCall> calls);

  // What exec needs room for: the largest call of grouped_ffn.
  static ExecLimits exec_limits(ExpertModelSpec const& model, DispatchLimits const& limits, std::size_t max_messages);

 private:
  void serve_apart(Request const& request);

  ExpertStore const& store_;
  Exec const& exec_;
  ExpertServiceOptions options_;

  // The good messages of a call and their answers.
  std::vector<Request> requests_;
  std::vector<AnswerWriter> answers_;
  RowGroups groups_;

  // With a port.
  std::vector<AlignedBuffer<DeviceExpert>> tables_;  // [layers] the experts held
  std::vector<std::uint32_t> entry_rows_;            // of one message
  std::vector<std::uint32_t> entry_experts_;
};

}  // namespace expertmesh
