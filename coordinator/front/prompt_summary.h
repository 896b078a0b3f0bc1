// What a body of /v1/completions or /v1/chat/completions says of the work in it, for the balancer.
#pragma once
#include <string>

#include "coordinator/front/balancer.h"

namespace expertmesh {

inline constexpr std::size_t kPrefixBlockBytes = 256;  // of a prompt's text, or of its JSON where it is none
inline constexpr std::size_t kMaxPrefixBlocks = 256;

// Tokens: those of the prompt (ids, or a quarter of its text's bytes), and for each answer max_tokens, or a guess. A
// body that is none (which the coordinator refuses) has its length and no prefixes.
PromptSummary summarise(std::string const& body);

}  // namespace expertmesh
