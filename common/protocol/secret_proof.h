// Proof that an end of a control connection knows the cluster's secret, without saying it: HMAC-SHA-256 (RFC 2104) over
// who proves and both ends' nonces, so that a proof fits one connection and one direction.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

namespace expertmesh {

enum class Prover : bool { worker, coordinator };

// The first word of a file that only its owner may read. Throws FileError.
std::string read_secret(std::filesystem::path const& path);

std::string random_nonce();  // 32 bytes as hexadecimal digits

// bound: whatever else the proof vouches for.
std::string prove(std::string_view secret, Prover prover, std::string_view coordinator_nonce,
                  std::string_view worker_nonce, std::string_view bound);
// In a time that does not depend on how much of it is right.
bool same_proof(std::string_view seen, std::string_view expected);

}  // namespace expertmesh
