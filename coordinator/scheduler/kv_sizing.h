// How the memory of the KV cache is divided among its groups.
#pragma once
#include <cstddef>
#include <vector>

#include "coordinator/scheduler/kv_cache_spec.h"
#include "coordinator/scheduler/scheduler.h"

namespace expertmesh {

// [groups] blocks with which max_num_seqs sequences of up to `length` tokens run side by side, and one of max_model_len
// alone. A step's tokens are counted once: it has max_num_batched_tokens of all sequences together.
std::vector<std::size_t> kv_blocks_for(std::vector<KvCacheSpec> const& groups, SchedulerLimits const& limits,
                                       std::size_t length);

std::size_t kv_bytes(std::vector<KvCacheSpec> const& groups, std::vector<std::size_t> const& blocks);

// [groups] The blocks of max_num_seqs sequences of the greatest length for which `bytes` suffice, at most
// max_model_len; so groups with a span have all they can use, unless others would have less than they. What is left
// goes to the groups that can use it: those without a span. bytes: at least those of kv_blocks_for(…, 0).
std::vector<std::size_t> divide_kv_memory(std::vector<KvCacheSpec> const& groups, SchedulerLimits const& limits,
                                          std::size_t bytes);

}  // namespace expertmesh
