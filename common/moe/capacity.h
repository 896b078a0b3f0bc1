// Experts that take no more than a fixed number of tokens of a sequence (Fedus et al. 2021, arXiv:2101.03961, section
// 2.2). Pure.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace expertmesh {

// Goes through slots in order of position: a slot whose expert has `capacity` tokens of this sequence already loses it
// (kNoExpert, weight 0). counts: [E] tokens sent to each expert so far; goes on from call to call.
void hold_capacity(std::size_t capacity, std::span<std::uint32_t> experts, std::span<float> weights,
                   std::span<std::uint32_t> counts);

}  // namespace expertmesh
