// Llama's calls without marks, as parts of a format that knows more. Private to this folder.
#pragma once
#include "coordinator/text/answers/call_format.h"

namespace expertmesh {

// {"name": …, "parameters": {…}}
std::vector<ToolCall> read_bare_json(CallReader& in, ToolSet const& tools);
// [NAME(KEY=VALUE, …), …], values as Python writes them
std::vector<ToolCall> read_pythonic(CallReader& in, ToolSet const& tools);

}  // namespace expertmesh
