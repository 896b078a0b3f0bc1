#include "common/checkpoint/fingerprint.h"

#include <openssl/evp.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <span>

#include "common/base/check.h"
#include "common/base/error.h"
#include "common/base/hexadecimal.h"
#include "common/checkpoint/weight_source.h"

namespace expertmesh {
namespace {

class Sha256 {
 public:
  Sha256() { EM_CHECK(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1, "EVP_DigestInit_ex"); }
  void add(std::string_view bytes) {
    EM_CHECK(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1, "EVP_DigestUpdate");
  }
  std::string digits() {
    std::array<unsigned char, 32> hash{};
    EM_CHECK(EVP_DigestFinal_ex(context_.get(), hash.data(), nullptr) == 1, "EVP_DigestFinal_ex");
    return hexadecimal(hash);
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_{EVP_MD_CTX_new()};
};

std::string first_bytes(std::filesystem::path const& path, std::uint64_t count) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes(count, '\0');
  if (!file.read(bytes.data(), static_cast<std::streamsize>(count)))
    throw FileError("read", errno, std::strerror(errno), path.string());
  return bytes;
}

std::uint64_t size_of_file(std::filesystem::path const& path) {
  std::error_code error;
  auto const size = std::filesystem::file_size(path, error);
  if (error) throw FileError("stat", error.value(), error.message(), path.string());
  return size;
}

// When it was last written.
std::int64_t time_of_file(std::filesystem::path const& path) {
  std::error_code error;
  auto const time = std::filesystem::last_write_time(path, error);
  if (error) throw FileError("stat", error.value(), error.message(), path.string());
  return time.time_since_epoch().count();
}

}  // namespace

Fingerprint fingerprint_of(std::filesystem::path const& model_dir) {
  Sha256 config;
  Sha256 tensors;
  Sha256 sizes;
  Sha256 times;
  std::filesystem::path const config_file = model_dir / "config.json";
  config.add(first_bytes(config_file, size_of_file(config_file)));
  for (auto const& path : checkpoint_files(model_dir)) {  // in ascending order
    std::uint64_t const size = size_of_file(path);
    std::string const name = path.filename().string() + '\0';
    sizes.add(name + std::to_string(size) + '\0');
    times.add(name + std::to_string(time_of_file(path)) + '\0');
    // A safetensors file: u64 little-endian, that many bytes of header, data.
    std::string const prefix = first_bytes(path, 8);
    std::uint64_t header = 0;
    for (std::size_t i = 8; i-- > 0;) header = header << 8 | static_cast<unsigned char>(prefix[i]);
    if (header > size - 8) throw ModelError(path.filename().string() + ": the header is longer than the file");
    tensors.add(name);
    tensors.add(first_bytes(path, 8 + header));
  }
  return {.config = config.digits(), .tensors = tensors.digits(), .sizes = sizes.digits(), .times = times.digits()};
}

std::string difference(Fingerprint const& ours, Fingerprint const& theirs) {
  if (ours.config != theirs.config) return "config.json";
  if (ours.sizes != theirs.sizes) return "weight files (their names or sizes)";
  if (ours.tensors != theirs.tensors) return "tensor index (names, types, shapes or places)";
  return {};
}

}  // namespace expertmesh
