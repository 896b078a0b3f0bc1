#include "coordinator/scheduler/kv_cache_spec.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

std::string_view name_of(KvCacheKind kind) {
  switch (kind) {
    case KvCacheKind::full:
      return "full";
    case KvCacheKind::window:
      return "window";
    case KvCacheKind::chunked:
      return "chunked";
    case KvCacheKind::cross:
      return "cross";
  }
  EM_CHECK(false, "KvCacheKind " << static_cast<int>(kind));
}

std::size_t KvCacheSpec::first_needed(std::size_t position) const {
  if (kind == KvCacheKind::window) return position + 1 - std::min(span_tokens, position + 1);
  if (kind == KvCacheKind::chunked) return position - position % span_tokens;
  return 0;
}

std::size_t KvCacheSpec::most_blocks(std::size_t tokens, std::size_t step_tokens) const {
  std::size_t const all = (tokens + block_tokens - 1) / block_tokens;
  if (!has_span()) return all;
  // n positions in a row touch the most blocks when the first of them is the last of its block.
  std::size_t const in_reach = span_tokens - 1 + step_tokens;
  return std::min(all, 1 + (in_reach - 1 + block_tokens - 1) / block_tokens);
}

}  // namespace expertmesh
