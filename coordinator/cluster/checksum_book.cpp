#include "coordinator/cluster/checksum_book.h"

#include "common/base/cores.h"
#include "common/base/log.h"
#include "common/base/thread_pool.h"
#include "common/experts/expert_store.h"

namespace expertmesh {

ChecksumBook::ChecksumBook(ExpertModelSpec const& model, WeightSource const& source, bool read_all)
    : model_(model), source_(source) {
  for (auto const& layer : model.layers) known_.emplace_back(layer.experts.size());
  if (!read_all) return;
  ThreadPool pool(usable_cores());
  for (std::size_t i = 0; i < known_.size(); ++i)
    pool.parallel_for(known_[i].size(), [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t e = begin; e < end; ++e) known_[i][e] = own_checksum(i, static_cast<std::uint32_t>(e));
    });
}

std::uint64_t ChecksumBook::own_checksum(std::size_t layer_index, std::uint32_t expert) const {
  return checksum_of(pack_expert(model_.layers[layer_index], expert, model_.weights, source_));
}

std::string ChecksumBook::enter(control::Loaded const& loaded) {
  if (loaded.held.size() != known_.size()) return "loaded another number of layers than the model has";
  for (std::size_t i = 0; i < loaded.held.size(); ++i)
    for (std::size_t k = 0; k < loaded.held[i].size(); ++k) {
      std::uint32_t const expert = loaded.held[i][k];
      if (expert >= known_[i].size()) return "loaded an expert that the model does not have";
      std::uint64_t& known = known_[i][expert];
      std::uint64_t const seen = loaded.checksums[i][k];
      if (known == 0) known = seen;
      if (known == seen) continue;
      std::string const name =
          "expert " + std::to_string(expert) + " of layer " + std::to_string(model_.layers[i].layer);
      known = own_checksum(i, expert);
      if (known != seen) return "loaded other bytes for " + name + " than the checkpoint has here";
      spdlog::error("{}: a worker before this one has loaded other bytes than the checkpoint has here", name);
    }
  return "";
}

}  // namespace expertmesh
