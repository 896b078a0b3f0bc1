// One safetensors file: 8 bytes header length (little endian), a JSON header, then the data. Strict: what the header
// says must describe the data exactly.
#pragma once
#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "common/checkpoint/mapped_file.h"
#include "common/tensor/dtype.h"

namespace expertmesh {

struct SafetensorsEntry {
  DType dtype = DType::f32;
  std::vector<std::size_t> shape;
  std::size_t begin = 0;  // bytes from the start of the file
  std::size_t end = 0;
};

class SafetensorsFile {
 public:
  // Maps the file and checks its header: length, JSON, dtypes, shapes against byte ranges, ranges that follow one
  // another without gap or overlap up to the end of the file. Throws ModelError naming file and tensor.
  explicit SafetensorsFile(std::filesystem::path const& path);

  [[nodiscard]] std::map<std::string, SafetensorsEntry, std::less<>> const& entries() const { return entries_; }
  [[nodiscard]] std::span<std::byte const> bytes_of(SafetensorsEntry const& e) const {
    return file_.bytes().subspan(e.begin, e.end - e.begin);
  }
  [[nodiscard]] std::string const& name() const { return name_; }

 private:
  MappedFile file_;
  std::string name_;  // file name, for messages
  std::map<std::string, SafetensorsEntry, std::less<>> entries_;
};

}  // namespace expertmesh
