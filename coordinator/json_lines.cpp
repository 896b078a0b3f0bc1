#include "coordinator/json_lines.h"

#include <iostream>

namespace expertmesh {

void answer_lines(std::istream& in, std::ostream& out, std::function<std::string(std::string const&)> const& answer) {
  for (std::string line; out && std::getline(in, line);) out << answer(line) << std::endl;
}

}  // namespace expertmesh
