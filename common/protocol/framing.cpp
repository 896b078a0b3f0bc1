#include "common/protocol/framing.h"

#include <cstdint>

namespace expertmesh {

std::string encode_frame(std::string_view payload) {
  if (payload.size() > kMaxFrameBytes)
    throw FramingError("control message of " + std::to_string(payload.size()) + " bytes, at most " +
                       std::to_string(kMaxFrameBytes) + " are allowed");
  std::string frame;
  frame.reserve(kLengthBytes + payload.size());
  for (std::size_t i = 0; i < kLengthBytes; ++i) frame.push_back(static_cast<char>(payload.size() >> (8 * i) & 0xff));
  frame.append(payload);
  return frame;
}

std::optional<std::string> FrameDecoder::next() {
  if (buffer_.size() - begin_ < kLengthBytes) return std::nullopt;
  std::size_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length |= static_cast<std::size_t>(static_cast<unsigned char>(buffer_[begin_ + i])) << (8 * i);
  if (length > max_frame_bytes_)
    throw FramingError("frame of " + std::to_string(length) + " bytes, at most " + std::to_string(max_frame_bytes_) +
                       " are allowed");
  if (buffer_.size() - begin_ - kLengthBytes < length) return std::nullopt;
  std::string payload = buffer_.substr(begin_ + kLengthBytes, length);
  begin_ += kLengthBytes + length;
  if (begin_ == buffer_.size()) {
    buffer_.clear();
    begin_ = 0;
  } else if (begin_ > buffer_.size() / 2) {
    buffer_.erase(0, begin_);
    begin_ = 0;
  }
  return payload;
}

}  // namespace expertmesh
