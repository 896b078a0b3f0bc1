#include "common/base/host_port.h"

#include <algorithm>

namespace expertmesh {

std::optional<HostPort> split_host_port(std::string const& text) {
  std::size_t const colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return std::nullopt;
  std::string host = text.substr(0, colon);
  std::string port = text.substr(colon + 1);
  bool const digits =
      !port.empty() && port.size() <= 5 && std::ranges::all_of(port, [](char c) { return c >= '0' && c <= '9'; });
  if (!digits || std::stoul(port) == 0 || std::stoul(port) > 65535) return std::nullopt;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  // A URL, a second port, two addresses: never a host, and looked for in vain.
  bool const bracketed = text.front() == '[';
  if (host.find_first_of(bracketed ? "/[], \t" : "/[],: \t") != std::string::npos) return std::nullopt;
  return HostPort{.host = std::move(host), .port = std::move(port)};
}

}  // namespace expertmesh
