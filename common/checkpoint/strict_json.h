// JSON files of a model directory: a parse that refuses what a plain one lets pass, and texts from files made fit for a
// one-line message.
#pragma once
#include <cstddef>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace expertmesh {

constexpr std::size_t kMaxJsonBytes = std::size_t{100} << 20;  // the safetensors format's own limit of a header

// Throws ModelError "<what>: …" for invalid JSON, a top level other than an object, nesting deeper than any model
// file's, and a key given twice in one object (which one holds?).
nlohmann::json parse_strict_json(std::string_view text, std::string const& what);

// The JSON object a regular file holds. Throws ModelError naming the file.
nlohmann::json read_strict_json(std::filesystem::path const& file);

// Text of unknown origin on one line of bounded length: control characters become '?', a long text is cut.
std::string one_line(std::string_view text);
std::string in_quotes(std::string_view text);  // 'text', on one line

}  // namespace expertmesh
