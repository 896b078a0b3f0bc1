#include "coordinator/model/decoder_layer.h"

#include <algorithm>

#include "common/kernels/ffn_activation.h"
#include "common/kernels/linear.h"
#include "common/kernels/rms_norm.h"
#include "common/kernels/rows.h"
#include "common/moe/router.h"

namespace expertmesh {

DenseFfn::DenseFfn(DenseFfnSpec const& spec, std::size_t hidden, WeightLoader const& loader)
    : intermediate_(spec.intermediate),
      activation_(spec.activation.kind),
      gate_up_(
          loader.packed({{spec.tensors.gate->name, intermediate_}, {spec.tensors.up.name, intermediate_}}, hidden)),
      down_(loader.packed({{spec.tensors.down.name, hidden}}, intermediate_)) {}

void DenseFfn::forward(Exec const& exec, MatrixView<float const> x, Activations& act, MatrixView<float> out) const {
  MatrixView<float> const gate_up = act.gate_up.view().first_rows(x.rows).columns(0, 2 * intermediate_);  // [T,2I]
  MatrixView<float> const hidden = act.ffn_hidden.view().first_rows(x.rows).columns(0, intermediate_);    // [T,I]
  linear(exec, x, gate_up_, gate_up);
  ffn_activation(exec, {.kind = activation_}, gate_up, hidden);
  linear(exec, hidden, down_, out);
}

Router::Router(MoeFfnSpec const& spec, std::uint32_t layer, std::size_t hidden, WeightLoader const& loader)
    : spec_(spec.router), layer_(layer), gate_(loader.packed_float32({spec.router_weight, spec_.num_experts}, hidden)) {
  if (spec_.noise) noise_ = loader.packed_float32({*spec.router_noise_weight, spec_.num_experts}, hidden);
}

RoutingView Router::forward(Exec const& exec, MatrixView<float const> x, std::span<std::uint32_t const> positions,
                            Activations& act) const {
  std::size_t const tokens = x.rows;
  std::size_t const slots = tokens * spec_.experts_per_token;
  auto const logits_view = [&](Matrix<float>& m) { return m.view().first_rows(tokens).columns(0, spec_.num_experts); };
  MatrixView<float> const logits = logits_view(act.router);  // [T,E]
  linear(exec, x, gate_, logits);
  auto const experts = act.experts.span().first(slots);
  auto const weights = act.gate_weights.span().first(slots);
  if (spec_.noise) {
    MatrixView<float> const scale = logits_view(act.noise_scale);
    MatrixView<float> const eps = logits_view(act.noise);
    linear(exec, x, noise_, scale);
    router_noise(spec_.noise->seed, positions, layer_, eps);
    route(spec_, {.logits = logits, .noise = RouterNoiseInput{.scale_logits = scale, .eps = eps}}, experts, weights);
  } else {
    route(spec_, {.logits = logits}, experts, weights);
  }
  return {experts, weights, spec_.experts_per_token};
}

namespace {
std::variant<DenseFfn, Router> make_ffn(LayerSpec const& spec, std::uint32_t index, std::size_t hidden,
                                        WeightLoader const& loader) {
  if (auto const* dense = std::get_if<DenseFfnSpec>(&spec.ffn)) return DenseFfn(*dense, hidden, loader);
  return Router(std::get<MoeFfnSpec>(spec.ffn), index, hidden, loader);
}
}  // namespace

DecoderLayer::DecoderLayer(LayerSpec const& spec, std::uint32_t index, std::uint32_t moe_index, std::size_t hidden,
                           WeightLoader const& loader)
    : index_(index),
      moe_index_(moe_index),
      input_norm_(loader.floats(spec.input_norm.weight, hidden)),
      post_attention_norm_(loader.floats(spec.post_attention_norm.weight, hidden)),
      input_epsilon_(spec.input_norm.epsilon),
      post_attention_epsilon_(spec.post_attention_norm.epsilon),
      attention_(spec.attention, hidden, loader),
      ffn_(make_ffn(spec, index, hidden, loader)) {}

Task DecoderLayer::forward([[maybe_unused]] FrameArena& arena, StepContext const& step, RopeAngles angles,
                           TokenPlaces const& places, KvLayer& kv) const {
  Activations& act = step.act;
  MatrixView<float> const x = act.x.view().first_rows(step.tokens);                  // [T,H]
  MatrixView<float> const normed = act.normed.view().first_rows(step.tokens);        // [T,H]
  MatrixView<float> const block_out = act.block_out.view().first_rows(step.tokens);  // [T,H]

  rms_norm(step.exec, x, input_norm_, input_epsilon_, normed);
  attention_.forward(step.exec, normed, angles, places, kv, act, block_out);
  add(step.exec, x, block_out);
  step.stages.end(Stage::attention);

  rms_norm(step.exec, x, post_attention_norm_, post_attention_epsilon_, normed);
  if (auto const* dense = std::get_if<DenseFfn>(&ffn_)) {
    dense->forward(step.exec, normed, act, block_out);
    add(step.exec, x, block_out);
    step.stages.end(Stage::dense_ffn);
    co_return;
  }

  RoutingView const routing = std::get<Router>(ffn_).forward(step.exec, normed, step.positions, act);
  step.stages.end(Stage::router);
  auto const exchange = step.experts.dispatch(index_, normed, routing);  // rows leave for their workers
  step.stages.end(Stage::dispatch);
  step.balance.add(moe_index_, routing);  // while they compute
  if (step.routed) std::ranges::copy(routing.experts, step.routed + moe_index_ * routing.experts.size());
  co_await step.experts.answered(exchange);
  step.stages.end(Stage::experts);
  co_await step.experts.combine(exchange, block_out);  // slot order 0…K-1: same bits for any placement
  add(step.exec, x, block_out);
  step.stages.end(Stage::combine);
}

}  // namespace expertmesh
