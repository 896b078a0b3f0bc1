// Reads golden.safetensors (fp32 and int64 tensors) without the product's own reader, so that both are checked.
#pragma once
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace expertmesh::test {

class GoldenFile {
 public:
  explicit GoldenFile(std::filesystem::path const& path) {
    std::ifstream in(path, std::ios::binary);
    std::uint64_t header_bytes = 0;
    in.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
    std::string header(header_bytes, '\0');
    in.read(header.data(), static_cast<std::streamsize>(header_bytes));
    data_.assign(std::istreambuf_iterator<char>(in), {});
    if (!in.eof() && in.fail()) throw std::runtime_error("cannot read " + path.string());
    header_ = nlohmann::json::parse(header);
  }
  [[nodiscard]] bool has(std::string const& name) const { return header_.contains(name); }
  [[nodiscard]] std::vector<std::size_t> shape(std::string const& name) const { return header_.at(name).at("shape"); }
  [[nodiscard]] std::vector<float> floats(std::string const& name) const { return read<float>(name, "F32"); }
  [[nodiscard]] std::vector<std::int64_t> ints(std::string const& name) const {
    return read<std::int64_t>(name, "I64");
  }

 private:
  template <class T>
  [[nodiscard]] std::vector<T> read(std::string const& name, char const* dtype) const {
    auto const& entry = header_.at(name);
    if (entry.at("dtype") != dtype) throw std::runtime_error(name + " is not " + dtype);
    std::size_t const begin = entry.at("data_offsets")[0];
    std::size_t const end = entry.at("data_offsets")[1];
    std::vector<T> values((end - begin) / sizeof(T));
    std::memcpy(values.data(), data_.data() + begin, end - begin);
    return values;
  }
  nlohmann::json header_;
  std::vector<char> data_;
};

}  // namespace expertmesh::test
