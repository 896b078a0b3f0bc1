// Which positions a token attends to, besides its own.
#pragma once
#include <cstddef>
#include <cstdint>

namespace expertmesh {

enum class SpanKind : std::uint8_t {
  full,     // all before it
  window,   // the tokens - 1 before it
  chunked,  // those before it from the last multiple of `tokens` on
};

struct AttentionSpan {
  SpanKind kind = SpanKind::full;
  std::size_t tokens = 0;  // at least 1 unless full
  bool operator==(AttentionSpan const&) const = default;

  // The first position that the token at `position` attends to.
  [[nodiscard]] std::uint32_t first(std::uint32_t position) const {
    switch (kind) {
      case SpanKind::full:
        return 0;
      case SpanKind::window:
        return position + std::size_t{1} > tokens ? static_cast<std::uint32_t>(position + 1 - tokens) : 0;
      case SpanKind::chunked:
        return static_cast<std::uint32_t>(position / tokens * tokens);
    }
    return 0;
  }
};

}  // namespace expertmesh
