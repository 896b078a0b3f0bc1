// Length-prefixed frames of the control plane: u32 little-endian length, then that many bytes.
#pragma once
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace expertmesh {

constexpr std::size_t kLengthBytes = 4;
constexpr std::size_t kMaxFrameBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxHelloBytes = std::size_t{16} << 10;  // before the peer is known

class FramingError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws FramingError if the payload is longer than kMaxFrameBytes.
std::string encode_frame(std::string_view payload);

// Takes a stream in pieces of any size and gives it back in frames.
class FrameDecoder {
 public:
  explicit FrameDecoder(std::size_t max_frame_bytes) : max_frame_bytes_(max_frame_bytes) {}
  void set_max_frame_bytes(std::size_t bytes) { max_frame_bytes_ = bytes; }

  void feed(std::string_view bytes) { buffer_.append(bytes); }
  // The next whole frame's payload. Throws FramingError if it says to be longer than allowed; the stream is lost then.
  std::optional<std::string> next();

 private:
  std::size_t max_frame_bytes_;
  std::string buffer_;
  std::size_t begin_ = 0;  // of the bytes not yet given back
};

}  // namespace expertmesh
