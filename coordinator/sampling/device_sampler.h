// Sampler's tokens and log-probabilities, to its bits, where the logits are on a device: one copy there, one small copy
// back.
#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/kernels/device.h"
#include "common/kernels/token_choice.h"
#include "common/tensor/tensor.h"
#include "coordinator/sampling/logit_adjustments.h"
#include "coordinator/sampling/row_task.h"

namespace expertmesh {

class DeviceSampler {
 public:
  // V; R, the rows of one call. The device must outlive this.
  DeviceSampler(std::size_t vocab, std::size_t max_rows, Device& device);
  // That it takes there.
  [[nodiscard]] static std::size_t device_bytes(std::size_t vocab, std::size_t max_rows);

  // Calls for what the tasks [R] want of logits [R,V], which are in device memory; those of rows with adjustments are
  // changed. Does not wait.
  void start(MatrixView<float> logits, std::span<RowTask const> tasks);
  // Whether start() took the task. It leaves to the host what is rare: a list of more than kMostRanked tokens; a token
  // of the prompt's log-probabilities in a row that is sampled too; what adjusts more tokens than there is room for,
  // which is for kAdjustments of each row, or for as many as there are, shared by all rows. Text of 30,000 tokens has
  // some 5,000 different ones.
  [[nodiscard]] bool takes(std::size_t row) const { return taken_[row]; }
  // Waits; then results() are there until the next start(). tasks: those of start().
  void finish();
  [[nodiscard]] RowResult result(std::size_t row, RowTask const& task) const;

 private:
  static constexpr std::size_t kAdjustments = 4096;
  // Bytes from the begin of a buffer. Sent: [chosen, part_sums); comes back: [ranked, rows).
  struct Layout {
    Layout(std::size_t vocab, std::size_t max_rows);
    std::size_t max_adjustments;
    std::size_t ranked, chosen, rows, adjustments, part_sums, end;
  };
  bool prepare(RowTask const& task, RowChoice& choice);
  bool adjust(RowTask const& task, RowChoice& choice);
  template <class T>
  T* at(std::size_t place) {
    return reinterpret_cast<T*>(here_.data() + place);
  }

  std::size_t vocab_;
  std::size_t max_rows_;
  Device& device_;
  Layout layout_;
  AlignedBuffer<std::byte> here_;   // up to part_sums
  AlignedBuffer<std::byte> there_;  // the same on the device, and part_sums
  LogitAdjustments adjustments_;
  std::size_t num_adjustments_ = 0;
  bool any_ranked_ = false;
  std::vector<bool> taken_;
};

}  // namespace expertmesh
