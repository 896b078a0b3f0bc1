#include "coordinator/engine/encoder_run.h"

namespace expertmesh {
namespace {

constexpr std::size_t kEncoderFrameBytes = std::size_t{16} << 10;  // two nested coroutines of a few KiB

}  // namespace

EncoderRun::EncoderRun(Encoder& encoder, DeviceMemory* device) : encoder_(encoder), frames_(kEncoderFrameBytes) {
  if (device) inputs_.emplace(*device, StepInputs::most_numbers(encoder.max_rows()));
}

void EncoderRun::begin(EncoderBatch const& batch, Surroundings const& surroundings) {
  std::size_t const rows = batch.num_tokens();
  tokens_done_ = std::min(batch.budget(), rows);
  std::size_t const passes = encoder_.work(rows) / rows;
  if (task_ && batch_id_ == batch.id()) {
    rest_.allow(passes * batch.budget());
    return rest_.resume();
  }
  drop();
  rest_.allow(passes * batch.budget());
  batch_id_ = batch.id();
  surroundings_.emplace(surroundings);
  StepContext& context = surroundings_->context;
  context.tokens = rows;
  context.stack = StackKind::encoder;
  context.ids = batch.ids();
  context.positions = batch.places().positions;
  context.prompt_lengths = batch.lengths();
  context.sequence_of = batch.places().sequences;
  context.sequences = batch.sequences();
  context.places = {&batch.places(), 1};
  if (inputs_) {
    inputs_->put(batch.ids(), context.places, 0);
    context.ids_on_device = inputs_->ids();
    context.places = inputs_->places();
  }
  task_.emplace(encoder_.forward(frames_, context, surroundings_->cache, rest_, surroundings_->consumer));
  task_->start();
}

bool EncoderRun::end() {
  if (!task_->done()) return false;
  struct Drop {
    EncoderRun& run;
    ~Drop() { run.drop(); }
  } const drop_after{*this};
  task_->rethrow();
  return true;
}

void EncoderRun::drop() {
  task_.reset();
  rest_ = {};
}

}  // namespace expertmesh
