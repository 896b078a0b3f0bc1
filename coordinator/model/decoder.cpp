#include "coordinator/model/decoder.h"

#include <algorithm>

#include "common/kernels/linear.h"
#include "common/kernels/rows.h"

namespace expertmesh {

Decoder::Decoder(ModelSpec const& spec, WeightSource const& source, DecoderOptions const& options)
    : Decoder(
          spec,
          WeightLoader(source, options.weights, options.on_bytes_loaded,
                       {.home = {.device = options.device, .threads = options.pool ? &options.pool->plan() : nullptr},
                        .pool = options.pool}),
          options) {}

Decoder::Decoder(ModelSpec const& spec, WeightLoader const& loader, DecoderOptions const& options)
    : hidden_(spec.hidden),
      embedding_(spec, spec.decoder(), loader,
                 {.tokens = options.max_tokens, .positions = std::max(options.max_input, options.max_tokens)}, nullptr),
      logit_multiplier_(spec.logit_multiplier) {
  if (spec.encoder())
    encoder_.emplace(
        spec, loader,
        EncoderLimits{.max_rows = std::max(options.max_input, options.max_tokens), .max_chunk = options.max_tokens},
        embedding_);
  for (NumberedLayer const& layer : all_layers(spec)) {
    if (layer.stack != StackKind::decoder) continue;
    rope_of_layer_.push_back(rope_index(layer.layer->attention.rope, options));
    layers_.emplace_back(layer, hidden_, loader);
  }
  final_norm_.emplace(spec.decoder().final_norm, hidden_, loader);
  // A stored head counts, though the config says that it is the embedding: so has the reference implementation it.
  std::string const tied_head = loader.holds(kStoredHead) ? kStoredHead : spec.embedding;
  LinearPart head{.weight = spec.lm_head.value_or(WeightSlice{tied_head}), .rows = spec.vocab};
  if (spec.lm_head_bias) head.bias = VectorSlice{*spec.lm_head_bias};
  lm_head_ = loader.linear({head}, hidden_);
}

std::size_t Decoder::rope_index(RopeSpec const& spec, DecoderOptions const& options) {
  for (std::size_t i = 0; i < ropes_.size(); ++i)
    if (ropes_[i].spec() == spec) return i;
  ropes_.emplace_back(spec, options.max_tokens, options.device);
  return ropes_.size() - 1;
}

void Decoder::prepare(StepContext const& step) {
  for (auto& rope : ropes_) rope.compute(step.exec, step.positions, step.prompt_lengths);
}

Task Decoder::forward(FrameArena& arena, StepContext const& step, KvCache& kv) {
  MatrixView<float> const x = step.rows(step.act.x);  // [T,H]
  embedding_.forward(step, x);
  if (step.tap) step.tap->hidden(0, on_host(step.exec, x, step.act.on_host));
  step.stages.end(Stage::embedding);
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    LayerCache const cache{.places = step.places[kv.group_of(l)],
                           .kv = kv.layer(l),
                           .cross_places = encoder_ ? &step.places[kv.cross_group()] : nullptr,
                           .cross = encoder_ ? &kv.cross(l) : nullptr};
    RopeAngles const angles = ropes_[rope_of_layer_[l]].angles().rows(step.first_row, step.tokens);
    co_await layers_[l].forward(arena, step, angles, cache);
    if (step.tap) step.tap->hidden(l + 1, on_host(step.exec, x, step.act.on_host));
    if (step.failed && *step.failed) co_return;
  }
}

void Decoder::write_cross(Exec const& exec, MatrixView<float const> encoded, TokenPlaces const& places, KvCache& kv,
                          Activations& act) const {
  for (std::size_t l = 0; l < layers_.size(); ++l) layers_[l].write_cross(exec, encoded, places, kv.cross(l), act);
}

MatrixView<float> Decoder::logits(Exec const& exec, Activations& act, std::span<std::uint32_t const> rows) const {
  MatrixView<float> const in = act.head_in.view().first_rows(rows.size());  // [R,H]
  MatrixView<float> const x = act.x.view();
  gather_rows(exec, x, rows, in);
  final_norm_->forward(exec, in, in);
  MatrixView<float> const out = act.logits.view().first_rows(rows.size());  // [R,V]
  linear(exec, in, lm_head_, out);
  if (logit_multiplier_ != 1.0F) scale(exec, out, logit_multiplier_);
  return out;
}

}  // namespace expertmesh
