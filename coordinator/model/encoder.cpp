#include "coordinator/model/encoder.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/kernels/rows.h"

namespace expertmesh {
namespace {

std::vector<DecoderLayer> load_layers(ModelSpec const& spec, WeightLoader const& loader) {
  std::vector<DecoderLayer> layers;
  for (NumberedLayer const& layer : all_layers(spec))
    if (layer.stack == StackKind::encoder) layers.emplace_back(layer, spec.hidden, loader);
  return layers;
}

}  // namespace

Encoder::Encoder(ModelSpec const& spec, WeightLoader const& loader, EncoderLimits const& limits,
                 TokenEmbedding const& decoder)
    : max_chunk_(limits.max_chunk),
      embedding_(spec, *spec.encoder(), loader, {.tokens = limits.max_chunk, .positions = limits.max_rows}, &decoder),
      layers_(load_layers(spec, loader)),
      final_norm_(spec.encoder()->final_norm, spec.hidden, loader),
      x_(limits.max_rows, spec.hidden, loader.device()) {}

// Through every layer, for the keys first if there are several parts, and to the decoder.
std::size_t Encoder::work(std::size_t rows) const {
  return rows * (layers_.size() * (rows > max_chunk_ ? 2 : 1) + 1);
}

Task Encoder::forward(FrameArena& arena, StepContext const& step, KvLayer& cache, Rest& rest,
                      Consumer const& consumer) {
  std::size_t const rows = step.tokens;
  EM_CHECK(rows <= x_.view().rows, "an input of " << rows << " tokens");
  // What a part of the rows is to the layers.
  struct Part {
    TokenPlaces places;
    StepContext step;
    MatrixView<float> x;    // in the whole
    MatrixView<float> own;  // in the step's activations
  };
  auto const part_at = [&](std::size_t begin) {
    std::size_t const count = std::min(max_chunk_, rows - begin);
    return Part{.places = step.places.front().part(begin, count),
                .step = step.part(begin, count),
                .x = x_.view().row_range(begin, count),
                .own = step.act.x.view().first_rows(count)};
  };
  for (std::size_t begin = 0; begin < rows; begin += max_chunk_) {
    Part const part = part_at(begin);
    embedding_.forward(part.step, part.x);
  }
  step.stages.end(Stage::embedding);

  for (auto const& layer : layers_) {
    // A token looks at all of its input: with several parts every one's keys must be there before the first looks.
    for (std::size_t begin = 0; rows > max_chunk_ && begin < rows; begin += max_chunk_) {
      Part const part = part_at(begin);
      copy_rows(step.exec, part.x, part.own);
      layer.write_keys(part.step, {}, {.places = part.places, .kv = cache});
      step.stages.end(Stage::attention);
      co_await rest.after(part.step.tokens);
    }
    for (std::size_t begin = 0; begin < rows; begin += max_chunk_) {
      Part const part = part_at(begin);
      copy_rows(step.exec, part.x, part.own);
      co_await layer.forward(arena, part.step, {}, {.places = part.places, .kv = cache});
      copy_rows(step.exec, part.own, part.x);
      co_await rest.after(part.step.tokens);
    }
  }
  for (std::size_t begin = 0; begin < rows; begin += max_chunk_) {
    Part const part = part_at(begin);
    final_norm_.forward(step.exec, part.x, part.own);
    if (step.tap) step.tap->encoder_output(begin, on_host(step.exec, part.own, step.act.on_host));
    consumer(part.own, part.places);
    step.stages.end(Stage::attention);
    if (begin + max_chunk_ < rows) co_await rest.after(part.step.tokens);
  }
}

}  // namespace expertmesh
