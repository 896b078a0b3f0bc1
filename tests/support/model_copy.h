// A scratch copy of a golden checkpoint that a test may spoil.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkdtemp is POSIX

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/error.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh::test {

inline std::string read_file(std::filesystem::path const& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_file(std::filesystem::path const& path, std::string const& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// A folder of its own, gone with the object.
class ScratchDir {
 public:
  ScratchDir() {
    std::string name = (std::filesystem::temp_directory_path() / "expertmesh-test-XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("mkdtemp " + name);
    path_ = name;
  }
  ~ScratchDir() { std::filesystem::remove_all(path_); }
  ScratchDir(ScratchDir const&) = delete;
  ScratchDir& operator=(ScratchDir const&) = delete;
  [[nodiscard]] std::filesystem::path const& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// A safetensors file: header length, header, data.
inline std::string safetensors_bytes(std::string const& header, std::string const& data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(static_cast<std::uint64_t>(header.size()) >> (8 * i) & 0xff);
  return bytes + header + data;
}

class ModelCopy : public ScratchDir {
 public:
  explicit ModelCopy(std::string const& golden_case) {
    for (auto const& entry : std::filesystem::directory_iterator(source(golden_case)))
      if (!entry.path().filename().string().starts_with("golden"))
        std::filesystem::copy_file(entry.path(), path() / entry.path().filename());
  }
  static std::filesystem::path source(std::string const& golden_case) { return goldens_dir() / "models" / golden_case; }

  void edit_json(std::string const& file, std::function<void(nlohmann::json&)> const& edit) const {
    auto json = nlohmann::json::parse(read_file(path() / file));
    edit(json);
    write_file(path() / file, json.dump());
  }
  void edit_config(std::function<void(nlohmann::json&)> const& edit) const { edit_json("config.json", edit); }

  // Changes a safetensors file: its header, and its data where the test asks for it.
  void edit_tensors(std::string const& file, std::function<void(nlohmann::json&, std::string&)> const& edit) const {
    std::string const bytes = read_file(path() / file);
    std::uint64_t header_bytes = 0;
    for (std::size_t i = 0; i < 8; ++i)
      header_bytes |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
    auto header = nlohmann::json::parse(bytes.substr(8, header_bytes));
    std::string data = bytes.substr(8 + header_bytes);
    edit(header, data);
    write_file(path() / file, safetensors_bytes(header.dump(), data));
  }

  // Fills one tensor of model.safetensors with zero bytes.
  void zero_tensor(std::string const& name) const {
    edit_tensors("model.safetensors", [&](nlohmann::json& header, std::string& data) {
      auto const& range = header.at(name).at("data_offsets");
      std::size_t const begin = range[0];
      std::size_t const end = range[1];
      data.replace(begin, end - begin, end - begin, '\0');
    });
  }
};

// The message of the ModelError that `action` has to throw. It must be one line.
inline std::string refusal(std::function<void()> const& action) {
  try {
    action();
  } catch (ModelError const& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return {};
}

// Expects every one of `words` in `text`.
inline void expect_words(std::string const& text, std::vector<std::string> const& words) {
  for (auto const& word : words) EXPECT_NE(text.find(word), std::string::npos) << "no \"" << word << "\" in: " << text;
}

}  // namespace expertmesh::test
