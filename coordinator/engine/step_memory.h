// What the steps of a model take beside its weights and its KV cache: known before anything is allocated.
#pragma once
#include <cstddef>

#include "common/config/expert_spec.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

struct StepSizes {
  std::size_t tokens = 0;      // T of a step
  std::size_t logit_rows = 0;  // R of one LM-head call
  std::size_t sequences = 0;   // of a step
  std::size_t length = 0;      // tokens of the longest
};

// Of the Exec that runs the decoder. rows_leave: the experts are elsewhere, and their rows cross the host.
ExecLimits exec_limits(ModelSpec const& spec, StepSizes const& sizes, bool rows_leave);

// Bytes of device memory beside weights and KV cache. experts: that are on the device; null: their rows leave.
std::size_t device_buffer_bytes(ModelSpec const& spec, StepSizes const& sizes, ExpertModelSpec const* experts,
                                Device const& device);

// Bytes that the weights of all experts take of a device's memory, which comes in pages.
std::size_t device_expert_bytes(ExpertModelSpec const& experts);

}  // namespace expertmesh
