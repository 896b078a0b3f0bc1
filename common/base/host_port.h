// "HOST:PORT", as users write where something is.
#pragma once
#include <optional>
#include <string>

namespace expertmesh {

struct HostPort {
  std::string host;  // not empty; of "[::1]:80" without the brackets
  std::string port;  // 1 to 65535
};

// None: it is no such.
std::optional<HostPort> split_host_port(std::string const& text);

}  // namespace expertmesh
