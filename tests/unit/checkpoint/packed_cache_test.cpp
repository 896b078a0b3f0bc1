// What is kept is read back, by whoever comes later; what is not as it was kept is told, goes, and is kept anew.
#include "common/checkpoint/packed_cache.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>

#include "common/base/checksum.h"
#include "tests/support/model_copy.h"

namespace expertmesh {
namespace {

using Bytes = std::vector<std::byte>;
namespace fs = std::filesystem;

Bytes made_up(std::size_t count, unsigned seed) {
  Bytes bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>((i * 31 + seed) >> (i % 3));
  return bytes;
}

// One of several parts, of them an empty one; large enough for several pieces.
struct Parts {
  std::shared_ptr<std::vector<Bytes>> owner = std::make_shared<std::vector<Bytes>>(
      std::vector<Bytes>{made_up(300'001, 1), {}, made_up(5000, 2), made_up(64, 3)});

  [[nodiscard]] std::vector<std::size_t> sizes() const {
    std::vector<std::size_t> sizes;
    for (Bytes const& part : *owner) sizes.push_back(part.size());
    return sizes;
  }
  [[nodiscard]] std::vector<std::span<std::byte const>> spans() const { return {owner->begin(), owner->end()}; }
  [[nodiscard]] std::uint64_t checksum() const {
    std::uint64_t sum = 0;
    for (Bytes const& part : *owner) sum = checksum_in_pieces(part, sum);
    return sum;
  }
};

PackedCache::Entry const kEntry{.name = "layer-1-expert-2", .key = "up 3 down 4"};

class PackedCacheTest : public ::testing::Test {
 protected:
  [[nodiscard]] fs::path folder() const { return dir_.path() / "made" / "of-it"; }
  [[nodiscard]] fs::path file() const { return folder() / kEntry.name; }
  void keep(std::string const& identity = "checkpoint A") const {
    PackedCache cache(folder(), identity);
    cache.keep(kEntry, parts_.owner, parts_.spans());
    cache.wait_until_written();
  }
  // What was kept, in the bits of the parts.
  void expect_read(PackedCache const& cache) const {
    auto const kept = cache.read(kEntry, parts_.sizes());
    ASSERT_TRUE(kept);
    EXPECT_EQ(kept->checksum, parts_.checksum());
    EXPECT_TRUE(std::ranges::equal(kept->parts, *parts_.owner,
                                   [](auto const& a, auto const& b) { return std::ranges::equal(a, b); }));
    for (auto const& part : kept->parts) EXPECT_EQ(reinterpret_cast<std::uintptr_t>(part.data()) % 64, 0U);
  }
  // Refused, gone, and good again once it is kept anew.
  void expect_rebuilt(std::string const& identity = "checkpoint A") const {
    {
      PackedCache const cache(folder(), identity);
      EXPECT_FALSE(cache.read(kEntry, parts_.sizes()));
      EXPECT_EQ(cache.bytes_read(), 0U);
      EXPECT_FALSE(fs::exists(file()));
    }
    keep(identity);
    expect_read(PackedCache(folder(), identity));
  }
  [[nodiscard]] std::size_t num_files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder()), {}));
  }

  test::ScratchDir dir_;
  Parts parts_;
};

TEST_F(PackedCacheTest, WhatWasKeptIsReadByWhoeverComesLater) {
  {
    PackedCache const cache(folder(), "checkpoint A");
    EXPECT_FALSE(cache.read(kEntry, parts_.sizes()));
  }
  keep();
  PackedCache const cache(folder(), "checkpoint A");
  expect_read(cache);
  EXPECT_EQ(cache.bytes_read(), fs::file_size(file()));
  EXPECT_FALSE(cache.read({.name = "layer-1-expert-3", .key = kEntry.key}, parts_.sizes()));
  EXPECT_EQ(num_files(), 1U) << "nothing temporary is left";
}

TEST_F(PackedCacheTest, OneThatIsCutOffAnywhereIsKeptAnew) {
  for (std::size_t size : {0U, 5U, 100U, 4096U, 5000U, 300'000U}) {
    keep();
    fs::resize_file(file(), size);
    expect_rebuilt();
  }
  keep();
  fs::resize_file(file(), fs::file_size(file()) - 1);
  expect_rebuilt();
  fs::resize_file(file(), fs::file_size(file()) + 1);
  expect_rebuilt();
}

TEST_F(PackedCacheTest, OneWithAWrongByteAnywhereIsKeptAnew) {
  keep();
  std::string const good = test::read_file(file());
  for (std::size_t at : {std::size_t{0}, std::size_t{9}, std::size_t{20}, std::size_t{60}, std::size_t{4095},
                         std::size_t{4096}, std::size_t{270'000}, good.size() - 4096}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    test::write_file(file(), bad);
    expect_rebuilt();
  }
}

TEST_F(PackedCacheTest, OneOfAnotherCheckpointIsKeptAnew) {
  keep("checkpoint A");
  expect_rebuilt("checkpoint B");
  EXPECT_FALSE(PackedCache(folder(), "checkpoint A").read(kEntry, parts_.sizes()));
}

TEST_F(PackedCacheTest, OneThatWasPackedInAnotherWayIsNotRead) {
  keep();
  EXPECT_FALSE(PackedCache(folder(), "checkpoint A").read({.name = kEntry.name, .key = "up 3 down 5"}, parts_.sizes()));
  keep();
  auto sizes = parts_.sizes();
  std::swap(sizes[0], sizes[2]);
  EXPECT_FALSE(PackedCache(folder(), "checkpoint A").read(kEntry, sizes));
}

TEST_F(PackedCacheTest, WhatSomebodyElsePutThereIsNotRead) {
  fs::create_directories(folder());
  test::write_file(file(), std::string(400'000, 'x'));
  expect_rebuilt();
  fs::remove(file());
  fs::create_directory(file());
  expect_rebuilt();
}

// Of a process that was killed while it wrote.
TEST_F(PackedCacheTest, WhatIsHalfWrittenIsNeverReadAndGoesWhenItIsOld) {
  keep();
  fs::path const old_part = file().string() + ".17-0.part";
  fs::path const new_part = file().string() + ".18-0.part";
  fs::copy_file(file(), old_part);
  fs::copy_file(file(), new_part);
  fs::remove(file());
  fs::last_write_time(old_part, fs::file_time_type::clock::now() - std::chrono::hours(2));
  PackedCache const cache(folder(), "checkpoint A");
  EXPECT_FALSE(cache.read(kEntry, parts_.sizes()));
  EXPECT_FALSE(fs::exists(old_part));
  EXPECT_TRUE(fs::exists(new_part)) << "somebody may be writing it";
}

TEST_F(PackedCacheTest, WhatIsGoneByThenIsNotWritten) {
  PackedCache cache(folder(), "checkpoint A");
  auto const spans = parts_.spans();
  std::weak_ptr<void const> const owner = std::exchange(parts_.owner, nullptr);
  cache.keep(kEntry, owner, spans);
  cache.wait_until_written();
  EXPECT_EQ(num_files(), 0U);
}

// As little room as a limit leaves: the write fails as on a full disk.
TEST_F(PackedCacheTest, WithoutRoomNothingIsKeptAndNothingIsLeftBehind) {
  auto const before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  rlimit const small{.rlim_cur = 100'000, .rlim_max = limit.rlim_max};
  PackedCache cache(folder(), "checkpoint A");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  cache.keep(kEntry, parts_.owner, parts_.spans());
  cache.wait_until_written();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, before);
  EXPECT_EQ(num_files(), 0U);
  cache.keep(kEntry, parts_.owner, parts_.spans());
  cache.wait_until_written();
  EXPECT_EQ(num_files(), 0U) << "it was given up";
  keep();
  expect_read(PackedCache(folder(), "checkpoint A"));
}

TEST_F(PackedCacheTest, WhereNoFolderCanBeNothingIsKept) {
  test::write_file(dir_.path() / "made", "a file");
  keep();
  EXPECT_FALSE(PackedCache(folder(), "checkpoint A").read(kEntry, parts_.sizes()));
}

TEST_F(PackedCacheTest, ManyMayKeepAndReadAtOnce) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        PackedCache cache(folder(), "checkpoint A");
        cache.keep(kEntry, parts_.owner, parts_.spans());
        auto const kept = cache.read(kEntry, parts_.sizes());  // perhaps there already
        EXPECT_TRUE(!kept || kept->checksum == parts_.checksum());
        cache.wait_until_written();
        expect_read(cache);
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(num_files(), 1U);
}

}  // namespace
}  // namespace expertmesh
