// Python's way to write values -> JSON. Private to this folder.
#pragma once
#include <string>
#include <string_view>

#include "coordinator/text/answers/call_reader.h"

namespace expertmesh {

// A string, number, True, False, None (or JSON's names), list, tuple or dict with strings for keys, as JSON text. Fails
// the reader for anything else. Strings in Python's escapes; a `\` before an unknown character stays.
std::string read_python_value(CallReader& in);

// The text as a JSON string.
std::string json_string(std::string_view text);

}  // namespace expertmesh
