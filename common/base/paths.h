// Where the program's own files lie, found from the executable's place: bin/ and share/expertmesh/ side by side, in the
// build tree and after an install alike.
#pragma once
#include <filesystem>

namespace expertmesh {
std::filesystem::path executable_dir();  // folder of the running program
std::filesystem::path data_dir();        // <prefix>/share/expertmesh
}  // namespace expertmesh
