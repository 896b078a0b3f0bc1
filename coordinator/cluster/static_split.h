// Who holds which experts when nothing is known of their load: of every layer's E experts, worker w of N (w = 0…N-1)
// holds [E*w/N, E*(w+1)/N).
#pragma once
#include <cstddef>
#include <vector>

#include "common/config/expert_spec.h"
#include "common/experts/expert_store.h"

namespace expertmesh {
std::vector<HeldExperts> static_split(ExpertModelSpec const& model, std::size_t num_workers);  // [N]
}  // namespace expertmesh
