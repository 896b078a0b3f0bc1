#include "common/checkpoint/safetensors.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/base/error.h"
#include "common/checkpoint/strict_json.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kLengthBytes = 8;

std::size_t unsigned_number(Json const& value, std::string const& what) {
  if (!value.is_number_unsigned()) throw ModelError(what + " is not a whole number");
  return value.get<std::size_t>();
}

SafetensorsEntry parse_entry(std::string const& file, std::string const& name, Json const& json, std::size_t data_begin,
                             std::size_t file_bytes) {
  std::string const where = file + ": tensor " + in_quotes(name) + ": ";
  if (!json.is_object()) throw ModelError(where + "its entry is not an object");
  for (char const* field : {"dtype", "shape", "data_offsets"})
    if (!json.contains(field)) throw ModelError(where + "no '" + field + "'");
  SafetensorsEntry entry;
  auto const dtype =
      json["dtype"].is_string() ? dtype_from_safetensors(json["dtype"].get<std::string>()) : std::nullopt;
  if (!dtype) throw ModelError(where + "unknown dtype " + one_line(json["dtype"].dump()));
  entry.dtype = *dtype;
  if (!json["shape"].is_array()) throw ModelError(where + "'shape' is not a list");
  std::size_t bytes = size_of(entry.dtype);
  for (auto const& dimension : json["shape"]) {
    std::size_t const n = unsigned_number(dimension, where + "a dimension");
    if (n != 0 && bytes > std::numeric_limits<std::size_t>::max() / n)
      throw ModelError(where + "its shape is too large");
    bytes *= n;
    entry.shape.push_back(n);
  }
  auto const& offsets = json["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) throw ModelError(where + "'data_offsets' is not a pair");
  std::size_t const begin = unsigned_number(offsets[0], where + "an offset");
  std::size_t const end = unsigned_number(offsets[1], where + "an offset");
  if (begin > end) throw ModelError(where + "its data ends before it begins");
  if (end > file_bytes - data_begin)
    throw ModelError(where + "its data ends at byte " + std::to_string(end) + " of " +
                     std::to_string(file_bytes - data_begin) + ": the file is truncated");
  if (end - begin != bytes)
    throw ModelError(where + "its shape needs " + std::to_string(bytes) + " bytes, its range holds " +
                     std::to_string(end - begin));
  entry.begin = data_begin + begin;
  entry.end = data_begin + end;
  return entry;
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::filesystem::path const& path) : file_(path), name_(path.filename().string()) {
  auto const bytes = file_.bytes();
  if (bytes.size() < kLengthBytes)
    throw ModelError(name_ + ": " + std::to_string(bytes.size()) +
                     " bytes are too few for a header: the file is truncated");
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) header_bytes |= static_cast<std::uint64_t>(bytes[i]) << (8 * i);
  if (header_bytes > kMaxJsonBytes)
    throw ModelError(name_ + ": a header of " + std::to_string(header_bytes) + " bytes is oversized (at most " +
                     std::to_string(kMaxJsonBytes) + ")");
  if (header_bytes > bytes.size() - kLengthBytes)
    throw ModelError(name_ + ": the header needs " + std::to_string(header_bytes) + " bytes, " +
                     std::to_string(bytes.size() - kLengthBytes) + " are there: the file is truncated");

  auto const* text = reinterpret_cast<char const*>(bytes.data()) + kLengthBytes;
  Json const header = parse_strict_json({text, header_bytes}, name_ + ": header");
  std::size_t const data_begin = kLengthBytes + header_bytes;
  for (auto const& [tensor, entry] : header.items())
    if (tensor != "__metadata__") entries_.emplace(tensor, parse_entry(name_, tensor, entry, data_begin, bytes.size()));

  std::vector<std::pair<SafetensorsEntry const*, std::string const*>> order;
  for (auto const& [tensor, entry] : entries_) order.emplace_back(&entry, &tensor);
  std::ranges::sort(order, [](auto const& a, auto const& b) {
    return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
  });
  std::size_t reached = data_begin;
  for (auto const& [entry, tensor] : order) {
    if (entry->begin < reached)
      throw ModelError(name_ + ": tensor " + in_quotes(*tensor) + ": its data overlaps another tensor's");
    if (entry->begin > reached)
      throw ModelError(name_ + ": tensor " + in_quotes(*tensor) + ": " + std::to_string(entry->begin - reached) +
                       " bytes before its data belong to no tensor");
    reached = entry->end;
  }
  if (reached != bytes.size())
    throw ModelError(name_ + ": " + std::to_string(bytes.size() - reached) +
                     " bytes after the last tensor belong to no tensor");
}

}  // namespace expertmesh
