// A file mapped read-only for as long as the object lives.
#pragma once
#include <cstddef>
#include <filesystem>
#include <span>

namespace expertmesh {

class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path const& path);  // throws FileError
  ~MappedFile();
  MappedFile(MappedFile const&) = delete;
  MappedFile& operator=(MappedFile const&) = delete;
  [[nodiscard]] std::span<std::byte const> bytes() const { return {static_cast<std::byte const*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace expertmesh
