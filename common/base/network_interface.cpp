#include "common/base/network_interface.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <memory>

namespace expertmesh {
namespace {

std::string text_of(sockaddr const* address) {
  std::array<char, INET_ADDRSTRLEN> text{};
  auto const* ipv4 = reinterpret_cast<sockaddr_in const*>(address);
  return inet_ntop(AF_INET, &ipv4->sin_addr, text.data(), text.size()) != nullptr ? text.data() : "";
}

template <class Wanted>
void for_each_ipv4(Wanted const& look) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return;
  std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> const owned(list, freeifaddrs);
  for (ifaddrs const* entry = list; entry != nullptr; entry = entry->ifa_next)
    if (entry->ifa_addr != nullptr && entry->ifa_addr->sa_family == AF_INET)
      look(entry->ifa_name, text_of(entry->ifa_addr));
}

}  // namespace

std::optional<std::string> address_of_interface(std::string const& name) {
  std::optional<std::string> found;
  for_each_ipv4([&](std::string const& interface, std::string const& address) {
    if (!found && interface == name) found = address;
  });
  return found;
}

std::optional<std::string> interface_of_address(std::string const& address) {
  std::optional<std::string> found;
  for_each_ipv4([&](std::string const& interface, std::string const& its) {
    if (!found && its == address) found = interface;
  });
  return found;
}

std::optional<std::string> local_address_towards(std::string const& host_and_port) {
  std::size_t const colon = host_and_port.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* list = nullptr;
  if (getaddrinfo(host_and_port.substr(0, colon).c_str(), host_and_port.substr(colon + 1).c_str(), &hints, &list) != 0)
    return std::nullopt;
  std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> const owned(list, freeaddrinfo);
  int const probe = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return std::nullopt;
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  bool const known = connect(probe, list->ai_addr, list->ai_addrlen) == 0 &&
                     getsockname(probe, reinterpret_cast<sockaddr*>(&local), &size) == 0;
  close(probe);
  return known ? std::optional(text_of(reinterpret_cast<sockaddr*>(&local))) : std::nullopt;
}

}  // namespace expertmesh
