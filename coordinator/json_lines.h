// Programs that answer JSON lines in a pipe: one line out for each line in.
#pragma once
#include <functional>
#include <iosfwd>
#include <nlohmann/json_fwd.hpp>
#include <stdexcept>
#include <string>

namespace expertmesh {

// A line that cannot be answered; what() names the field.
class BadLine : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Answers each line of `in` with one line of `out`, flushed at once. A line that is no JSON object, or for which
// `answer` throws, is answered with {"error": what}, and the next one is read. All of `out` is ASCII.
void answer_json_lines(std::istream& in, std::ostream& out,
                       std::function<nlohmann::json(nlohmann::json const& line)> const& answer);

// The same with lines as they are, for who reads JSON elsewhere.
void answer_lines(std::istream& in, std::ostream& out,
                  std::function<nlohmann::json(std::string const& line)> const& answer);

// Fields of a line. Throw BadLine where one is missing, of another type, or, for the last one, not among `known`.
std::string text_field(nlohmann::json const& line, char const* name);
bool flag_field(nlohmann::json const& line, char const* name, bool fallback);
void check_fields(nlohmann::json const& line, std::initializer_list<char const*> known);

}  // namespace expertmesh
