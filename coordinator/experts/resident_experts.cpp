#include "coordinator/experts/resident_experts.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/experts/expert_service.h"

namespace expertmesh {
namespace {

std::size_t slot_bytes(ExpertModelSpec const& model, std::size_t max_tokens, std::size_t experts_per_token) {
  std::size_t hidden = 0;
  for (ExpertLayerSpec const& layer : model.layers) hidden = std::max(hidden, layer.hidden);
  return max_tokens * experts_per_token * hidden * size_of(model.wire);
}

}  // namespace

ResidentExperts::ResidentExperts(ExpertModelSpec const& model, WeightSource const& source, std::size_t max_tokens,
                                 std::size_t experts_per_token, Exec const& exec, ExpertStore::OnBytes const& on_bytes)
    : device_(*exec.device()),
      wire_(model.wire),
      store_(model, all_experts(model), source, exec.pool(), on_bytes, nullptr, {.device = exec.device()}) {
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    std::vector<DeviceExpert> table;
    for (std::size_t e = 0; e < model.layers[i].experts.size(); ++e) table.push_back(on_device(store_.expert(i, e)));
    Layer& layer = layers_.emplace_back();
    layer.layer = model.layers[i].layer;
    layer.table = AlignedBuffer<DeviceExpert>(std::span<DeviceExpert const>(table), &device_);
    layer.experts = layer_on_device(store_.expert(i, 0), layer.table.span(), wire_);
  }
  device_.reserve(exec_limits(model, max_tokens, experts_per_token));
  for (Slot& slot : slots_)
    slot.rows = AlignedBuffer<std::byte>(slot_bytes(model, max_tokens, experts_per_token), &device_);
}

ExecLimits ResidentExperts::exec_limits(ExpertModelSpec const& model, std::size_t max_tokens,
                                        std::size_t experts_per_token) {
  std::size_t const max_slots = max_tokens * experts_per_token;
  ExecLimits limits = ExpertService::exec_limits(model, {.max_rows = max_tokens, .max_entries = max_slots}, 1);
  limits.max_rows = max_slots;  // all in one call
  return limits;
}

std::size_t ResidentExperts::buffer_bytes(ExpertModelSpec const& model, std::size_t max_tokens,
                                          std::size_t experts_per_token) {
  std::size_t bytes = kSlots * slot_bytes(model, max_tokens, experts_per_token);
  for (ExpertLayerSpec const& layer : model.layers) bytes += layer.experts.size() * sizeof(DeviceExpert);
  return bytes;
}

Experts::Exchange ResidentExperts::dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) {
  auto const found = std::ranges::find(layers_, layer, &Layer::layer);
  EM_CHECK(found != layers_.end(), "layer " << layer << " has no routed experts");
  auto const free = std::ranges::find(slots_, false, &Slot::in_use);
  EM_CHECK(free != slots_.end(), "more than " << slots_.size() << " exchanges in flight");
  EM_CHECK(x.rows == routing.num_tokens() && x.cols == found->experts.hidden &&
               routing.device_weights.size() == routing.device_experts.size(),
           "x [" << x.rows << "," << x.cols << "], routing of " << routing.num_tokens() << " tokens");
  free->in_use = true;
  free->routing = routing;
  device_.run_experts(found->experts, x, routing.device_experts, routing.experts_per_token, free->rows.data());
  return {.slot = static_cast<std::uint32_t>(free - slots_.begin())};
}

void ResidentExperts::wait(Exchange exchange, std::coroutine_handle<> /*waiter*/) {
  EM_CHECK(false, "exchange " << exchange.slot << " is complete from the start");
}

void ResidentExperts::finish(Exchange exchange, MatrixView<float> out) {
  Slot& slot = slots_[exchange.slot];
  EM_CHECK(slot.in_use, "exchange " << exchange.slot << " is not under way");
  device_.combine(wire_, slot.rows.data(), slot.routing.device_experts, slot.routing.device_weights,
                  slot.routing.experts_per_token, out);
  slot.in_use = false;
}

}  // namespace expertmesh
