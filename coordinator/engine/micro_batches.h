// The layers of a step, whole or as two micro-batches: while the rows of one are with the workers, the other's
// attention runs here. Both are tokens of the same step, in its order, and take turns from exchange to exchange
// (experts.h): the second one, which may begin in the middle of a sequence, finds the keys of the first in every layer.
#pragma once
#include <array>
#include <cstddef>
#include <optional>
#include <vector>

#include "common/base/cores.h"
#include "common/base/frame_arena.h"
#include "common/base/task.h"
#include "coordinator/engine/split_choice.h"
#include "coordinator/model/decoder.h"

namespace expertmesh {

class MicroBatches {
 public:
  // All must outlive this. experts: moved while a step waits for them, or for what they lend it (begin_step()). pause:
  // while nothing is to be done here.
  MicroBatches(Decoder& decoder, KvCache& kv, Experts& experts, PollPause pause);

  // Runs the layers of a step that decoder.prepare() has seen. Throws ExpertsLost, when nothing of it is in flight any
  // more; of anything else, a broken device say, at once: no step can be run after it.
  void run(StepContext const& step, StepForm form);

 private:
  struct Part {
    FrameArena frames;
    std::vector<TokenPlaces> places{};  // [KV groups]
    std::optional<StepContext> step{};
    std::optional<Task> task{};
  };
  void begin(Part& part, StepContext const& step, std::size_t first, std::size_t count);
  [[nodiscard]] bool all_done() const;
  void look_for_failures();

  Decoder& decoder_;
  KvCache& kv_;
  Experts& experts_;
  PollPause const pause_;
  std::array<Part, 2> parts_;
  bool failed_ = false;  // one of them, in the step under way
};

}  // namespace expertmesh
