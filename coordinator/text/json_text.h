// JSON as one line of ASCII; bytes that are no UTF-8 become U+FFFD.
#pragma once
#include <string>

namespace expertmesh {

template <class Json>
std::string dumped(Json const& json) {
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

}  // namespace expertmesh
