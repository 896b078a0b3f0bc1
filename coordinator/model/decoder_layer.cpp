#include "coordinator/model/decoder_layer.h"

#include <algorithm>

#include "common/kernels/ffn_activation.h"
#include "common/kernels/linear.h"
#include "common/kernels/rows.h"
#include "common/moe/capacity.h"

namespace expertmesh {

StepContext StepContext::part(std::size_t begin, std::size_t count) const {
  StepContext out = *this;
  out.tokens = count;
  out.ids = ids.subspan(begin, count);
  if (!ids_on_device.empty()) out.ids_on_device = ids_on_device.subspan(begin, count);
  out.positions = positions.subspan(begin, count);
  out.prompt_lengths = prompt_lengths.subspan(begin, count);
  out.sequence_of = sequence_of.subspan(begin, count);
  return out;
}

DenseFfn::DenseFfn(DenseFfnSpec const& spec, std::size_t hidden, WeightLoader const& loader)
    : weights_(loader.ffn(spec.tensors, {.hidden = hidden, .intermediate = spec.intermediate}, spec.activation)) {}

void DenseFfn::forward(Exec const& exec, MatrixView<float const> x, Activations& act, MatrixView<float> out) const {
  std::size_t const columns = weights_.gate_up.w.n();
  MatrixView<float> const gate_up = act.gate_up.view().first_rows(x.rows).columns(0, columns);                // [T,2I]
  MatrixView<float> const hidden = act.ffn_hidden.view().first_rows(x.rows).columns(0, weights_.down.w.k());  // [T,I]
  linear(exec, x, weights_.gate_up, gate_up);
  ffn_activation(exec, weights_.activation, gate_up, hidden);
  linear(exec, hidden, weights_.down, out);
}

SharedExpert::SharedExpert(SharedExpertSpec const& spec, std::size_t hidden, WeightLoader const& loader)
    : ffn_(spec.ffn, hidden, loader) {
  if (spec.gate) gate_ = loader.linear_float32({.weight = {*spec.gate}, .rows = 1}, hidden);
}

void SharedExpert::forward(Exec const& exec, MatrixView<float const> x, Activations& act, MatrixView<float> out) const {
  ffn_.forward(exec, x, act, out);
  if (!gate_) return;
  MatrixView<float> const gate = act.shared_gate.view().first_rows(x.rows);  // [T,1]
  linear(exec, x, *gate_, gate);
  scale_rows_by_sigmoid(exec, out, gate);
}

namespace {

// Where a device keeps the routing of a layer: [T*K].
struct DeviceRouting {
  std::span<std::uint32_t> experts;
  std::span<float> weights;
};
DeviceRouting device_routing(Activations& act, Router::Place const& place, std::size_t tokens, std::size_t k) {
  std::size_t const first = place.moe_index * place.step_tokens * act.max_experts_per_token + place.first_row * k;
  return {act.device_experts.span().subspan(first, tokens * k),
          act.device_gate_weights.span().subspan(first, tokens * k)};
}

}  // namespace

Router::Router(MoeFfnSpec const& spec, std::uint32_t layer, std::size_t hidden, WeightLoader const& loader)
    : spec_(spec.router),
      layer_(layer),
      gate_(loader.linear_float32({.weight = {spec.router_weight}, .rows = spec_.num_experts, .bias = spec.router_bias},
                                  hidden)) {
  if (spec.selection_bias) selection_bias_ = loader.floats(*spec.selection_bias, spec_.num_experts);
  if (spec_.noise)
    noise_ = loader.linear_float32({.weight = {*spec.router_noise_weight}, .rows = spec_.num_experts}, hidden);
}

RoutingView Router::forward(Exec const& exec, MatrixView<float const> x, std::span<std::uint32_t const> positions,
                            Place place, Activations& act) const {
  std::size_t const tokens = x.rows;
  std::size_t const slots = tokens * spec_.experts_per_token;
  auto const logits_view = [&](Matrix<float>& m) { return m.view().first_rows(tokens).columns(0, spec_.num_experts); };
  MatrixView<float> const logits = logits_view(act.router);  // [T,E]
  linear(exec, x, gate_, logits);
  std::size_t const first_slot = place.first_row * spec_.experts_per_token;
  auto const experts = act.experts.span().subspan(first_slot, slots);
  auto const weights = act.gate_weights.span().subspan(first_slot, slots);
  RouterInput in{.logits = logits, .selection_bias = selection_bias_.span()};
  if (noise_) {
    MatrixView<float> const scale = logits_view(act.noise_scale);
    linear(exec, x, *noise_, scale);
    in.noise = RouterNoiseInput{.scale_logits = scale, .eps = noise(exec, positions, act)};
  }
  if (Device* device = exec.device()) {
    Device::RouterRows rows{.logits = in.logits, .selection_bias = in.selection_bias};
    if (in.noise) {
      rows.noise_scale = in.noise->scale_logits;
      rows.noise_eps = in.noise->eps;
    }
    auto const [device_experts, device_weights] = device_routing(act, place, tokens, spec_.experts_per_token);
    device->route(spec_, rows, device_experts, device_weights);
    if (!place.on_host) return {{}, {}, spec_.experts_per_token, device_experts, device_weights};
    if (slots > 0) {
      device->download(experts.data(), device_experts.data(), experts.size_bytes());
      device->download(weights.data(), device_weights.data(), weights.size_bytes());
    }
    return {experts, weights, spec_.experts_per_token, device_experts, device_weights};
  }
  choose_experts(exec, in, experts, weights);
  return {experts, weights, spec_.experts_per_token};
}

// Tokens are shared out among the threads, unless they are so few that one is through before the others have begun.
void Router::choose_experts(Exec const& exec, RouterInput const& in, std::span<std::uint32_t> experts,
                            std::span<float> weights) const {
  constexpr std::size_t kLeastShared = 16;
  auto const choose = [&](std::size_t begin, std::size_t end, std::size_t /*thread*/) {
    std::size_t const count = end - begin;
    std::size_t const k = spec_.experts_per_token;
    RouterInput part{.logits = in.logits.row_range(begin, count), .selection_bias = in.selection_bias};
    if (in.noise)
      part.noise = RouterNoiseInput{.scale_logits = in.noise->scale_logits.row_range(begin, count),
                                    .eps = in.noise->eps.row_range(begin, count)};
    route(spec_, part, experts.subspan(begin * k, count * k), weights.subspan(begin * k, count * k));
  };
  if (in.logits.rows < kLeastShared) return choose(0, in.logits.rows, 0);
  exec.pool().parallel_for(in.logits.rows, choose);
}

// Standard normal numbers of the tokens, where the router runs.
MatrixView<float> Router::noise(Exec const& exec, std::span<std::uint32_t const> positions, Activations& act) const {
  MatrixView<float> const eps = act.noise.view().first_rows(positions.size()).columns(0, spec_.num_experts);
  if (!exec.device()) {
    router_noise(spec_.noise->seed, positions, layer_, eps);
    return eps;
  }
  act.on_host.resize(positions.size() * spec_.num_experts);
  router_noise(spec_.noise->seed, positions, layer_, {act.on_host.data(), positions.size(), spec_.num_experts});
  MatrixView<float> const packed(eps.data, eps.rows, eps.cols);  // the buffer may be wider than this layer's rows
  if (!act.on_host.empty()) exec.device()->upload(packed.data, act.on_host.data(), act.on_host.size() * sizeof(float));
  return packed;
}

namespace {

std::variant<DenseFfn, Mixture> make_ffn(NumberedLayer const& layer, std::size_t hidden, WeightLoader const& loader) {
  if (auto const* dense = std::get_if<DenseFfnSpec>(&layer.layer->ffn)) return DenseFfn(*dense, hidden, loader);
  auto const& moe = std::get<MoeFfnSpec>(layer.layer->ffn);
  Mixture mixture{
      .router = Router(moe, layer.number, hidden, loader), .shared = {}, .gate_on_input = moe.gate_on_input};
  if (moe.capacity)
    mixture.capacity = ExpertCapacity{
        .tokens = *moe.capacity, .num_experts = moe.router.num_experts, .first_count = layer.first_count};
  if (moe.shared) mixture.shared.emplace(*moe.shared, hidden, loader);
  return mixture;
}

}  // namespace

DecoderLayer::DecoderLayer(NumberedLayer const& layer, std::size_t hidden, WeightLoader const& loader)
    : number_(layer.number),
      moe_index_(layer.moe_index),
      input_norm_(layer.layer->input_norm, hidden, loader),
      post_attention_norm_(layer.layer->post_attention_norm, hidden, loader),
      attention_(layer.layer->attention, hidden, loader),
      ffn_(make_ffn(layer, hidden, loader)),
      residual_multiplier_(layer.layer->residual_multiplier) {
  if (auto const& cross = layer.layer->cross)
    cross_.emplace(CrossBlock{.norm = Norm(cross->norm, hidden, loader),
                              .attention = CrossAttention(cross->attention, hidden, loader)});
}

// With the gate on the input each (token, slot) has a row of its own, and one expert with weight 1.
DecoderLayer::ExpertRows DecoderLayer::rows_for_experts(StepContext const& step, MatrixView<float> normed,
                                                        RoutingView routing, MatrixView<float> block_out) const {
  if (!std::get<Mixture>(ffn_).gate_on_input) return {normed, routing, block_out};
  std::size_t const slots = normed.rows * routing.experts_per_token;
  Activations& act = step.act;
  std::size_t const first_slot = step.first_row * routing.experts_per_token;
  MatrixView<float> const in = act.expert_in.view().row_range(first_slot, slots);  // [T*K,H]
  if (Device* device = step.exec.device()) {
    device->scale_rows_into_slots(normed, routing.device_weights, routing.experts_per_token, in);
  } else {
    scale_rows_into_slots(step.exec, normed, routing.weights, routing.experts_per_token, in);
  }
  auto const ones = act.unit_weights.span().subspan(first_slot, slots);
  std::ranges::fill(ones, 1.0F);
  RoutingView one_each{routing.experts, ones, 1};
  if (step.exec.device()) {
    one_each.device_experts = routing.device_experts;
    one_each.device_weights = act.device_unit_weights.span().first(slots);
  }
  return {in, one_each, act.expert_out.view().row_range(first_slot, slots)};
}

void DecoderLayer::add_to_residual(StepContext const& step, MatrixView<float> block_out) const {
  if (residual_multiplier_ != 1.0F) scale(step.exec, block_out, residual_multiplier_);
  add(step.exec, step.rows(step.act.x), block_out);
}

Router::Place DecoderLayer::place_of(StepContext const& step) const {
  return {.moe_index = moe_index_,
          .first_row = step.first_row,
          .step_tokens = step.step_tokens(),
          .on_host = step.routing_on_host};
}

// Tokens of a sequence come in order of position, whatever the steps: its counts go on from step to step, within an
// encoder from part to part of its input. A device's copy of the routing follows.
void DecoderLayer::hold_to_capacity(StepContext const& step, ExpertCapacity const& capacity, std::size_t k) const {
  auto const experts = step.act.experts.span().subspan(step.first_row * k, step.tokens * k);
  auto const weights = step.act.gate_weights.span().subspan(step.first_row * k, step.tokens * k);
  for (std::size_t t = 0; t < step.tokens; ++t) {
    auto& [so_far, next] = step.sequences[step.sequence_of[t]]->expert_counts;
    auto const counts = std::span(next).subspan(capacity.first_count, capacity.num_experts);
    if (step.positions[t] == 0)
      std::ranges::fill(counts, 0U);
    else if (step.stack == StackKind::decoder && (t == 0 || step.sequence_of[t] != step.sequence_of[t - 1]))
      std::ranges::copy(std::span(so_far).subspan(capacity.first_count, capacity.num_experts), counts.begin());
    hold_capacity(capacity.tokens, experts.subspan(t * k, k), weights.subspan(t * k, k), counts);
  }
  Device* const device = step.exec.device();
  if (!device || std::ranges::find(experts, kNoExpert) == experts.end()) return;
  DeviceRouting const there = device_routing(step.act, place_of(step), step.tokens, k);
  device->upload(there.experts.data(), experts.data(), experts.size_bytes());
  device->upload(there.weights.data(), weights.data(), weights.size_bytes());
}

void DecoderLayer::write_keys(StepContext const& step, RopeAngles const& angles, LayerCache const& cache) const {
  MatrixView<float> const normed = step.rows(step.act.normed);  // [T,H]
  input_norm_.forward(step.exec, step.rows(step.act.x), normed);
  attention_.write(step.exec, normed, angles, cache.places, cache.kv, step.act);
}

void DecoderLayer::write_cross(Exec const& exec, MatrixView<float const> encoded, TokenPlaces const& places,
                               KvLayer& cache, Activations& act) const {
  cross_->attention.write(exec, encoded, places, cache, act);
}

Task DecoderLayer::forward([[maybe_unused]] FrameArena& arena, StepContext const& step, RopeAngles angles,
                           LayerCache cache) const {
  Activations& act = step.act;
  MatrixView<float> const x = step.rows(act.x);                  // [T,H]
  MatrixView<float> const normed = step.rows(act.normed);        // [T,H]
  MatrixView<float> const block_out = step.rows(act.block_out);  // [T,H]

  input_norm_.forward(step.exec, x, normed);
  step.move_others();
  attention_.forward(step.exec, normed, angles, cache.places, cache.kv, act, block_out);
  step.move_others();
  add_to_residual(step, block_out);
  if (cross_) {
    cross_->norm.forward(step.exec, x, normed);
    cross_->attention.forward(step.exec, normed, *cache.cross_places, *cache.cross, act, block_out);
    add_to_residual(step, block_out);
  }
  step.stages.end(Stage::attention, number_);

  post_attention_norm_.forward(step.exec, x, normed);
  if (auto const* dense = std::get_if<DenseFfn>(&ffn_)) {
    dense->forward(step.exec, normed, act, block_out);
    add_to_residual(step, block_out);
    step.stages.end(Stage::dense_ffn, number_);
    co_return;
  }

  auto const& [router, shared, gate_on_input, capacity] = std::get<Mixture>(ffn_);
  RoutingView const routing = router.forward(step.exec, normed, step.positions, place_of(step), act);
  if (capacity) hold_to_capacity(step, *capacity, routing.experts_per_token);
  step.stages.end(Stage::router, number_);
  step.move_others();
  ExpertRows const rows = rows_for_experts(step, normed, routing, block_out);
  auto const exchange = step.experts.dispatch(number_, rows.in, rows.routing);  // rows leave for their workers
  step.stages.end(step.experts.computes_at_dispatch() ? Stage::experts : Stage::dispatch, number_);
  MatrixView<float> const shared_out = shared ? step.rows(act.shared_out) : MatrixView<float>{};  // [T,H]
  if (shared) shared->forward(step.exec, normed, act, shared_out);                                // while they compute
  if (!routing.experts.empty()) {  // else when the step is over
    step.balance.add(moe_index_, routing);
    if (step.routed)
      std::ranges::copy(routing.experts,
                        step.routed + ((moe_index_ - step.first_routed) * step.step_tokens() + step.first_row) *
                                          routing.experts_per_token);
  }
  step.stages.end(Stage::shared_expert, number_);
  co_await step.experts.answered(exchange);
  step.stages.end(Stage::experts, number_);
  co_await step.experts.combine(exchange, rows.out);  // slot order 0…K-1: same bits for any placement
  if (gate_on_input) add_slots(step.exec, rows.out, routing.experts_per_token, block_out);
  if (step.tap) {
    std::vector<float> shared_room;
    step.tap->moe_output(number_, on_host(step.exec, block_out, act.on_host),
                         shared ? on_host(step.exec, shared_out, shared_room) : MatrixView<float const>{});
  }
  if (shared) add(step.exec, block_out, shared_out);
  add_to_residual(step, block_out);
  step.stages.end(Stage::combine, number_);
}

}  // namespace expertmesh
