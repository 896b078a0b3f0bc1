#include "coordinator/json_lines.h"

#include <algorithm>
#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>

#include "coordinator/text/json_text.h"

namespace expertmesh {

using Json = nlohmann::json;

void answer_lines(std::istream& in, std::ostream& out, std::function<Json(std::string const& line)> const& answer) {
  for (std::string line; std::getline(in, line);) {
    Json reply;
    try {
      reply = answer(line);
    } catch (std::exception const& error) {
      reply = Json{{"error", error.what()}};
    }
    // Escaped to ASCII: no reader can take U+2028 or U+0085 for the end of a line.
    out << dumped(reply) << '\n' << std::flush;
    if (!out) return;
  }
}

void answer_json_lines(std::istream& in, std::ostream& out, std::function<Json(Json const& line)> const& answer) {
  answer_lines(in, out, [&](std::string const& line) {
    Json const request = Json::parse(line);
    if (!request.is_object()) throw BadLine("not a JSON object");
    return answer(request);
  });
}

std::string text_field(Json const& line, char const* name) {
  if (!line.contains(name)) throw BadLine("no field '" + std::string(name) + "'");
  if (!line[name].is_string()) throw BadLine("field '" + std::string(name) + "' is not a string");
  return line[name].get<std::string>();
}

bool flag_field(Json const& line, char const* name, bool fallback) {
  if (!line.contains(name)) return fallback;
  if (!line[name].is_boolean()) throw BadLine("field '" + std::string(name) + "' is neither true nor false");
  return line[name].get<bool>();
}

void check_fields(Json const& line, std::initializer_list<char const*> known) {
  for (auto const& [name, value] : line.items())
    if (std::ranges::find(known, name) == known.end()) throw BadLine("unknown field '" + name + "'");
}

}  // namespace expertmesh
