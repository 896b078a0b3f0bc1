// The tokens and log-probabilities of a step's rows, where their logits are: on the host or on a device.
#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "common/kernels/exec.h"
#include "coordinator/sampling/device_sampler.h"
#include "coordinator/sampling/row_task.h"
#include "coordinator/sampling/sampler.h"

namespace expertmesh {

class RowSampler {
 public:
  // V; R, the rows of one call. exec outlives this: the logits are on its device, or its threads share the rows.
  RowSampler(std::size_t vocab, std::size_t max_rows, Exec const& exec);

  // Calls for what a device does, or does nothing. logits: [R,V], changed by a device; tasks: [R]. Both stay until
  // finish().
  void start(MatrixView<float> logits, std::span<RowTask const> tasks);
  // Waits for the device, and does what it did not take: rows are downloaded for that one by one. results: [R].
  void finish(std::span<RowResult> results);

 private:
  void finish_on_device(std::span<RowResult> results);

  Exec const& exec_;
  std::vector<Sampler> samplers_;  // one a thread; with a device one
  std::optional<DeviceSampler> device_sampler_;
  std::vector<float> downloaded_;  // [V], with a device
  MatrixView<float> logits_{};
  std::span<RowTask const> tasks_{};
};

}  // namespace expertmesh
