#include "worker/static_step.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/protocol/step_layout.h"

namespace expertmesh {
namespace {

// Receives and sends that the host is ahead of the device: some layers.
constexpr std::size_t kMostAhead = 8;

}  // namespace

StaticStep::StaticStep(ExpertStore const& store, Exec const& exec, ExpertServiceOptions const& options)
    : store_(store), exec_(exec), options_(options), graphs_(*exec.device()) {
  for (std::size_t i = 0; i < store.layers().size(); ++i) {
    auto const& held = store.held()[i];  // ascending
    std::vector<DeviceExpert> table(held.empty() ? 0 : held.back() + std::size_t{1});
    for (std::size_t e = 0; e < held.size(); ++e) table[held[e]] = on_device(store.expert(i, e));
    tables_.emplace_back(std::span<DeviceExpert const>(table), exec.device());
  }
  layers_.reserve(store.layers().size());
  key_.reserve(store.layers().size() + 2);
}

bool StaticStep::begin(ServiceCall& call) {
  RequestExpectation const expected{.worker_incarnation = options_.incarnation,
                                    .epoch = options_.epoch,
                                    .wire = options_.wire,
                                    .limits = options_.limits,
                                    .layers = store_.layers(),
                                    .rows_apart = true};
  auto const parsed = parse_step(call.request, expected);
  if (auto const* error = std::get_if<WireError>(&parsed)) {
    refuse(call, *error, DispatchLayout(store_.layers().front().hidden, options_.wire));
    return false;
  }
  auto const& request = std::get<StepRequest>(parsed);
  tokens_ = request.header.num_tokens;
  experts_per_token_ = request.header.experts_per_token;
  layers_.clear();
  for (StepLayer const& layer : request.layers)
    layers_.push_back(static_cast<std::size_t>(std::ranges::find(store_.layers(), layer.layer, &HeldLayer::layer) -
                                               store_.layers().begin()));
  next_ = 0;
  call.error = {};
  call.attempt = request.header.id.attempt;
  call.answer_bytes = DispatchLayout(request.layers.front().hidden, options_.wire)
                          .write_answer(call.answer, request.header.id, WireFault::none, tokens_ * experts_per_token_)
                          .bytes;
  seal(call.answer.first(call.answer_bytes));
  if ((request.header.id.flags & kFlagComesAgain) != 0) launch_if_known();
  return true;
}

void StaticStep::launch_if_known() {
  key_.assign({tokens_, experts_per_token_});
  key_.insert(key_.end(), layers_.begin(), layers_.end());
  DeviceGraph* const graph = graphs_.find_or_record(key_, [this] {
    for (std::size_t const layer : layers_) run(layer);
    options_.port->hold_device();
  });
  if (!graph) return;
  options_.port->hold_device();
  graph->launch();
  options_.port->launched();
  next_ = layers_.size();
}

bool StaticStep::advance() {
  while (next_ < layers_.size() && options_.port->under_way() < kMostAhead) run(layers_[next_++]);
  return next_ < layers_.size() || options_.port->under_way() > 0;
}

void StaticStep::run(std::size_t layer_index) {
  StepLayout const layout(tokens_, experts_per_token_, store_.layers()[layer_index].hidden, options_.wire);
  std::byte const* const in = options_.port->receive(layout.out_bytes);
  if (store_.layers()[layer_index].num_experts > 0) {
    auto const* const experts = reinterpret_cast<std::uint32_t const*>(in + layout.experts_offset);
    slots_on_device(exec_, layer_on_device(store_.expert(layer_index, 0), tables_[layer_index].span(), options_.wire),
                    {experts, tokens_ * experts_per_token_}, experts_per_token_, in, options_.port->room());
  }
  options_.port->send(layout.back_bytes);
}

}  // namespace expertmesh
