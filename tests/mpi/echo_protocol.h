// What the tests' peers understand, over any transport: a header and a payload; the answer is the payload, each byte
// changed.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "common/base/check.h"
#include "common/transport/transport.h"

namespace expertmesh::echo {

enum class Command : std::uint32_t {
  answer,
  hold,             // keep the answer back until `release`
  release,          // send what is held, last one first, then this answer
  answer_and_exit,  // and leave once the answer has gone out
  flood,            // answer, then send messages nobody waits for, for ever
};

struct Header {
  std::uint32_t answer_tag = 0;
  Command command = Command::answer;
};

constexpr MessageTag kRequestTag{0};
constexpr std::size_t kMaxPayload = std::size_t{3} << 20;

inline std::byte changed(std::byte b) {
  return b ^ std::byte{0x5a};
}

inline std::vector<std::byte> make_request(Header header, std::span<std::byte const> payload) {
  std::vector<std::byte> request(sizeof header + payload.size());
  std::memcpy(request.data(), &header, sizeof header);
  std::ranges::copy(payload, request.begin() + sizeof header);
  return request;
}

inline Header header_of(std::span<std::byte const> request) {
  Header header;
  EM_CHECK(request.size() >= sizeof header, "request of " << request.size() << " bytes");
  std::memcpy(&header, request.data(), sizeof header);
  return header;
}

// Writes the answer and returns its length.
inline std::size_t answer(std::span<std::byte const> request, std::span<std::byte> reply) {
  auto const payload = request.subspan(sizeof(Header));
  EM_CHECK(payload.size() <= reply.size(), "answer of " << payload.size() << " bytes into " << reply.size());
  std::ranges::transform(payload, reply.begin(), changed);
  return payload.size();
}

}  // namespace expertmesh::echo
