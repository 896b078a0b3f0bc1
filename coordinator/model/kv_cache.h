// The paged KV cache: which layers share a block table, and the bytes behind it.
#pragma once
#include <cstddef>
#include <vector>

#include "common/kernels/paged_attention.h"
#include "coordinator/model/model_spec.h"
#include "coordinator/scheduler/kv_cache_spec.h"

namespace expertmesh {

// Layers with the same attention span share one group, hence one block table. Order: first layer first.
std::vector<KvCacheSpec> kv_cache_specs(ModelSpec const& spec, DType dtype);

class KvCache {
 public:
  // blocks[g]: number of blocks of group g.
  KvCache(ModelSpec const& spec, std::vector<KvCacheSpec> const& groups, std::vector<std::size_t> const& blocks);
  KvLayer& layer(std::size_t index) { return layers_[index]; }
  [[nodiscard]] std::size_t group_of(std::size_t layer) const { return group_of_[layer]; }

 private:
  std::vector<KvLayer> layers_;
  std::vector<std::size_t> group_of_;
};

}  // namespace expertmesh
