// A batch of inputs on its way through the encoder, over as many steps as that takes. Private to coordinator/engine.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>

#include "common/base/frame_arena.h"
#include "common/base/task.h"
#include "coordinator/model/encoder.h"
#include "coordinator/model/step_inputs.h"
#include "coordinator/scheduler/encoder_batch.h"

namespace expertmesh {

class EncoderRun {
 public:
  // device: that runs the encoder; null: this host.
  explicit EncoderRun(Encoder& encoder, DeviceMemory* device = nullptr);

  // What stays the same over the steps: all of the context but the rows, whose fields are set here.
  struct Surroundings {
    StepContext context;
    KvLayer& cache;
    Encoder::Consumer consumer;
  };
  // Prepares the work of `batch`, or more of it if it has begun; what is left of another batch is dropped.
  void begin(EncoderBatch const& batch, Surroundings const& surroundings);
  // Moves until the work of this step is done; the caller moves the experts meanwhile. True: not yet.
  [[nodiscard]] bool busy() const { return !task_->done() && !rest_.resting(); }
  // After that. Whether all is done. Throws what the layers threw; the batch has to begin anew then.
  bool end();
  // Of the inputs' tokens, or as much work on all of them, in the last step.
  [[nodiscard]] std::size_t tokens_done() const { return tokens_done_; }

 private:
  void drop();

  Encoder& encoder_;
  FrameArena frames_;
  std::optional<StepInputs> inputs_;  // of the task, with a device
  Rest rest_;
  std::uint64_t batch_id_ = 0;  // of the task
  std::size_t tokens_done_ = 0;
  std::optional<Surroundings> surroundings_;
  std::optional<Task> task_;
};

}  // namespace expertmesh
