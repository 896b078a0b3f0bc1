// A command that answers standard input line by line.
#pragma once
#include <functional>
#include <iosfwd>
#include <string>

namespace expertmesh {

// Writes answer(line), which holds no newline, and a newline for each line of `in`, flushed one by one, so that whoever
// asks may wait for it. Ends with `in`, or when nothing can be written any more.
void answer_lines(std::istream& in, std::ostream& out, std::function<std::string(std::string const&)> const& answer);

}  // namespace expertmesh
