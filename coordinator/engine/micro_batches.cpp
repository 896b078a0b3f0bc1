#include "coordinator/engine/micro_batches.h"

#include <algorithm>

namespace expertmesh {
namespace {

constexpr std::size_t kFrameBytes = std::size_t{16} << 10;  // two nested coroutines of well under 1 KiB each

}  // namespace

MicroBatches::MicroBatches(Decoder& decoder, KvCache& kv, Experts& experts, PollPause pause)
    : decoder_(decoder),
      kv_(kv),
      experts_(experts),
      pause_(pause),
      parts_{Part{FrameArena(kFrameBytes)}, Part{FrameArena(kFrameBytes)}} {
  for (Part& part : parts_) part.places.reserve(kv.num_groups());
}

void MicroBatches::begin(Part& part, StepContext const& step, std::size_t first, std::size_t count) {
  part.places.clear();
  for (TokenPlaces const& places : step.places) part.places.push_back(places.part(first, count));
  StepContext& own = part.step.emplace(step.part(first, count));
  own.first_row = first;
  own.other_tokens = step.tokens - count;
  own.places = part.places;
  own.failed = &failed_;
  part.task.emplace(decoder_.forward(part.frames, own, kv_));
  part.task->start();
}

bool MicroBatches::all_done() const {
  return std::ranges::all_of(parts_, [](Part const& part) { return !part.task || part.task->done(); });
}

// After ExpertsLost the other part goes on to the end of its layer, so that its exchange comes to an end. After
// anything else exchanges may never end: it is thrown at once.
void MicroBatches::look_for_failures() {
  for (Part const& part : parts_) {
    if (!part.task || !part.task->done() || !part.task->failed()) continue;
    failed_ = true;
    try {
      part.task->rethrow();
    } catch (ExpertsLost const&) {
    }
  }
}

void MicroBatches::run(StepContext const& step, StepForm form) {
  std::size_t const first = form == StepForm::split ? (step.tokens + 1) / 2 : step.tokens;
  for (Part& part : parts_) part.task.reset();
  failed_ = false;
  begin(parts_[0], step, 0, first);
  look_for_failures();
  if (first < step.tokens && !failed_) begin(parts_[1], step, first, step.tokens - first);
  while (!all_done()) {
    experts_.progress();
    look_for_failures();
    if (!all_done()) experts_.pause(pause_);
  }
  for (Part const& part : parts_)
    if (part.task) part.task->rethrow();
}

}  // namespace expertmesh
