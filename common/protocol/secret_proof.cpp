#include "common/protocol/secret_proof.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <span>

#include "common/base/check.h"
#include "common/base/error.h"
#include "common/base/hexadecimal.h"

namespace expertmesh {
std::string read_secret(std::filesystem::path const& path) {
  std::ifstream file(path);
  std::string token;
  if (!(file >> token)) throw FileError("read", errno, "no secret there", path.string());
  auto const permissions = std::filesystem::status(path).permissions();
  using std::filesystem::perms;
  if ((permissions & (perms::group_all | perms::others_all)) != perms::none)
    throw FileError("read", EACCES, "others may read the secret: chmod 600", path.string());
  return token;
}

std::string random_nonce() {
  std::array<unsigned char, 32> bytes{};
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    throw FileError("getrandom", errno, std::strerror(errno), "");
  return hexadecimal(bytes);
}

std::string prove(std::string_view secret, Prover prover, std::string_view coordinator_nonce,
                  std::string_view worker_nonce, std::string_view bound) {
  std::string text = prover == Prover::worker ? "expertmesh worker" : "expertmesh coordinator";
  for (std::string_view const part : {coordinator_nonce, worker_nonce, bound})
    text.append("|").append(std::to_string(part.size())).append(":").append(part);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  auto const* const done = HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
                                reinterpret_cast<unsigned char const*>(text.data()), text.size(), digest.data(), &size);
  EM_CHECK(done != nullptr, "HMAC-SHA-256 is not there");
  return hexadecimal(std::span(digest).first(size));
}

bool same_proof(std::string_view seen, std::string_view expected) {
  return seen.size() == expected.size() && CRYPTO_memcmp(seen.data(), expected.data(), expected.size()) == 0;
}

}  // namespace expertmesh
