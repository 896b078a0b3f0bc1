// Who holds which experts when nothing is known of their load: an equal contiguous share of every layer's, as
// contiguous_share() of common/moe gives it.
#pragma once
#include <cstddef>
#include <vector>

#include "common/config/expert_spec.h"
#include "common/experts/expert_store.h"

namespace expertmesh {
std::vector<std::size_t> num_experts_of(ExpertModelSpec const& model);  // [layers] E
std::vector<HeldExperts> static_split(std::vector<std::size_t> const& num_experts, std::size_t num_workers);  // [N]
}  // namespace expertmesh
