// The id under which one HTTP request is logged and answered (x-request-id).
#pragma once
#include <string>
#include <string_view>

namespace expertmesh {
// What the client sent if it is 1 to 128 visible ASCII characters, else 32 random hexadecimal digits.
std::string request_id_for(std::string_view sent);
}  // namespace expertmesh
