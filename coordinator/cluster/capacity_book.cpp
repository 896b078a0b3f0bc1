#include "coordinator/cluster/capacity_book.h"

#include <algorithm>

#include "common/experts/expert_store.h"

namespace expertmesh {

Holder holder_on(std::string const& device) {
  return device == "cpu" ? Holder::processor : Holder::device;
}

ExpertBytes bytes_of_each(ExpertModelSpec const& model) {
  ExpertBytes bytes;
  for (ExpertLayerSpec const& layer : model.layers) {
    bytes.on_processor += packed_expert_bytes(layer, model.weights, Holder::processor);
    bytes.on_device += packed_expert_bytes(layer, model.weights, Holder::device);
  }
  return bytes;
}

WorkerCapacity CapacityBook::enter(std::string const& host, control::Capacity const& said) {
  std::size_t const each =
      holder_on(said.device) == Holder::processor ? expert_bytes_.on_processor : expert_bytes_.on_device;
  WorkerCapacity const capacity{.rate = static_cast<double>(said.bytes_per_second),
                                .room = said.memory_bytes / std::max<std::size_t>(each, 1)};
  std::string const model = said.device.substr(std::min(said.device.find(' '), said.device.size()));
  std::string const key = host + '/' + (model.empty() ? said.device : model) + '/' + std::to_string(said.threads);
  WorkerCapacity out = alike_.try_emplace(key, capacity).first->second;
  if (!said.measured) out.rate = capacity.rate;
  return out;
}

}  // namespace expertmesh
