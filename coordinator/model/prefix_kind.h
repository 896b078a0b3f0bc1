// Which sequences have the same keys and values for the same first tokens.
#pragma once
#include <cstddef>
#include <cstdint>

#include "coordinator/model/model_spec.h"

namespace expertmesh {

// Sequences with prompts of this many tokens that have the same number do. It is 0 but for prompts beyond the original
// length of a RoPE kind whose angles depend on the prompt's length (RopeSpec::depends_on_length): then "dynamic" has a
// number for each length, and "longrope" one for all.
std::uint32_t prefix_kind(ModelSpec const& spec, std::size_t prompt_length);

}  // namespace expertmesh
