// The experts a process holds, packed and ready for grouped_ffn.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/checkpoint/weight_source.h"
#include "common/config/expert_spec.h"
#include "common/experts/packed_weights.h"
#include "common/experts/shared_experts.h"
#include "common/kernels/grouped_ffn.h"
#include "common/protocol/dispatch_layout.h"

namespace expertmesh {

// Per layer of an ExpertModelSpec: global expert ids, ascending. The position in the list is the local expert index.
using HeldExperts = std::vector<std::vector<std::uint32_t>>;
HeldExperts all_experts(ExpertModelSpec const& model);

// The largest request in steps of T tokens with K experts each, to whoever holds any of them: what a worker holds may
// change, its buffers do not.
DispatchLimits dispatch_limits(ExpertModelSpec const& model, std::size_t tokens, std::size_t experts_per_token);

// Bytes that many experts will take once packed: for planning before loading.
std::size_t packed_expert_bytes(ExpertModelSpec const& model, HeldExperts const& held,
                                Holder holder = Holder::processor);

// One expert, packed from its tensors. Throws what the source throws: ModelError, FileError.
FfnWeights pack_expert(ExpertLayerSpec const& layer, std::uint32_t expert, WeightFormat const& format,
                       WeightSource const& source, WeightHome const& home = {});
// The same, as the source's cache has kept it, or packed.
struct LoadedExpert {
  FfnWeights weights;
  bool kept = false;           // it was in the cache
  std::uint64_t checksum = 0;  // checksum_of() it, if that is known
};
LoadedExpert load_expert(ExpertLayerSpec const& layer, std::uint32_t expert, WeightFormat const& format,
                         WeightSource const& source, WeightHome const& home = {});
std::size_t packed_expert_bytes(ExpertLayerSpec const& layer, WeightFormat const& format,
                                Holder holder = Holder::processor);
// Packing is deterministic: two processes that loaded the same expert get the same, whatever holds it.
std::uint64_t checksum_of(FfnWeights const& expert);

class ExpertStore {
 public:
  // (loaded, total) packed bytes; from loading threads, one call at a time.
  using OnBytes = std::function<void(std::size_t loaded, std::size_t total)>;

  // Reads the held experts' tensors and no others, on all threads of the pool; or from the source's cache, which is
  // given what it lacks. What other stores with the same `shared`
  // hold of them is held together, not read again. Throws what the source or on_bytes throws: ModelError, FileError.
  ExpertStore(ExpertModelSpec const& model, HeldExperts const& held, WeightSource const& source, ThreadPool& pool,
              OnBytes const& on_bytes, SharedExperts* shared = nullptr, WeightHome const& home = {});

  [[nodiscard]] std::vector<HeldLayer> const& layers() const { return layers_; }  // in the model's order
  [[nodiscard]] FfnWeights const& expert(std::size_t layer_index, std::size_t local_expert) const {
    return *experts_[index(layer_index, local_expert)];
  }
  // Numbers the experts of all layers through: 0…num_experts() - 1.
  [[nodiscard]] std::size_t index(std::size_t layer_index, std::size_t local_expert) const {
    return first_expert_[layer_index] + local_expert;
  }
  [[nodiscard]] FfnWeights const& expert(std::size_t index) const { return *experts_[index]; }
  // Numbers the model's experts through, whoever holds them: 0…num_in_model() - 1.
  [[nodiscard]] std::size_t index_in_model(std::size_t layer_index, std::size_t local_expert) const {
    return first_in_model_[layer_index] + held_[layer_index][local_expert];
  }
  [[nodiscard]] std::size_t num_in_model() const { return first_in_model_.back(); }
  // [layers][held] of the packed bytes, by checksum_of(): all that did not come from a cache are read, and brought here
  // from a device.
  [[nodiscard]] std::vector<std::vector<std::uint64_t>> checksums(ThreadPool& pool) const;
  [[nodiscard]] HeldExperts const& held() const { return held_; }
  [[nodiscard]] std::size_t num_experts() const { return experts_.size(); }
  [[nodiscard]] std::size_t resident_bytes() const { return resident_bytes_; }

 private:
  std::vector<HeldLayer> layers_;
  std::vector<std::size_t> first_expert_;    // [layers]
  std::vector<std::size_t> first_in_model_;  // [layers + 1]
  HeldExperts held_;
  std::vector<std::shared_ptr<FfnWeights const>> experts_;
  std::vector<std::uint64_t> kept_checksums_;  // [experts] of those from a cache; 0: not from there
  std::size_t resident_bytes_ = 0;
};

}  // namespace expertmesh
