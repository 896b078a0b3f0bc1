// Any stream of bytes is frames or a FramingError; any frame is a message, which encodes and decodes to itself, or a
// MessageError.
#include "common/protocol/control_messages.h"
#include "common/base/check.h"
#include "common/protocol/framing.h"

namespace {

void decode_again(std::string_view json) {
  using namespace expertmesh::control;
  try {
    std::string const text = encode(decode(json));
    EM_CHECK(encode(decode(text)) == text, text);
  } catch (MessageError const& error) {
    EM_CHECK(*error.what() != '\0', "an error without a word");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace expertmesh;
  std::string_view const bytes(reinterpret_cast<char const*>(data), size);
  decode_again(bytes);
  FrameDecoder decoder(kMaxHelloBytes);
  try {
    for (std::size_t begin = 0; begin < size; begin += 7) {
      decoder.feed(bytes.substr(begin, 7));
      while (auto const frame = decoder.next()) {
        EM_CHECK(frame->size() <= kMaxHelloBytes, frame->size());
        decode_again(*frame);
      }
    }
  } catch (FramingError const&) {
  }
  return 0;
}
