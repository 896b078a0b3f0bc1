// A folder in memory with one file: for what is read from a folder.
#pragma once
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace expertmesh::test {

inline std::filesystem::path const& fuzz_folder(char const* file, std::uint8_t const* data, std::size_t size) {
  static std::filesystem::path const folder = [] {
    std::filesystem::path const path = "/dev/shm/expertmesh-fuzz-" + std::to_string(getpid());
    std::filesystem::create_directory(path);
    std::atexit([] { std::filesystem::remove_all("/dev/shm/expertmesh-fuzz-" + std::to_string(getpid())); });
    return path;
  }();
  std::ofstream(folder / file, std::ios::binary)
      .write(reinterpret_cast<char const*>(data), static_cast<std::streamsize>(size));
  return folder;
}

}  // namespace expertmesh::test
