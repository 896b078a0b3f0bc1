#include "coordinator/model/decoder.h"

#include <cstring>

#include "common/kernels/linear.h"
#include "common/kernels/rows.h"

namespace expertmesh {

Decoder::Decoder(ModelSpec const& spec, WeightSource const& source, DecoderOptions const& options)
    : hidden_(spec.hidden), embedding_multiplier_(spec.embedding_multiplier), logit_multiplier_(spec.logit_multiplier) {
  WeightLoader const loader(source, options.weights, options.on_bytes_loaded);
  StackSpec const& stack = spec.stacks.front();
  embedding_ = loader.stored(spec.embedding, spec.vocab, spec.hidden);
  std::uint32_t moe_index = 0;
  for (auto const& layer : stack.layers) {
    rope_of_layer_.push_back(rope_index(layer.attention.rope, options.max_tokens));
    layers_.emplace_back(layer, static_cast<std::uint32_t>(layers_.size()), moe_index, hidden_, loader);
    if (std::holds_alternative<MoeFfnSpec>(layer.ffn)) ++moe_index;
  }
  final_norm_.emplace(stack.final_norm, hidden_, loader);
  LinearPart head{.weight = {spec.lm_head.value_or(spec.embedding)}, .rows = spec.vocab};
  if (spec.lm_head_bias) head.bias = VectorSlice{*spec.lm_head_bias};
  lm_head_ = loader.linear({head}, hidden_);
}

std::size_t Decoder::rope_index(RopeSpec const& spec, std::size_t max_tokens) {
  for (std::size_t i = 0; i < ropes_.size(); ++i)
    if (ropes_[i].spec() == spec) return i;
  ropes_.emplace_back(spec, max_tokens);
  return ropes_.size() - 1;
}

Task Decoder::forward(FrameArena& arena, std::span<TokenId const> ids, StepContext const& step, KvCache& kv) {
  MatrixView<float> const x = step.act.x.view().first_rows(step.tokens);  // [T,H]
  embedding(step.exec, ids, embedding_.dtype, embedding_.bytes.data(), x);
  if (embedding_multiplier_ != 1.0F) scale(step.exec, x, embedding_multiplier_);
  if (step.tap) step.tap->hidden(0, x);
  for (auto& rope : ropes_) rope.compute(step.exec, step.positions, step.prompt_lengths);
  step.stages.end(Stage::embedding);
  for (std::size_t l = 0; l < layers_.size(); ++l)
    co_await layers_[l].forward(arena, step, ropes_[rope_of_layer_[l]].angles(), step.places[kv.group_of(l)],
                                kv.layer(l));
}

MatrixView<float> Decoder::logits(Exec const& exec, Activations& act, std::span<std::uint32_t const> rows) const {
  MatrixView<float> const in = act.head_in.view().first_rows(rows.size());  // [R,H]
  MatrixView<float> const x = act.x.view();
  for (std::size_t i = 0; i < rows.size(); ++i) std::memcpy(in.row(i), x.row(rows[i]), hidden_ * sizeof(float));
  final_norm_->forward(exec, in, in);
  MatrixView<float> const out = act.logits.view().first_rows(rows.size());  // [R,V]
  linear(exec, in, lm_head_, out);
  if (logit_multiplier_ != 1.0F) scale(exec, out, logit_multiplier_);
  return out;
}

}  // namespace expertmesh
