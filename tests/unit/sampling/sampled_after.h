// A sequence of so many tokens, none of which matters.
#pragma once
#include "coordinator/sampling/sampler.h"

namespace expertmesh::test {

inline SampledAfter after(std::size_t position) {
  static std::vector<TokenId> const tokens(5000, 0);
  return {.tokens = std::span(tokens).first(position), .prompt_length = position};
}

}  // namespace expertmesh::test
