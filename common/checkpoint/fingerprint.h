// What two hosts compare to know that they have the same checkpoint, without reading its weights.
#pragma once
#include <filesystem>
#include <string>

namespace expertmesh {

// SHA-256 as hexadecimal digits.
struct Fingerprint {
  std::string config;   // of config.json
  std::string tensors;  // of every weight file's header: names, types, shapes and places of its tensors
  std::string sizes;    // of the weight files' names and sizes
  std::string times{};  // of the weight files' names and the times they were last written: of one host alone

  [[nodiscard]] bool empty() const { return config.empty(); }
  friend bool operator==(Fingerprint const&, Fingerprint const&) = default;
};

// Throws ModelError or FileError.
Fingerprint fingerprint_of(std::filesystem::path const& model_dir);

// What differs, in words for a message; empty: nothing. Of the times nothing is said.
std::string difference(Fingerprint const& ours, Fingerprint const& theirs);

}  // namespace expertmesh
