// One ring: messages of every size round and round, a full one, two threads, two processes, and an other end that
// writes whatever it likes.
#include "common/transport/shm_ring.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/transport/futex.h"

namespace expertmesh {
namespace {

std::vector<std::byte> message_of(std::size_t bytes, std::uint32_t seed) {
  std::vector<std::byte> out(bytes);
  std::minstd_rand random(seed + 1);
  for (std::byte& b : out) b = static_cast<std::byte>(random() >> 8);
  return out;
}

std::vector<std::byte> copy(std::span<std::byte const> bytes) {
  return {bytes.begin(), bytes.end()};
}

// Both ends in one process, with memory around the ring that nobody may touch.
struct Ring {
  static constexpr std::size_t kGuard = 4096;
  explicit Ring(ShmRingShape ring_shape)
      : shape(ring_shape), buffer(shape.memory_bytes() + 2 * kGuard), memory(buffer.span().subspan(kGuard)) {
    memory = memory.first(shape.memory_bytes());
    std::ranges::fill(buffer.span().first(kGuard), std::byte{0x77});
    std::ranges::fill(buffer.span().last(kGuard), std::byte{0x77});
    writer.emplace(memory, shape);
    reader.emplace(memory, shape);
  }
  [[nodiscard]] bool guards_are_whole() const {
    auto const whole = [](std::span<std::byte const> guard) {
      return std::ranges::all_of(guard, [](std::byte b) { return b == std::byte{0x77}; });
    };
    return whole(buffer.span().first(kGuard)) && whole(buffer.span().last(kGuard));
  }
  shm::SlotHead& slot(std::size_t index) {
    return *reinterpret_cast<shm::SlotHead*>(memory.data() + sizeof(shm::RingHead) + index * shape.stride());
  }
  shm::RingHead& head() { return *reinterpret_cast<shm::RingHead*>(memory.data()); }

  ShmRingShape shape;
  AlignedBuffer<std::byte> buffer;
  std::span<std::byte> memory;
  std::optional<ShmRingWriter> writer;
  std::optional<ShmRingReader> reader;
};

TEST(ShmRing, EverySizeComesAsItWentRoundAndRound) {
  for (std::size_t const num_slots : {1U, 2U, 3U, 4U, 7U}) {
    Ring ring({.num_slots = num_slots, .slot_bytes = 1000});
    std::minstd_rand random(1);
    std::deque<std::pair<MessageTag, std::vector<std::byte>>> under_way;
    std::uint32_t written = 0;
    for (std::uint32_t taken = 0; taken < 3000;) {
      if (random() % 2 == 0) {
        std::array constexpr kSizes{0U, 1U, 7U, 63U, 64U, 65U, 127U, 999U, 1000U};
        auto const message = message_of(kSizes[random() % kSizes.size()], written);
        MessageTag const tag(random() % (kMaxTag + 1));
        bool const full = under_way.size() == num_slots;
        ASSERT_EQ(ring.writer->write(tag, message), !full);
        if (full) continue;
        under_way.emplace_back(tag, message);
        ++written;
      } else {
        auto const seen = ring.reader->front();
        ASSERT_EQ(seen.has_value(), !under_way.empty());
        if (!seen) continue;
        ASSERT_EQ(seen->tag, under_way.front().first);
        ASSERT_EQ(copy(seen->bytes), under_way.front().second);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(seen->bytes.data()) % 64, 0U);
        ring.reader->take();
        under_way.pop_front();
        ++taken;
      }
    }
    EXPECT_TRUE(ring.guards_are_whole());
    EXPECT_TRUE(ring.writer->failure().empty() && ring.reader->failure().empty());
  }
}

TEST(ShmRing, ALengthOrTagThatCannotBeIsRefusedForGood) {
  for (auto const& [bytes, tag] : {std::pair<std::uint64_t, std::uint32_t>{101, 0},
                                   {SIZE_MAX, 0},
                                   {std::uint64_t{1} << 32, 0},
                                   {100, kMaxTag + 1},
                                   {0, ~0U}}) {
    Ring ring({.num_slots = 2, .slot_bytes = 100});
    ASSERT_TRUE(ring.writer->write(MessageTag(1), message_of(100, 1)));
    ring.slot(0).bytes = bytes;
    ring.slot(0).tag = tag;
    EXPECT_FALSE(ring.reader->front());
    EXPECT_FALSE(ring.reader->failure().empty());
    ring.slot(0).bytes = 100;  // no way back
    ring.slot(0).tag = 1;
    EXPECT_FALSE(ring.reader->front());
  }
}

TEST(ShmRing, AWrongNumberIsNoMessage) {
  for (std::uint64_t const number : {std::uint64_t{0}, std::uint64_t{2}, std::uint64_t{3}, ~std::uint64_t{0}}) {
    Ring ring({.num_slots = 2, .slot_bytes = 100});
    ASSERT_TRUE(ring.writer->write(MessageTag(1), message_of(100, 1)));
    ring.slot(0).number = number;
    EXPECT_FALSE(ring.reader->front());
    ring.slot(0).number = 1;
    EXPECT_TRUE(ring.reader->front());
  }
}

TEST(ShmRing, ACountOfTakenThatCannotBeIsRefusedForGood) {
  for (std::uint64_t const taken : {std::uint64_t{3}, ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    Ring ring({.num_slots = 2, .slot_bytes = 100});
    ASSERT_TRUE(ring.writer->write(MessageTag(1), {}));
    ASSERT_TRUE(ring.writer->write(MessageTag(1), {}));
    ring.head().taken = taken;
    EXPECT_FALSE(ring.writer->write(MessageTag(1), {}));
    EXPECT_FALSE(ring.writer->failure().empty());
    ring.head().taken = 2;
    EXPECT_FALSE(ring.writer->write(MessageTag(1), {}));
  }
  // Backwards.
  Ring ring({.num_slots = 2, .slot_bytes = 100});
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(ring.writer->write(MessageTag(1), {}));
    if (i == 1) ring.head().taken = 2;
  }
  ASSERT_TRUE(ring.writer->write(MessageTag(1), {}));
  ring.head().taken = 1;
  EXPECT_FALSE(ring.writer->write(MessageTag(1), {}));
  EXPECT_FALSE(ring.writer->failure().empty());
}

// Whatever stands in the memory, what is given lies in it, and nothing outside is written.
TEST(ShmRing, AnyBytesInTheMemoryLeaveBothEndsInIt) {
  std::mt19937_64 random(2);
  std::size_t given = 0;
  for (int round = 0; round < 2000; ++round) {
    Ring ring({.num_slots = 1 + random() % 4, .slot_bytes = random() % 200});
    std::array<std::byte, 200> const message{};
    for (int step = 0; step < 12; ++step) {
      if (random() % 2 == 0) {
        std::size_t const at = random() % (ring.memory.size() / 8) * 8;
        std::uint64_t const value = random() % 3 == 0 ? random() : random() % 5;
        std::memcpy(ring.memory.data() + at, &value, sizeof value);
      }
      (void)ring.writer->write(MessageTag(3), std::span(message).first(ring.shape.slot_bytes));
      if (auto const seen = ring.reader->front()) {
        ++given;
        EXPECT_LE(seen->tag.value(), kMaxTag);
        ASSERT_GE(seen->bytes.data(), ring.memory.data());
        ASSERT_LE(seen->bytes.data() + seen->bytes.size(), ring.memory.data() + ring.memory.size());
        ring.reader->take();
      }
    }
    ASSERT_TRUE(ring.guards_are_whole());
  }
  EXPECT_GT(given, 1000U);
}

constexpr std::uint32_t kMany = 20000;

// The reading end, asleep whenever there is nothing.
void read_many(ShmRingReader& reader) {
  for (std::uint32_t i = 0; i < kMany;) {
    auto const seen = reader.front();
    if (!seen) {
      if (reader.begin_wait()) {
        std::atomic<std::uint32_t>* const word = &reader.waiting();
        futex_wait_for_any({&word, 1}, std::chrono::seconds(5));
        reader.end_wait();
      }
      continue;
    }
    ASSERT_EQ(seen->tag.value(), i % (kMaxTag + 1));
    ASSERT_EQ(copy(seen->bytes), message_of(i % 300, i));
    reader.take();
    ++i;
  }
}

void write_many(ShmRingWriter& writer) {
  for (std::uint32_t i = 0; i < kMany; ++i) {
    auto const message = message_of(i % 300, i);
    while (!writer.write(MessageTag(i % (kMaxTag + 1)), message)) std::this_thread::yield();
    writer.wake_reader();
    if (i % 1000 == 0) std::this_thread::yield();
  }
}

TEST(ShmRing, TwoThreads) {
  Ring ring({.num_slots = 3, .slot_bytes = 300});
  std::thread other([&] { write_many(*ring.writer); });
  read_many(*ring.reader);
  other.join();
  EXPECT_TRUE(ring.guards_are_whole());
}

TEST(ShmRing, TwoProcesses) {
  ShmRingShape const shape{.num_slots = 3, .slot_bytes = 300};
  void* const memory = ::mmap(nullptr, shape.memory_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::span<std::byte> const bytes(static_cast<std::byte*>(memory), shape.memory_bytes());
  pid_t const child = ::fork();
  if (child == 0) {
    ShmRingWriter writer(bytes, shape);
    write_many(writer);
    ::_exit(0);
  }
  ShmRingReader reader(bytes, shape);
  read_many(reader);
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ::munmap(memory, shape.memory_bytes());
}

}  // namespace
}  // namespace expertmesh
