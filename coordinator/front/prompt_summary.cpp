#include "coordinator/front/prompt_summary.h"

#include <algorithm>
#include <string_view>

#include "coordinator/http/body_reader.h"
#include "coordinator/text/json_text.h"

namespace expertmesh {
namespace {

constexpr std::size_t kBytesPerToken = 4;
constexpr std::size_t kCompletionTokens = 16;  // the coordinator's default
constexpr std::size_t kChatTokens = 256;       // a guess: an answer may take all that is left of the context
constexpr std::size_t kMostTokens = std::size_t{1} << 24;

// Texts have a quarter of their bytes, ids are one each.
std::size_t count_tokens(ApiJson const& value) {
  if (value.is_string()) return 1 + value.get_ref<std::string const&>().size() / kBytesPerToken;
  if (!value.is_structured()) return value.is_number() ? 1 : 0;
  std::size_t tokens = 0;
  for (auto const& part : value) tokens += count_tokens(part);
  return tokens;
}

std::size_t whole_or(ApiJson const& object, char const* field, std::size_t otherwise) {
  auto const place = object.find(field);
  auto const number = place == object.end() ? std::nullopt : whole_number<std::uint64_t>(*place);
  return number ? static_cast<std::size_t>(std::min<std::uint64_t>(*number, kMostTokens)) : otherwise;
}

// FNV-1a; of the beginnings that end with a whole block.
std::vector<std::uint64_t> prefix_hashes(std::string_view text) {
  std::vector<std::uint64_t> hashes;
  std::uint64_t hash = 0xcbf29ce484222325U;
  std::size_t const blocks = std::min(text.size() / kPrefixBlockBytes, kMaxPrefixBlocks);
  for (std::size_t i = 0; i < blocks * kPrefixBlockBytes; ++i) {
    hash = (hash ^ static_cast<unsigned char>(text[i])) * 0x100000001b3U;
    if ((i + 1) % kPrefixBlockBytes == 0) hashes.push_back(hash);
  }
  return hashes;
}

PromptSummary summary_of(ApiJson const& object) {
  PromptSummary summary;
  std::string text;
  bool chat = false;
  for (char const* field : {"tools", "messages", "prompt"}) {  // in the order in which templates have them
    auto const place = object.find(field);
    if (place == object.end()) continue;
    chat |= field == std::string_view("messages");
    summary.tokens += count_tokens(*place);
    text += place->is_string() ? place->get<std::string>() : dumped(*place);
  }
  std::size_t const answer =
      whole_or(object, "max_completion_tokens", whole_or(object, "max_tokens", chat ? kChatTokens : kCompletionTokens));
  std::size_t const answers = std::max(whole_or(object, "n", 1), whole_or(object, "best_of", 1));
  summary.tokens = std::min(summary.tokens + answer * std::min<std::size_t>(answers, 1024), kMostTokens);
  summary.prefixes = prefix_hashes(text);
  return summary;
}

}  // namespace

PromptSummary summarise(std::string const& body) {
  try {
    return summary_of(parse_body(body));
  } catch (BadRequest const&) {
    return {.tokens = body.size() / kBytesPerToken};
  }
}

}  // namespace expertmesh
