#include "common/protocol/framing.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace expertmesh {
namespace {

TEST(Framing, LengthIsLittleEndian) {
  EXPECT_EQ(encode_frame("abc"), std::string("\3\0\0\0abc", 7));
  EXPECT_EQ(encode_frame(std::string(258, 'x')).substr(0, 4), std::string("\2\1\0\0", 4));
}

TEST(Framing, AnyCutOfTheStreamGivesTheSameFrames) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> payloads;
    std::string stream;
    for (int i = 0; i < 20; ++i) {
      std::string payload(random() % 50, '\0');
      for (char& c : payload) c = static_cast<char>(random());
      stream += encode_frame(payload);
      payloads.push_back(std::move(payload));
    }
    FrameDecoder decoder(49);
    std::vector<std::string> seen;
    for (std::size_t at = 0; at < stream.size();) {
      std::size_t const piece = std::min<std::size_t>(stream.size() - at, 1 + random() % 80);
      decoder.feed(std::string_view(stream).substr(at, piece));
      at += piece;
      while (auto payload = decoder.next()) seen.push_back(*payload);
    }
    EXPECT_EQ(seen, payloads);
  }
}

TEST(Framing, OversizedFramesAreRefusedBeforeTheirBytesCome) {
  FrameDecoder decoder(10);
  decoder.feed(encode_frame("0123456789"));
  EXPECT_EQ(decoder.next(), "0123456789");
  decoder.feed(std::string("\x0b\0\0\0", 4));
  EXPECT_THROW(decoder.next(), FramingError);

  FrameDecoder huge(kMaxFrameBytes);
  huge.feed("\xff\xff\xff\xff");
  EXPECT_THROW(huge.next(), FramingError);
  EXPECT_THROW(encode_frame(std::string(kMaxFrameBytes + 1, 'x')), FramingError);
}

TEST(Framing, GarbageIsFramesOrAnError) {
  std::mt19937 random(4);
  for (int round = 0; round < 2000; ++round) {
    FrameDecoder decoder(100);
    std::string garbage(random() % 60, '\0');
    for (char& c : garbage) c = static_cast<char>(random() % 4 == 0 ? random() : 0);
    decoder.feed(garbage);
    std::size_t bytes = 0;
    try {
      while (auto payload = decoder.next()) bytes += 4 + payload->size();
    } catch (FramingError const&) {
    }
    EXPECT_LE(bytes, garbage.size());
  }
}

}  // namespace
}  // namespace expertmesh
