// Which of this host's network interfaces has which address.
#pragma once
#include <optional>
#include <string>

namespace expertmesh {

std::optional<std::string> address_of_interface(std::string const& name);     // "eth0" -> its first IPv4 address
std::optional<std::string> interface_of_address(std::string const& address);  // the other way
// The address that packets to HOST:PORT would leave from; nothing is sent. None if there is no way there.
std::optional<std::string> local_address_towards(std::string const& host_and_port);

}  // namespace expertmesh
