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
  part.task.emplace(decoder_.forward(part.frames, own, kv_));
  part.task->start();
}

void MicroBatches::run(StepContext const& step, StepForm form) {
  std::size_t const first = form == StepForm::split ? (step.tokens + 1) / 2 : step.tokens;
  for (Part& part : parts_) part.task.reset();
  begin(parts_[0], step, 0, first);
  if (first < step.tokens) begin(parts_[1], step, first, step.tokens - first);
  auto const all_done = [&] {
    return std::ranges::all_of(parts_, [](Part const& part) { return !part.task || part.task->done(); });
  };
  while (!all_done()) {
    experts_.progress();
    if (!all_done()) experts_.pause(pause_);
  }
  for (Part const& part : parts_)
    if (part.task) part.task->rethrow();
}

}  // namespace expertmesh
