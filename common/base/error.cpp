#include "common/base/error.h"

namespace expertmesh {

OutsideError::OutsideError(std::string call_name, int error_code, std::string const& text, std::string peer_name)
    : std::runtime_error(call_name + ": " + text + " (" + std::to_string(error_code) + ")" +
                         (peer_name.empty() ? "" : " [" + peer_name + "]")),
      call(std::move(call_name)),
      code(error_code),
      peer(std::move(peer_name)) {}

}  // namespace expertmesh
