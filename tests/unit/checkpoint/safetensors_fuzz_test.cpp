// Whatever a header says, opening a file ends in a ModelError or in tensors that lie inside the file.
#include <gtest/gtest.h>

#include <array>
#include <random>

#include "common/checkpoint/safetensors.h"
#include "tests/support/model_copy.h"

namespace expertmesh {
namespace {

constexpr int kMutations = 2000;
constexpr unsigned kSeed = 20241123;

std::string const kHeader =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"F16","shape":[1,0],"data_offsets":[32,32]}})";
std::string const kData(32, '\x11');

// Replaces the number that starts at or after a random place: keeps the JSON valid, so that the checks behind it run.
void change_a_number(std::string& header, std::mt19937& random) {
  static std::array<char const*, 9> const kNumbers = {
      "0", "1", "24", "32", "33", "4294967296", "18446744073709551615", "-1", "1e3"};
  std::size_t const begin = header.find_first_of("0123456789", random() % header.size());
  if (begin == std::string::npos) return;
  std::size_t const end = header.find_first_not_of("0123456789", begin);
  header.replace(begin, end - begin, kNumbers[random() % kNumbers.size()]);
}

// Overwrites, inserts, deletes or doubles a piece.
void change_bytes(std::string& bytes, std::mt19937& random) {
  if (bytes.empty()) return;
  static std::string const kAlphabet = "{}[]\",:0123456789-.eE\\\n\xff tfn_abcFB";
  std::size_t const at = random() % bytes.size();
  switch (random() % 4) {
    case 0:
      bytes[at] = kAlphabet[random() % kAlphabet.size()];
      break;
    case 1:
      bytes.insert(at, 1, kAlphabet[random() % kAlphabet.size()]);
      break;
    case 2:
      bytes.erase(at, 1 + random() % 5);
      break;
    default:
      bytes.insert(at, bytes.substr(at, random() % 60));
  }
}

TEST(SafetensorsFuzz, MutatedFilesAreRefusedOrSound) {
  test::ScratchDir const dir;
  auto const path = dir.path() / "model.safetensors";
  std::mt19937 random(kSeed);
  int refused = 0;
  int sound = 0;
  for (int i = 0; i < kMutations; ++i) {
    std::string header = kHeader;
    for (auto n = 1 + random() % 3; n > 0; --n)
      random() % 2 == 0 ? change_a_number(header, random) : change_bytes(header, random);
    std::string bytes = test::safetensors_bytes(header, kData);
    if (random() % 8 == 0) bytes[random() % 8] = static_cast<char>(random());  // the length
    if (random() % 8 == 0) bytes.resize(random() % (bytes.size() + 4));        // the end
    test::write_file(path, bytes);
    try {
      SafetensorsFile const file(path);
      ++sound;
      std::size_t total = 0;
      for (auto const& [name, entry] : file.entries()) {
        ASSERT_LE(entry.begin, entry.end) << header;
        ASSERT_LE(entry.end, bytes.size()) << header;
        std::size_t elements = 1;
        for (std::size_t n : entry.shape) elements *= n;
        ASSERT_EQ(file.bytes_of(entry).size(), elements * size_of(entry.dtype)) << header;
        for (std::byte b : file.bytes_of(entry)) total += static_cast<std::size_t>(b);
      }
      ASSERT_LE(total, 0xffU * bytes.size());
    } catch (ModelError const& error) {
      ++refused;
      ASSERT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      ASSERT_LT(std::string(error.what()).size(), 1000U);
    }
  }
  // Mutations of every kind get through: renamed tensors are sound, most others are not.
  EXPECT_GT(sound, kMutations / 100);
  EXPECT_GT(refused, kMutations / 2);
}

}  // namespace
}  // namespace expertmesh
