#include "common/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/base/error.h"

namespace expertmesh {

MappedFile::MappedFile(std::filesystem::path const& path) {
  auto const fail = [&](char const* call) -> FileError {
    int const code = errno;
    return {call, code, std::strerror(code), path.string()};
  };
  int const fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO without a writer must not block
  if (fd < 0) throw fail("open");
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    auto const error = fail("fstat");
    close(fd);
    throw error;
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    throw FileError("open", EINVAL, "not a regular file", path.string());
  }
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ > 0) {
    data_ = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      auto const error = fail("mmap");
      close(fd);
      throw error;
    }
  }
  close(fd);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

}  // namespace expertmesh
