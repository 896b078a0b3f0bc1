#include "coordinator/http/request_id.h"

#include <algorithm>
#include <random>

namespace expertmesh {

std::string request_id_for(std::string_view sent) {
  constexpr std::size_t kMaxLength = 128;
  if (!sent.empty() && sent.size() <= kMaxLength &&
      std::ranges::all_of(sent, [](char c) { return c > ' ' && c < 127; }))
    return std::string(sent);
  static thread_local std::mt19937_64 engine{std::random_device{}()};
  std::string id;
  for (int word = 0; word < 2; ++word)
    for (std::uint64_t bits = engine(), digit = 0; digit < 16; ++digit, bits >>= 4) id += "0123456789abcdef"[bits & 15];
  return id;
}

}  // namespace expertmesh
